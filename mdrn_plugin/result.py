"""What came out, and whether it should be trusted."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.picture import as_rows_columns_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.plan import Plan

# A residual may be this much stronger than the noise, and this correlated, before it is suspicious.
_STD_LIMIT = 1.1
_CORRELATION_LIMIT = 0.05
_CORRELATION_BAD = 0.2
_DRIFT_LIMIT = 0.005  # of the range, per decile of the result

_WINDOW = 256  # px; residuals are looked at in at most this many windows of that size
_WINDOWS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class ResidualCheck:
    """Statistics of input minus result, over windows spread over the picture.

    Attributes
    ----------
    std : float
        As a fraction of the noise that was estimated; a perfect result gives 1 or a little less.
    correlation : pair of float
        Lag-1 autocorrelation, horizontal and vertical; 0 for white noise.
    drift : float
        Largest mean of the residual in any decile of the result, as a fraction of the range.
        Deciles of the noisy input would be biased: its brightest pixels are those with the
        largest noise.
    """

    std: float
    correlation: tuple[float, float]
    drift: float


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A denoised picture with how it came to be."""

    picture: Picture
    profiles: tuple[NoiseProfile, ...]
    plan: Plan
    check: ResidualCheck | None
    verdict: str  # "good", "check" or "do not trust"
    reasons: tuple[str, ...]
    seconds: float


def check_residual(
    noisy: Picture, result: Picture, profiles: tuple[NoiseProfile, ...], strength: float
) -> ResidualCheck | None:
    """Measure what was taken out; None if there is nothing to measure."""
    if strength == 0 or not any(s > 0 for p in profiles for s in p.sigma):
        return None
    unit = noisy.range.white - noisy.range.black
    sums = _Sums()
    for before, after, channel in _windows(noisy, result):
        sigmas = profiles[min(channel, len(profiles) - 1)].sigma
        for sample in range(before.shape[2]):
            sigma = sigmas[min(sample, len(sigmas) - 1)]
            if sigma > 0:
                sums.add(before[..., sample], after[..., sample], sigma * unit, strength)
    return sums.check(unit)


def judge(check: ResidualCheck | None, doubts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return a plain verdict and its reasons."""
    reasons = list(doubts)
    bad = False
    if check is not None:
        strongest = max(abs(c) for c in check.correlation)
        if check.std > _STD_LIMIT:
            reasons.append(f"more was removed than the noise: {check.std:.2f} times its standard deviation")
        if strongest > _CORRELATION_LIMIT:
            reasons.append(
                f"what was removed has structure: neighbouring pixels correlate by {strongest:.2f}"
            )
            bad = strongest > _CORRELATION_BAD
        if check.drift > _DRIFT_LIMIT:
            reasons.append(f"brightness shifted by {100 * check.drift:.1f} % of the range in some tones")
            bad = bad or check.drift > 4 * _DRIFT_LIMIT
    reasons = list(dict.fromkeys(reasons))
    if not reasons:
        return "good", ()
    return ("do not trust" if bad else "check"), tuple(reasons)


class _Sums:
    """Running sums over windows; residuals in units of the noise."""

    def __init__(self) -> None:
        self.count = 0
        self.square = 0.0
        self.lag = np.zeros(2)
        self.lag_count = np.zeros(2)
        self.values: list[NDArray[np.float64]] = []
        self.residuals: list[NDArray[np.float64]] = []

    def add(self, before: NDArray[Any], after: NDArray[Any], sigma_dn: float, strength: float) -> None:
        residual = (before.astype(np.float64) - after) / strength
        residual[~np.isfinite(residual)] = 0
        r = residual / sigma_dn
        self.count += r.size
        self.square += float((r * r).sum())
        centred = r - r.mean()
        for k, (a, b) in enumerate(((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1]))):
            self.lag[k] += float((a * b).sum())
            self.lag_count[k] += a.size
        self.values.append(after.astype(np.float64).ravel())
        self.residuals.append(residual.ravel())

    def check(self, unit: float) -> ResidualCheck | None:
        if self.count < 64 or self.square == 0:
            return None
        power = self.square / self.count
        correlation = self.lag / np.maximum(self.lag_count, 1) / power
        return ResidualCheck(
            std=math.sqrt(power),
            correlation=(float(correlation[0]), float(correlation[1])),
            drift=self._drift() / unit,
        )

    def _drift(self) -> float:
        values, residuals = np.concatenate(self.values), np.concatenate(self.residuals)
        finite = np.isfinite(values)
        values, residuals = values[finite], residuals[finite]
        edges = np.quantile(values, np.linspace(0, 1, 11)[1:-1])
        decile = np.searchsorted(edges, values, side="right")
        counts = np.bincount(decile, minlength=10)
        means = np.bincount(decile, residuals, minlength=10) / np.maximum(counts, 1)
        # A decile of few pixels has a mean that is noise itself.
        errors = residuals.std() / np.sqrt(np.maximum(counts, 1))
        return float(np.maximum(np.abs(means) - 3 * errors, 0).max())


def _windows(noisy: Picture, result: Picture) -> list[tuple[NDArray[Any], NDArray[Any], int]]:
    planes = list(noisy.planes())
    channels = noisy.length("C")
    per_channel = max(1, _WINDOWS // channels)
    found = []
    for channel in range(channels):
        own = [p for p in planes if noisy.channel_of(p) == channel]
        chosen = [own[i * len(own) // min(len(own), per_channel)] for i in range(min(len(own), per_channel))]
        places = max(1, per_channel // len(chosen))
        for index in chosen:
            before = as_rows_columns_samples(np.asarray(noisy.pixels[index]), noisy.plane_axes, noisy.alpha)
            after = as_rows_columns_samples(np.asarray(result.pixels[index]), noisy.plane_axes, noisy.alpha)
            height, width = before.shape[:2]
            side = max(1, math.isqrt(places))
            for i in range(side):
                for j in range(side):
                    top = _start(height, i, side)
                    left = _start(width, j, side)
                    part = np.s_[top : top + _WINDOW, left : left + _WINDOW]
                    found.append((before[part], after[part], channel))
    return found


def _start(length: int, k: int, count: int) -> int:
    if count == 1:
        return max(0, (length - _WINDOW) // 2)
    return max(0, (length - _WINDOW) * k // (count - 1))
