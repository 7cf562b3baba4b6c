"""Noise whose neighbours are alike: its spectrum, what makes it white, and putting detail back.

Cameras and microscopes smooth their noise: demosaicing, resizing, JPEG. A network made for white
noise takes what is left of it for detail. So the spectrum is measured, over three scales; the noise
that is missing for a white spectrum is *added*, so that the network sees what it was trained on;
and what the network took too much, because of the noise that was added, is put back where the
spectrum says that the picture's own noise cannot have been it.

Spectra are tables of 16 x 16 variances of orthonormal DCT-II coefficients; row i, column j stand for
i/32 and j/32 cycles per pixel down and across. White noise of variance v is a table of v.

Shapes: ``b_NP`` block, pixel of the block; ``x_HW`` rows, columns; ``p_KK`` spectrum.

References
----------
M. Colom, A. Buades, "Analysis and extension of the Ponomarenko et al. method", Image Processing On
Line 3, 2013, and M. Lebrun, M. Colom, J.-M. Morel, "Multiscale image blind denoising", IEEE
Transactions on Image Processing 24(10), 2015: noise per frequency, over scales.
W. James, C. Stein, "Estimation with quadratic loss", 1961: the shrinkage of the refinement.
Measurements behind the choice: docs/decisions/0006-real-noise.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.noise.blocks import (
    Array,
    Floats,
    dct_basis,
    dct_order,
    finite_blocks,
    gather,
    least,
    usable_blocks,
)
from mdrn_plugin.picture import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

SIDE = 16
STEP = 8  # of the blocks of the refinement; what is refined must begin at multiples of it
SCALES = ((1, 8_000), (2, 2_500), (4, 800))  # pooling, blocks looked at
# Share of the blocks that are kept as flat, and at least so many at the finest scale. Blurred noise of
# sigma 5, 10, 20 on 16 training pictures: the level at i+j = 4, 5 and 8, 9 is 5 and 4 % off in the median.
_KEEP = 0.01
_FLAT_BLOCKS = 20
_CHI_MEDIAN = 0.45494  # median of chi square with one degree of freedom
_CHOSEN_BY = 4  # i+j below: these choose the flat blocks, so they are measured at a coarser scale
_STEEPEST = 2.0  # a coarser scale may raise the extrapolated power so much; above, it is texture

# The level that the noise is filled up to, as a share of the highest power. White (1) costs more
# detail than it gains: 0.4 / 0.7 / 1 before refinement gave 29.50 / 30.37 / 30.23 dB at lag-1 correlation
# 0.3, 28.59 / 28.77 / 28.48 at 0.6 (sigma 15, five DIV2K crops, gray).
FILL = 0.7
_PERIOD = 256  # px, of the noise that is added; it must only not be seen twice by one filter
_SHRINK = 1.2  # energy of pure noise is taken out 1.2 times: bands have few coefficients
_BANDS = 10

# Where most of a picture has no fine detail that stands out of the noise, the noise is filled up to white at
# its highest power and detail put back with more doubt. Energy over that of the flattest blocks: at 0.19 to
# 0.28 cycles per pixel the median of the blocks, at 0.06 to 0.12 the mean of all. Chosen on 11 DIV2K crops
# under blurred noise and 12 wide-field frames (docs/decisions/0026).
_FINE, _FINE_MOST = (6, 9), 1.27  # radii of the 16 x 16 DCT
_COARSE, _COARSE_MOST = (2, 4), 2.8
_DOUBT = 1.0  # standard deviations of a band's energy, if it were noise, that it must exceed then

Spectrum = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Power:
    """Correlated noise as it was measured.

    Attributes
    ----------
    table : ndarray (16, 16)
        Variance at each frequency.
    buried : bool
        In most of the picture no fine detail stands out of the noise.
    """

    table: Floats
    buried: bool


def measure_power(
    parts: Sequence[Array],
    channel: int,
    offset: float,
    scale: float,
    edges: tuple[float, ...],
    forward: Callable[[Floats], Floats],
) -> Power | None:
    """Measure the spectrum of correlated noise in the flattest blocks, over three scales.

    Parameters
    ----------
    parts : sequence of ndarray (H, W, C)
        Planes or windows.
    channel : int
        Which to measure.
    offset, scale : float
        As of `blocks.units`.
    edges : pair of float
        Clip levels in scaled units, NaN where there is none.
    forward : callable
        Makes the noise independent of the signal; takes and returns scaled values.

    Returns
    -------
    Power or None
        Variances in the units of `forward`; None if there are no blocks to measure.
    """
    power: Floats | None = None
    buried = False
    for pool, count in SCALES:
        side = SIDE * pool
        if min(min(p.shape[:2]) for p in parts) < 2 * side:
            break
        chosen = [samples_of(p, slice(channel, channel + 1)) for p in parts]
        b_NP, _ = gather(chosen, side, count, offset, scale)
        b_NP, _filled = finite_blocks(b_NP[0])
        usable, why = usable_blocks(b_NP, side, edges)
        if why or np.count_nonzero(usable) < 16:
            break
        stable = forward(b_NP[usable].astype(np.float64))
        pooled = stable.reshape(-1, SIDE, pool, SIDE, pool).mean(axis=(2, 4)).reshape(len(stable), -1)
        found = _block_power(pooled, max(_FLAT_BLOCKS // pool, round(_KEEP * len(pooled))))
        if pool == 1:
            power = _extrapolate(_smooth(found))
            buried = _is_buried(pooled, power)
        elif power is not None:
            power = _with_coarser(power, found * pool**2 / _box_response(pool), pool)
    return None if power is None else Power(power, buried)


def _is_buried(b_NP: Floats, power: Floats) -> bool:
    """Return whether in most blocks no fine detail stands out of noise of this power."""
    radius = np.hypot(*np.mgrid[:SIDE, :SIDE]).ravel()
    variance = np.maximum(power.ravel(), 1e-9 * float(power.max()))
    fine, coarse = ((radius >= low) & (radius < high) for low, high in (_FINE, _COARSE))
    ratios = [
        np.mean((b_NP.astype(np.float32) @ dct_basis(SIDE)[band].T) ** 2 / variance[band], axis=1)
        for band in (fine, coarse)
    ]
    return bool(np.median(ratios[0]) <= _FINE_MOST and np.mean(ratios[1]) <= _COARSE_MOST)


def _block_power(b_NP: Floats, keep: int) -> Floats:
    order = dct_order(SIDE)
    d2 = (b_NP.astype(np.float32) @ dct_basis(SIDE).T) ** 2
    flat = least(d2[:, (order > 0) & (order < _CHOSEN_BY)].mean(axis=1, dtype=np.float64), keep)
    chosen = d2[flat]
    # The median forgives texture in a few of the blocks, the mean wastes nothing: half of each.
    middle = np.median(chosen, axis=0) / _CHI_MEDIAN
    return np.asarray(np.minimum(middle, chosen.mean(axis=0)), np.float64).reshape(SIDE, SIDE)


def _box_response(pool: int) -> Floats:
    """Power that averaging `pool` pixels leaves at the frequencies of a pooled block."""
    frequency = np.arange(SIDE) / (2 * SIDE * pool)
    line = np.ones(SIDE)
    for k in range(int(math.log2(pool))):
        line *= np.cos(np.pi * frequency * 2**k) ** 2
    return np.outer(line, line)


def _extrapolate(power: Floats) -> Floats:
    """Replace the lowest frequencies, by which the blocks were chosen, by what those next to them lead to.

    A Gaussian of frequency, as blurring makes it, fitted to the logarithm at i+j = 4..9; never falling
    towards frequency 0, and rising by a factor of 2 at most.
    """
    order = dct_order(SIDE).reshape(SIDE, SIDE)
    square = np.add.outer(np.arange(SIDE) ** 2, np.arange(SIDE) ** 2).astype(np.float64)
    near = (order >= _CHOSEN_BY) & (order < 10)
    x, y = square[near], np.log(np.maximum(power[near], 1e-30))
    slope = min(0.0, float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)))
    line = y.mean() + slope * (square - x.mean())
    level = float(np.mean(power[(order >= _CHOSEN_BY) & (order < _CHOSEN_BY + 2)]))
    return np.where(order < _CHOSEN_BY, np.clip(np.exp(line), level, 2 * level), power)


def _with_coarser(power: Floats, coarse: Floats, pool: int) -> Floats:
    """Let a coarser scale correct the lowest frequencies upwards: i+j = 2, 3 from 2, the rest from 4."""
    power = power.copy()
    smooth = _smooth(coarse)
    order = dct_order(SIDE).reshape(SIDE, SIDE)
    served = (order < _CHOSEN_BY) & (order >= _CHOSEN_BY // 2 if pool == 2 else order < _CHOSEN_BY // 2)
    for i, j in zip(*np.nonzero(served), strict=True):
        place = (i * pool, j * pool) if i + j else (2, 2)
        power[i, j] = np.clip(smooth[place], power[i, j], _STEEPEST * power[i, j])
    return power


def _smooth(power: Floats) -> Floats:
    padded = np.pad(power, 1, mode="edge")
    total = sum(padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3))
    return np.asarray(total) / 9


def lag_correlation(power: Floats) -> tuple[float, float]:
    """Return the lag-1 autocorrelation (horizontal, vertical) of noise with a spectrum."""
    wave = np.cos(np.pi * (np.arange(SIDE) + 0.5) / SIDE)
    total = float(power.sum())
    return float((power @ wave).sum()) / total, float((wave @ power).sum()) / total


def as_table(power: Floats) -> Spectrum:
    """Return a spectrum as plain data, three digits each."""
    return tuple(tuple(float(f"{v:.3g}") for v in row) for row in power)


# --- what the network sees --------------------------------------------------------------------------


def fill_level(spectrum: Spectrum, *, buried: bool = False) -> float:
    """Return the standard deviation of the noise that the network will see.

    Noise in which fine detail is `buried` is filled up to white at its highest power.
    """
    power = np.array(spectrum)
    return math.sqrt(float(np.maximum(power, _fill(power, buried)).mean()))


def _fill(power: Floats, buried: bool) -> float:
    if buried:
        return float(power.max())
    measured = dct_order(SIDE).reshape(SIDE, SIDE) >= _CHOSEN_BY
    return FILL * float(power[measured].max())


@functools.lru_cache(maxsize=16)
def _filling(spectrum: Spectrum, sample: int, buried: bool) -> NDArray[np.float32]:
    power = np.array(spectrum)
    frequency = np.abs(np.fft.fftfreq(_PERIOD)) * 2 * SIDE
    low = np.minimum(frequency.astype(int), SIDE - 1)
    high = np.minimum(low + 1, SIDE - 1)
    share = frequency - low
    rows = power[low] * (1 - share)[:, None] + power[high] * share[:, None]
    grid = rows[:, low] * (1 - share) + rows[:, high] * share
    missing = np.sqrt(np.maximum(_fill(power, buried) - grid, 0.0))
    white = np.random.default_rng(sample).standard_normal((_PERIOD, _PERIOD))
    return np.asarray(np.fft.ifft2(np.fft.fft2(white) * missing).real, np.float32)


def filling_noise(
    spectrum: Spectrum, sample: int, top: int, left: int, shape: tuple[int, int], *, buried: bool = False
) -> NDArray[np.float32]:
    """Return the noise to add so that correlated noise becomes nearly white.

    The same at the same place of the picture, whatever tile asks for it.

    Parameters
    ----------
    spectrum : Spectrum
        Of the noise that is there.
    sample : int
        Different samples of a colour picture get independent noise.
    top, left : int
        Place in the picture, px.
    shape : pair of int
        Rows, columns.
    buried : bool
        As of `fill_level`.
    """
    tile = _filling(spectrum, sample, buried)
    rows = np.arange(top, top + shape[0]) % _PERIOD
    columns = np.arange(left, left + shape[1]) % _PERIOD
    return tile[rows[:, None], columns[None, :]]


# --- putting detail back ----------------------------------------------------------------------------


@functools.cache
def _bands() -> tuple[Any, ...]:
    radius = np.hypot(*np.mgrid[:SIDE, :SIDE])
    band = np.minimum((radius * _BANDS / SIDE).astype(int), _BANDS).ravel()
    band[0] = -1
    return tuple(np.nonzero(band == k)[0] for k in range(_BANDS + 1) if np.any(band == k))


def put_detail_back(
    y_HW: Array, denoised_HW: Array, spectrum: Spectrum, *, buried: bool = False
) -> NDArray[np.float32]:
    """Return the denoised picture with the part of the residual that cannot be noise.

    The residual of each 16 x 16 block is compared with the noise, band by band in its DCT: what
    exceeds the noise is detail that was lost, and is kept in its share (James-Stein).

    Parameters
    ----------
    y_HW, denoised_HW : ndarray (H, W)
        Noisy and denoised, units of the spectrum's square root. Not smaller than 16 x 16.
    spectrum : Spectrum
        Of the noise in `y_HW`.
    buried : bool
        As of `fill_level`: bands of few coefficients must exceed the noise by more.
    """
    doubt = _DOUBT if buried else 0.0
    with np.errstate(invalid="ignore"):
        residual = np.asarray(y_HW, np.float32) - denoised_HW
    residual[~np.isfinite(residual)] = 0.0
    height, width = residual.shape
    if min(height, width) < SIDE:
        return np.asarray(denoised_HW, np.float32)
    rows, columns = (_cover(n) for n in (height, width))
    padded = np.pad(residual, ((0, rows - height), (0, columns - width)), mode="symmetric")
    variance = np.array(spectrum, np.float32).ravel()
    basis = dct_basis(SIDE)
    total = np.zeros_like(padded)
    weight = np.zeros_like(padded)
    for top in range(0, SIDE, STEP):
        for left in range(0, SIDE, STEP):
            part = padded[top : rows - (SIDE - top) % SIDE, left : columns - (SIDE - left) % SIDE]
            m, n = part.shape[0] // SIDE, part.shape[1] // SIDE
            b_NP = part.reshape(m, SIDE, n, SIDE).swapaxes(1, 2).reshape(m * n, SIDE * SIDE)
            d_NP = b_NP @ basis.T
            keep_NP = np.zeros_like(d_NP)
            for band in _bands():
                energy = np.mean(d_NP[:, band] ** 2 / variance[band], axis=1, keepdims=True)
                noise = _SHRINK * (1 + doubt * math.sqrt(2 / len(band)))
                share = np.maximum(0, 1 - noise / np.maximum(energy, 1e-9))
                keep_NP[:, band] = share * d_NP[:, band]
            back = (keep_NP @ basis).reshape(m, n, SIDE, SIDE).swapaxes(1, 2).reshape(part.shape)
            total[top : top + part.shape[0], left : left + part.shape[1]] += back
            weight[top : top + part.shape[0], left : left + part.shape[1]] += 1
    return np.asarray(denoised_HW + (total / weight)[:height, :width], np.float32)


def _cover(length: int) -> int:
    return -(-length // SIDE) * SIDE
