"""What came out, and whether it should be trusted."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.plan import Plan

# Measured on results for white, Poisson-Gaussian and correlated noise on training pictures, against the
# same results with detail taken out of them: docs/decisions/0006-real-noise.md.
_STD_LIMIT = 1.1  # a residual may be this much stronger than the noise
_STD_WEAK = 0.6  # and not weaker than this: else what was measured as noise is mostly still there
_CORRELATION_LIMIT = 0.05
_CORRELATION_BAD = 0.2
_NEGATIVE_LIMIT = 0.3  # what is left of noise in textures makes neighbours in the residual differ: 0.2
_NEGATIVE_LIMIT_CORRELATED = 0.5
_PEAK_LIMIT = 1.6  # of the residual's spectrum over its surroundings, beyond chance
_PEAK_BAD = 4.0
_DEPENDENCE_LIMIT = 1.25  # standard deviation of a decile of tone over what is expected there
_BUSY_LIMIT = 0.03  # share of 8 x 8 blocks that lost more than noise can explain
_BUSY_BAD = 0.12
_DRIFT_LIMIT = 0.005  # of the range, per decile of the result
# A perfect denoiser too shares some noise between a pixel and the tone around it: the covariance is about
# this share of the variance, and shifts the outer deciles by 1.75 times that over the spread of the tones.
_SHARED = 0.02

# What was removed from PolyU's pictures and clean JPEGs without measurable noise had a standard deviation of
# 0.6 to 1.5 of 255, and twice 2.6 to 2.8: where the gain was least, or texture was lost.
_MUCH_UNMEASURED = 2.0
_BLIND_SIGMA = 1 / 255  # the least unit of what a blind model removed, where hardly any noise was found

_WINDOW = 256  # px; residuals are looked at in at most this many windows of that size
_WINDOWS = 16
_LAGS = 4  # px, to which neighbours are compared
_WELCH = 32  # px, of the periodogram
_BLOCK = 8
# 64 independent values of noise scatter around their variance by 18 %: one block in 10,000 exceeds this.
_BUSY = 1.75


@dataclasses.dataclass(frozen=True, slots=True)
class ResidualCheck:
    """Statistics of input minus result, over windows spread over the picture.

    Residuals are divided by the standard deviation that the noise has at the brightness of the result.

    Attributes
    ----------
    std : float
        As a fraction of the noise that was estimated; a perfect result gives 1 or a little less.
    correlation : pair of float
        Lag-1 autocorrelation, horizontal and vertical; 0 for white noise.
    drift : float
        Largest mean of the residual in any decile of the result, as a fraction of the range. The
        tone of a pixel is the mean of its 24 neighbours in the result: deciles of the noisy
        input are biased (its brightest pixels are those with the largest noise), and so are,
        in textures, those of the result's own pixels, which rightly keep a part of the noise.
    structure : float
        Largest autocorrelation within 4 px beyond that of the measured noise; 0 for the noise itself.
    lowest : float
        Smallest autocorrelation within 4 px below that of the measured noise; 0 for the noise itself.
    peak : float
        Highest place of the residual's spectrum over its surroundings, chance taken out; 1 for
        noise of any smooth spectrum, large where something periodic was removed.
    dependence : float
        Largest standard deviation of any decile of tone, as a fraction of the noise expected there; 1
        or less if the noise depends on the signal as it was taken to.
    busy : float
        Share of the 8 x 8 blocks that lost more than noise can explain.
    coloured : bool
        The noise was measured to be correlated.
    measured : bool
        Noise was found at all. Where a blind model worked and it was not, residuals are in units of 1/255
        and compared with white noise.
    """

    std: float
    correlation: tuple[float, float]
    drift: float
    structure: float = 0.0
    lowest: float = 0.0
    peak: float = 1.0
    dependence: float = 1.0
    busy: float = 0.0
    coloured: bool = False
    measured: bool = True


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
    noisy: Picture,
    result: Picture,
    profiles: tuple[NoiseProfile, ...],
    strength: float,
    *,
    blind: bool = False,
) -> ResidualCheck | None:
    """Measure what was taken out; None if there is nothing to measure.

    With `blind` there is, even where no noise was found (see `judge`).
    """
    if strength == 0 or not (blind or any(s > 0 for p in profiles for s in p.sigma)):
        return None
    black = noisy.range.black
    unit = noisy.range.white - black
    sums = _Sums(_expected_correlation(profiles))
    for before, after, channel in _windows(noisy, result):
        profile = profiles[min(channel, len(profiles) - 1)]
        for sample in range(before.shape[2]):
            sigma = profile.sigma[min(sample, len(profile.sigma) - 1)]
            if blind or sigma > 0:
                y, x = ((v[..., sample].astype(np.float64) - black) / unit for v in (before, after))
                if blind:
                    noise = np.full(x.shape, max(sigma, _BLIND_SIGMA))
                else:
                    noise = _noise_at(x, profile, sample, sigma)
                sums.add(y, x, noise, strength)
    found = sums.check()
    if found is None or not blind:
        return found
    return dataclasses.replace(found, measured=any(s > _BLIND_SIGMA for p in profiles for s in p.sigma))


def judge(
    check: ResidualCheck | None, doubts: tuple[str, ...], *, blind: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Return a plain verdict and its reasons.

    With `blind` the model was told no noise, and what was taken out is that of a finished photograph:
    JPEG's own faults, noise that differs from tone to tone and is nearly gone in flat places. Neither its
    amount nor its evenness says anything then. That neighbours in it agree as in a picture does: it is
    texture. Where no noise could be measured, they agree in the camera's smoothed noise as well: then only
    much of it is a doubt.
    """
    reasons = list(doubts)
    bad = False
    if blind and check is not None:
        if check.structure > _CORRELATION_BAD and (check.measured or check.std > _MUCH_UNMEASURED):
            reasons.append(
                "texture may have been lost: neighbouring pixels in what was removed correlate by "
                f"{check.structure:.2f} more than the noise"
            )
            bad = check.measured
    elif check is not None:
        if check.std > _STD_LIMIT:
            reasons.append(f"more was removed than the noise: {check.std:.2f} times its standard deviation")
        if check.std < _STD_WEAK:
            reasons.append(
                f"only {check.std:.2f} of the noise was removed: texture may have been taken for noise"
            )
        if check.structure > _CORRELATION_LIMIT:
            reasons.append(
                f"what was removed has structure: neighbouring pixels correlate by {check.structure:.2f}"
                " more than the noise"
            )
            bad = check.structure > _CORRELATION_BAD
        elif check.lowest < -(_NEGATIVE_LIMIT_CORRELATED if check.coloured else _NEGATIVE_LIMIT):
            reasons.append(
                f"what was removed has structure: neighbouring pixels correlate by {check.lowest:.2f}"
            )
        if check.peak > _PEAK_LIMIT:
            reasons.append("what was removed has structure: something periodic is in it")
            bad = bad or check.peak > _PEAK_BAD
        if check.busy > _BUSY_LIMIT:
            reasons.append(f"{100 * check.busy:.0f} % of the area lost more than noise")
            bad = bad or check.busy > _BUSY_BAD
        if check.dependence > _DEPENDENCE_LIMIT:
            reasons.append(
                f"what was removed depends on brightness: {check.dependence:.1f} of the noise in some tones"
            )
        if check.drift > _DRIFT_LIMIT:
            reasons.append(f"brightness shifted by {100 * check.drift:.1f} % of the range in some tones")
            bad = bad or check.drift > 4 * _DRIFT_LIMIT
    reasons = list(dict.fromkeys(reasons))
    if not reasons:
        return "good", ()
    return ("do not trust" if bad else "check"), tuple(reasons)


def _noise_at(x: Floats, profile: NoiseProfile, sample: int, sigma: float) -> Floats:
    """Return the standard deviation of the noise at each pixel, by the brightness of the result there."""
    if not profile.depends_on_signal or min(x.shape) < 5:
        return np.full(x.shape, sigma)
    curve = profile.curves[min(sample, len(profile.curves) - 1)]
    around = np.pad(_neighbour_mean(np.nan_to_num(x)), 2, mode="edge")
    variance = curve.variance(around)
    # A quarter of a photon: where there is less light, the brightness itself is not known well enough.
    return np.asarray(np.sqrt(np.maximum(variance, 0.25 * max(curve.gain, 0.0) ** 2)))


def _expected_correlation(profiles: tuple[NoiseProfile, ...]) -> Floats:
    """Return the autocorrelation of the measured noise at lags 0..4 down and across."""
    tables = [np.array(s) for p in profiles for s in p.spectra]
    if not tables:
        expected = np.zeros((_LAGS + 1, _LAGS + 1))
        expected[0, 0] = 1.0
        return expected
    power = np.mean(tables, axis=0)
    frequency = (np.arange(len(power)) + 0.5) / len(power)
    wave = np.cos(np.pi * np.arange(_LAGS + 1)[:, None] * frequency)
    found = wave @ power @ wave.T
    return np.asarray(found / found[0, 0])


class _Sums:
    """Running sums over windows; residuals in units of the noise."""

    def __init__(self, expected: Floats) -> None:
        self.expected = expected
        self.count = 0
        self.square = 0.0
        self.lag = np.zeros((_LAGS + 1, 2 * _LAGS + 1))  # down 0..4, across -4..4
        self.lag_count = np.zeros_like(self.lag)
        self.spectrum = np.zeros((_WELCH, _WELCH))
        self.segments = 0
        self.blocks: list[Floats] = []
        self.tones: list[Floats] = []
        self.residuals: list[Floats] = []
        self.relative: list[Floats] = []

    def add(self, before: Floats, after: Floats, sigma: Floats, strength: float) -> None:
        usable = np.isfinite(before) & np.isfinite(after)
        before, after = np.where(usable, before, 0.0), np.where(usable, after, 0.0)
        residual = (before - after) / strength
        r = residual / sigma
        self.count += r.size
        self.square += float((r * r).sum())
        centred = r - r.mean()
        rows, columns = r.shape
        for down in range(min(_LAGS + 1, rows)):
            for across in range(-_LAGS, _LAGS + 1):
                if abs(across) >= columns:
                    continue
                a = centred[down:, max(across, 0) : columns + min(across, 0)]
                b = centred[: rows - down, max(-across, 0) : columns + min(-across, 0)]
                self.lag[down, across + _LAGS] += float((a * b).sum())
                self.lag_count[down, across + _LAGS] += a.size
        self._add_spectrum(centred)
        if min(r.shape) >= _BLOCK:
            m, n = rows // _BLOCK, columns // _BLOCK
            parts = r[: m * _BLOCK, : n * _BLOCK].reshape(m, _BLOCK, n, _BLOCK)
            self.blocks.append(np.asarray((parts**2).mean(axis=(1, 3))).ravel())
        if min(residual.shape) >= 5:
            self.tones.append(_neighbour_mean(after).ravel())
            self.residuals.append(residual[2:-2, 2:-2].ravel())
            self.relative.append(r[2:-2, 2:-2].ravel())

    def _add_spectrum(self, centred: Floats) -> None:
        taper = np.hanning(_WELCH + 2)[1:-1]
        for top in range(0, centred.shape[0] - _WELCH + 1, _WELCH // 2):
            for left in range(0, centred.shape[1] - _WELCH + 1, _WELCH // 2):
                part = centred[top : top + _WELCH, left : left + _WELCH] * taper[:, None] * taper
                self.spectrum += np.abs(np.fft.fft2(part)) ** 2
                self.segments += 1

    def check(self) -> ResidualCheck | None:
        if self.count < 64 or self.square == 0:
            return None
        power = self.square / self.count
        correlation = self.lag / np.maximum(self.lag_count, 1) / power
        expected = np.concatenate([self.expected[:, :0:-1], self.expected], axis=1)
        chance = 3 / np.sqrt(np.maximum(self.lag_count, 1))
        excess = correlation - expected
        excess[0, : _LAGS + 1] = 0  # the lag of 0, and lags that are there twice
        counted = self.lag_count > 0
        drift, dependence = self._by_tone()
        return ResidualCheck(
            std=math.sqrt(power),
            correlation=(float(correlation[0, _LAGS + 1]), float(correlation[1, _LAGS])),
            drift=drift,
            structure=max(0.0, float((excess - chance)[counted].max())),
            lowest=min(0.0, float((excess + chance)[counted].min())),
            peak=self._peak(),
            dependence=dependence,
            busy=self._busy(),
            coloured=self._alike() > 1,
        )

    def _peak(self) -> float:
        if self.segments < 4:
            return 1.0
        shifts = [(i, j) for i in range(-3, 4) for j in range(-3, 4) if max(abs(i), abs(j)) == 3]
        ring = [np.roll(self.spectrum, s, (0, 1)) for s in shifts]
        # The spectrum of correlated noise slopes: its higher side is what a peak must rise above.
        around = np.quantile(ring, 0.5 if self._alike() == 1 else 0.85, axis=0)
        # Where correlated noise has next to nothing, anything would be a peak.
        ratio = self.spectrum / np.maximum(around, 0.1 * float(self.spectrum.mean()))
        ratio[[0, 0, 0, 1, -1], [0, 1, -1, 0, 0]] = 0.0
        # Segments overlap by half: about half of them are independent. Each value is then a gamma law.
        chance = 1 + 5 / math.sqrt(max(1.0, self.segments / 2))
        return max(1.0, float(ratio.max()) / chance)

    def _busy(self) -> float:
        if not self.blocks:
            return 0.0
        # Correlated noise has fewer independent values in a block: its energy scatters more.
        limit = 1 + (_BUSY - 1) * math.sqrt(self._alike())
        return float(np.mean(np.concatenate(self.blocks) > limit))

    def _alike(self) -> float:
        """Return how many pixels share one independent value of the noise; 1 for white noise."""
        whole = np.concatenate([self.expected[:, :0:-1], self.expected], axis=1)
        return max(1.0, float((whole[1:] ** 2).sum() * 2 + (whole[0] ** 2).sum()))

    def _by_tone(self) -> tuple[float, float]:
        """Return the largest mean of a decile of tone, and the largest relative standard deviation."""
        if not self.tones:
            return 0.0, 1.0
        tones, residuals, relative = map(np.concatenate, (self.tones, self.residuals, self.relative))
        edges = np.quantile(tones, np.linspace(0, 1, 11)[1:-1])
        decile = np.searchsorted(edges, tones, side="right")
        counts = np.bincount(decile, minlength=10)
        means = np.bincount(decile, residuals, minlength=10) / np.maximum(counts, 1)
        # A decile of few pixels has a mean that is noise itself.
        alike = self._alike()
        errors = residuals.std() * np.sqrt(alike / np.maximum(counts, 1))
        shared = 1.75 * _SHARED * alike * float(residuals.var()) / max(float(tones.std()), 1e-9)
        drift = float(np.maximum(np.abs(means) - 3 * errors - min(shared, float(residuals.std())), 0).max())
        large = counts >= 500
        if not large.any():
            return drift, 1.0
        spread = np.sqrt(np.bincount(decile, relative**2, minlength=10)[large] / counts[large])
        return drift, float(spread.max())


def _neighbour_mean(values: Floats) -> Floats:
    """Return the mean of the 5x5 neighbourhood without its centre, for pixels that have one."""
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
            before, after = noisy.plane(index), result.plane(index)
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
