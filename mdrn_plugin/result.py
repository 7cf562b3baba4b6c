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

# A residual may be this much stronger than the noise, and neighbours in it this alike, before it is
# suspicious.
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
        Largest mean of the residual in any decile of tone, as a fraction of the range. The tone
        of a pixel is the mean of its 24 neighbours in the input, which does not contain the
        pixel's own noise. Deciles of the input itself would be biased (its brightest pixels are
        those with the largest noise), and so would be deciles of the result, in textures, where
        it rightly keeps a part of the noise: by 6 % of the range at a noise of 50/255.
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
        # Below zero is no fault: what is left of white noise in textures makes the residual so.
        strongest = max(check.correlation)
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
        self.tones: list[NDArray[np.float64]] = []
        self.residuals: list[NDArray[np.float64]] = []

    def add(self, before: NDArray[Any], after: NDArray[Any], sigma_dn: float, strength: float) -> None:
        usable = np.isfinite(before) & np.isfinite(after)
        before, after = np.where(usable, before, 0.0), np.where(usable, after, 0.0)
        residual = (before.astype(np.float64) - after) / strength
        r = residual / sigma_dn
        self.count += r.size
        self.square += float((r * r).sum())
        centred = r - r.mean()
        for k, (a, b) in enumerate(((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1]))):
            self.lag[k] += float((a * b).sum())
            self.lag_count[k] += a.size
        if min(residual.shape) >= 5:
            self.tones.append(_neighbour_mean(before).ravel())
            self.residuals.append(residual[2:-2, 2:-2].ravel())

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
        if not self.tones:
            return 0.0
        tones, residuals = np.concatenate(self.tones), np.concatenate(self.residuals)
        finite = np.isfinite(tones)
        tones, residuals = tones[finite], residuals[finite]
        edges = np.quantile(tones, np.linspace(0, 1, 11)[1:-1])
        decile = np.searchsorted(edges, tones, side="right")
        counts = np.bincount(decile, minlength=10)
        means = np.bincount(decile, residuals, minlength=10) / np.maximum(counts, 1)
        # A decile of few pixels has a mean that is noise itself.
        errors = residuals.std() / np.sqrt(np.maximum(counts, 1))
        return float(np.maximum(np.abs(means) - 3 * errors, 0).max())


def _neighbour_mean(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the 5x5 neighbourhood without its centre, for pixels that have one."""
    values = x.astype(np.float64)
    rows = sum(values[k : values.shape[0] - 4 + k] for k in range(5))
    assert isinstance(rows, np.ndarray)
    total = sum(rows[:, k : values.shape[1] - 4 + k] for k in range(5))
    return np.asarray((total - values[2:-2, 2:-2]) / 24)


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
