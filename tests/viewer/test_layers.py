"""Layers to pictures and back: pure functions, no viewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image

from mdrn_plugin.options import Options
from mdrn_plugin.viewer import layers, work
from mdrn_plugin.viewer.layers import Part

from .conftest import noisy


def _never() -> bool:
    return False


@pytest.mark.parametrize(
    ("labels", "ndim", "rgb", "axes"),
    [
        ((), 2, False, "YX"),
        (("axis -3", "axis -2", "axis -1"), 3, False, "ZYX"),
        (("t", "y", "x"), 3, False, "TYX"),
        (("Time", "Y", "X"), 3, False, "TYX"),
        (("channel", "axis -2", "axis -1"), 3, False, "CYX"),
        (("z", "y", "x", "c"), 4, False, "ZYXC"),
        (("a", "b", "y", "x"), 4, False, "TZYX"),
        (("z", "z", "y", "x"), 4, False, "TZYX"),
        ((), 5, False, "TZCYX"),
        ((), 6, False, "TZCYX"),
        ((), 2, True, "YXS"),
        (("t", "y", "x"), 3, True, "TYXS"),
    ],
)
def test_axes_of_names_and_numbers(labels: tuple[str, ...], ndim: int, rgb: bool, axes: str) -> None:
    assert layers.axes_of(labels, ndim, rgb) == axes


def test_axes_of_unnamed_layers_are_those_of_the_python_function() -> None:
    import mdrn_plugin

    for ndim in (2, 3, 4, 5):
        array = np.zeros((1,) * (ndim - 2) + (8, 8))
        assert layers.axes_of((), ndim, False) == mdrn_plugin._guess_axes(array)


@pytest.mark.parametrize("kind", ["numpy", "dask", "memmap", "zarr", "xarray"])
def test_source_of_reads_nothing_of_lazy_data(kind: str, tmp_path: Any) -> None:
    pixels = noisy(3, 32, 40)
    data: Any = pixels
    if kind == "dask":
        data = pytest.importorskip("dask.array").from_array(pixels, chunks=(1, 32, 40))
    elif kind == "memmap":
        data = np.memmap(tmp_path / "a", np.uint8, "w+", shape=pixels.shape)
        data[:] = pixels
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        data = zarr.create_array(str(tmp_path / "a.zarr"), data=pixels, chunks=(1, 32, 40))
    elif kind == "xarray":
        data = pytest.importorskip("xarray").DataArray(pixels, dims=("z", "y", "x"))
    source = layers.source_of(Image(data))
    assert source.lazy == (kind in ("dask", "memmap", "zarr"))
    picture = layers.as_picture(source)
    assert (picture.range.black, picture.range.white) == (0, 255)
    np.testing.assert_array_equal(np.asarray(layers.cut(picture, Part((("Z", 1),))).pixels), pixels[1:2])


def test_range_of_a_layer_is_what_its_reader_found() -> None:
    layer = Image(noisy(16, 16, dtype=np.uint16), metadata={layers.RANGE: (0, 4095, "as the file says")})
    assert layers.as_picture(layers.source_of(layer)).range.white == 4095
    layer.metadata[layers.RANGE] = "nonsense"
    assert layers.as_picture(layers.source_of(layer)).range.white == 65535


def test_range_of_lazy_integers_is_never_narrower_than_the_type() -> None:
    dask = pytest.importorskip("dask.array")
    pixels = noisy(3, 16, 16).astype(np.uint16)
    pixels[0] = 4095
    lazy = layers.as_picture(layers.source_of(Image(dask.from_array(pixels))))
    assert lazy.range.white == 65535


def test_part_keeps_the_position_on_axes_that_are_not_run_along() -> None:
    source = layers.source_of(Image(np.zeros((4, 3, 2, 8, 9))))
    assert layers.part_of(source, {"T": 2, "Z": 9, "C": -1}, "").fixed == (("T", 2), ("Z", 2), ("C", 0))
    assert layers.part_of(source, {"T": 2, "Z": 1}, "ZC").fixed == (("T", 2),)
    picture = layers.cut(layers.as_picture(source), Part((("T", 2), ("C", 1))))
    assert picture.shape == (1, 3, 1, 8, 9)


def test_part_of_one_channel_takes_its_step_of_the_plan() -> None:
    pixels = np.stack([noisy(64, 64, sigma=5), noisy(64, 64, sigma=30)])
    source = layers.source_of(Image(pixels, axis_labels=("c", "y", "x")))
    finding = work.examine(source, Options(), None, _never)
    plan, profiles = layers.plan_for(finding.plan, finding.profiles, Part((("C", 1),)))
    assert len(plan.steps) == len(profiles) == 1
    assert 255 * profiles[0].sigma[0] == pytest.approx(30, abs=3)


def test_position_in_a_transformed_layer() -> None:
    layer = Image(np.zeros((10, 4, 8, 8)), scale=(2, 0.5, 1, 1), translate=(100, 0, 5, 5))
    source = layers.source_of(layer)
    assert layers.position_in(layer, source, (106, 1.5, 0, 0)) == {"T": 3, "Z": 3}


def test_six_dimensions_are_merged_and_come_back() -> None:
    pixels = noisy(2, 3, 2, 1, 32, 32)
    source = layers.source_of(Image(pixels))
    assert (source.axes, source.merged) == ("TZCYX", (2, 3))
    assert source.pixels.shape == (6, 2, 1, 32, 32)
    np.testing.assert_array_equal(np.asarray(source.pixels[4, 1, 0]), pixels[1, 1, 1, 0])
    made = work.run(
        work.examine(source, Options(noise="20"), None, _never), Options(noise="20"), Part(), stop=_never
    )
    assert made.levels[0].shape == pixels.shape
    part = Part((("T", 4), ("Z", 0), ("C", 0)))
    assert layers.offset_of(Image(pixels), source, part) == (1, 1, 0, 0, 0, 0)
    assert layers.unmerged(np.zeros((1, 1, 1, 4, 4)), source, part).shape == (1, 1, 1, 1, 4, 4)


def test_moved_layer_lies_where_the_pixel_was() -> None:
    rng = np.random.default_rng(3)
    affine = np.eye(4)
    affine[:3, :3] += rng.normal(0, 0.1, (3, 3))
    layer = Image(
        np.zeros((5, 8, 9)),
        scale=(3, 0.2, 0.3),
        translate=(1, 2, 3),
        rotate=20,
        shear=[0.1, 0, 0.2],
        affine=affine,
    )
    source = layers.source_of(layer)
    state = layers.attributes(layer, source, Part((("Z", 3),)), name="new")
    new = Image(np.zeros((1, 8, 9)), **state)
    for pixel in ((0, 0, 0), (0, 5, 7)):
        old = layer.data_to_world((pixel[0] + 3, *pixel[1:]))
        np.testing.assert_allclose(new.data_to_world(pixel), old, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_pyramid_levels_are_means_of_the_shapes_asked_for(dtype: Any) -> None:
    fine = (noisy(2, 21, 30) > 120).astype(dtype) if dtype == np.bool_ else noisy(2, 21, 30).astype(dtype)
    levels = layers.pyramid(fine, "ZYX", [(2, 21, 30), (2, 10, 15), (1, 5, 7)])
    assert [level.shape for level in levels] == [(2, 21, 30), (2, 10, 15), (1, 5, 7)]
    assert all(level.dtype == dtype for level in levels)
    if dtype == np.float32:
        assert levels[1][0, 0, 0] == pytest.approx(fine[0, :2, :2].mean())
        assert levels[2].mean() == pytest.approx(fine.mean(), abs=1)


def test_preview_is_limited_to_the_middle_of_the_view() -> None:
    view = work.View(Part(), -50, 100, 3000, 400)
    limited = work.limited(view, 2000, 2000, side=512)
    assert (limited.top, limited.bottom, limited.left, limited.right) == (744, 1256, 100, 400)


def test_preview_looks_as_the_whole_run() -> None:
    pixels = noisy(3, 200, 260)
    source = layers.source_of(Image(pixels))
    options = Options(noise="20")
    finding = work.examine(source, options, None, _never)
    part = Part((("Z", 1),))
    shown = work.preview(finding, work.View(part, 40, 60, 150, 200), _never)
    whole = work.run(finding, options, part, stop=_never).levels[0]
    np.testing.assert_array_equal(shown.before, pixels[1:2, 40:150, 60:200])
    assert np.abs(shown.after.astype(int) - whole[:, 40:150, 60:200]).max() <= 3
    halves = work.split(shown, 0.5, "ZYX", 1, 255)
    np.testing.assert_array_equal(halves[..., :69], shown.before[..., :69])
    np.testing.assert_array_equal(halves[..., 70:], shown.after[..., 70:])
    assert (halves[..., 69] == 255).all()


def test_result_of_a_large_lazy_layer_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    dask = pytest.importorskip("dask.array")
    monkeypatch.setattr(work, "_IN_MEMORY", 1000)
    pixels = noisy(3, 64, 64)
    source = layers.source_of(Image(dask.from_array(pixels, chunks=(1, 64, 64))))
    options = Options(noise="20")
    finding = work.examine(source, options, None, _never)
    made = work.run(finding, options, Part(), residual=True, stop=_never)
    assert isinstance(made.levels[0], np.memmap)
    assert hasattr(made.residual, "dask")
    plain = work.run(
        work.examine(layers.source_of(Image(pixels)), options, None, _never),
        options,
        Part(),
        residual=True,
        stop=_never,
    )
    np.testing.assert_array_equal(made.levels[0], plain.levels[0])
    np.testing.assert_array_equal(np.asarray(made.residual), plain.residual)


def test_lazy_layer_is_read_plane_by_plane_only() -> None:
    """No piece larger than a plane is ever asked for."""
    dask = pytest.importorskip("dask.array")
    pixels = noisy(6, 64, 64)
    largest = 0

    def load(block_info: Any = None) -> Any:
        nonlocal largest
        low, high = block_info[None]["array-location"][0]
        largest = max(largest, high - low)
        return pixels[low:high]

    chunks = ((1,) * 6, (64,), (64,))
    lazy = dask.map_blocks(load, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    asked: list[tuple[int, ...]] = []
    original = type(lazy).__array__

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        asked.append(self.shape)
        return original(self, *args, **options)

    source = layers.source_of(Image(lazy, contrast_limits=(0, 255)))
    options = Options()
    monkey = pytest.MonkeyPatch()
    monkey.setattr(type(lazy), "__array__", spy)
    try:
        finding = work.examine(source, options, None, _never)
        work.run(finding, options, Part(), stop=_never)
    finally:
        monkey.undo()
    assert asked
    assert max(int(np.prod(shape)) for shape in asked) == 64 * 64
    assert largest == 1


def test_residual_of_colours_lies_around_gray() -> None:
    pixels = np.stack([noisy(48, 48, seed=s) for s in range(3)], axis=-1)
    source = layers.source_of(Image(pixels, rgb=True))
    options = Options(noise="20")
    made = work.run(work.examine(source, options, None, _never), options, Part(), residual=True, stop=_never)
    assert made.residual.mean() == pytest.approx(0.5, abs=0.02)
    assert 0 <= made.residual.min() <= made.residual.max() <= 1


def test_words_of_a_finding_name_noise_and_model() -> None:
    source = layers.source_of(Image(noisy(128, 128)))
    text = work.examine(source, Options(), None, _never).text
    assert "/255" in text
    assert "mdrn-" in text


def test_known_measurement_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    source = layers.source_of(Image(noisy(64, 64)))
    first = work.examine(source, Options(), None, _never)
    monkeypatch.setattr("mdrn_plugin.pipeline.measure", lambda *_: pytest.fail("measured again"))
    again = work.examine(layers.source_of(Image(source.pixels)), Options(strength=0.5), first, _never)
    assert again.profiles is first.profiles
    assert again.plan.strength == 0.5
