"""Random planes that drawn training pictures are made of: Gaussian random fields and what follows from them.

Everything is periodic on a square, so a blur is a product of spectra: draw a little larger than is needed
and cut, or opposite sides fit together. Shapes: (period, period), float64.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]


def direction(rng: np.random.Generator) -> tuple[float, float]:
    """Return how much longer than wide structures are, and their angle."""
    return math.exp(rng.uniform(0, math.log(6))), rng.uniform(0, math.pi)


def islands(plane: Plane, level: float, softness: float) -> Plane:
    """Return 1 where `plane` is above `level`, 0 below, and between them within a few times `softness`."""
    return 1 / (1 + np.exp(np.clip((level - plane) / softness, -50, 50)))


def field(
    rng: np.random.Generator, period: int, size_px: float, stretch: float = 1.0, angle: float = 0.0
) -> Plane:
    """Return a Gaussian random field of mean 0 and variance 1 whose correlation is a Gaussian.

    `size_px` is the standard deviation of its kernel across, `stretch` times that along `angle`.
    """
    down, across = _frequencies(period)
    along = across * math.cos(angle) + down * math.sin(angle)
    beside = down * math.cos(angle) - across * math.sin(angle)
    kernel = np.exp(-2 * (math.pi * size_px) ** 2 * ((along * stretch) ** 2 + beside**2))
    spectrum = np.fft.rfft2(rng.standard_normal((period, period))) * kernel
    spectrum[0, 0] = 0
    plane = np.fft.irfft2(spectrum, (period, period))
    return plane / max(float(plane.std()), 1e-9)


def blurred(plane: Plane, width_px: float) -> Plane:
    """Return the plane behind a Gaussian of this standard deviation."""
    down, across = _frequencies(len(plane))
    kernel = np.exp(-2 * (math.pi * width_px) ** 2 * (down**2 + across**2))
    return np.fft.irfft2(np.fft.rfft2(plane) * kernel, plane.shape)


@functools.cache
def _frequencies(period: int) -> tuple[Plane, Plane]:
    """Return cycles per pixel, down (period, 1) and across (1, period / 2 + 1)."""
    down: Plane = np.fft.fftfreq(period).astype(np.float64)
    across: Plane = np.fft.rfftfreq(period).astype(np.float64)
    return down[:, None], across[None]
