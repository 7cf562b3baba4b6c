"""The batch panel: what it shows is what `mdrn-batch` does."""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mdrn_plugin

pytest.importorskip("napari")
pytest.importorskip("PySide6")

from click.testing import CliRunner

from mdrn_plugin.cli import cli
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, decide_range
from mdrn_plugin.viewer.batch_widget import BatchWidget, Errand, Gate, as_typed

from .conftest import Wait, noisy

pytestmark = pytest.mark.viewer


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.tif", "sub/c.png")):
        pixels = noisy(48, 64, seed=k)
        mdrn_plugin.write(folder / name, Picture(pixels, "YX", decide_range(pixels)))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    return folder


def _panel(viewer: Any, folder: Path) -> BatchWidget:
    widget = BatchWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Folders")
    widget.folder.line_edit.value = str(folder)
    return widget


def _states(widget: BatchWidget) -> dict[str, str]:
    return {row.shown: row.state for row in widget.model.rows}


def test_batch_of_the_panel_equals_the_command_it_shows(
    viewer: Any, wait: Wait, pictures: Path, tmp_path: Path
) -> None:
    widget = _panel(viewer, pictures)
    widget.recursive.value = True
    widget.form.noise.value = "dn"
    widget.form.level.value = 20
    assert wait(lambda: len(widget.model.rows) == 4), widget.status.value
    assert set(_states(widget).values()) == {"waiting"}
    words = shlex.split(widget.command.toPlainText()) if os.name != "nt" else []
    widget.start.native.click()
    assert wait(lambda: not widget._runner.busy)
    by_file = _states(widget)
    assert by_file == {
        "a.png": "done",
        "b.tif": "done",
        os.path.join("sub", "c.png"): "done",
        "broken.png": "failed",
    }
    assert widget.status.value.startswith("3 done, 0 done before, 1 failed")
    failed = next(row for row in widget.model.rows if row.state == "failed")
    assert "get an intact copy" in failed.details
    assert str(pictures) not in failed.details

    assert words[:2] == ["mdrn-batch", "denoise"]
    again = CliRunner().invoke(cli, words[1:])
    assert "3 done before" in again.output
    elsewhere = [str(tmp_path / "by-command") if w == str(pictures) + "-denoised" else w for w in words[1:]]
    CliRunner().invoke(cli, elsewhere)
    for name in ("a.png", "b.tif", "sub/c.png"):
        own = mdrn_plugin.read(Path(f"{pictures}-denoised") / name).pixels
        np.testing.assert_array_equal(own, mdrn_plugin.read(tmp_path / "by-command" / name).pixels)


def test_batch_pauses_goes_on_and_stops(
    viewer: Any, wait: Wait, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin.engine import run as engine

    original, allowed, tiles = engine._run_tile, threading.Semaphore(0), []

    def one_by_one(*args: Any) -> None:
        tiles.append(1)
        allowed.acquire(timeout=10)
        original(*args)

    monkeypatch.setattr(engine, "_run_tile", one_by_one)
    widget = _panel(viewer, pictures)
    widget.recursive.value = True
    widget.start.native.click()
    assert wait(lambda: len(tiles) == 1)
    widget.pause.native.click()
    for _ in range(9):
        allowed.release()
    assert widget.pause.text == "Go on"
    assert not wait(lambda: len(tiles) > 1, 0.6)
    assert widget.status.value == "Paused."
    widget.pause.native.click()
    assert wait(lambda: "done" in _states(widget).values())
    assert wait(lambda: not widget._runner.busy)
    assert widget.start.enabled

    allowed = threading.Semaphore(0)
    tiles.clear()
    widget.overwrite.value = True
    widget.start.native.click()
    assert wait(lambda: len(tiles) == 1)
    widget.stop.native.click()
    allowed.release()
    assert wait(lambda: not widget._runner.busy)
    assert "Stopped" in widget.status.value
    assert len(tiles) == 1
    assert not {"working", "0 %"} & set(_states(widget).values())


def test_batch_that_cannot_start_says_why(
    viewer: Any, wait: Wait, pictures: Path, tmp_path: Path, notices: list[str]
) -> None:
    widget = BatchWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Folders")
    assert "Choose a folder" in widget.status.value
    assert not widget.start.enabled
    (tmp_path / "file").touch()
    widget.folder.line_edit.value = str(pictures)
    widget.out.line_edit.value = str(tmp_path / "file")
    widget.start.native.click()
    assert wait(lambda: not widget._runner.busy and notices)
    assert "cannot be used as output folder" in notices[0]
    widget.out.line_edit.value = str(pictures)
    assert wait(lambda: "output folder itself" in widget.status.value)
    widget.out.line_edit.value = str(tmp_path / "good")
    widget.pattern.value = "*.none"
    assert wait(lambda: widget.status.value.startswith("0 pictures"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), []),
        (
            Options(noise="25", quality="best+", strength=0.5),
            ["--noise", "25", "--quality", "best+", "--strength", "0.5"],
        ),
        (
            Options(noise_model="correlated", model="mine"),
            ["--noise-model", "correlated", "--model", "mine"],
        ),
        (Options(device="cpu", threads=2), ["--device", "cpu", "--threads", "2"]),
    ],
)
def test_command_has_what_differs_from_the_defaults(options: Options, words: list[str]) -> None:
    errand = Errand("-odd in", "out folder", True, True, "*.tif", options)
    command = errand.command()
    assert command[2:8] == ["-o", "out folder", "--recursive", "--pattern", "*.tif", "--overwrite"]
    assert command[8:-2] == words
    assert command[-2:] == ["--", "-odd in"]
    assert "'out folder'" in as_typed(command) or '"out folder"' in as_typed(command)


def test_gate_answers_when_it_is_opened() -> None:
    stopped = threading.Event()
    gate = Gate(stopped.is_set)
    assert not gate()
    gate.pause()
    threading.Timer(0.1, gate.go_on).start()
    assert not gate()
    gate.pause()
    threading.Timer(0.1, stopped.set).start()
    assert gate()
