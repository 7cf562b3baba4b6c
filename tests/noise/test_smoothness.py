"""Pictures without fine detail are known by their spectrum, noise or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.smoothness import is_smooth

if TYPE_CHECKING:
    from numpy.typing import NDArray


def scene(side: int, blur: float, seed: int = 0) -> NDArray[np.float64]:
    """Return a picture, 0..1, with the same energy in every octave, blurred by a Gaussian (px)."""
    rng = np.random.default_rng(seed)
    f = np.fft.fftfreq(side)
    radius = np.hypot(f[:, None], f)
    radius[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((side, side))) / radius
    spectrum *= np.exp(-2 * (np.pi * blur * radius) ** 2)
    picture = np.fft.ifft2(spectrum).real
    low, high = picture.min(), picture.max()
    found: NDArray[np.float64] = (picture - low) / (high - low)
    return found


def seen(clean: NDArray[np.float64], photons: float, seed: int = 1) -> NDArray[np.float64]:
    """Return what a sensor counts, divided by the photons at white."""
    return np.random.default_rng(seed).poisson(clean * photons)[..., None] / photons


def law(photons: float) -> NoiseCurve:
    """Return the law of that noise."""
    return NoiseCurve("line", 1 / photons, 0.0, mean=0.5 / photons, span=(0.0, 1.0))


@pytest.mark.parametrize("photons", [20, 100, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blurred_is_smooth_and_sharp_is_not(photons: float, seed: int) -> None:
    assert is_smooth([seen(scene(512, 2.0, seed), photons, seed)], law(photons))
    assert not is_smooth([seen(scene(512, 0.3, seed), photons, seed)], law(photons))


def test_noise_alone_says_nothing() -> None:
    assert not is_smooth([seen(np.full((512, 512), 0.4), 20)], law(20))


def test_planes_of_a_stack_are_looked_at_together() -> None:
    planes = [seen(scene(64, 2.0, k), 50, k) for k in range(40)]
    assert is_smooth(planes, law(50))


def test_too_small_or_not_a_number_is_not_called_smooth() -> None:
    assert not is_smooth([seen(scene(48, 2.0), 100)], law(100))
    broken = seen(scene(64, 2.0), 100)
    broken[3, 4] = np.nan
    assert not is_smooth([broken], law(100))
