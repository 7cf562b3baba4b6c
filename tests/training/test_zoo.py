"""`mdrn-train zoo`: the order of need, what is skipped, and a kill in the middle."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mdrn_plugin.errors import BadOption
from mdrn_plugin.training.command import main
from mdrn_plugin.training.zoo import order
from mdrn_plugin.zoo import open_zoo

from .conftest import TINY, read_log, to_toml

if TYPE_CHECKING:
    from mdrn_plugin.training.recipe import Recipe

WIDE = dataclasses.replace(TINY, name="a-wide", steps=60, band_255=(0, 50), sigma_255=(0, 50))
LOW = dataclasses.replace(TINY, name="b-low", init="a-wide", steps=20)
HIGH = dataclasses.replace(
    TINY,
    name="a-high",  # first by name, last by need
    init="a-wide",
    steps=20,
    sigma_255=(30, 50),
    band_255=(30, 50),
    validate_sigma_255=(40,),
    distillation="hmds",
    teacher="b-low",
    teacher_sigma_255=(20, 30),
    kdl_weight=0.1,
)


def _recipes(folder: Path, *recipes: Recipe) -> Path:
    folder.mkdir()
    for recipe in recipes:
        to_toml(recipe, folder / f"{recipe.name}.toml")
    return folder


def _command(tmp_path: Path, pictures: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "mdrn_plugin.training", "zoo", "--threads", "1", "--data", str(pictures)]
    return [*command, "--out", str(tmp_path / "runs"), *more]


def test_order_is_of_need() -> None:
    names = [recipe.name for recipe in order("*", Path("nowhere"))]
    assert len(names) == len(set(names)) >= 13
    for recipe in order("*", Path("nowhere")):
        for other in (recipe.init, recipe.teacher):
            assert not other or names.index(other) < names.index(recipe.name)


def test_order_takes_in_what_nobody_has(tmp_path: Path) -> None:
    folder = _recipes(tmp_path / "recipes", WIDE, LOW, HIGH)
    paths = [str(path) for path in folder.glob("*.toml")]
    runs = tmp_path / "runs"
    assert [r.name for r in order("a-high", runs, paths)] == ["a-wide", "b-low", "a-high"]
    (runs / "a-wide").mkdir(parents=True)
    (runs / "a-wide/a-wide.safetensors").touch()
    assert [r.name for r in order("a-high", runs, paths)] == ["b-low", "a-high"]
    with pytest.raises(BadOption, match="no recipe matches"):
        order("c-*", runs, paths)


def test_order_refuses_a_circle_and_an_unknown_need(tmp_path: Path) -> None:
    wide = dataclasses.replace(WIDE, init="b-low")
    paths = [str(p) for p in _recipes(tmp_path / "circle", wide, LOW).glob("*.toml")]
    with pytest.raises(BadOption, match="in a circle: a-wide -> b-low -> a-wide"):
        order("a-*", tmp_path, paths)
    paths = [str(p) for p in _recipes(tmp_path / "alone", LOW).glob("*.toml")]
    with pytest.raises(BadOption, match="'a-wide': no weights found"):
        order("*", tmp_path, paths)


def test_zoo_killed_goes_on_and_skips_what_is_done(pictures: Path, tmp_path: Path) -> None:
    low = dataclasses.replace(LOW, tier="stage")
    folder = _recipes(tmp_path / "recipes", WIDE, low, HIGH)
    command = _command(tmp_path, pictures, "--recipes", str(folder), "--checkpoint-minutes", "0")
    command += ["--ship", str(tmp_path / "weights")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    log = tmp_path / "runs/a-wide/log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file() or read_log(log.parent)[-1]["step"] < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "runs/a-wide/entry.json").exists()

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "a-wide: resumed at step" in second.stderr
    rows = [line.split() for line in second.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [(n, "trained") for n in ("a-wide", "b-low", "a-high")]
    assert all((tmp_path / "runs" / row[0] / "curve.png").is_file() for row in rows)
    zoo = open_zoo(tmp_path / "weights")
    high = zoo.get("a-high")
    assert (high.teacher, high.distillation) == ("b-low", "hmds")
    assert [d.name for d in zoo.descriptors] == ["a-high", "a-wide"]  # a stage does not ship

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    third = subprocess.run(command, capture_output=True, text=True)
    assert third.returncode == 0
    assert third.stdout.count("done before") == 3
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_zoo_a_failure_leaves_out_only_those_that_need_it(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = dataclasses.replace(TINY, name="c-deep", blocks=2, steps=20)
    shallow = dataclasses.replace(LOW, name="d-shallow", init="c-deep", blocks=1)
    needs_it = dataclasses.replace(LOW, name="e-shallow", init="d-shallow", blocks=1)
    folder = _recipes(tmp_path / "recipes", deep, shallow, needs_it)
    command = _command(tmp_path, pictures, "--recipes", str(folder))
    assert main(command[3:]) == 3
    outcomes = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert outcomes == [["c-deep", "trained"], ["d-shallow", "failed"], ["e-shallow", "left"]]


def test_zoo_dry_run_only_says_it(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_command(tmp_path, pictures, "--only", "mdrn-2b-gray-*", "--dry-run")[3:]]) == 0
    assert capsys.readouterr().out.split()[0] == "mdrn-2b-gray-0-90"
    assert not (tmp_path / "runs").exists()


def test_two_trainings_in_one_folder_the_second_is_refused(pictures: Path, tmp_path: Path) -> None:
    recipe = to_toml(dataclasses.replace(TINY, steps=100000), tmp_path / "tiny.toml")
    command: list[Any] = [sys.executable, "-m", "mdrn_plugin.training", "run", recipe, "--data", pictures]
    command += ["--out", tmp_path / "run", "--threads", "1"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    first.stderr.readline()  # it is at work
    second = subprocess.run(command, capture_output=True, text=True)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.returncode == 2
    assert "another training is at work there" in second.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_zoo_shipped_recipes_a_minute_each_killed_half_way(pictures: Path, tmp_path: Path) -> None:
    command = _command(tmp_path, pictures, "--only", "mdrn-2b-gray-*", "--minutes-per-model", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    time.sleep(150)
    process.kill()
    process.wait()
    done = sorted(p.parent.name for p in (tmp_path / "runs").glob("*/entry.json"))
    assert done
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    rows = {line.split()[0]: " ".join(line.split()[1:3]) for line in second.stdout.splitlines()[1:]}
    assert sorted(n for n, outcome in rows.items() if outcome == "done before") == done
    assert len(rows) >= 6
