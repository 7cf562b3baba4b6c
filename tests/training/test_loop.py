"""Training runs: resumed equals unbroken, a divergence is survived, the result can ship."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mdrn_plugin
from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.training import loop
from mdrn_plugin.training.command import main
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.loop import RunOptions, build_network, choose_steps, convert_colours, rate_at, train
from mdrn_plugin.training.recipe import load_recipe, recipe_names
from mdrn_plugin.zoo import open_zoo

from .conftest import TINY, read_log, to_toml


def test_train_killed_and_resumed_equals_unbroken(pictures: Path, tmp_path: Path) -> None:
    recipe = to_toml(TINY, tmp_path / "tiny.toml")
    command = [sys.executable, "-m", "mdrn_plugin.training", "run", str(recipe), "--data", str(pictures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment}
    whole = subprocess.run([*command, "--out", str(tmp_path / "a/run")], **options)
    assert whole.returncode == 0, whole.stderr
    broken = [*command, "--out", str(tmp_path / "b/run"), "--checkpoint-minutes", "0"]
    killed = subprocess.run([*broken, "--stop-after-step", "17"], **options)
    assert killed.returncode == -signal.SIGKILL
    resumed = subprocess.run(broken, **options)
    assert "resumed at step 10 of 30" in resumed.stderr
    assert read_log(tmp_path / "a/run") == read_log(tmp_path / "b/run")
    name = "mdrn-1b-gray-20-30.safetensors"
    assert (tmp_path / "a/run" / name).read_bytes() == (tmp_path / "b/run" / name).read_bytes()


def test_train_for_some_time_killed_before_any_checkpoint_has_the_same_log(
    pictures: Path, tmp_path: Path
) -> None:
    recipe = to_toml(dataclasses.replace(TINY, warm_up=30), tmp_path / "tiny.toml")
    command = [sys.executable, "-m", "mdrn_plugin.training", "run", str(recipe), "--data", str(pictures)]
    command += ["--threads", "1"]
    broken = [*command, "--minutes", "0.001", "--out", str(tmp_path / "broken")]
    killed = subprocess.run([*broken, "--stop-after-step", "37"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert subprocess.run(broken, capture_output=True).returncode == 0
    log = read_log(tmp_path / "broken")
    steps = next(line["steps"] for line in log if "steps" in line)
    subprocess.run([*command, "--steps", str(steps), "--out", str(tmp_path / "whole")], check=True)
    assert [line for line in log if "steps" not in line] == read_log(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_train_two_minutes_killed_and_resumed_has_the_losses_of_an_unbroken_run(
    pictures: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mdrn_plugin.training", "run", "mdrn-2b-gray-0-90", "--threads", "1"]
    command += ["--data", str(pictures)]
    broken = [*command, "--minutes", "2", "--out", str(tmp_path / "broken")]
    process = subprocess.Popen(broken, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "broken/log.jsonl"
    while not log.is_file():  # written when the number of steps is known
        assert process.poll() is None
        time.sleep(0.1)
    steps = next(line["steps"] for line in read_log(log.parent) if "steps" in line)
    time.sleep(45)
    process.kill()
    process.communicate()
    resumed = subprocess.run(broken, capture_output=True, text=True)
    assert re.search(rf"resumed at step \d+ of {steps}\b", resumed.stderr)
    whole = subprocess.run([*command, "--steps", str(steps), "--out", str(tmp_path / "whole")])
    assert whole.returncode == resumed.returncode == 0

    def losses(run: str) -> list[Any]:
        return [(line["step"], line["loss"]) for line in read_log(tmp_path / run) if "loss" in line]

    assert len(losses("whole")) == steps // 10
    assert losses("broken") == losses("whole")


def test_train_interrupted_saves_and_says_how_to_go_on(pictures: Path, tmp_path: Path) -> None:
    recipe = to_toml(dataclasses.replace(TINY, steps=100000), tmp_path / "tiny.toml")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "mdrn_plugin.training", "run", str(recipe)]
    command += ["--data", str(pictures), "--out", str(run), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "psnr" not in (line := process.stderr.readline()):  # the first validation: the loop is running
        assert line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in err
    assert (run / "state.safetensors").is_file()
    assert len(read_log(run)) >= 2


def test_train_learns_and_its_result_ships(pictures: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pack = open_pack(pictures, tmp_path / "cache")
    recipe = dataclasses.replace(TINY, steps=60, ema=0.9)
    train(recipe, pack, RunOptions(tmp_path / "run"))
    losses = [line["loss"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert (tmp_path / "run/curve.png").stat().st_size > 1000
    entry = json.loads((tmp_path / "run/entry.json").read_text())
    assert entry["training"]["validation"].keys() == {"25"}
    assert entry["training"]["steps"] == 60
    weights = tmp_path / "weights"
    weights.mkdir()
    recipe_file = to_toml(recipe, tmp_path / "mdrn-1b-gray-20-30.toml")
    assert (
        main(["ship", str(tmp_path / "run"), "--weights", str(weights), "--recipes", str(recipe_file.parent)])
        == 0
    )
    zoo = open_zoo(weights)
    assert zoo.get("mdrn-1b-gray-20-30").band_255 == (20, 30)
    assert zoo.get("mdrn-1b-gray-20-30").halo == 48
    trained = load_file(tmp_path / "run/mdrn-1b-gray-20-30.safetensors")
    assert all(v.dtype == torch.float16 for v in trained.values())
    zoo.load("mdrn-1b-gray-20-30")


def test_train_divergence_steps_back_and_halves_the_rate(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.get_loss("l1"), []

    def bursting(x: Any, y: Any, sigma: Any) -> Any:
        calls.append(1)
        return real(x, y, sigma) * (float("nan") if len(calls) == 25 else 1)

    monkeypatch.setattr(loop, "get_loss", lambda name: bursting)
    pack = open_pack(pictures, tmp_path / "cache")
    train(TINY, pack, RunOptions(tmp_path / "run", checkpoint_minutes=0))
    log = read_log(tmp_path / "run")
    assert [line["rate_factor"] for line in log if "rate_factor" in line] == [0.5]
    assert log[-1]["step"] == 30
    assert len(calls) == 30 + 5  # the steps since the checkpoint at 20 were done again


def test_train_divergence_without_checkpoint_says_what_to_do(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "get_loss", lambda name: lambda x, y, sigma: (x * float("nan")).mean())
    with pytest.raises(CannotRead, match="lower the rates"):
        train(TINY, open_pack(pictures, tmp_path / "cache"), RunOptions(tmp_path / "run"))


def test_clip_norm_shortens_what_adam_sees(pictures: Path, tmp_path: Path) -> None:
    """A gradient far below Adam's epsilon hardly moves the biases; Muon does not mind its length."""
    pack, moved = open_pack(pictures, tmp_path / "cache"), {}
    for clip in (0.0, 1e-11):
        recipe = dataclasses.replace(TINY, steps=10, clip_norm=clip, ema=0.0)
        path = train(recipe, pack, RunOptions(tmp_path / f"run{clip}"))
        weights = load_file(path)
        moved[clip] = max(float(v.float().abs().max()) for k, v in weights.items() if k.endswith(".bias"))
    assert moved[1e-11] < 0.1 * moved[0.0]


def test_resume_with_another_recipe_is_refused(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    short = dataclasses.replace(TINY, steps=10)
    train(short, pack, RunOptions(tmp_path / "run"))
    with pytest.raises(BadOption, match="--no-resume"):
        train(dataclasses.replace(short, seed=2), pack, RunOptions(tmp_path / "run"))


def test_minutes_choose_the_steps_once_and_keep_them(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    recipe = dataclasses.replace(TINY, warm_up=30)
    began = time.monotonic()
    train(recipe, pack, RunOptions(tmp_path / "run", minutes=0.02))
    chosen = [line["steps"] for line in read_log(tmp_path / "run") if "steps" in line]
    assert chosen == [read_log(tmp_path / "run")[-1]["step"]]
    assert chosen[0] >= 40
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("minutes", "seconds", "steps"), [(2, 0.61, 190), (2, 0.62, 190), (60, 0.7, 5100), (0.001, 1, 110)]
)
def test_choose_steps_two_digits(minutes: float, seconds: float, steps: int) -> None:
    assert choose_steps(minutes, seconds, 100) == steps


def test_rate_at_warms_up_and_ends_at_zero() -> None:
    rates = [rate_at(step, 200, 20) for step in range(200)]
    assert rates[0] == pytest.approx(1 / 20)
    assert max(rates) == rates[19] == rates[20] == 1
    assert rates[-1] < 1e-3
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_build_network_starts_as_the_identity() -> None:
    network, x = build_network(TINY), torch.rand(1, 1, 16, 16)
    assert torch.equal(network(x), x)


def test_convert_colours_gray_model_starts_a_colour_one() -> None:
    gray = build_network(TINY)
    torch.nn.init.normal_(gray.tail.weight, std=0.1)
    colour = build_network(dataclasses.replace(TINY, colours=3))
    colour.load_state_dict(convert_colours(dict(gray.state_dict()), 3))
    gray, colour, x = gray.double(), colour.double(), torch.rand(1, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = gray(x).expand(-1, 3, -1, -1)
        torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-4)
    back = convert_colours(dict(colour.state_dict()), 1)
    for name, value in gray.state_dict().items():
        torch.testing.assert_close(back[name], value)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_convert_colours_gray_from_colour_is_the_mean_over_equal_channels(unshuffle: int) -> None:
    torch.manual_seed(0)
    colour, gray = (MDRN(c, 1, channels=16, unshuffle=unshuffle).double() for c in (3, 1))
    gray.load_state_dict(convert_colours(dict(colour.state_dict()), 1, unshuffle))
    x = torch.rand(1, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = colour(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        torch.testing.assert_close(gray(x), expected, rtol=0, atol=1e-12)
        colour.load_state_dict(convert_colours(dict(gray.state_dict()), 3, unshuffle))
        equal = gray(x).expand(-1, 3, -1, -1)
        torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), equal, rtol=0, atol=1e-12)


def test_convert_colours_leaves_or_refuses_what_is_of_another_kind() -> None:
    fast = dict(MDRN(1, 1, channels=32, unshuffle=2).state_dict())
    assert convert_colours(fast, 1, 2) is fast
    for colours, unshuffle in [(1, 3), (3, 1), (1, 1)]:  # 4 channels of the first layer
        with pytest.raises(BadOption, match="choose another init"):
            convert_colours(fast, colours, unshuffle)


def test_every_recipe_is_sound() -> None:
    names = recipe_names()
    assert len(names) >= 12
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.sigma_255[0] <= recipe.band_255[0]
        assert recipe.sigma_255[1] >= recipe.band_255[1]
        assert not recipe.init or recipe.init in names
        assert all(recipe.band_255[0] <= s <= recipe.band_255[1] for s in recipe.validate_sigma_255)


@pytest.mark.parametrize(
    ("text", "message"),
    [("colours = ", "not valid TOML"), ("colour = 1", "unknown key 'colour'"), ("colours = 1", "missing")],
)
def test_load_recipe_bad_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(BadOption, match=message):
        load_recipe(str(path))


def test_load_recipe_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(BadOption, match="mdrn-2b-gray-0-90"):
        load_recipe("mdrn-9b")


def test_command_interrupted_before_it_trains_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("mdrn_plugin.training.recipe.recipe_names", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "mdrn-train: interrupted\n"


def test_command_lists_recipes_and_refuses_kindly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes"]) == 0
    assert "mdrn-2b-colour-35-60" in capsys.readouterr().out
    assert (
        main(["run", "mdrn-2b-gray-0-90", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "r")])
        == 2
    )
    assert "expected a folder" in capsys.readouterr().err
    assert main(["run", "mdrn-2b-gray-0-10", "--data", str(tmp_path), "--init", "nobody"]) == 2
    assert "train that model first" in capsys.readouterr().err
    assert main(["run", "mdrn-2b-gray-0-90", "--data", str(tmp_path), "--teacher", "mdrn-2b-gray-10-20"]) == 2
    assert "has no distillation" in capsys.readouterr().err


def test_training_runs_from_a_bare_tree(root: Path, tmp_path: Path) -> None:
    """With nothing installed but torch, numpy and safetensors: no click, no Pillow, no package."""
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'editable' not in p]; "
        "sys.modules['click'] = sys.modules['PIL'] = sys.modules['tifffile'] = None; "
        "from training.command import main; sys.exit(main(['recipes']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mdrn-2b-gray-0-90" in done.stdout


def test_training_imports_leave_the_package_light() -> None:
    assert "torch" in sys.modules  # this test module needs it; the package door must not
    done = subprocess.run(
        [sys.executable, "-c", "import mdrn_plugin.training.command, sys; sys.exit('torch' in sys.modules)"]
    )
    assert done.returncode == 0
    assert mdrn_plugin.__version__
