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
from mdrn_plugin.noise.curve import BlockEnergies, NoiseCurve, fit_curve
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
_FEW = 400  # blocks, below which no dependence on the signal is looked for

# i+j of the frequencies that choose flat blocks and of those that measure: 8 x 8 and white, 16 x 16 and
# correlated (there the high frequencies tell of what processing left over).
_WHITE = (9, 9, 15)
_CORRELATED = (4, 4, 8)


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
    return _with_laws(profile, parts, blocks, level, (picture.range.black, unit), law == "correlated")


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
    for c, sigma in enumerate(level.sigma):
        law = (
            _Law(*_energies(wide[0][c], WIDE, wide[1], blocks, _CORRELATED))
            if correlated
            else _Law(*_energies(blocks.b_CNP[c], blocks.side, blocks.area, blocks, _WHITE))
        )
        curve = law.curve
        if curve is None or not sigma > 0:
            curve = NoiseCurve("constant", 0.0, 0.0, mean=(sigma / blocks.scale) ** 2)
        elif curve.kind == "constant" and not correlated:
            curve = dataclasses.replace(curve, mean=(sigma / blocks.scale) ** 2)
        if correlated:
            found = _spectrum(parts, c, blocks, curve)
            if found is None:
                return profile.with_doubt("the noise is correlated, and its spectrum cannot be measured here")
            curve, spectrum, correlation = found
            spectra.append(spectrum)
            correlations.append(correlation)
        if curve.kind != "constant" or correlated:
            sigma = math.sqrt(float(np.mean(curve.variance(law.signal)))) * blocks.scale
        sigmas.append(float(sigma / unit))
        # from scaled to file units, from there to fractions of white
        in_file = curve.rescaled(blocks.offset, blocks.scale)
        curves.append(in_file.rescaled(-black / unit, 1 / unit))
    return dataclasses.replace(
        profile,
        sigma=tuple(sigmas),
        correlation=_mean_pair(correlations) if correlations else profile.correlation,
        curves=tuple(curves),
        spectra=tuple(spectra),
    )


def _mean_pair(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    across, down = np.mean(pairs, axis=0)
    return float(across), float(down)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Law:
    signal: Floats
    curve: NoiseCurve | None


def _energies(
    b_NP: Array, side: int, area: float, blocks: Blocks, frequencies: tuple[int, int, int]
) -> tuple[Floats, NoiseCurve | None]:
    """Return the signal of the usable blocks, and the law fitted to them."""
    b_NP, _ = finite_blocks(b_NP)
    usable, why = usable_blocks(b_NP, side, blocks.edges)
    if why:
        return np.zeros(1), None
    usable &= at_edge(b_NP, blocks.edges).mean(axis=1) <= _CLIPPED_SHARE
    b_NP = b_NP[usable]
    signal = b_NP.mean(axis=1, dtype=np.float64)
    if len(b_NP) < _FEW or side < 8:
        return (signal if len(signal) else np.zeros(1)), None
    order = dct_order(side)
    below, begin, end = frequencies
    basis = dct_basis(side)
    low = (order > 0) & (order < below)
    choosing = np.asarray(np.mean((b_NP @ basis[low].T) ** 2, axis=1, dtype=np.float64))
    band = (order >= begin) & (order < end)
    measured = np.asarray(np.mean((b_NP @ basis[band].T) ** 2, axis=1, dtype=np.float64))
    measured = np.maximum(measured - blocks.rounding, 1e-6 * np.maximum(measured, 1e-30))
    return signal, fit_curve(
        BlockEnergies(signal, choosing, measured, int(np.count_nonzero(band)), side * side, area)
    )


def _spectrum(
    parts: Sequence[Array], channel: int, blocks: Blocks, curve: NoiseCurve
) -> tuple[NoiseCurve, Spectrum, tuple[float, float]] | None:
    """Measure the spectrum of stabilised noise; its mean goes into the curve, so that it has mean 1."""
    power = measure_power(
        parts, channel, blocks.offset, blocks.scale, blocks.edges, stabiliser(curve).forward
    )
    if power is None or not power.mean() > 0:
        return None
    mean = float(power.mean())
    return curve.stronger(mean), as_table(power / mean), lag_correlation(power)
