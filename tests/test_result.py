"""Every reason of a verdict, on pictures for which the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mdrn_plugin
from mdrn_plugin.noise import NoiseCurve, NoiseProfile
from mdrn_plugin.picture import Picture, ValueRange
from mdrn_plugin.result import ResidualCheck, check_residual, judge

UNIT = ValueRange(0.0, 1.0, "test", given=True)
SIZE = 256


def _shades() -> Any:
    y, x = np.mgrid[:SIZE, :SIZE]
    return 0.5 + 0.25 * np.sin(x / 40) * np.cos(y / 50)


def _check(noisy: Any, result: Any, sigma: float = 0.05, **profile: Any) -> ResidualCheck:
    before, after = (Picture(np.asarray(p, np.float32), "YX", UNIT) for p in (noisy, result))
    check = check_residual(before, after, (NoiseProfile((sigma,), **profile),), 1.0)
    assert check is not None
    return check


def _noise(sigma: float = 0.05, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, sigma, (SIZE, SIZE))


def _reason(check: ResidualCheck) -> str:
    verdict, reasons = judge(check, ())
    assert verdict != "good"
    return "; ".join(reasons)


def test_noise_removed_and_nothing_else_is_good() -> None:
    check = _check(_shades() + _noise(), _shades())
    assert check.std == pytest.approx(1, abs=0.02)
    assert check.peak < 1.4
    assert check.busy < 0.005
    assert check.dependence == pytest.approx(1, abs=0.05)
    assert judge(check, ()) == ("good", ())


@pytest.mark.parametrize(
    "pattern",
    [
        lambda y, x: np.sin(2 * np.pi * x / 2.0 + 1),
        lambda y, x: np.sin(2 * np.pi * (x / 3.1 + y / 5.3)),
        lambda y, x: np.sin(2 * np.pi * y / 9.0),
        lambda y, x: (-1.0) ** (x + y),
    ],
    ids=["stripes of 2 px", "oblique", "lines of 9 px", "checkerboard"],
)
def test_periodic_structure_far_below_the_noise_that_was_lost_is_found(pattern: Any) -> None:
    """A quarter of the noise's strength: 3 % more standard deviation, invisible in one pixel."""
    y, x = np.mgrid[:SIZE, :SIZE]
    detail = 0.25 * 0.05 * pattern(y, x) * np.sqrt(2)
    assert "periodic" in _reason(_check(_shades() + detail + _noise(), _shades()))


def test_texture_that_was_lost_is_found() -> None:
    rng = np.random.default_rng(3)
    coarse = rng.standard_normal((SIZE, SIZE))
    texture = sum(np.roll(coarse, (i, j), (0, 1)) for i in range(2) for j in range(2)) / 2
    assert "structure" in _reason(_check(_shades() + 0.03 * texture + _noise(), _shades()))


def test_texture_taken_for_noise_is_found_when_it_is_still_there() -> None:
    """The estimate says 0.05, of which 0.02 was noise; the network removed that only."""
    assert "texture" in _reason(_check(_shades() + _noise(0.02), _shades(), sigma=0.05))


def test_detail_lost_in_one_corner_is_found() -> None:
    noisy = _shades() + _noise()
    noisy[:64, :64] += np.random.default_rng(5).normal(0, 0.07, (64, 64))
    assert "area" in _reason(_check(noisy, _shades()))


def test_noise_that_grows_with_the_signal_taken_for_one_level_is_found() -> None:
    ramp = np.tile(np.linspace(0.05, 0.95, SIZE), (SIZE, 1))
    noisy = ramp + np.sqrt(0.005 * ramp) * np.random.default_rng(0).standard_normal(ramp.shape)
    assert "brightness" in _reason(_check(noisy, ramp, sigma=0.05))
    curve = NoiseCurve("line", 0.005, 0.0)
    known = _check(noisy, ramp, sigma=0.05, curves=(curve,))
    assert known.dependence == pytest.approx(1, abs=0.06)
    assert judge(known, ())[0] == "good"


@pytest.mark.parametrize("tone", ["dark", "bright"])
def test_brightness_shifted_in_some_tones_is_found(tone: str) -> None:
    clean = _shades()
    shifted = clean + np.where((clean < 0.4) if tone == "dark" else (clean > 0.6), 0.012, 0.0)
    check = _check(clean + _noise(), shifted)
    assert check.drift > 0.005
    assert "shifted" in _reason(check)


def test_drift_of_a_denoiser_that_keeps_the_mean_is_nothing() -> None:
    """A local mean shares noise between a pixel and its surroundings, as any denoiser does."""
    flat = np.full((SIZE, SIZE), 0.5) + 0.2 * (np.mgrid[:SIZE, :SIZE][1] > 128)
    noisy = flat + _noise(0.1)
    mean = np.mean([np.roll(noisy, (i, j), (0, 1)) for i in range(-3, 4) for j in range(-3, 4)], axis=0)
    inside = np.abs(np.mgrid[:SIZE, :SIZE][1] - 128.5) > 5
    result = np.where(inside, mean, flat)
    assert _check(noisy[:, 8:-8], result[:, 8:-8], sigma=0.1).drift < 0.005


def test_correlated_residual_is_good_where_the_noise_was_measured_so_and_only_there() -> None:
    from mdrn_plugin.noise import estimate_noise

    white = np.random.default_rng(0).standard_normal((SIZE + 2, SIZE + 2))
    noise = sum(white[i : i + SIZE, j : j + SIZE] for i in range(2) for j in range(2)) * 0.025
    noisy = Picture((_shades() + noise).astype(np.float32), "YX", UNIT)
    profile = estimate_noise(noisy)
    assert profile.correlated
    result = Picture(_shades().astype(np.float32), "YX", UNIT)
    known = check_residual(noisy, result, (profile,), 1.0)
    assert known is not None
    assert judge(known, ())[0] == "good"
    assert "structure" in _reason(_check(noisy.pixels, result.pixels))


def test_blind_model_is_judged_by_lost_texture_and_not_by_the_amount() -> None:
    tones = np.where(_shades() > 0.5, 3.0, 0.2)  # as JPEG leaves it: strong here, nearly gone there
    uneven = _check(_shades() + tones * _noise(), _shades())
    assert judge(uneven, ())[0] == "do not trust"
    assert judge(uneven, (), blind=True) == ("good", ())
    rng = np.random.default_rng(3)
    coarse = rng.standard_normal((SIZE, SIZE))
    texture = sum(np.roll(coarse, (i, j), (0, 1)) for i in range(2) for j in range(2)) / 2
    verdict, reasons = judge(_check(_shades() + 0.05 * texture + _noise(), _shades()), (), blind=True)
    assert verdict == "do not trust"
    assert "texture" in reasons[0]


@pytest.mark.parametrize(("strength", "verdict"), [(1.2, "good"), (3.0, "check")])
def test_blind_model_where_no_noise_was_found_is_judged_by_how_much_it_took(
    strength: float, verdict: str
) -> None:
    """Smoothed noise hangs together as texture does; what is too much for either is a doubt."""
    coarse = np.random.default_rng(3).standard_normal((SIZE, SIZE))
    alike = sum(np.roll(coarse, (i, j), (0, 1)) for i in range(2) for j in range(2)) / 2
    before = Picture(_shades() + strength / 255 * alike, "YX", UNIT)
    after = Picture(_shades(), "YX", UNIT)
    none = (NoiseProfile((0.0,)),)
    assert check_residual(before, after, none, 1.0) is None
    check = check_residual(before, after, none, 1.0, blind=True)
    assert check is not None
    assert not check.measured
    assert check.std == pytest.approx(strength, rel=0.05)  # in units of 1/255
    assert check.structure > 0.2
    assert judge(check, (), blind=True)[0] == verdict
    measured = check_residual(before, after, (NoiseProfile((0.02,)),), 1.0, blind=True)
    assert measured is not None
    assert judge(measured, (), blind=True)[0] == "do not trust"


def test_judge_doubts_of_the_plan_are_reasons() -> None:
    assert judge(None, ("the noise is above the models",)) == ("check", ("the noise is above the models",))


@pytest.mark.parametrize("period", [2.0, 4.5])
def test_denoised_stripes_below_the_noise_are_not_called_good(period: float) -> None:
    """The whole way: stripes of a third of the noise are lost by any denoiser, and it says so."""
    x = np.mgrid[:SIZE, :SIZE][1]
    stripes = 0.06 * np.sin(2 * np.pi * x / period + 1)
    noisy = (_shades() + stripes + _noise(0.15)).astype(np.float32)
    result = mdrn_plugin.denoise(noisy, range=(0, 1), return_result=True)
    kept = float(np.sum((result.picture.pixels - _shades()) * stripes) / np.sum(stripes**2))
    assert kept > 0.8 or result.verdict != "good"
