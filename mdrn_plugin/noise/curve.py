"""How the variance of the noise depends on the signal: ``var = gain * signal + offset``, or a curve.

Light is counted: the noise of a camera or a detector grows with the signal. The law is fitted to
the flat blocks of a picture, level by level, in the manner of Foi et al. (2008) with the blocks of
Ponomarenko and Colom in place of wavelets: the mean of a block gives the signal, its high
frequencies the variance, and its low frequencies whether it is flat. For an affine law this holds
for blocks that are not quite flat as well, since the mean of the variances is the variance at the mean.

Shapes: ``b_NP`` block, pixel of the block; vectors have one value per block or per level.

References
----------
A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian, "Practical Poissonian-Gaussian noise modeling and
fitting for single-image raw-data", IEEE Transactions on Image Processing 17(10), 2008.
L. Azzari, A. Foi, "Gaussian-Cauchy mixture modeling for robust signal-dependent noise estimation",
ICASSP 2014 (why the fit must be robust).
M. Colom, A. Buades, "Analysis and extension of the Ponomarenko et al. method", Image Processing On
Line 3, 2013.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mdrn_plugin.noise.blocks import Array, Floats

_LEVELS = 24  # at most; level sets are a 24th of the span of the signal wide
_LEVEL_BLOCKS = 40  # at least, in a level set
_FEW_LEVELS = 4  # fewer levels than this say nothing of a dependence
_FLAT_SHARE = 0.05  # blocks of a level set that are taken however much structure they have
_FLAT_EXCESS = 1.1  # selecting over measured energy below which a block is flat: two thirds of pure noise
_ROUNDS = 4
_MODEL_ERROR = 0.05  # relative error of the variance of a level that no number of blocks removes
_TEXTURE = 1.15  # excess of structure in a level set over the flattest ones that means texture
_UNEVEN_ERROR = 1.0  # squared relative error per squared relative scatter beyond that of noise
_TEXTURE_ERROR = 1.0  # relative error of the variance per unit of that excess

# What it takes to call the noise signal-dependent: the variance changes by this factor between the
# 5 % and 95 % quantiles of the signal, and the slope is so many times its standard error.
_FACTOR = 1.4
SURE = 7.0
_MORE_THAN_CHANCE = 2.0  # variance of the block means over what noise alone gives them
# In a dark picture with a few bright things no level above the background has flat blocks, so each is
# doubted. But texture scatters about any law: levels that lie so near to one line (root mean square of the
# logarithm of the variance), also for how far it rises (its logarithm), and it rises so much, are noise.
_FOLLOWED = 2.0
_FOLLOW = 0.2
_FOLLOW_RISE = 0.14
# The line is given up for a curve where it misses the levels by this much (robust relative error of
# the variance) and the curve by at most half of that.
_LINE_MISSES = 0.2
_KNOWN = 0.25  # relative error of a level's variance up to which it counts for the curve
# Texture adds to the variance of a level and nothing takes from it, so a law that is too large by so many
# standard errors for this share of the flat blocks was fitted to texture.
_TOO_LARGE = 4.0
_CONTRADICTED = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseCurve:
    """Variance of the noise of one channel as a function of the signal.

    Signal and standard deviation are fractions of white minus black, the signal counted from black;
    variances are their squares.

    Attributes
    ----------
    kind : str
        "constant", "line" or "curve".
    gain, offset : float
        ``variance = gain * signal + offset``; the best line even where the kind is another.
    levels, variances : tuple of float
        The monotone curve, increasing in signal; empty unless the kind is "curve".
    mean : float
        Variance where the kind is "constant".
    span : pair of float
        Signal between which it was measured.
    source : str
        "blind", "user" or "file".
    """

    kind: str
    gain: float
    offset: float
    levels: tuple[float, ...] = ()
    variances: tuple[float, ...] = ()
    mean: float = 0.0
    span: tuple[float, float] = (0.0, 1.0)
    source: str = "blind"

    def variance(self, signal: Floats) -> Floats:
        """Return the variance at each signal, never below a thousandth of the largest in the span.

        Parameters
        ----------
        signal : ndarray, float
            Any shape; fraction of white minus black.
        """
        if self.kind == "constant":
            return np.full(np.shape(signal), max(self.mean, 1e-20))
        if self.kind == "curve":
            # Areas that compression made flat have none at all.
            least = max(1e-3 * max(self.variances), 1e-20)
            return np.maximum(np.interp(signal, self.levels, self.variances), least)
        found = self.gain * np.asarray(signal, np.float64) + self.offset
        top = max(self.gain * s + self.offset for s in self.span)
        return np.asarray(np.maximum(found, max(1e-3 * top, 1e-20)))

    def stronger(self, factor: float) -> NoiseCurve:
        """Return the curve with `factor` times the variance."""
        return dataclasses.replace(
            self,
            gain=self.gain * factor,
            offset=self.offset * factor,
            variances=tuple(v * factor for v in self.variances),
            mean=self.mean * factor,
        )

    def rescaled(self, black: float, unit: float) -> NoiseCurve:
        """Return the curve for a signal ``black + unit * signal`` in the new units."""
        return dataclasses.replace(
            self,
            gain=self.gain * unit,
            offset=self.offset * unit**2 - self.gain * unit * black,
            levels=tuple(black + unit * s for s in self.levels),
            variances=tuple(v * unit**2 for v in self.variances),
            mean=self.mean * unit**2,
            span=(black + unit * self.span[0], black + unit * self.span[1]),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class BlockEnergies:
    """What the fit needs of each block.

    Attributes
    ----------
    signal : ndarray (N,)
        Mean of the block.
    choosing, measured : ndarray (N,)
        Mean squared DCT coefficient of the frequencies that choose flat blocks and of those that
        measure the noise; equal in expectation for flat blocks under white noise.
    count : int
        How many coefficients `measured` is the mean of.
    pixels : int
        Of a block.
    area : float
        New pixels per block, at most `pixels`.
    """

    signal: Floats
    choosing: Floats
    measured: Floats
    count: int
    pixels: int
    area: float


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A law fitted to blocks.

    Attributes
    ----------
    curve : NoiseCurve
        In the units of the blocks.
    follows : bool
        All levels lie on its line, as only those of noise do.
    """

    curve: NoiseCurve
    follows: bool


def fit_curve(blocks: BlockEnergies, sure: float = SURE) -> Fit | None:
    """Fit the variance as a function of the signal to blocks, robustly.

    Parameters
    ----------
    blocks : BlockEnergies
        Of the whole picture.
    sure : float
        Standard errors that the slope must differ from 0 by for a line; infinite: only a line that all
        levels lie on is taken.

    Returns
    -------
    Fit or None
        None if there are too few levels to tell.
    """
    level = _level_sets(blocks.signal)
    count = int(level.max()) + 1 if len(level) else 0
    if count < 2:
        return None
    flat = _flattest(blocks.choosing, level, count)
    sets = _Sets.of(blocks, level, count, flat, math.inf)
    # Where the line is far below a level, the level keeps its blocks: it may be a curve.
    own = np.bincount(level[flat], blocks.measured[flat], count) / np.bincount(level[flat], minlength=count)
    for _ in range(_ROUNDS):
        # On the first round the level sets speak for themselves, then the line for all of them.
        line = _robust_line(sets)
        expected = _positive(line, sets, blocks.signal)
        flat = _flattest(blocks.choosing, level, count) | (blocks.choosing <= _FLAT_EXCESS * expected)
        limit = np.maximum(expected, own[level]) * (1 + 4 * math.sqrt(2 / blocks.count))
        sets = _Sets.of(blocks, level, count, flat, limit)
    line = _robust_line(sets)
    line = _undo_attenuation(line, blocks, flat)
    fitted = np.maximum(line[0] * sets.signal + line[1], 0.05 * sets.variance.min())
    follows = line[0] > 0 and sets.follow(fitted)
    return Fit(_choose_kind(line, fitted, follows, sets, blocks, sure), follows)


# --- level sets -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Sets:
    """One value per level set."""

    signal: Floats
    variance: Floats
    error: Floats  # relative standard error of the variance
    number: Floats  # flat blocks

    def follow(self, fitted: Floats) -> bool:
        """Whether the levels lie on a law that gives these variances as only noise does."""
        if len(fitted) < _FEW_LEVELS or fitted.max() < _FOLLOWED * fitted.min():
            return False
        scatter = float(np.sqrt(np.mean(np.log(self.variance / fitted) ** 2)))
        return scatter < min(_FOLLOW, _FOLLOW_RISE * math.log(fitted.max() / fitted.min()))

    def contradict(self, fitted: Floats) -> bool:
        """Whether a law that gives these variances is too large for what many flat blocks have."""
        below = self.variance / fitted - 1 < -_TOO_LARGE * self.error
        return bool(self.number[below].sum() > _CONTRADICTED * self.number.sum())

    @staticmethod
    def of(blocks: BlockEnergies, level: Array, count: int, flat: Array, limit: Floats | float) -> _Sets:
        used = flat & (blocks.measured <= limit)
        number = np.bincount(level[used], minlength=count).astype(np.float64)
        there = number > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            signal = np.bincount(level[used], blocks.signal[used], count) / number
            variance = np.maximum(np.bincount(level[used], blocks.measured[used], count) / number, 1e-30)
            structure = np.bincount(level[used], blocks.choosing[used], count) / number / variance
            square = np.bincount(level[used], blocks.measured[used] ** 2, count) / number
            uneven = np.maximum(square / variance**2 - 1 - 2 / blocks.count, 0.0)
        independent = number[there] * min(1.0, 2 * blocks.area / blocks.pixels) * blocks.count
        # A level without flat blocks tells of its texture: believed less, the more it has beyond
        # what the flattest third of the levels has (correlated noise has some everywhere).
        common = max(1.0, float(np.quantile(structure[there], 0.33)))
        texture = np.maximum(structure[there] / common - _TEXTURE, 0.0)
        doubt = _MODEL_ERROR**2 + (_TEXTURE_ERROR * texture) ** 2 + _UNEVEN_ERROR * uneven[there]
        error = np.sqrt(2 / np.maximum(independent, 1) + doubt)
        return _Sets(signal[there], variance[there], error, number[there])


def _level_sets(signal: Floats) -> Array:
    """Return the level set of each block: sets of equal width, widened until they hold enough blocks."""
    if len(signal) < 2 * _LEVEL_BLOCKS:
        return np.zeros(len(signal), np.intp)
    ordered = np.sort(signal)
    low, high = ordered[[len(ordered) // 500, -1 - len(ordered) // 500]]
    if not high > low:
        return np.zeros(len(signal), np.intp)
    edges = []
    begin, least = 0, max(_LEVEL_BLOCKS, len(ordered) // 200)
    while len(ordered) - begin >= 2 * least:
        wide = int(np.searchsorted(ordered, ordered[begin] + (high - low) / _LEVELS))
        begin = max(wide, begin + least)
        if len(ordered) - begin < least:
            break
        edges.append(ordered[begin])
    return np.searchsorted(np.array(edges), signal, side="right")


def _flattest(choosing: Floats, level: Array, count: int) -> Array:
    """Mark the share of the blocks of each level set that has the least structure."""
    order = np.lexsort((choosing, level))
    number = np.bincount(level, minlength=count)
    rank = np.arange(len(level)) - np.repeat(np.cumsum(number) - number, number)
    keep = np.maximum(np.ceil(_FLAT_SHARE * number), np.minimum(number, _LEVEL_BLOCKS // 2))
    flat = np.zeros(len(level), bool)
    flat[order[rank < keep[level[order]]]] = True
    return flat


# --- the line ---------------------------------------------------------------------------------------


def _robust_line(sets: _Sets) -> tuple[float, float]:
    """Fit gain and offset with a Cauchy loss on relative errors, from the best line through two levels.

    Structure that was taken for noise makes some levels too large, clipping some too small.
    """
    x, v, e = sets.signal, sets.variance, sets.error
    i, j = np.triu_indices(len(x), 1)
    gain = np.append((v[j] - v[i]) / np.maximum(x[j] - x[i], 1e-30), 0.0)
    offset = np.append(v[i] - gain[:-1] * x[i], np.median(v))
    fitted = gain[:, None] * x + offset[:, None]
    ratio = v / np.maximum(fitted, 1e-3 * v.max()) - 1
    cost = np.log1p((ratio / (2 * e)) ** 2).sum(axis=1)
    best = int(np.argmin(cost))
    a, b = float(gain[best]), float(offset[best])
    for _ in range(10):
        fitted = np.maximum(a * x + b, 0.02 * v.min())
        miss = (v / fitted - 1) / (2 * e)
        w = 1 / ((e * fitted) ** 2 * (1 + miss**2))
        mean = float((w * x).sum() / w.sum())
        spread = float((w * (x - mean) ** 2).sum())
        if spread <= 0:
            break
        a = float((w * (x - mean) * v).sum()) / spread
        b = float((w * v).sum() / w.sum()) - a * mean
    return a, b


def _positive(line: tuple[float, float], sets: _Sets, signal: Floats) -> Floats:
    floor = 0.3 * float(sets.variance.min())
    return np.asarray(np.maximum(line[0] * signal + line[1], floor))


def _undo_attenuation(line: tuple[float, float], blocks: BlockEnergies, flat: Array) -> tuple[float, float]:
    """Correct the slope for the noise in the signal of each block.

    The mean of n pixels scatters by var/n around the true signal, which flattens a regression
    on it. For Poisson noise the third cumulant, which makes mean and variance of a block scatter
    together, makes up for its own part of that exactly; what is left is the part of the
    Gaussian noise: gain * (V - offset / n) = gain_found * V, with V the variance of the means.
    """
    gain, offset = line
    signal = blocks.signal[flat]
    if len(signal) < 2:
        return line
    spread, middle = float(np.var(signal)), float(np.mean(signal))
    dark = max(0.0, min(offset, gain * middle + offset))
    left = spread - dark / blocks.pixels
    if spread <= 0 or left <= 0.25 * spread:
        return line
    steeper = gain * spread / left
    return steeper, offset - (steeper - gain) * middle


# --- line, curve or constant ------------------------------------------------------------------------


def _choose_kind(
    line: tuple[float, float],
    on_line: Floats,
    follows: bool,
    sets: _Sets,
    blocks: BlockEnergies,
    sure: float,
) -> NoiseCurve:
    x, v, e = sets.signal, sets.variance, sets.error
    low, high = (float(q) for q in np.quantile(blocks.signal, [0.05, 0.95]))
    span = (float(x.min()), float(x.max()))
    weight = 1 / (e * v) ** 2
    mean = float((weight * v).sum() / weight.sum())
    spread = float((weight * (x - (weight * x).sum() / weight.sum()) ** 2).sum())
    at_low, at_high = (max(line[0] * s + line[1], 0.05 * float(v.min())) for s in (low, high))
    factor = max(at_low, at_high) / min(at_low, at_high)
    slope = abs(line[0]) * math.sqrt(spread)  # in standard errors
    # Skewed noise makes mean and variance of a block scatter together where the signal is one only.
    chance = float(np.mean(blocks.measured)) / blocks.pixels
    if len(x) < _FEW_LEVELS or float(np.var(blocks.signal)) < _MORE_THAN_CHANCE * chance:
        return NoiseCurve("constant", *line, mean=mean, span=span)
    white = sure >= SURE  # in correlated noise a camera's own denoising makes levels quieter than the law
    known = e < _KNOWN
    if np.count_nonzero(known) >= 2 * _FEW_LEVELS and sure < math.inf:
        x, v, e = x[known], v[known], e[known]
        fitted = np.maximum(line[0] * x + line[1], 0.05 * v.min())
        misses = float(np.median(np.abs(v / fitted - 1)))
        curve = _monotone(v, 1 / e**2)
        better = float(np.median(np.abs(v / curve - 1))) <= 0.5 * misses
        if misses > _LINE_MISSES and better and curve.max() > _FACTOR * curve.min():
            levels, variances = tuple(map(float, x)), tuple(map(float, curve))
            found = NoiseCurve("curve", *line, levels, variances, span=span)
            if not (white and sets.contradict(found.variance(sets.signal))):
                return found
    proven = factor >= _FACTOR and slope >= sure
    if white:
        proven = (proven or follows) and not sets.contradict(on_line)
    if not proven:
        return NoiseCurve("constant", *line, mean=mean, span=span)
    return NoiseCurve("line", *line, span=span)


def _monotone(values: Floats, weights: Floats) -> Floats:
    """Return the nearest monotone sequence, rising or falling (pool adjacent violators)."""
    both = (_rising(values, weights), _rising(values[::-1], weights[::-1])[::-1])
    return min(both, key=lambda fit: float((weights * np.log(values / fit) ** 2).sum()))


def _rising(values: Floats, weights: Floats) -> Floats:
    pools: list[list[float]] = []  # value, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append([float(value), float(weight), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            v, w, n = pools.pop()
            u = pools[-1]
            u[0] = (u[0] * u[1] + v * w) / (u[1] + w)
            u[1] += w
            u[2] += n
    return np.repeat([p[0] for p in pools], [int(p[2]) for p in pools])
