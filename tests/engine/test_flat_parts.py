"""The rest of a photograph's noise: found where it is, texture is left alone, strips leave no seams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mdrn_plugin
from mdrn_plugin.engine import flat_parts, planes
from mdrn_plugin.engine.flat_parts import NONE, Shares, measure_shares, take_rest

SIDE = 320


def soft(planes_HWC: np.ndarray, width_px: float) -> np.ndarray:
    """Return Gaussian means, borders wrapped around."""
    f = np.hypot(np.fft.fftfreq(planes_HWC.shape[0])[:, None], np.fft.fftfreq(planes_HWC.shape[1])[None])
    kernel = np.exp(-2 * (np.pi * width_px * f) ** 2)[..., None]
    return np.fft.ifft2(np.fft.fft2(planes_HWC, axes=(0, 1)) * kernel, axes=(0, 1)).real


def scene() -> np.ndarray:
    """Return a shaded plane whose right half is full of gray texture, 0..255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    texture = soft(rng.standard_normal((SIDE, SIDE, 1)), 1.0)
    texture *= 25 / texture.std() * (x > 0.5)[..., None]
    return np.array((90, 120, 100)) + 40 * (x * y)[..., None] + texture


def noise(level: float = 8.0, seed: int = 1) -> np.ndarray:
    """Return noise as a camera leaves it, in R, G and B."""
    found = soft(np.random.default_rng(seed).standard_normal((SIDE, SIDE, 3)), 0.7)
    return level * found / found.std()


@pytest.mark.parametrize("took", [1 / 1.2, 1 / 1.5, 1 / 1.9])
def test_what_the_network_left_is_measured_and_taken(took: float) -> None:
    truth, n = scene(), noise()
    before = (truth + n).astype(np.float32)
    after = (before - took * n).astype(np.float32)
    shares = measure_shares(before, after)
    assert shares
    for share in (shares.luma, shares.blue, shares.red):
        assert share == pytest.approx(1 / took, rel=0.06)
    left = after - truth
    take_rest(before, after, shares)
    assert np.std(after - truth) < 0.35 * np.std(left)


def test_a_strength_below_one_is_not_taken_for_noise_that_was_left() -> None:
    truth, n = scene(), noise()
    before = truth + n
    whole = measure_shares(before, before - 0.7 * n)
    half = measure_shares(before, before - 0.5 * 0.7 * n, strength=0.5)
    assert half.luma == pytest.approx(whole.luma, abs=1e-4)
    assert half.red == pytest.approx(whole.red, abs=1e-4)


def test_where_all_noise_was_taken_nothing_is_done() -> None:
    truth, n = scene(), noise()
    assert not measure_shares(truth + n, truth)
    assert measure_shares(truth + n, truth + n) == NONE
    assert not Shares(1.005, 1.0, 1.0)


def test_texture_without_colour_is_not_taken_for_noise() -> None:
    """A picture that is full of texture, of which the network took some: there is no flat part to ask."""
    rng = np.random.default_rng(3)
    texture = soft(rng.standard_normal((SIDE, SIDE, 1)), 0.8)
    grain = soft(rng.standard_normal((SIDE, SIDE, 3)), 1.0)  # what JPEG does to colour
    before = 128 + 20 * texture / texture.std() + grain
    took = 0.4 * 20 * texture / texture.std() + soft(rng.standard_normal((SIDE, SIDE, 3)), 1.0)
    assert measure_shares(before, before - took) == NONE


def test_a_small_picture_says_nothing() -> None:
    n = noise()[:96, :96]
    assert measure_shares(n, 0.5 * n) == NONE


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_strips_leave_no_seams(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (scene() + noise()).clip(0, 255).astype(dtype)[:301]
    after = (scene() + 0.5 * noise()).clip(0, 255).astype(dtype)[:301]
    shares = Shares(1.8, 1.4, 1.3)

    def taken(rows: int) -> np.ndarray:
        monkeypatch.setattr(flat_parts, "_STRIP_PX", rows)
        result = after.copy()
        take_rest(before, result, shares)
        return result

    whole = taken(10**6)
    assert whole.dtype == after.dtype
    assert not np.array_equal(whole, after)
    for rows in (16, 100):
        np.testing.assert_allclose(taken(rows).astype(float), whole.astype(float), atol=1e-3)


def test_pixels_that_are_no_numbers_stay_as_they_are() -> None:
    truth, n = scene(), noise()
    before = (truth + n).astype(np.float32)
    before[40, 50], before[200, 10, 1] = np.nan, np.inf
    after = (before - 0.6 * n).astype(np.float32)
    shares = measure_shares(before, after)
    assert shares.luma == pytest.approx(1 / 0.6, rel=0.06)
    take_rest(before, after, shares)
    assert np.isnan(after[40, 50]).all()
    assert np.isinf(after[200, 10, 1])
    assert np.isfinite(after).sum() == after.size - 4


def test_integers_stay_within_their_limits() -> None:
    before = np.full((SIDE, SIDE, 3), 10, np.uint16)
    before[::2, ::2] = 900
    after = np.full_like(before, 20)
    take_rest(before, after, Shares(2.0, 1.0, 1.0), (16, 700))
    assert after.min() >= 16
    assert after.max() <= 700


class Boxes:
    """As a streamed plane: read and written in boxes, nothing else."""

    ndim = 3

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

    def __getitem__(self, place: Any) -> np.ndarray:
        return self._pixels[place].copy()

    def __setitem__(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        rows, columns = place
        self._pixels[rows, columns] = values


def test_streamed_planes_come_out_as_arrays_do() -> None:
    before = (scene() + noise()).clip(0, 255).astype(np.uint8)
    after = (scene() + 0.5 * noise()).clip(0, 255).astype(np.uint8)
    twin = after.copy()
    shares = measure_shares(Boxes(before), Boxes(twin))
    assert shares == measure_shares(before, after)
    take_rest(before, after, shares)
    take_rest(Boxes(before), Boxes(twin), shares)
    assert np.array_equal(twin, after)


def test_large_pictures_are_measured_on_windows_spread_over_them() -> None:
    windows = list(flat_parts._windows(3000, 1100))
    assert len(windows) == 12
    assert min(r.start for r, _ in windows) == 0
    assert max(r.stop for r, _ in windows) == 3000
    assert max(c.stop for _, c in windows) == 1100
    assert list(flat_parts._windows(300, 200)) == [(slice(0, 300), slice(0, 200))]


def test_a_photograph_comes_out_cleaner_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = scene()
    noisy = (truth + noise(6.0)).clip(0, 255).round().astype(np.uint8)
    model = "mdrn-2b-colour-photo"
    found = mdrn_plugin.denoise(noisy, model=model, return_result=True)
    monkeypatch.setattr(planes, "take_rest_of_noise", lambda picture, out, plan: plan)
    without = mdrn_plugin.denoise(noisy, model=model, return_result=True)
    notes = [note for note in found.plan.notes if "flattest parts" in note]
    assert len(notes) == 1
    assert notes[0] in found.plan.explain()
    assert not any("flattest parts" in note for note in without.plan.notes)
    flat = (slice(20, -20), slice(20, SIDE // 2 - 20))

    def left(result: Any) -> float:
        error = (result.picture.pixels - truth)[flat]
        return float(np.std(error - soft(error, 4.0)))  # of fine detail

    assert left(found) < 0.95 * left(without)


def test_models_that_are_told_the_noise_are_left_alone() -> None:
    noisy = (scene() + noise(6.0)).clip(0, 255).round().astype(np.uint8)
    found = mdrn_plugin.denoise(noisy, model="mdrn-2b-colour-0-90", return_result=True)
    assert not any("flattest parts" in note for note in found.plan.notes)
