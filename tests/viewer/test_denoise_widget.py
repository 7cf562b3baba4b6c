"""The denoise panel in a real viewer: every attribute kept, cancelled, failed, closed."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mdrn_plugin

pytest.importorskip("napari")
pytest.importorskip("PySide6")

from mdrn_plugin.viewer import layers, work
from mdrn_plugin.viewer.denoise_widget import ALL, CHOSEN, CURRENT, DenoiseWidget

from .conftest import Wait, noisy

pytestmark = pytest.mark.viewer

AFFINE_2D = [[1.1, 0.1, 3.0], [-0.05, 0.95, -2.0], [0, 0, 1]]


def _panel(viewer: Any) -> DenoiseWidget:
    widget = DenoiseWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Denoise")
    return widget


def _run(widget: DenoiseWidget, wait: Wait) -> None:
    widget.run.native.click()
    assert wait(lambda: not widget._runner.busy), widget.status.value


def _multiscale() -> list[Any]:
    fine = noisy(96, 128)
    return [fine, fine[::2, ::2], fine[::4, ::4]]


def _dask() -> Any:
    return pytest.importorskip("dask.array").from_array(noisy(3, 48, 64), chunks=(1, 48, 64))


def _rgb(samples: int, *lead: int) -> Any:
    return np.stack([noisy(*lead, 48, 64, seed=s) for s in range(samples)], axis=-1)


KINDS: dict[str, Any] = {
    "2D": lambda: (
        noisy(64, 80),
        {
            "scale": (0.5, 0.25),
            "units": ("um", "um"),
            "axis_labels": ("y", "x"),
            "affine": AFFINE_2D,
            "rotate": 30,
        },
    ),
    "2D float": lambda: (noisy(64, 80).astype(np.float32) / 255, {"contrast_limits": (-0.25, 2)}),
    "3D": lambda: (
        noisy(3, 48, 64, dtype=np.uint16),
        {
            "scale": (2, 0.5, 0.5),
            "translate": (10, -3, 4),
            "shear": [0.1, 0.0, 0.2],
            "rotate": (10, 20, 30),
            "units": ("um", "um", "um"),
        },
    ),
    "time-lapse": lambda: (noisy(4, 48, 64), {"axis_labels": ("t", "y", "x"), "scale": (3, 1, 1)}),
    "RGB": lambda: (_rgb(3), {"rgb": True, "scale": (0.1, 0.2)}),
    "RGBA stack": lambda: (_rgb(4, 2), {"rgb": True}),
    "multichannel": lambda: (
        np.stack([noisy(2, 48, 64, sigma=8), noisy(2, 48, 64, sigma=25)]),
        {"axis_labels": ("c", "z", "y", "x")},
    ),
    "multiscale": lambda: (_multiscale(), {"multiscale": True, "scale": (0.3, 0.3), "units": ("nm", "nm")}),
    "dask": lambda: (_dask(), {"translate": (1, 2, 3)}),
    "six dimensions": lambda: (noisy(2, 2, 1, 1, 32, 48), {}),
}
LOOK: dict[str, Any] = {"gamma": 0.7, "blending": "additive", "opacity": 0.6, "interpolation2d": "linear"}


def _value(state: dict[str, Any], key: str) -> Any:
    value = state[key]
    if key == "colormap" and isinstance(value, dict):
        return {k: np.asarray(v).tolist() if k in ("colors", "controls") else v for k, v in value.items()}
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_new_layer_behaves_as_the_first(kind: str, viewer: Any, wait: Wait) -> None:
    data, options = KINDS[kind]()
    look = dict(LOOK)
    if not options.get("rgb"):
        look |= {"colormap": "magma", "contrast_limits": options.pop("contrast_limits", (20, 200))}
    old = viewer.add_image(data, name="old", metadata={"patient": 7}, **options, **look)
    before = untouched = np.array(old.data[0] if old.multiscale else old.data)
    if not old.rgb:
        old.contrast_limits_range = (0, 300)
        old.contrast_limits = look["contrast_limits"]
    widget = _panel(viewer)
    _run(widget, wait)

    assert [layer.name for layer in viewer.layers] == ["old", "old denoised"], widget.status.value
    new = viewer.layers["old denoised"]
    _, wanted, _ = old.as_layer_data_tuple()
    _, found, kind_of_layer = new.as_layer_data_tuple()
    assert kind_of_layer == "image"
    assert found.keys() == wanted.keys()
    for key in wanted.keys() - {"name", "metadata", "custom_interpolation_kernel_2d"}:
        a, b = _value(wanted, key), _value(found, key)
        if isinstance(a, np.ndarray | list | tuple) and key not in ("units", "axis_labels"):
            np.testing.assert_allclose(np.asarray(b, float), np.asarray(a, float), err_msg=key, atol=1e-12)
        else:
            assert a == b, key
    if not old.rgb:
        assert tuple(new.contrast_limits_range) == tuple(old.contrast_limits_range)
    assert new.metadata["patient"] == 7
    assert new.metadata["mdrn"]["version"] == mdrn_plugin.__version__
    assert new.metadata["mdrn"]["steps"][0]["model"].startswith("mdrn-")
    assert new.ndim == old.ndim
    assert new.dtype == old.dtype
    levels = list(new.data) if new.multiscale else [new.data]
    assert [x.shape for x in levels] == [x.shape for x in (old.data if old.multiscale else [old.data])]
    result = np.asarray(levels[0])
    if kind == "RGBA stack":
        np.testing.assert_array_equal(result[..., 3], before[..., 3])
        result, before = result[..., :3], before[..., :3]
    rough = [
        np.abs(np.diff(x.astype(float), axis=-1 if not old.rgb else -2)).mean() for x in (result, before)
    ]
    assert rough[0] < 0.7 * rough[1]
    np.testing.assert_array_equal(np.asarray(old.data[0] if old.multiscale else old.data), untouched)


@pytest.mark.parametrize("source", ["gray", "colour", "stack"])
def test_widget_command_and_python_give_identical_pixels(
    source: str, viewer: Any, wait: Wait, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from mdrn_plugin.cli import cli
    from mdrn_plugin.picture import Picture, decide_range

    pixels = {"gray": lambda: noisy(96, 120), "colour": lambda: _rgb(3), "stack": lambda: noisy(3, 64, 80)}[
        source
    ]()
    axes = {"gray": "YX", "colour": "YXS", "stack": "ZYX"}[source]
    name = "a.tif" if source == "stack" else "a.png"
    mdrn_plugin.write(tmp_path / name, Picture(pixels, axes, decide_range(pixels)))
    done = CliRunner().invoke(
        cli, ["denoise", str(tmp_path / name), "-o", str(tmp_path / "out"), "--quality", "best"]
    )
    assert done.exit_code == 0, done.output
    by_command = mdrn_plugin.read(tmp_path / "out" / name).pixels
    by_python = mdrn_plugin.denoise(pixels, axes=axes, quality="best")

    viewer.add_image(pixels, name="a", rgb=source == "colour")
    widget = _panel(viewer)
    widget.form.quality.value = "best"
    _run(widget, wait)
    by_widget = viewer.layers["a denoised"].data

    np.testing.assert_array_equal(by_widget, by_python)
    np.testing.assert_array_equal(by_widget, np.asarray(by_command).reshape(by_widget.shape))


def test_line_says_noise_and_model_and_follows_layer_and_options(viewer: Any, wait: Wait) -> None:
    viewer.add_image(noisy(128, 128, sigma=20), name="one")
    viewer.add_image(noisy(128, 128, sigma=5), name="two")
    widget = _panel(viewer)
    assert widget.layer.value.name == "two"
    assert wait(lambda: "mdrn-" in widget.finding.value)
    first = widget.finding.value
    widget.layer.value = viewer.layers["one"]
    assert wait(lambda: widget._finding is not None and widget.finding.value != first)
    sigma = 255 * widget._finding.profiles[0].sigma[0]
    assert sigma == pytest.approx(20, abs=2)
    widget.form.noise.value = ""
    widget.form.level.value = 33
    assert wait(lambda: "33" in widget.finding.value)
    viewer.layers["one"].data = noisy(64, 64, sigma=10)
    widget.form.noise.value = "auto"
    assert wait(lambda: widget._finding and widget._finding.picture.shape == (64, 64))


def test_kind_and_model_of_ones_own_can_be_chosen(
    viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mdrn_plugin.zoo import shipped

    monkeypatch.setenv("MDRN_MODELS", str(tmp_path))
    rng = np.random.default_rng(0)
    clean = noisy(192, 192, sigma=0, dtype=np.float64) / 8
    viewer.add_image((16 * rng.poisson(clean)).astype(np.uint16), name="photons")
    widget = _panel(viewer)
    assert wait(lambda: "stabilised" in widget.finding.value), widget.finding.value
    assert "grows with the signal (variance" in widget.finding.value
    widget.form.kind.value = "gaussian"
    assert wait(lambda: "stabilised" not in widget.finding.value and "mdrn-" in widget.finding.value)
    offered = list(widget.form.model.choices)
    assert offered[0] == ""
    assert not [name for name in offered if "raw" in name]
    source = shipped().folder / shipped().get("mdrn-2b-gray-0-90").file
    (tmp_path / source.name).write_bytes(source.read_bytes())
    manifest = json.loads((shipped().folder / "manifest.json").read_text(encoding="utf-8"))
    own = next(m for m in manifest["models"] if m["name"] == "mdrn-2b-gray-0-90") | {"name": "my-own"}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "models": [own]}), encoding="utf-8")
    widget.reset_choices()
    assert [*offered, "my-own"] == list(widget.form.model.choices)
    widget.form.model.value = "my-own"
    assert wait(lambda: "my-own: chosen by the user" in widget.finding.value), widget.finding.value
    _run(widget, wait)
    assert viewer.layers[-1].metadata["mdrn"]["options"]["model"] == "my-own"


def test_only_images_are_offered(viewer: Any, wait: Wait) -> None:
    viewer.add_labels(np.zeros((8, 8), int), name="labels")
    viewer.add_shapes(name="shapes")
    viewer.add_points(name="points")
    widget = _panel(viewer)
    assert not widget.run.enabled
    assert "Open an image" in widget.finding.value
    viewer.add_image(noisy(32, 32), name="image")
    assert [name for name, _ in widget._images()] == ["image"]
    assert widget.layer.value.name == "image"
    assert widget.run.enabled
    viewer.layers.remove("image")
    assert widget.layer.value is None
    assert not widget.run.enabled


@pytest.mark.parametrize(
    ("apply", "along", "shape", "planes"),
    [(CURRENT, "", (1, 1, 32, 40), 1), (CHOSEN, "Z", (1, 2, 32, 40), 2), (ALL, "", (3, 2, 32, 40), 6)],
)
def test_part_of_a_stack_lies_where_it_was(
    apply: str, along: str, shape: tuple[int, ...], planes: int, viewer: Any, wait: Wait
) -> None:
    pixels = noisy(3, 2, 32, 40)
    viewer.add_image(
        pixels, name="a", axis_labels=("t", "z", "y", "x"), scale=(2, 3, 1, 1), translate=(1, 0, 0, 0)
    )
    viewer.dims.set_current_step(0, 2)
    viewer.dims.set_current_step(1, 1)
    widget = _panel(viewer)
    widget.apply.value = apply
    if apply == CHOSEN:
        for box in widget.axes:
            box.value = box.name in along
    _run(widget, wait)
    new = viewer.layers["a denoised"]
    assert new.data.shape == shape
    begin = {CURRENT: (5, 3), CHOSEN: (5, 0), ALL: (1, 0)}[apply]
    np.testing.assert_allclose(new.translate[:2], begin)
    whole = mdrn_plugin.denoise(pixels, axes="TZYX")
    part = {CURRENT: whole[2:, 1:], CHOSEN: whole[2:], ALL: whole}[apply]
    np.testing.assert_array_equal(new.data, part)


def test_preview_shows_the_visible_part_and_leaves_nothing_behind(viewer: Any, wait: Wait) -> None:
    pixels = noisy(3, 90, 120)
    layer = viewer.add_image(pixels, name="a", scale=(1, 0.5, 0.5), rotate=(0, 0, 20))
    viewer.dims.set_current_step(0, 1)
    widget = _panel(viewer)
    assert wait(lambda: widget._finding is not None)
    widget.preview.value = True
    assert wait(lambda: widget._preview_layer is not None)
    shown = widget._preview_layer
    assert shown.name == "MDRN preview"
    assert viewer.layers.selection.active is layer
    view = widget._shown.view
    np.testing.assert_allclose(
        shown.data_to_world((0, 0, 0)), layer.data_to_world((1, view.top, view.left)), atol=1e-9
    )
    widget.split.value = 0
    after = np.array(shown.data)
    widget.split.value = 1
    np.testing.assert_array_equal(
        np.asarray(shown.data)[0], pixels[1, view.top : view.bottom, view.left : view.right]
    )
    assert np.abs(np.diff(after.astype(float))).mean() < np.abs(np.diff(np.asarray(shown.data, float))).mean()
    widget.hold.native.pressed.emit()
    assert not shown.visible
    widget.hold.native.released.emit()
    assert shown.visible
    # Another strength: shown again without being asked.
    widget.split.value = 0
    widget.form.strength.value = 0.3
    assert wait(lambda: not np.array_equal(widget._preview_layer.data, after))
    viewer.dims.set_current_step(0, 2)
    assert wait(lambda: dict(widget._shown.view.part.fixed)["Z"] == 2)
    assert [name for name, _ in widget._images()] == ["a"]
    widget.preview.value = False
    assert [x.name for x in viewer.layers] == ["a"]


def _slowly(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make every tile take a moment; the event is set when the first is done."""
    from mdrn_plugin.engine import run as engine

    original, begun = engine._run_tile, threading.Event()

    def slow(*args: Any) -> None:
        original(*args)
        begun.set()
        time.sleep(0.15)

    monkeypatch.setattr(engine, "_run_tile", slow)
    return begun


def test_cancel_stops_within_a_tile_and_leaves_the_viewer_as_it_was(
    viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.add_image(noisy(40, 48, 48), name="a")
    widget = _panel(viewer)
    assert wait(lambda: widget._finding is not None)
    begun = _slowly(monkeypatch)
    widget.run.native.click()
    assert wait(lambda: begun.is_set() and widget.progress.value > 0)
    told = re.search(r"of (\d+) tiles", widget.progress.native.text())
    assert told is not None
    assert int(told[1]) % 40 == 0  # one a plane; a network may tell of parts of them
    assert not widget.run.enabled
    began = time.monotonic()
    widget.cancel.native.click()
    assert wait(lambda: not widget._runner.busy)
    assert time.monotonic() - began < 2
    assert [x.name for x in viewer.layers] == ["a"]
    assert "Cancelled" in widget.status.value
    assert widget.run.enabled
    assert not widget.cancel.enabled
    monkeypatch.undo()
    widget.apply.value = CURRENT
    _run(widget, wait)
    assert [x.name for x in viewer.layers] == ["a", "a denoised"]


@pytest.mark.parametrize("kind", ["known", "bug", "memory"])
def test_error_of_the_core_is_a_notice_and_the_panel_works_again(
    kind: str, viewer: Any, wait: Wait, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin.errors import WeightsDamaged

    error = {
        "known": WeightsDamaged("weights.safetensors: the file is damaged; reinstall mdrn-plugin"),
        "bug": ZeroDivisionError("division by zero"),
        "memory": MemoryError(),
    }[kind]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    viewer.add_image(noisy(48, 48), name="a")
    widget = _panel(viewer)
    assert wait(lambda: widget._finding is not None)
    with monkeypatch.context() as patch:
        patch.setattr("mdrn_plugin.pipeline.carry_out", fail)
        _run(widget, wait)
    words = {"known": "file is damaged", "bug": "report this as a bug", "memory": "not enough memory"}
    assert len(notices) == 1
    assert notices[0].startswith("MDRN: ")
    assert words[kind] in notices[0]
    assert "Traceback" not in notices[0]
    assert [x.name for x in viewer.layers] == ["a"]
    _run(widget, wait)
    assert [x.name for x in viewer.layers] == ["a", "a denoised"]


def test_impossible_wish_is_refused_in_words(
    viewer: Any, wait: Wait, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin.viewer.preferences import Preferences

    monkeypatch.setattr("mdrn_plugin.viewer.preferences.load", lambda: Preferences(device="abacus"))
    viewer.add_image(noisy(16, 16), name="a")
    widget = _panel(viewer)
    assert wait(lambda: "abacus" in widget.finding.value)
    _run(widget, wait)
    assert any("abacus" in notice for notice in notices)
    assert "abacus" in widget.status.value


def test_residual_is_what_was_removed(viewer: Any, wait: Wait) -> None:
    pixels = noisy(64, 64)
    viewer.add_image(pixels, name="a", scale=(2, 2))
    widget = _panel(viewer)
    widget.residual.value = True
    _run(widget, wait)
    removed = viewer.layers["a removed"]
    expected = pixels.astype(np.float32) - viewer.layers["a denoised"].data
    np.testing.assert_array_equal(removed.data, expected)
    assert tuple(removed.scale) == (2, 2)
    assert widget.verdict.value.startswith(("Looks right", "Please check", "Do not trust"))
    assert "Removed:" in widget.verdict.value


def test_nothing_to_do_gives_an_equal_layer(viewer: Any, wait: Wait) -> None:
    pixels = noisy(48, 48)
    viewer.add_image(pixels, name="a")
    widget = _panel(viewer)
    widget.form.strength.value = 0
    _run(widget, wait)
    np.testing.assert_array_equal(viewer.layers["a denoised"].data, pixels)


def test_chosen_layer_may_go_during_a_run(viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer.add_image(noisy(6, 48, 48), name="a")
    widget = _panel(viewer)
    begun = _slowly(monkeypatch)
    widget.run.native.click()
    assert wait(begun.is_set)
    viewer.layers.remove("a")
    assert wait(lambda: not widget._runner.busy)
    assert [x.name for x in viewer.layers] == ["a denoised"]


@pytest.mark.parametrize("what", ["viewer", "panel"])
def test_closing_during_a_run_ends_the_worker(
    what: str, _viewer: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    import napari
    from superqt.utils._qthreading import WorkerBase

    viewer = napari.Viewer(show=False)
    viewer.add_image(noisy(60, 48, 48), name="a")
    widget = DenoiseWidget(viewer)
    dock = viewer.window.add_dock_widget(widget, name="Denoise")
    widget.preview.value = True
    begun = _slowly(monkeypatch)
    widget.run.native.click()
    assert wait(lambda: begun.is_set() and widget.progress.value > 0)
    began = time.monotonic()
    if what == "viewer":
        viewer.close()
    else:
        viewer.window.remove_dock_widget(dock)
        dock.deleteLater()
        widget.native.deleteLater()
    assert wait(lambda: not WorkerBase._worker_set, 20)
    assert time.monotonic() - began < 5  # of nine seconds that were left
    assert widget._closed
    if what == "panel":
        assert [x.name for x in viewer.layers] == ["a"]
        viewer.close()
    assert notices == []


def test_remaining_time_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from mdrn_plugin.viewer import running

    clock = iter([100.0, 110.0])
    monkeypatch.setattr(running.time, "perf_counter", lambda: next(clock))
    gauge = running.Gauge()
    assert gauge.text() == "Starting …"
    gauge(1, 41)
    gauge(5, 41)
    assert gauge.text() == "5 of 41 tiles, 1 min 30 s left"
    assert [running.duration(s) for s in (0.2, 59, 3700)] == ["1 s", "59 s", "1 h 1 min"]


def test_view_without_a_picture_on_it_has_no_preview(viewer: Any) -> None:
    layer = viewer.add_image(noisy(64, 64), name="a")
    widget = _panel(viewer)
    layer.corner_pixels = np.array([[63, 63], [63, 63]])
    assert widget.view(layer, layers.source_of(layer)) is None
    layer.corner_pixels = np.array([[10, 0], [19, 29]])
    view = widget.view(layer, layers.source_of(layer))
    assert view is not None
    assert dataclasses.astuple(view)[1:] == (10, 0, 20, 30)
    assert work.PREVIEW_SIDE >= 512
