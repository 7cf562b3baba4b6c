"""Axes, planes, and the value range that is decided once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdrn_plugin import picture
from mdrn_plugin.errors import BadOption, NotSupported
from mdrn_plugin.picture import Picture, ValueRange, check_axes, decide_range


def white(pixels: np.ndarray, bits: int | None = None) -> float:
    return decide_range(pixels, bits=bits).white


def poisson(mean: float, size: int = 65_536, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, size).astype(np.uint16).reshape(256, -1)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_integers_go_by_their_type(dtype: str) -> None:
    assert white(np.array([[0, 100]], dtype)) == float(np.iinfo(dtype).max)


@pytest.mark.parametrize(
    "top", [100, 300, 600, 700, 1000, 1010, 1023, 1500, 2500, 3500, 3900, 8000, 15_000, 30_000]
)
def test_dim_16_bit_picture_stays_16_bit(top: int) -> None:
    pixels = np.random.default_rng(top).integers(0, top, (64, 64)).astype(np.uint16)
    pixels[0, 0] = top
    assert white(pixels) == 65535


@pytest.mark.parametrize("mean", [20, 300, 700, 950])
def test_dim_photon_counts_stay_16_bit(mean: float) -> None:
    assert white(poisson(mean)) == 65535


@pytest.mark.parametrize("bits", [12, 14])
@pytest.mark.parametrize("below", [0, 1, 15])
def test_sensor_depth_is_found_near_full_scale(bits: int, below: int) -> None:
    pixels = np.random.default_rng(bits).integers(0, 2**bits - 1 - below, (64, 64)).astype(np.uint16)
    pixels[5, 5] = 2**bits - 1 - below
    assert white(pixels) == 2**bits - 1


@pytest.mark.parametrize(("bits", "early"), [(10, 0), (10, 12), (12, 100), (14, 300)])
def test_saturation_a_little_early_is_found(bits: int, early: int) -> None:
    full = 2**bits - 1 - early
    bright = np.random.default_rng(bits).normal(0.6 * full, 0.3 * full, (128, 128))
    assert white(np.clip(bright, 0, full).astype(np.uint16)) == 2**bits - 1


def test_16_bit_picture_that_clips_is_16_bit() -> None:
    assert white(np.full((9, 9), 65535, np.uint16)) == 65535


def test_stated_bits_are_believed_unless_a_value_contradicts() -> None:
    dim = np.full((4, 4), 200, np.uint16)
    assert white(dim, bits=12) == 4095
    assert white(dim + 4000, bits=12) == 65535
    assert white(dim, bits=16) == 65535
    assert white(dim, bits=0) == 65535


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_floats_of_about_one_have_white_one(scale: float) -> None:
    pixels = np.random.default_rng(0).normal(0.5, 0.1, (64, 64)) * scale
    assert decide_range(pixels).white == 1.0
    assert decide_range(pixels).black == 0.0


@pytest.mark.parametrize("axes", ["YX", "YXS", "CYX", "ZYX"])
@pytest.mark.parametrize("sigma", [50 / 255, 75 / 255])
def test_strong_noise_does_not_hide_that_white_is_one(axes: str, sigma: float) -> None:
    """Dark and bright areas under noise reach far beyond 0 and 1."""
    y, x = np.mgrid[:96, :128]
    clean = (0.5 + 0.5 * np.sign(np.sin(x / 9) * np.sin(y / 9))).astype(np.float32)
    pixels = {
        "YX": clean,
        "YXS": np.stack([clean, 1 - clean, clean], -1),
        "CYX": np.stack([clean, 1 - clean]),
        "ZYX": np.stack([clean] * 20),
    }[axes]
    noisy = pixels + sigma * np.random.default_rng(0).standard_normal(pixels.shape).astype(np.float32)
    noisy[..., 0, 0] = np.nan
    assert np.nanpercentile(noisy, 0.1) < -0.5
    assert (decide_range(noisy).black, decide_range(noisy).white) == (0.0, 1.0)
    signed = decide_range(2 * noisy - 1)  # black at -1: another range, with or without noise
    assert signed.black < -1
    assert signed.white > 1
    assert decide_range(2 * pixels - 1).black == -1


def test_slabs_of_large_arrays_are_looked_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = np.random.default_rng(0).normal(0, 0.25, (5, 64, 64)).astype(np.float32)
    whole = decide_range(noisy)
    monkeypatch.setattr(picture, "_PIECE_VALUES", 1000)  # a slab is 15 rows of one plane
    assert decide_range(noisy) == whole
    assert whole.white == 1


def test_other_floats_go_by_their_bulk() -> None:
    pixels = np.random.default_rng(0).normal(500, 100, (64, 64))
    pixels[0, 0], pixels[0, 1] = np.nan, 1e30
    found = decide_range(pixels)
    assert 100 < found.black < 300
    assert 700 < found.white < 1000


@pytest.mark.parametrize("pixels", [np.full((3, 3), np.nan), np.full((3, 3), np.inf), np.zeros((0, 3))])
def test_no_finite_value_is_a_range_all_the_same(pixels: np.ndarray) -> None:
    assert decide_range(pixels).white > decide_range(pixels).black


def test_complex_is_refused() -> None:
    with pytest.raises(NotSupported, match="complex"):
        decide_range(np.ones((2, 2), complex))


@settings(max_examples=50, deadline=None)
@given(st.permutations("TZCYXS"), st.integers(2, 6))
def test_planes_cover_every_pixel_once(letters: list[str], count: int) -> None:
    axes = "".join(letters[:count])
    if not {"Y", "X"} <= set(axes):
        with pytest.raises(BadOption):
            check_axes(axes, (2,) * count)
        return
    pixels = np.zeros([{"T": 2, "Z": 3, "C": 2, "Y": 4, "X": 5, "S": 3}[a] for a in axes], int)
    picture = Picture(pixels, axes, ValueRange(0, 1, ""))
    for index in picture.planes():
        assert pixels[index].ndim == len(picture.plane_axes)
        pixels[index] += 1
        assert 0 <= picture.channel_of(index) < picture.length("C")
    assert (pixels == 1).all()


@pytest.mark.parametrize("axes", ["YY", "Y", "YXQ", "ZC", ""])
def test_impossible_axes_are_refused(axes: str) -> None:
    with pytest.raises(BadOption, match="axes"):
        check_axes(axes, (2,) * max(len(axes), 1))
