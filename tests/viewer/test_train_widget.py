"""The training panel in a real viewer; the training itself is stood in for."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

import mdrn_plugin

pytest.importorskip("napari")
pytest.importorskip("PySide6")

from mdrn_plugin.errors import BadOption
from mdrn_plugin.training.selfsupervised import Learnt
from mdrn_plugin.viewer.denoise_widget import DenoiseWidget
from mdrn_plugin.viewer.train_widget import TrainWidget

from .conftest import Wait, noisy

pytestmark = pytest.mark.viewer

LEARNT = Learnt({}, 21.0, 30.0, 30.5, 30.2, True, False)


def _panel(viewer: Any) -> TrainWidget:
    widget = TrainWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Train")
    return widget


def test_layer_is_learnt_from_and_the_new_model_is_offered(
    viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def learn(sources: Any, name: str, **how: Any) -> Learnt:
        asked.update(how, sources=sources, name=name)
        how["progress"]("noise", 3, 10)
        return LEARNT

    monkeypatch.setattr(mdrn_plugin, "train_on", learn)
    layer = viewer.add_image(noisy(3, 32, 48), name="stack")
    other = DenoiseWidget(viewer)
    viewer.window.add_dock_widget(other, name="Denoise")
    refreshed: list[int] = []
    monkeypatch.setattr(other.form, "refresh", lambda: refreshed.append(1))
    widget = _panel(viewer)
    widget.model_name.value, widget.minutes.value = "mine", 7
    refreshed.clear()
    widget.train.native.click()
    assert widget.cancel.enabled
    assert not widget.train.enabled
    assert wait(lambda: not widget._runner.busy)
    assert (asked["name"], asked["minutes"]) == ("mine", 7.0)
    (picture,) = asked["sources"]
    assert (picture.axes, picture.shape) == ("ZYX", layer.data.shape)
    assert "0.50 dB better" in widget.status.value
    assert "mine" in widget.status.value
    assert widget.train.enabled
    assert refreshed


def test_folder_is_learnt_from_before_the_layer(
    viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def learn(sources: Any, name: str, **_: Any) -> Learnt:
        asked.extend(sources)
        raise BadOption("no picture of at least 64x64 pixels to learn from; give larger pictures")

    monkeypatch.setattr(mdrn_plugin, "train_on", learn)
    for name in ("b.tif", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    viewer.add_image(noisy(32, 48))
    widget = _panel(viewer)
    widget.folder.line_edit.value = str(tmp_path)
    widget.train.native.click()
    assert wait(lambda: not widget._runner.busy)
    assert [p.name for p in asked] == ["a.png", "b.tif"]
    assert "give larger pictures" in widget.status.value
    widget.folder.line_edit.value = str(tmp_path / "gone")
    widget.train.native.click()
    assert "no such folder" in widget.status.value


def test_cancel_ends_the_training_at_its_next_step(
    viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def learn(*_: Any, progress: Any, **__: Any) -> Learnt:
        begun.set()
        for step in range(10_000):
            time.sleep(0.001)
            progress("mean", step, 10_000)
        return LEARNT

    monkeypatch.setattr(mdrn_plugin, "train_on", learn)
    viewer.add_image(noisy(32, 48))
    widget = _panel(viewer)
    widget.train.native.click()
    assert wait(begun.is_set)
    widget.cancel.native.click()
    assert wait(lambda: not widget._runner.busy, 5)
    assert "Cancelled" in widget.status.value
    assert widget.train.enabled
