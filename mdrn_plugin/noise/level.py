"""Level of additive white Gaussian noise, measured blindly on the flattest blocks of a picture.

The estimator is that of Ponomarenko et al. (2007) in the form of Colom and Buades (2013): block DCT,
keep the blocks with the least energy at low frequencies, measure their energy at high frequencies.
Under white Gaussian noise the two sets of coefficients are independent, so the selection does not
bias the measurement. What we add: sampling symmetric under flips and quarter turns, exactly
constant blocks (frames, masks) set aside, and clipped noise put right through the moments of the
clipped normal law.

Shapes: ``x_HWC`` rows, columns, channels or samples; ``b_CNP`` channel, block, pixel of the block.

References
----------
N. Ponomarenko, V. Lukin, M. Zriakhov, A. Kaarna, J. Astola, "An automatic approach to lossy
compression of AVIRIS images", IGARSS 2007.
M. Colom, A. Buades, "Analysis and extension of the Ponomarenko et al. method", Image Processing On
Line 3, 2013.
A. Foi, "Clipped noisy images: heteroskedastic modeling and practical denoising", Signal Processing
89, 2009 (moments of the clipped normal law).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.noise.blocks import (
    FEW_BLOCKS,
    Array,
    Floats,
    at_edge,
    dct_basis,
    dct_order,
    finite_blocks,
    gather,
    least,
    units,
    usable_blocks,
)
from mdrn_plugin.noise.spectrum import WIDE, WIDE_BLOCKS, Spectrum, measure_spectrum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# Measured on the training photographs (benchmarks/noise_level.py prints the test sets): of 8 and 16
# pixels, 0.5..5 % of the blocks and several splits of the frequencies, this is among the five best
# in median plus 95th percentile error over sigma 5..75; fewer blocks are better at sigma 2.5, worse at 25.
_SIDE = 8
_KEEP = 0.02  # share of the blocks that are kept as flat
_SPLIT = 9  # i+j below: selection; from here on: measurement (IPOL 2013, T = w + 1)
_SPLIT_CLIPPED = 3  # the same for the selection where noise is clipped nearly everywhere
_ROUNDS = 30  # of the fixed point for clipped noise; 2 to 10 are needed for 0.1 %
_BLOCKS = 20_000  # per channel, over all planes; then 400 flat blocks, 0.5 % sampling error
_FLAT_PX = 512  # pixels, counting overlaps once, that the flat blocks cover at least

# Masks and line art: with nearly every pixel at black or white nothing tells how far beyond the noise
# reached (the fixed point ran off to five times the range), so it is measured as it is.
_TWO_VALUED = 0.9

_CLIP_MATTERS = 1e-3  # share of clipped pixels in the usable blocks that calls for the clipped law


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """What `measure` finds, in the units of the pixels.

    Attributes
    ----------
    sigma : ndarray (C,) float64
        Noise of each channel.
    correlation : tuple of float
        Lag-1 autocorrelation (horizontal, vertical), channels averaged.
    low_high_ratio : float
        Standard deviation at low over high frequencies in the flattest blocks, channels averaged.
    correlated : bool
        The spectrum speaks against white noise.
    clipped : float
        Share of the looked-at pixels at `low` or `high`.
    doubt : tuple of str
        Reasons not to trust sigma.
    textured : bool
        Hardly an area is flat: nothing beyond the level can be measured.
    """

    sigma: Floats
    correlation: tuple[float, float]
    low_high_ratio: float
    correlated: bool
    clipped: float
    doubt: tuple[str, ...]
    textured: bool = False


# --- the door -------------------------------------------------------------------------------------


def estimate_sigma(x_HWC: Array, *, low: float | None = None, high: float | None = None) -> Floats:
    """Measure the noise of each channel of one array, blindly.

    Parameters
    ----------
    x_HWC : ndarray (H, W, C), real
        Any unit. NaN and infinite values are ignored.
    low, high : float, optional
        Values at which the pixels were clipped; None if they were not.

    Returns
    -------
    ndarray (C,), float64
        Standard deviation, in the unit of the pixels: ``estimate_sigma(c * x) == c * estimate_sigma(x)``
        up to rounding (for integers the rounding to whole numbers is taken out first).
    """
    return measure([np.asarray(x_HWC)], low=low, high=high).sigma


# --- measurement ----------------------------------------------------------------------------------


def measure(parts: Sequence[Array], *, low: float | None = None, high: float | None = None) -> Level:
    """Measure the noise that several arrays have in common.

    Parameters
    ----------
    parts : sequence of ndarray (H, W, C), real
        Planes or windows, all with the same C.
    low, high : float, optional
        Values at which the pixels were clipped; None if they were not.
    """
    blocks = take_blocks(parts, low, high)
    if blocks is None:
        colours = parts[0].shape[2]
        sigma = np.array([_difference_sigma([p[:, :, c] for p in parts]) for c in range(colours)])
        return Level(sigma, (0.0, 0.0), 1.0, False, 0.0, ("too small to measure noise",))
    return measure_blocks(parts, blocks)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of all samples, and what is needed to read them: pixel = value * scale + offset.

    Attributes
    ----------
    b_CNP : ndarray (C, N, side * side) float32
    side : int
        8, or 4 for tiny pictures.
    area : float
        New pixels per block.
    offset, scale : float
        Of the values.
    rounding : float
        Variance that the rounding to whole numbers added, in scaled units.
    edges : pair of float
        Clip levels in scaled units, NaN where there is none.
    clipped : float
        Share of the pixels at a clip level.
    """

    b_CNP: Array  # noqa: N815
    side: int
    area: float
    offset: float
    scale: float
    rounding: float
    edges: tuple[float, ...]
    clipped: float


def take_blocks(parts: Sequence[Array], low: float | None, high: float | None) -> Blocks | None:
    """Take the blocks that noise is measured on; None if a part is smaller than 4 pixels."""
    least_side = min(min(p.shape[:2]) for p in parts)
    if least_side < 4:
        return None
    offset, scale, quantum = units(parts)
    side = _SIDE if least_side >= _SIDE else 4
    b_CNP, area = gather(parts, side, _BLOCKS, offset, scale)
    edges = tuple((v - offset) / scale if v is not None else math.nan for v in (low, high))
    clipped = float(np.mean(at_edge(b_CNP, edges)))
    if clipped > _TWO_VALUED:
        edges = (math.nan, math.nan)
    return Blocks(b_CNP, side, area, offset, scale, (quantum / scale) ** 2 / 12.0, edges, clipped)


def measure_blocks(parts: Sequence[Array], blocks: Blocks) -> Level:
    """Measure the noise that several arrays have in common on blocks that were taken from them."""
    b_CNP, side, area, edges, rounding = (
        blocks.b_CNP,
        blocks.side,
        blocks.area,
        blocks.edges,
        blocks.rounding,
    )
    found = [_level(b_NP, side, area, edges, rounding) for b_NP in b_CNP]
    sigma = np.array([f.sigma for f in found]) * blocks.scale
    doubt = list(dict.fromkeys(f.doubt for f in found if f.doubt))
    if b_CNP.shape[1] * area / side**2 < FEW_BLOCKS:
        doubt.append(f"fewer than {FEW_BLOCKS} blocks to look at")
    if blocks.clipped > 0.5:
        doubt.append(f"mostly clipped ({100 * blocks.clipped:.0f} % of the pixels)")
    spectrum = Spectrum()
    if min(min(p.shape[:2]) for p in parts) >= 2 * WIDE and np.any(sigma > 0):
        wide_CNP, area = gather(parts, WIDE, WIDE_BLOCKS, blocks.offset, blocks.scale)
        spectrum = measure_spectrum(wide_CNP, area, edges, rounding)
    if spectrum.textured:
        doubt.append("hardly a flat area: texture may have been taken for noise")
    return Level(
        sigma=sigma,
        correlation=spectrum.correlation,
        low_high_ratio=spectrum.low_high_ratio,
        correlated=spectrum.correlated,
        clipped=blocks.clipped,
        doubt=tuple(doubt),
        textured=spectrum.textured,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Noise of one channel in scaled units, and why not to trust it."""

    sigma: float
    doubt: str = ""


def _level(b_NP: Array, side: int, area: float, edges: tuple[float, ...], rounding: float) -> _Found:
    b_NP, filled = finite_blocks(b_NP)
    if len(b_NP) == 0:
        return _Found(0.0, "no finite pixels")
    usable, why = usable_blocks(b_NP, side, edges)
    if why:
        return _Found(0.0, why)
    b_NP, filled = b_NP[usable], filled[usable]
    if len(b_NP) == 0:
        return _Found(0.0)
    split = _SPLIT if side == _SIDE else 4
    order = dct_order(side)
    look = dct_basis(side)[order >= split]
    keep = max(round(_KEEP * len(b_NP)), min(len(b_NP), math.ceil(_FLAT_PX / area)))

    def energy(below: int) -> Floats:
        choose = dct_basis(side)[(order > 0) & (order < below)]
        result: Floats = np.mean((b_NP @ choose.T) ** 2, axis=1, dtype=np.float64) / filled
        return result

    def variance(energy: Floats, gain: Floats) -> float:
        flat = least(energy / gain, keep)
        power = np.mean((b_NP[flat] @ look.T) ** 2, axis=0, dtype=np.float64)
        # Each power is the mean of squares from so many blocks: a gamma law, whose median lies below
        # its mean (Wilson and Hilferty 1931). High frequencies of blocks that overlap by half are
        # nearly independent: measured on white noise of 8 to 800 pixels, within 2 % of sigma.
        independent = max(1.0, min(len(flat), 2 * len(b_NP) * area / side**2))
        middle = (1.0 - 2.0 / (9.0 * independent)) ** 3
        return float(np.median(power) / middle / np.mean(gain[flat] * filled[flat]))

    if float(np.mean(at_edge(b_NP, edges))) < _CLIP_MATTERS:
        return _Found(math.sqrt(max(0.0, variance(energy(split), np.ones(len(b_NP))) - rounding)))
    # Clipped noise is nearly two-valued: what a block lacks at low frequencies it has at high ones.
    # A selection by few coefficients keeps that bias small (8 % of sigma = 75 with all of them).
    means = b_NP.mean(axis=1, dtype=np.float64)
    free = _Choice(variance, energy(split), energy(min(split, _SPLIT_CLIPPED)))
    return _Found(_clipped_sigma(free, means, edges, rounding))


@dataclasses.dataclass(frozen=True, slots=True)
class _Choice:
    """How to choose flat blocks: by many coefficients, or by few where most blocks are clipped."""

    variance: Callable[[Floats, Floats], float]
    many: Floats
    few: Floats


def _clipped_sigma(choice: _Choice, means: Floats, edges: tuple[float, ...], rounding: float) -> float:
    """Solve for the sigma before clipping: the variance of each block is that of a clipped normal law."""
    energy = choice.many
    sigma = math.sqrt(choice.variance(energy, np.ones(len(means))))
    for _ in range(_ROUNDS):
        gain = _clipped_gain(means, sigma, edges)
        typical = float(np.median(gain))
        if typical < 0.99:
            energy = choice.few
        # Blocks next to black or white say little: left out while half of the others are better.
        chosen = np.where(gain < min(0.95, typical), 1e-12, gain)
        fresh = math.sqrt(max(0.0, choice.variance(energy, chosen) - rounding))
        if abs(fresh - sigma) <= 1e-3 * sigma:
            return fresh
        sigma = fresh
    return sigma


def _clipped_gain(means: Floats, sigma: float, edges: tuple[float, ...]) -> Floats:
    """Variance after over variance before clipping, from the mean after clipping (Foi 2009, section 3)."""
    if sigma <= 0:
        return np.ones_like(means)
    low, high = edges
    bottom = low if math.isfinite(low) else float(means.min()) - 8 * sigma
    top = high if math.isfinite(high) else float(means.max()) + 8 * sigma
    true = np.linspace(bottom - 2 * sigma, top + 2 * sigma, 257)
    alpha, beta = (low - true) / sigma, (high - true) / sigma
    below = np.array([_normal_cdf(a) for a in alpha]) if math.isfinite(low) else np.zeros(257)
    above = np.array([_normal_cdf(-b) for b in beta]) if math.isfinite(high) else np.zeros(257)
    alpha, beta = np.nan_to_num(alpha, nan=-40.0), np.nan_to_num(beta, nan=40.0)
    pdf_a, pdf_b = (np.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in (alpha, beta))
    inside = 1 - below - above
    # moments of clip(t, alpha, beta) for standard normal t
    mean = alpha * below + beta * above + pdf_a - pdf_b
    square = alpha**2 * below + beta**2 * above + inside + alpha * pdf_a - beta * pdf_b
    ratio = square - mean**2
    gain: Floats = np.interp(means, true + sigma * mean, np.maximum(ratio, 1e-6))
    return gain


def _normal_cdf(t: float) -> float:
    return 0.5 * math.erfc(-t / math.sqrt(2))


def _difference_sigma(planes: Sequence[Array]) -> float:
    """Robust noise of planes too small for blocks: median of second differences, as far as there are any."""
    values = []
    for x in planes:
        x = x.astype(np.float64)
        for axis in (0, 1):
            order = min(2, x.shape[axis] - 1)
            if order > 0:
                values.append(np.abs(np.diff(x, order, axis=axis)).ravel() / math.sqrt((2, 6)[order - 1]))
    every = np.concatenate(values) if values else np.zeros(0)
    every = every[np.isfinite(every)]
    return float(np.median(every)) / 0.67449 if every.size else 0.0  # Phi^-1(3/4)
