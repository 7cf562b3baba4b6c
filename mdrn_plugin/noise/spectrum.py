"""Is the noise white? The spectrum of the flattest blocks, and whether texture explains it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mdrn_plugin.noise.blocks import Array, at_edge, dct_basis, dct_order, finite_blocks, least, usable_blocks

# Spectrum for correlation: 16 x 16 blocks; low is i+j = 4..7, middle 8..11, high 18..30.
WIDE = 16
WIDE_BLOCKS = 8_000
_WIDE_FLAT_PX = 4096
# Middle over high, above which noise is called correlated. 53 training pictures, sigma 5, 10, 25: white
# noise 97 % below 1.4 (at sigma 5 alone 95 % below 1.5); noise blurred by 0.7 pixels 4.2 in the median.
CORRELATED = 1.6

# Flat blocks have all the same energy but for chance: the logarithm of that at middle frequencies scatters by
# 0.23. Measured in the flattest blocks of 80 training pictures: 0.27..0.41 (median; 90 % below 0.8) for
# correlated noise, 0.71 for texture under weak white noise that the ratio alone takes for correlated. The
# larger the ratio, the fewer textures reach it and the more scatter is allowed (docs/decisions/0023).
_UNEVEN = 0.3
_UNEVEN_STRONG = 0.8
_STRONG = 2.6  # ratio from which on the latter holds

_CHI_MEDIAN = 0.45494  # median of chi square with one degree of freedom
_KEEP = 0.02  # share of the blocks that are kept as flat; with 10 % texture leaks in


@dataclasses.dataclass(frozen=True, slots=True)
class Spectrum:
    """Colour of the noise in the flattest wide blocks, channels averaged."""

    correlation: tuple[float, float] = (0.0, 0.0)
    low_high_ratio: float = 1.0
    mid_high_ratio: float = 1.0
    scatter: float = 0.0  # of the logarithm of the energy of the flattest blocks, at middle frequencies

    @property
    def correlated(self) -> bool:
        """Whether the noise is correlated, texture allowed for."""
        limit = float(np.interp(self.mid_high_ratio, (CORRELATED, _STRONG), (_UNEVEN, _UNEVEN_STRONG)))
        return self.mid_high_ratio > CORRELATED and self.scatter < limit

    @property
    def textured(self) -> bool:
        """Whether hardly an area is flat: what looks like correlated noise is texture."""
        return self.mid_high_ratio > CORRELATED and not self.correlated


def measure_spectrum(b_CNP: Array, area: float, edges: tuple[float, ...], rounding: float) -> Spectrum:
    """Measure how the power of the flattest wide blocks depends on frequency."""
    order = dct_order(WIDE)
    basis = dct_basis(WIDE)
    middle, upper = (order > 7) & (order < 12), order > 17
    wholes, calms, ratios, scatters = [], [], [], []
    for b_NP in b_CNP:
        b_NP, filled = finite_blocks(b_NP)
        usable, why = usable_blocks(b_NP, WIDE, edges)
        touched = at_edge(b_NP, edges).mean(axis=1)
        usable &= touched <= (np.median(touched[usable]) if usable.any() else 0.0)
        if why or np.count_nonzero(usable) * area < _WIDE_FLAT_PX:
            continue
        b_NP, filled = b_NP[usable], filled[usable]
        keep = max(round(_KEEP * len(b_NP)), math.ceil(_WIDE_FLAT_PX / area))
        below_8 = (b_NP @ basis[(order > 0) & (order < 8)].T) ** 2
        below_4 = below_8[:, order[(order > 0) & (order < 8)] < 4]

        flat = least(below_4.mean(axis=1, dtype=np.float64) / filled, keep)
        energy = np.mean((b_NP[flat] @ basis[middle].T) ** 2, axis=1, dtype=np.float64)
        scatters.append(float(np.std(np.log(np.maximum(energy, 1e-30)))))
        whole = np.asarray(np.mean((b_NP[flat] @ basis.T) ** 2, axis=0, dtype=np.float64)) - rounding
        wholes.append((np.median(whole[(order > 3) & (order < 8)]), np.median(whole[upper])))

        # Texture reaches into the middle frequencies of some of the flattest blocks, noise into
        # those of all: the lower quartile over a third as many blocks, chosen by more coefficients.
        calm = least(below_8.mean(axis=1, dtype=np.float64) / filled, keep // 3 + 1)
        power = (b_NP[calm] @ basis.T) ** 2 - rounding
        calms.append(np.median(power + rounding, axis=0) / _CHI_MEDIAN - rounding)
        ratios.append([_quartile(power[:, band].mean(axis=1), band) for band in (middle, upper)])
    if not wholes:
        return Spectrum()
    low, high = (max(float(v), 0.0) for v in np.mean(wholes, axis=0))
    mid, top = (max(float(v), 0.0) for v in np.mean(ratios, axis=0))
    if high <= 0 or top <= 0:
        return Spectrum()
    # The lowest frequencies were used to choose: taken as level with those next to them, which
    # leaves white noise at correlation 0.
    power = np.maximum(np.mean(np.array(calms), axis=0), 0.0)
    grid = np.where(order < 8, float(np.median(power[middle])), power).reshape(WIDE, WIDE)[1:, 1:]
    wave = np.cos(np.pi * np.arange(1, WIDE) / WIDE)  # these cosines add up to 0
    total = max(float(grid.sum()), 1e-300)
    across, down = float((grid @ wave).sum()) / total, float((wave @ grid).sum()) / total
    return Spectrum((across, down), math.sqrt(low / high), math.sqrt(mid / top), float(np.mean(scatters)))


def _quartile(energy: Array, band: Array) -> float:
    """Estimate the mean of block energies from their lower quartile.

    For Gaussian noise the mean of n squared coefficients follows a gamma law of shape n/2, whose
    quantiles are those of Wilson and Hilferty (1931).
    """
    part = 2.0 / (9.0 * np.count_nonzero(band))
    return float(np.quantile(energy, 0.25) / (1.0 - part - 0.67449 * math.sqrt(part)) ** 3)
