"""Transforms after which signal-dependent noise has standard deviation 1, and their unbiased inverses.

Two kinds, one interface: the generalised Anscombe transform where the variance is a line in the
signal, and the integral of one over the standard deviation where it is a curve. The inverse is in
both cases that of the *expectation* of the transformed value, not of the transform itself: a root
of a noisy value is on average smaller than the root of its mean, and what a denoiser returns is
the average.

References
----------
M. Mäkitalo, A. Foi, "Optimal inversion of the generalized Anscombe transformation for
Poisson-Gaussian noise", IEEE Transactions on Image Processing 22(1), 2013: the exact unbiased
inverse (Eq. 9) and its closed-form approximation (Eq. 10).
M. Mäkitalo, A. Foi, "A closed-form approximation of the exact unbiased inverse of the Anscombe
variance-stabilizing transformation", IEEE Transactions on Image Processing 20(9), 2011.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mdrn_plugin.noise.curve import NoiseCurve

Floats = NDArray[np.float64]

_TABLE_COUNTS = (
    100.0  # photons up to which the expectation is tabulated; above, the closed form is exact to 1e-4
)
_TABLE_POINTS = 400
_CURVE_POINTS = 2048
_REACH = 6.0  # standard deviations that a table extends beyond the signal it was measured on


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stabiliser:
    """Forward transform and unbiased inverse for one channel; noise has standard deviation 1 after it.

    Attributes
    ----------
    gain, offset : float
        Of ``var = gain * signal + offset``; a gain of 0 means that the tables are used.
    signal, stabilised : ndarray (K,), float64
        Knots of the forward transform, both increasing; empty for the generalised Anscombe transform.
    mean_signal, mean_stabilised : ndarray (K,), float64
        Knots of the expectation of the transformed value given the true signal, increasing.
    """

    gain: float
    offset: float
    signal: Floats
    stabilised: Floats
    mean_signal: Floats
    mean_stabilised: Floats

    def forward(self, z: NDArray[Any]) -> Floats:
        """Return the stabilised values.

        Parameters
        ----------
        z : ndarray, real
            Any shape, in the units of the curve. NaN stays NaN.
        """
        values = np.asarray(z, np.float64)
        if self.gain > 0:
            return _anscombe(values, self.gain, self.offset)
        return _interpolate(values, self.signal, self.stabilised)

    def inverse(self, d: NDArray[Any]) -> Floats:
        """Return the signal whose stabilised noisy values have the mean `d`.

        Parameters
        ----------
        d : ndarray, float
            Any shape; denoised stabilised values.
        """
        values = np.asarray(d, np.float64)
        found = _interpolate(values, self.mean_signal, self.mean_stabilised, backwards=True)
        if self.gain <= 0:
            return found
        if self.offset >= 0:  # light cannot be negative; a pedestal that was inferred may be a little off
            found = np.where(values < self.mean_stabilised[0], self.mean_signal[0], found)
        bright = values > self.mean_stabilised[-1]
        if np.any(bright):
            found = np.where(
                bright, unbiased_inverse(np.where(bright, values, 1e3), self.gain, self.offset), found
            )
        return found


@functools.lru_cache(maxsize=64)
def stabiliser(curve: NoiseCurve) -> Stabiliser:
    """Return the transform for a noise curve, in the units of the curve."""
    if curve.kind == "line" and curve.gain > 0:
        return _anscombe_stabiliser(curve.gain, curve.offset)
    return _curve_stabiliser(curve)


def _anscombe(z: Floats, gain: float, offset: float) -> Floats:
    return np.asarray(2 / gain * np.sqrt(np.maximum(gain * z + 0.375 * gain**2 + offset, 0.0)))


def unbiased_inverse(d: Floats, gain: float, offset: float) -> Floats:
    """Closed-form approximation of the exact unbiased inverse of the generalised Anscombe transform.

    Parameters
    ----------
    d : ndarray, float
        Denoised stabilised values, above 0.
    gain, offset : float
        Of ``var = gain * signal + offset``.

    Notes
    -----
    Mäkitalo and Foi (2013), Eq. 10, for gain 1 and Gaussian variance s²:
    ``d²/4 + √(3/2)/(4d) - 11/(8d²) + 5√(3/2)/(8d³) - 1/8 - s²``; brought to a gain by
    ``gain * result`` with ``s² = offset / gain²``.
    """
    root = math.sqrt(1.5)
    counts = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 0.125
    return np.asarray(gain * (counts - offset / gain**2))


def expected_anscombe(counts: Floats, sigma: float) -> Floats:
    """Return the mean of the generalised Anscombe transform of Poisson-Gaussian values.

    Parameters
    ----------
    counts : ndarray (K,), float64
        Means of the Poisson law, photons.
    sigma : float
        Standard deviation of the Gaussian noise, photons.

    Returns
    -------
    ndarray (K,), float64
        ``E[2 sqrt(max(0, P + sigma N + 3/8 + sigma²))]``, Mäkitalo and Foi (2013), Eq. 9.
    """
    top = int(counts.max() + 12 * math.sqrt(counts.max() + 1) + 20)
    k = np.arange(top + 1, dtype=np.float64)
    if sigma > 0:
        # The root has a kink at 0: a fine trapezoid rule bears it better than Gauss-Hermite.
        t = np.linspace(-7, 7, 1401)
        density = np.exp(-t * t / 2)
        density /= density.sum()
        value = 2 * np.sqrt(np.maximum(k[:, None] + sigma * t + 0.375 + sigma**2, 0.0)) @ density
    else:
        value = 2 * np.sqrt(k + 0.375)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(k[1:], 1.0)))])
    rate = np.maximum(counts, 1e-300)[:, None]
    probability = np.exp(k * np.log(rate) - rate - log_factorial)
    return np.asarray(probability @ value)


def _anscombe_stabiliser(gain: float, offset: float) -> Stabiliser:
    """Tabulate the expectation; below zero offset the signal begins at a pedestal, without Gaussian noise."""
    sigma = math.sqrt(max(offset, 0.0)) / gain
    pedestal = max(0.0, -offset / gain)
    top = _TABLE_COUNTS + sigma**2
    if sigma > 60:  # noise of so many photons is Gaussian: the closed form is exact
        counts = np.linspace(0, top, _TABLE_POINTS)
        mean = 2 * np.sqrt(counts + 0.375 + sigma**2)
        mean -= 0.25 / np.sqrt(counts + sigma**2)
    else:
        counts = np.linspace(0, math.sqrt(top), _TABLE_POINTS) ** 2
        mean = expected_anscombe(counts, sigma)
    empty = np.zeros(0)
    return Stabiliser(gain, offset, empty, empty, pedestal + gain * counts, mean)


def _curve_stabiliser(curve: NoiseCurve) -> Stabiliser:
    low, high = curve.span
    sigma_low, sigma_high = np.sqrt(curve.variance(np.array([low, high])))
    z = np.linspace(low - _REACH * sigma_low, high + _REACH * sigma_high, _CURVE_POINTS)
    slope = 1 / np.sqrt(curve.variance(z))
    step = z[1] - z[0]
    f = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * step)])
    # Gauss-Hermite for the mean over the noise, which is taken for Gaussian here.
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    sigma = np.sqrt(curve.variance(z))
    mean = sum(
        w * _interpolate(z + sigma * n, z, f) for n, w in zip(nodes, weights / weights.sum(), strict=True)
    )
    mean = np.maximum.accumulate(np.asarray(mean) + 1e-12 * np.arange(len(z)))
    return Stabiliser(0.0, 0.0, z, f, z, mean)


def _interpolate(values: Floats, x: Floats, y: Floats, *, backwards: bool = False) -> Floats:
    """Interpolate y at values of x (backwards: x at values of y); beyond the ends, go on straight."""
    if backwards:
        x, y = y, x
    found = np.interp(values, x, y)
    left = (y[1] - y[0]) / (x[1] - x[0])
    right = (y[-1] - y[-2]) / (x[-1] - x[-2])
    found = np.where(values < x[0], y[0] + left * (values - x[0]), found)
    return np.where(values > x[-1], y[-1] + right * (values - x[-1]), found)
