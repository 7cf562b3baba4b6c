"""The door of the room: what noise a picture has, from the picture alone."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise.blocks import (
    PLANES,
    Array,
    Floats,
    at_edge,
    clip_levels,
    dct_basis,
    dct_order,
    finite_blocks,
    gather,
    spread,
    usable_blocks,
    windows,
)
from mdrn_plugin.noise.correlation import as_table, lag_correlation, measure_power
from mdrn_plugin.noise.curve import SURE, BlockEnergies, NoiseCurve, fit_curve
from mdrn_plugin.noise.level import Blocks, Level, measure, measure_blocks, take_blocks
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.noise.spectrum import WIDE, WIDE_BLOCKS
from mdrn_plugin.noise.stabilise import stabiliser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrn_plugin.noise.correlation import Spectrum
    from mdrn_plugin.picture import Picture

_NOISE_MAX = 100 / 255  # noise the models are made for
_CLIPPED_SHARE = 0.02  # of a block's pixels, above which it says nothing of the variance
_SILENT = 5e-4  # of the reach of the values: gradients and rounding look like noise of any law
_DARK_SHARE = 0.9  # of a block's pixels at black: nothing to measure
_BLOWN = 0.05  # share of the blocks with pixels at white: a clipped picture, not a dark one
_FEW = 400  # blocks, below which no dependence on the signal is looked for

# i+j of the frequencies that choose flat blocks and of those that measure: 8 x 8 and white, 16 x 16 and
# correlated (there the high frequencies tell of what processing left over).
_WHITE = (9, 9, 15)
_CORRELATED = (4, 4, 8)
_SURE_CORRELATED = 4.0  # fewer coefficients, and no white noise over texture to be careful of


def estimate_noise(picture: Picture, *, channel: int | None = None, law: str = "auto") -> NoiseProfile:
    """Measure the noise of one channel of a picture, blindly.

    Parameters
    ----------
    picture : Picture
        Any axes; a bounded number of planes is looked at, one at a time.
    channel : int, optional
        Position on C. To be left out if and only if the picture has no C axis (or one channel).
    law : str
        "auto"; "gaussian" measures one level only; "correlated" measures the spectrum even
        where the noise looks white.

    Returns
    -------
    NoiseProfile
        As fractions of white minus black.

    Raises
    ------
    BadOption
        `channel` is missing or out of range.
    """
    count = picture.length("C")
    if channel is None and count > 1:
        raise BadOption(
            f"channel: expected 0..{count - 1}, got none for a picture of {count} channels; "
            "give one, or use estimate_channels"
        )
    chosen = 0 if channel is None else channel
    if not 0 <= chosen < count:
        raise BadOption(f"channel: expected 0..{count - 1}, got {chosen}")
    places = [index for index in picture.planes() if picture.channel_of(index) == chosen]
    parts = [part for index in spread(places, PLANES) for part in windows(picture, index)]
    span = picture.range.white - picture.range.black
    unit = span if span > 0 else 1.0
    low, high = clip_levels(parts, picture.range)
    blocks = take_blocks(parts, low, high)
    level = measure_blocks(parts, blocks) if blocks is not None else measure(parts, low=low, high=high)
    profile = _plain_profile(level, unit)
    if blocks is None or law == "gaussian" or not np.any(level.sigma > _SILENT * blocks.scale):
        return profile
    if level.textured and level.correlated and law == "auto":
        return profile
    found = _with_laws(profile, parts, blocks, level, (picture.range.black, unit), law == "correlated")
    if level.textured and law == "auto" and all(c.kind == "constant" for c in found.curves):
        return profile
    return found


def estimate_channels(picture: Picture, *, law: str = "auto") -> tuple[NoiseProfile, ...]:
    """Measure the noise of every channel (C) of a picture, blindly; one profile without a C axis."""
    return tuple(estimate_noise(picture, channel=c, law=law) for c in range(picture.length("C")))


def _plain_profile(level: Level, unit: float) -> NoiseProfile:
    sigma = tuple(float(s) for s in level.sigma / unit)
    doubt = list(level.doubt)
    if sigma and max(sigma) > _NOISE_MAX:
        doubt.append(f"noise above the models' range (σ = {255 * max(sigma):.0f}/255, they end at 100)")
    return NoiseProfile(
        sigma=sigma,
        correlation=level.correlation,
        clipped=level.clipped,
        source="blind",
        doubt="; ".join(doubt),
        low_high_ratio=level.low_high_ratio,
        correlated=level.correlated,
    )


def _with_laws(
    profile: NoiseProfile,
    parts: Sequence[Array],
    blocks: Blocks,
    level: Level,
    range: tuple[float, float],
    forced: bool,
) -> NoiseProfile:
    """Add how the noise depends on the signal and, where it is correlated, its spectrum."""
    black, unit = range
    correlated = level.correlated or forced
    if correlated:
        wide = gather(parts, WIDE, WIDE_BLOCKS, blocks.offset, blocks.scale)
    curves, spectra, sigmas, correlations = [], [], [], []
    # The law needs fewer blocks than the level: a third of each of three colours says as much.
    thin = len(level.sigma)
    # Over texture only a law that all levels lie on is one.
    sure = math.inf if level.textured and not forced else SURE
    photons = True
    buried = correlated
    for c, sigma in enumerate(level.sigma):
        law = (
            _law(wide[0][c], WIDE, wide[1], blocks, _CORRELATED, _SURE_CORRELATED)
            if correlated
            else _law(blocks.b_CNP[c][::thin], blocks.side, blocks.area, blocks, _WHITE, sure)
        )
        curve = law.curve
        photons = photons and law.photons
        if curve is None or not sigma > 0:
            curve = NoiseCurve("constant", 0.0, 0.0, mean=(sigma / blocks.scale) ** 2)
        elif curve.kind == "constant" and not correlated:
            curve = dataclasses.replace(curve, mean=(sigma / blocks.scale) ** 2)
        if correlated:
            found = _spectrum(parts, c, blocks, curve)
            if found is None:
                return profile.with_doubt("the noise is correlated, and its spectrum cannot be measured here")
            curve, spectrum, correlation, hides = found
            buried = buried and hides
            spectra.append(spectrum)
            correlations.append(correlation)
        if curve.kind != "constant" or correlated:
            sigma = math.sqrt(float(np.mean(curve.variance(law.signal)))) * blocks.scale
        sigmas.append(float(sigma / unit))
        # from scaled to file units, from there to fractions of white
        in_file = curve.rescaled(blocks.offset, blocks.scale)
        curves.append(in_file.rescaled(-black / unit, 1 / unit))
    if len({c.kind == "constant" for c in curves}) > 1:
        # One detector has one law: what only some of its colours show is texture in those.
        if not correlated:
            sigmas = [float(s) for s in level.sigma / unit]
        pairs = zip(curves, sigmas, strict=True)
        curves = [dataclasses.replace(c, kind="constant", mean=s * s) for c, s in pairs]
    if photons:
        kept = [d for d in profile.doubt.split("; ") if not d.startswith("mostly clipped")]
        profile = dataclasses.replace(profile, clipped=0.0, doubt="; ".join(kept))
    return dataclasses.replace(
        profile,
        sigma=tuple(sigmas),
        correlation=_mean_pair(correlations) if correlations else profile.correlation,
        curves=tuple(curves),
        spectra=tuple(spectra),
        buried=buried,
    )


def _mean_pair(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    across, down = np.mean(pairs, axis=0)
    return float(across), float(down)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """What was fitted to the blocks of one sample, in scaled units.

    Attributes
    ----------
    signal : ndarray (N,)
        Means of the blocks.
    curve : NoiseCurve or None
        None where there are too few blocks.
    follows : bool
        All levels lie on the law's line.
    photons : bool
        Values at black mean that no photon came, not that noise was clipped.
    """

    signal: Floats
    curve: NoiseCurve | None
    follows: bool = False
    photons: bool = False


def _law(
    b_NP: Array, side: int, area: float, blocks: Blocks, frequencies: tuple[int, int, int], sure: float
) -> _Law:
    """Fit the law to the usable blocks.

    Values at black are clipped noise where the noise reaches beyond black, and no photons where it
    does not. So blocks that touch black are left out at first, and let in if what the others say
    leaves no noise at black to be clipped.
    """
    b_NP, _ = finite_blocks(b_NP)
    usable, why = usable_blocks(b_NP, side, blocks.edges)
    if why:
        return _Law(np.zeros(1), None)
    low, high = blocks.edges
    bright = at_edge(b_NP, (math.nan, high)).mean(axis=1)
    usable &= bright <= _CLIPPED_SHARE
    dark = at_edge(b_NP, (low, math.nan)).mean(axis=1)
    free = usable & (dark <= _CLIPPED_SHARE)
    law = _fit(b_NP[free], side, area, blocks, frequencies, sure)
    if np.count_nonzero(free) == np.count_nonzero(usable) or np.mean(bright > 0) > _BLOWN:
        return law
    whole = _fit(b_NP[usable & (dark < _DARK_SHARE)], side, area, blocks, frequencies, sure)
    told = law.curve if law.curve is not None and law.curve.kind != "constant" else whole.curve
    if told is None or told.kind == "constant" or whole.curve is None:
        return law

    def quiet(curve: NoiseCurve) -> bool:
        """Whether it leaves at most about one photon of noise at black."""
        return curve.gain > 0 and curve.gain * low + curve.offset <= curve.gain**2

    # Far from black the others may say little of it. Clipped noise is quieter than any line at black.
    line = whole.curve.kind == "line" and whole.follows and quiet(whole.curve)
    return dataclasses.replace(whole, photons=True) if line or quiet(told) else law


def _fit(
    b_NP: Array, side: int, area: float, blocks: Blocks, frequencies: tuple[int, int, int], sure: float
) -> _Law:
    signal = b_NP.mean(axis=1, dtype=np.float64)
    if len(b_NP) < _FEW or side < 8:
        return _Law(signal if len(signal) else np.zeros(1), None)
    order = dct_order(side)
    below, begin, end = frequencies
    basis = dct_basis(side)
    chooses, measures = (order > 0) & (order < below), (order >= begin) & (order < end)
    choosing = np.asarray(np.mean((b_NP @ basis[chooses].T) ** 2, axis=1, dtype=np.float64))
    measured = np.asarray(np.mean((b_NP @ basis[measures].T) ** 2, axis=1, dtype=np.float64))
    measured = np.maximum(measured - blocks.rounding, 1e-6 * np.maximum(measured, 1e-30))
    count = int(np.count_nonzero(measures))
    energies = BlockEnergies(signal, choosing, measured, count, side * side, area)
    fit = fit_curve(energies, sure)
    return _Law(signal, None) if fit is None else _Law(signal, fit.curve, fit.follows)


def _spectrum(
    parts: Sequence[Array], channel: int, blocks: Blocks, curve: NoiseCurve
) -> tuple[NoiseCurve, Spectrum, tuple[float, float], bool] | None:
    """Measure the spectrum of stabilised noise; its mean goes into the curve, so that it has mean 1.

    Also its correlation, and whether all fine detail is buried in it.
    """
    power = measure_power(
        parts, channel, blocks.offset, blocks.scale, blocks.edges, stabiliser(curve).forward
    )
    if power is None or not power.table.mean() > 0:
        return None
    mean = float(power.table.mean())
    return curve.stronger(mean), as_table(power.table / mean), lag_correlation(power.table), power.buried
