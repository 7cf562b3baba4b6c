"""The blind level of white noise, on pictures made here; the standard sets where MDRN_DATA names them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise import NoiseProfile, describe, estimate_channels, estimate_noise, estimate_sigma
from mdrn_plugin.noise.level import measure
from mdrn_plugin.picture import Picture, ValueRange, decide_range

UNIT = ValueRange(0.0, 1.0, "test")
BYTE = ValueRange(0.0, 255.0, "test")


def scene(rows=256, columns=320, colours=1, seed=0):
    """Make a smooth ground with fine stripes over a third of it and some edges, 20..235."""
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    base = 125 + 50 * np.sin(x / 60 + y / 90) + 25 * np.cos(y / 45)
    base += np.where(x < columns / 3, 30 * np.sin(1.9 * x) * np.sin(1.3 * y), 0)
    base += np.where((x - columns * 0.7) ** 2 + (y - rows / 2) ** 2 < (rows / 5) ** 2, 25, 0)
    return np.repeat(np.clip(base, 20, 235)[:, :, None], colours, axis=2)


def noisy(sigma, seed=1, **kind):
    x = scene(**kind)
    return x + np.random.default_rng(seed).normal(0, sigma, x.shape)


def byte(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def picture(pixels, axes="YXS", span=None):
    return Picture(pixels, axes, span or decide_range(pixels))


@pytest.mark.parametrize("sigma", [1, 2, 5, 10, 15, 25, 50, 75, 100])
def test_sigma_float_noise_within_four_percent(sigma):
    assert estimate_sigma(noisy(sigma).astype(np.float32)) == pytest.approx(sigma, rel=0.04)


@pytest.mark.parametrize("sigma", [2, 5, 10, 25, 50, 75, 100])
def test_sigma_clipped_bytes_within_eight_percent(sigma):
    profile = estimate_noise(picture(byte(noisy(sigma))))
    assert 255 * profile.sigma[0] == pytest.approx(sigma, rel=0.08)


def test_sigma_clipped_bytes_near_black_within_eight_percent():
    dark = np.random.default_rng(3).normal(15, 20, (300, 300, 1))
    assert 255 * estimate_noise(picture(byte(dark))).sigma[0] == pytest.approx(20, rel=0.08)


@pytest.mark.parametrize(("step", "dtype"), [(1, np.uint8), (16, np.uint16)], ids=["8 bit", "12 in 16 bit"])
def test_sigma_rounded_values_take_out_the_rounding(step, dtype):
    found = [estimate_sigma((step * np.rint(noisy(1.0, seed=k))).astype(dtype))[0] / step for k in range(6)]
    assert np.mean(found) == pytest.approx(1.0, rel=0.025)  # 1.04 with the rounding noise left in


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 0.01, 1.7, 100, 1e30])
def test_sigma_scaled_floats_scales(factor):
    x = noisy(12).astype(np.float64)
    assert estimate_sigma(factor * x) == pytest.approx(factor * estimate_sigma(x), rel=1e-3)


def test_sigma_power_of_two_scales_exactly():
    x = noisy(12).astype(np.float32)
    assert np.array_equal(estimate_sigma(x / 256), estimate_sigma(x) / 256)


def test_sigma_large_offset_is_taken_out():
    x = noisy(12)
    assert estimate_sigma(x + 1e7) == pytest.approx(estimate_sigma(x), rel=1e-3)


@pytest.mark.parametrize(
    "turn",
    [np.flipud, np.fliplr, np.rot90, lambda x: np.transpose(x, (1, 0, 2))],
    ids=["ud", "lr", "90", "t"],
)
def test_measure_turned_finds_the_same(turn):
    x = noisy(12, rows=301, columns=422).astype(np.float32)
    one, other = measure([x]), measure([np.ascontiguousarray(turn(x))])
    assert other.sigma == pytest.approx(one.sigma, rel=1e-4)
    assert sorted(other.correlation) == pytest.approx(sorted(one.correlation), abs=1e-3)


def test_measure_twice_gives_the_same_bits():
    x = byte(noisy(30, colours=3))
    one, other = measure([x], low=0, high=255), measure([x], low=0, high=255)
    assert np.array_equal(one.sigma, other.sigma)
    assert one.correlation == other.correlation


def test_sigma_different_colours_are_told_apart():
    x = scene(colours=3) + np.random.default_rng(2).normal(0, 1, (256, 320, 3)) * [3, 10, 30]
    assert estimate_sigma(x.astype(np.float32)) == pytest.approx([3, 10, 30], rel=0.05)


# --- what is not noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_estimate_constant_picture_is_silent(dtype):
    profile = estimate_noise(picture(np.full((64, 80), 7, dtype), "YX"))
    assert profile.sigma == (0.0,)
    assert "constant" in profile.doubt
    assert not profile.correlated


@pytest.mark.parametrize("frame", [0, 255, 40])
def test_estimate_frame_around_noise_is_left_out(frame):
    x = byte(noisy(10, rows=200, columns=200))
    framed = np.full((400, 500, 1), frame, np.uint8)
    framed[93:293, 141:341] = x
    assert 255 * estimate_noise(picture(framed)).sigma[0] == pytest.approx(10, rel=0.06)


def test_estimate_round_mask_is_left_out():
    x = noisy(10).astype(np.float32)
    y, z = np.mgrid[:256, :320]
    x[(y - 128) ** 2 + (z - 160) ** 2 > 90**2] = 0
    assert estimate_sigma(x) == pytest.approx(10, rel=0.06)


def test_estimate_rendered_areas_are_silent():
    rng = np.random.default_rng(0)
    x = np.kron(rng.integers(0, 255, (8, 10)), np.ones((32, 32))).astype(np.uint8)
    assert estimate_noise(picture(x, "YX")).sigma[0] < 0.2 / 255


def test_estimate_rendered_text_is_silent():
    rng = np.random.default_rng(0)
    x = np.where(np.kron(rng.random((64, 80)) < 0.2, np.ones((5, 5))) > 0, 0, 255).astype(np.uint8)
    profile = estimate_noise(picture(x, "YX"))
    assert profile.sigma == (0.0,)
    assert profile.doubt


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_estimate_rendered_gradient_is_silent(dtype):
    y, x = np.mgrid[:256, :256]
    shade = 0.4 * x + 0.3 * y
    pixels = byte(shade) if dtype == np.uint8 else shade.astype(dtype)
    assert estimate_noise(picture(pixels, "YX", BYTE)).sigma[0] < 0.25 / 255


def test_estimate_highlights_blown_are_left_out():
    x = scene()
    x[:128] = 400
    x += np.random.default_rng(0).normal(0, 8, x.shape)
    profile = estimate_noise(picture(byte(x)))
    assert 255 * profile.sigma[0] == pytest.approx(8, rel=0.06)
    assert 0.45 < profile.clipped < 0.6


def test_estimate_mostly_clipped_says_so():
    x = np.random.default_rng(0).normal(-15, 20, (200, 200))
    profile = estimate_noise(picture(byte(x), "YX"))
    assert "clipped" in profile.doubt
    assert profile.clipped > 0.7


def test_estimate_floats_beyond_the_range_are_not_clipped():
    x = np.random.default_rng(0).normal(0.05, 0.1, (200, 200)).astype(np.float32)
    profile = estimate_noise(picture(x, "YX", UNIT))
    assert profile.clipped == 0
    assert profile.sigma[0] == pytest.approx(0.1, rel=0.04)


def test_estimate_noise_above_the_models_is_doubted():
    x = noisy(150).astype(np.float32)
    assert "range" in estimate_noise(picture(x, span=BYTE)).doubt


# --- values that are not numbers ------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sigma_values_not_finite_are_ignored(share, value):
    x = (128 + np.random.default_rng(1).normal(0, 10, (200, 200, 1))).astype(np.float32)
    x[np.random.default_rng(2).random(x.shape) < share] = value
    assert estimate_sigma(x) == pytest.approx(10, rel=0.08)


def test_estimate_all_nan_is_silent_and_doubted():
    profile = estimate_noise(picture(np.full((40, 40), np.nan, np.float32), "YX", UNIT))
    assert profile.sigma == (0.0,)
    assert "finite" in profile.doubt


# --- sizes and axes -------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7, 8, 9, 16])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 16])
def test_estimate_tiny_picture_is_sane_and_doubted(rows, columns):
    x = np.random.default_rng(rows * 100 + columns).normal(128, 20, (rows, columns))
    profile = estimate_noise(picture(byte(x), "YX"))
    assert 0 <= 255 * profile.sigma[0] < 60
    assert profile.doubt


@pytest.mark.parametrize(("size", "tolerance"), [(8, 0.5), (16, 0.3), (32, 0.15), (64, 0.1), (128, 0.06)])
def test_sigma_small_picture_is_within_its_sampling_error(size, tolerance):
    found = [estimate_sigma(np.random.default_rng(k).normal(128, 20, (size, size, 1)))[0] for k in range(12)]
    assert np.max(np.abs(np.array(found) / 20 - 1)) < tolerance


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 400), (400, 6)])
def test_estimate_strip_is_found(shape):
    x = np.random.default_rng(0).normal(128, 20, shape)
    assert 255 * estimate_noise(picture(byte(x), "YX")).sigma[0] == pytest.approx(20, rel=0.25)


class Counted:
    """An array that counts the values read from it and never gives all at once."""

    def __init__(self, shape, dtype=np.uint16):
        self.shape, self.dtype, self.ndim, self.read = shape, np.dtype(dtype), len(shape), 0

    def __getitem__(self, key):
        shape = [
            len(range(*k.indices(n))) for k, n in zip(key, self.shape, strict=True) if isinstance(k, slice)
        ]
        self.read += int(np.prod(shape))
        return np.random.default_rng(self.read).normal(1000, 50, shape).astype(self.dtype)


def test_estimate_long_stack_reads_a_few_planes():
    stack = Counted((100, 30, 128, 160))
    profile = estimate_noise(Picture(stack, "TZYX", ValueRange(0.0, 65535.0, "test")))
    assert 65535 * profile.sigma[0] == pytest.approx(50, rel=0.05)
    assert stack.read <= 10 * 128 * 160


def test_estimate_huge_plane_reads_windows():
    plane = Counted((60_000, 50_000))
    profile = estimate_noise(Picture(plane, "YX", ValueRange(0.0, 65535.0, "test")))
    assert 65535 * profile.sigma[0] == pytest.approx(50, rel=0.05)
    assert plane.read <= 40_000_000


def test_estimate_stack_with_empty_planes_measures_the_others():
    stack = np.zeros((6, 128, 128), np.uint16)
    stack[2:5] = np.random.default_rng(0).normal(1000, 50, (3, 128, 128))
    profile = estimate_noise(picture(stack, "ZYX"))
    assert 65535 * profile.sigma[0] == pytest.approx(50, rel=0.06)


def test_estimate_channels_each_have_their_own():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(1000, s, (3, 128, 128)) for s in (20, 100)], axis=1).astype(np.float32)
    pic = picture(x, "ZCYX", ValueRange(0.0, 1000.0, "test"))
    found = [p.sigma[0] * 1000 for p in estimate_channels(pic)]
    assert found == pytest.approx([20, 100], rel=0.06)
    assert estimate_noise(pic, channel=1).sigma[0] * 1000 == pytest.approx(100, rel=0.06)


@pytest.mark.parametrize("channel", [None, -1, 2])
def test_estimate_channel_missing_or_beyond_is_refused(channel):
    pic = picture(np.zeros((2, 16, 16), np.uint8), "CYX")
    with pytest.raises(BadOption, match=r"channel: expected 0\.\.1, got"):
        estimate_noise(pic, channel=channel)


@pytest.mark.parametrize("axes", ["YXS", "SYX", "YSX", "XYS"])
def test_estimate_samples_at_any_place_without_alpha(axes):
    x = np.concatenate([byte(noisy(10, colours=3)), np.full((256, 320, 1), 255, np.uint8)], axis=2)
    pixels = np.transpose(x, ["YXS".index(a) for a in axes])
    profile = estimate_noise(Picture(pixels, axes, BYTE, alpha=True))
    assert [255 * s for s in profile.sigma] == pytest.approx([10, 10, 10], rel=0.05)


@pytest.mark.parametrize("dtype", [bool, np.int16, np.uint32, np.float16, np.float64])
def test_estimate_any_real_type_works(dtype):
    x = np.random.default_rng(0).normal(0 if dtype is bool else 100, 10, (64, 64))
    profile = estimate_noise(picture((x > 0) if dtype is bool else x.astype(dtype), "YX", BYTE))
    assert np.isfinite(profile.sigma[0])
    if dtype is not bool:
        assert 255 * profile.sigma[0] == pytest.approx(10, rel=0.1)


def test_estimate_does_not_write_to_the_picture():
    x = noisy(10).astype(np.float32)
    x.flags.writeable = False
    estimate_noise(picture(x, span=BYTE))


# --- colour of the noise --------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [5, 10, 25, 50])
@pytest.mark.parametrize("clipped", [False, True])
def test_measure_white_noise_over_texture_is_called_white(sigma, clipped):
    x = noisy(sigma)
    level = measure([byte(x)], low=0, high=255) if clipped else measure([x.astype(np.float32)])
    assert not level.correlated
    assert np.abs(level.correlation).max() < 0.1
    assert level.low_high_ratio < 1.6


def test_measure_blurred_noise_is_called_correlated():
    n = np.random.default_rng(0).normal(0, 1, (258, 320, 1))
    blurred = 15 * (n[:-2] + 2 * n[1:-1] + n[2:]) / np.sqrt(6)
    level = measure([(scene() + blurred).astype(np.float32)])
    assert level.correlated
    assert level.correlation[1] == pytest.approx(4 / 6, abs=0.15)
    assert abs(level.correlation[0]) < 0.1
    assert level.low_high_ratio > 1.6


def test_measure_noise_enlarged_is_called_correlated():
    small = np.random.default_rng(0).normal(0, 15, (129, 161))
    rows = np.stack([small[:-1], (small[:-1] + small[1:]) / 2], axis=1).reshape(256, 161)
    large = np.stack([rows[:, :-1], (rows[:, :-1] + rows[:, 1:]) / 2], axis=2).reshape(256, 320)
    assert measure([(scene() + large[:, :, None]).astype(np.float32)]).correlated


# --- words ----------------------------------------------------------------------------------------


def test_describe_gray_names_level_share_and_kind():
    words = describe(NoiseProfile((25.1 / 255,), clipped=0.001))
    assert words == "noise σ = 25.1/255 (9.8 % of white), white; 0.1 % of pixels clipped"


def test_describe_with_range_gives_units_of_the_file():
    words = describe(NoiseProfile((0.01,)), ValueRange(100.0, 4100.0, "test"))
    assert "= 40 in units of the file" in words


def test_describe_dim_picture_does_not_say_zero():
    words = describe(NoiseProfile((20 / 65535,)), ValueRange(0.0, 65535.0, "test"))
    assert "0.0778/255" in words
    assert "= 20 in units of the file" in words


def test_describe_correlated_and_doubtful_says_both():
    words = describe(NoiseProfile((0.1,), (0.5, 0.4), doubt="because", correlated=True))
    assert "correlated (0.50 across, 0.40 down)" in words
    assert words.endswith("doubtful: because")


def test_describe_given_by_user_says_so():
    assert "as given" in describe(NoiseProfile((0.1,), source="user"))


# --- the standard sets ----------------------------------------------------------------------------


def bench(name):
    folder = Path(os.environ.get("MDRN_DATA", "")) / "bench" / name
    if not os.environ.get("MDRN_DATA") or not folder.is_dir():
        pytest.skip(f"needs the picture set bench/{name} in the folder named by MDRN_DATA")
    image = pytest.importorskip("PIL.Image")
    return [np.asarray(image.open(p)) for p in sorted(folder.glob("*.png"))]


@pytest.mark.data
@pytest.mark.parametrize("sigma", [5, 25, 75])
def test_sigma_bsd68_median_3_and_95th_percentile_12_percent(sigma):
    rng = np.random.default_rng(2022)
    errors = [
        abs(estimate_sigma((x + rng.normal(0, sigma, x.shape))[:, :, None])[0] / sigma - 1)
        for x in bench("BSD68")
    ]
    assert np.median(errors) <= 0.03
    assert np.quantile(errors, 0.95) <= 0.12


@pytest.mark.data
def test_estimate_kodak_as_it_is_reads_at_most_two_and_a_half():
    found = [max(estimate_noise(picture(x)).sigma) for x in bench("Kodak24")]
    assert max(found) <= 2.5 / 255


def test_estimate_sigma_mask_of_two_values_stays_within_its_range() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    mask = (np.hypot(y - 48, x - 48) < 30) ^ (rng.random((96, 96)) < 0.02)
    picture = Picture(mask, "YX", decide_range(mask))
    profile = estimate_noise(picture)
    assert profile.sigma[0] < 0.5
    assert "mostly clipped" in profile.doubt
