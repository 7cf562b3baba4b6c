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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise.profile import NoiseProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mdrn_plugin.picture import Picture, ValueRange

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Measured on the training photographs (benchmarks/noise_level.py prints the test sets): of 8 and 16
# pixels, 0.5..5 % of the blocks and several splits of the frequencies, this has the least median
# and 95th percentile error over sigma 5..75.
_SIDE = 8
_KEEP = 0.02  # share of the blocks that are kept as flat
_SPLIT = 9  # i+j below: selection; from here on: measurement (IPOL 2013, T = w + 1)
_SPLIT_CLIPPED = 3  # the same for the selection where noise is clipped nearly everywhere
_ROUNDS = 30  # of the fixed point for clipped noise; 5 to 20 are needed for 0.1 %
_BLOCKS = 20_000  # per channel, over all planes; then 400 flat blocks, 0.5 % sampling error
_FLAT_PX = 512  # pixels, counting overlaps once, that the flat blocks cover at least

# Spectrum for correlation: 16 x 16 blocks; low is i+j = 4..7, middle 8..11, high 18..30.
_WIDE = 16
_WIDE_BLOCKS = 8_000
_WIDE_FLAT_PX = 4096
# Middle over high, above which noise is called correlated. Training photographs with white noise:
# 97 % below 1.4 to 1.5 at sigma 5..25; noise blurred by 0.7 pixels: 4.2.
_CORRELATED = 1.6

_CHI_MEDIAN = 0.45494  # median of chi square with one degree of freedom

_PLANES = 8  # planes looked at in a stack
_WINDOW_PX = 1024  # a plane of more than _WHOLE_PX is read through 4 x 4 windows of this side
_WHOLE_PX = 48_000_000
_FEW_BLOCKS = 100  # fewer independent blocks than this in all: doubt
_CLIP_MATTERS = 1e-3  # share of clipped pixels in the usable blocks that calls for the clipped law
_NOISE_MAX = 100 / 255  # noise the models are made for


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
    """

    sigma: Floats
    correlation: tuple[float, float]
    low_high_ratio: float
    correlated: bool
    clipped: float
    doubt: tuple[str, ...]


# --- the door -------------------------------------------------------------------------------------


def estimate_noise(picture: Picture, *, channel: int | None = None) -> NoiseProfile:
    """Measure the noise of one channel of a picture, blindly.

    Parameters
    ----------
    picture : Picture
        Any axes; a bounded number of planes is looked at, one at a time.
    channel : int, optional
        Position on C. To be left out if and only if the picture has no C axis (or one channel).

    Returns
    -------
    NoiseProfile
        Sigma of each sample as a fraction of white minus black.

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
    parts = [part for index in _spread(places, _PLANES) for part in _windows(picture, index)]
    span = picture.range.white - picture.range.black
    low, high = _clip_levels(parts, picture.range)
    level = measure(parts, low=low, high=high)
    sigma = tuple(float(s) for s in level.sigma / (span if span > 0 else 1.0))
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


def estimate_channels(picture: Picture) -> tuple[NoiseProfile, ...]:
    """Measure the noise of every channel (C) of a picture, blindly; one profile without a C axis."""
    return tuple(estimate_noise(picture, channel=c) for c in range(picture.length("C")))


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


def describe(profile: NoiseProfile, range: ValueRange | None = None) -> str:
    """Say in words what was found.

    Parameters
    ----------
    profile : NoiseProfile
        As measured, given or read.
    range : ValueRange, optional
        Black and white of the picture, to give the noise in the units of the file too.
    """
    source = {"user": "as given", "file": "as the file says"}.get(profile.source, "")
    levels = ", ".join(_short(255 * s) for s in profile.sigma)
    mean = math.sqrt(sum(s * s for s in profile.sigma) / max(1, len(profile.sigma)))
    words = f"noise σ = {levels}/255 ({_short(100 * mean)} % of white)"
    if range is not None:
        span = range.white - range.black
        words += " = " + ", ".join(f"{s * span:.3g}" for s in profile.sigma) + " in units of the file"
    horizontal, vertical = profile.correlation
    if profile.correlated:
        words += f", correlated ({horizontal:.2f} across, {vertical:.2f} down)"
    elif profile.source == "blind":
        words += ", white"
    if source:
        words += f", {source}"
    if profile.clipped > 0:
        words += f"; {100 * profile.clipped:.1f} % of pixels clipped"
    return words + (f"; doubtful: {profile.doubt}" if profile.doubt else "")


def _short(value: float) -> str:
    """One decimal, or three digits where that would read 0."""
    return f"{value:.1f}" if value >= 0.95 or value == 0 else f"{value:.3g}"


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
    colours = parts[0].shape[2]
    offset, scale, quantum = _units(parts)
    side = _SIDE if min(min(p.shape[:2]) for p in parts) >= _SIDE else 4
    if min(min(p.shape[:2]) for p in parts) < 4:
        sigma = np.array([_difference_sigma([p[:, :, c] for p in parts]) for c in range(colours)])
        return Level(sigma, (0.0, 0.0), 1.0, False, 0.0, ("too small to measure noise",))
    b_CNP, area = _gather(parts, side, _BLOCKS, offset, scale)
    edges = tuple((v - offset) / scale if v is not None else math.nan for v in (low, high))
    rounding = (quantum / scale) ** 2 / 12.0
    found = [_level(b_NP, side, area, edges, rounding) for b_NP in b_CNP]
    clipped = float(np.mean(_at_edge(b_CNP, edges)))
    sigma = np.array([f.sigma for f in found]) * scale
    doubt = list(dict.fromkeys(f.doubt for f in found if f.doubt))
    if b_CNP.shape[1] * area / side**2 < _FEW_BLOCKS:
        doubt.append(f"fewer than {_FEW_BLOCKS} blocks to look at")
    if clipped > 0.5:
        doubt.append(f"mostly clipped ({100 * clipped:.0f} % of the pixels)")
    spectrum = _Spectrum()
    if min(min(p.shape[:2]) for p in parts) >= 2 * _WIDE and np.any(sigma > 0):
        wide_CNP, area = _gather(parts, _WIDE, _WIDE_BLOCKS, offset, scale)
        spectrum = _spectrum(wide_CNP, area, edges, rounding)
    correlated = spectrum.mid_high_ratio > _CORRELATED
    if correlated:
        times = spectrum.low_high_ratio
        doubt.append(f"the noise is correlated: {times:.1f} times as strong at low as at high frequencies")
    return Level(
        sigma=sigma,
        correlation=spectrum.correlation,
        low_high_ratio=spectrum.low_high_ratio,
        correlated=correlated,
        clipped=clipped,
        doubt=tuple(doubt),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Noise of one channel in scaled units, and why not to trust it."""

    sigma: float
    doubt: str = ""


def _level(b_NP: Array, side: int, area: float, edges: tuple[float, ...], rounding: float) -> _Found:
    b_NP, filled = _finite(b_NP)
    if len(b_NP) == 0:
        return _Found(0.0, "no finite pixels")
    usable, why = _usable(b_NP, side, edges)
    if why:
        return _Found(0.0, why)
    b_NP, filled = b_NP[usable], filled[usable]
    if len(b_NP) == 0:
        return _Found(0.0)
    split = _SPLIT if side == _SIDE else 4
    order = _order(side)
    look = _basis(side)[order >= split]
    keep = max(round(_KEEP * len(b_NP)), min(len(b_NP), math.ceil(_FLAT_PX / area)))

    def energy(below: int) -> Floats:
        choose = _basis(side)[(order > 0) & (order < below)]
        result: Floats = np.mean((b_NP @ choose.T) ** 2, axis=1, dtype=np.float64) / filled
        return result

    def variance(energy: Floats, gain: Floats) -> float:
        flat = _least(energy / gain, keep)
        power = np.mean((b_NP[flat] @ look.T) ** 2, axis=0, dtype=np.float64)
        # Each power is the mean of squares from so many blocks: a gamma law, whose median lies below
        # its mean (Wilson and Hilferty 1931). High frequencies of blocks that overlap by half are
        # nearly independent: measured on white noise of 8 to 800 pixels, within 2 % of sigma.
        independent = max(1.0, min(len(flat), 2 * len(b_NP) * area / side**2))
        middle = (1.0 - 2.0 / (9.0 * independent)) ** 3
        return float(np.median(power) / middle / np.mean(gain[flat] * filled[flat]))

    if float(np.mean(_at_edge(b_NP, edges))) < _CLIP_MATTERS:
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Spectrum:
    """Colour of the noise in the flattest wide blocks, channels averaged."""

    correlation: tuple[float, float] = (0.0, 0.0)
    low_high_ratio: float = 1.0
    mid_high_ratio: float = 1.0


def _spectrum(b_CNP: Array, area: float, edges: tuple[float, ...], rounding: float) -> _Spectrum:
    """Measure how the power of the flattest wide blocks depends on frequency."""
    order = _order(_WIDE)
    basis = _basis(_WIDE)
    middle, upper = (order > 7) & (order < 12), order > 17
    wholes, calms, ratios = [], [], []
    for b_NP in b_CNP:
        b_NP, filled = _finite(b_NP)
        usable, why = _usable(b_NP, _WIDE, edges)
        touched = _at_edge(b_NP, edges).mean(axis=1)
        usable &= touched <= (np.median(touched[usable]) if usable.any() else 0.0)
        if why or np.count_nonzero(usable) * area < _WIDE_FLAT_PX:
            continue
        b_NP, filled = b_NP[usable], filled[usable]
        keep = max(round(_KEEP * len(b_NP)), math.ceil(_WIDE_FLAT_PX / area))
        below_8 = (b_NP @ basis[(order > 0) & (order < 8)].T) ** 2
        below_4 = below_8[:, order[(order > 0) & (order < 8)] < 4]

        flat = _least(below_4.mean(axis=1, dtype=np.float64) / filled, keep)
        whole = np.asarray(np.mean((b_NP[flat] @ basis.T) ** 2, axis=0, dtype=np.float64)) - rounding
        wholes.append((np.median(whole[(order > 3) & (order < 8)]), np.median(whole[upper])))

        # Texture reaches into the middle frequencies of some of the flattest blocks, noise into
        # those of all: the lower quartile over a third as many blocks, chosen by more coefficients.
        calm = _least(below_8.mean(axis=1, dtype=np.float64) / filled, keep // 3 + 1)
        power = (b_NP[calm] @ basis.T) ** 2 - rounding
        calms.append(np.median(power + rounding, axis=0) / _CHI_MEDIAN - rounding)
        ratios.append([_quartile(power[:, band].mean(axis=1), band) for band in (middle, upper)])
    if not wholes:
        return _Spectrum()
    low, high = (max(float(v), 0.0) for v in np.mean(wholes, axis=0))
    mid, top = (max(float(v), 0.0) for v in np.mean(ratios, axis=0))
    if high <= 0 or top <= 0:
        return _Spectrum()
    # The lowest frequencies were used to choose: taken as level with those next to them, which
    # leaves white noise at correlation 0.
    power = np.maximum(np.mean(np.array(calms), axis=0), 0.0)
    grid = np.where(order < 8, float(np.median(power[middle])), power).reshape(_WIDE, _WIDE)[1:, 1:]
    wave = np.cos(np.pi * np.arange(1, _WIDE) / _WIDE)  # these cosines add up to 0
    total = max(float(grid.sum()), 1e-300)
    across, down = float((grid @ wave).sum()) / total, float((wave @ grid).sum()) / total
    return _Spectrum((across, down), math.sqrt(low / high), math.sqrt(mid / top))


def _quartile(energy: Array, band: Array) -> float:
    """Estimate the mean of block energies from their lower quartile.

    For Gaussian noise the mean of n squared coefficients follows a gamma law of shape n/2, whose
    quantiles are those of Wilson and Hilferty (1931).
    """
    part = 2.0 / (9.0 * np.count_nonzero(band))
    return float(np.quantile(energy, 0.25) / (1.0 - part - 0.67449 * math.sqrt(part)) ** 3)


def _usable(b_NP: Array, side: int, edges: tuple[float, ...]) -> tuple[Array, str]:
    """Choose the blocks that can show noise: none with a constant quarter from a frame or a mask.

    Constant areas at black, at white, at the least or greatest value, or at the most common of all
    constants are frames and masks, not evidence of silence. Constant areas of other values are
    left in: a rendered picture has them and has no noise.

    Returns
    -------
    ndarray (N,) bool, and in words why no noise can be there (empty if it can)
    """
    half = side // 2
    quarters = b_NP.reshape(-1, 2, half, 2, half)
    bottom = quarters[:, :, 0, :, 0]
    still = np.ones(bottom.shape, bool)
    for i, j in ((half - 1, half - 1), (0, 1), (1, 0)):  # few quarters pass, so few are looked at whole
        still &= quarters[:, :, i, :, j] == bottom
    n, up, left = np.nonzero(still)
    still[n, up, left] = (quarters[n, up, :, left] == bottom[n, up, left][:, None, None]).all(axis=(1, 2))
    if not still.any():
        return np.ones(len(b_NP), bool), ""
    values, counts = np.unique(bottom[still], return_counts=True)
    masks = np.array([b_NP.min(), b_NP.max(), values[np.argmax(counts)], *edges])
    masked = still & np.isin(bottom, masks)
    usable: Array = np.logical_not(masked.any(axis=(1, 2)))
    begun: Array = np.logical_not(masked.all(axis=(1, 2)))  # not wholly inside a frame
    if not begun.any():
        return usable, "constant picture"
    # A frame touches few blocks; where most blocks have a constant quarter, that is the picture.
    if np.count_nonzero(usable) < 0.25 * np.count_nonzero(begun):
        return usable, "rendered picture: hardly a block without exactly constant parts"
    return usable, ""


def _least(energy: Floats, keep: int) -> Array:
    keep = min(max(1, keep), len(energy))
    return np.argpartition(energy, keep - 1)[:keep]


def _finite(b_NP: Array) -> tuple[Array, Floats]:
    """Drop blocks with NaN or infinity, or fill them where hardly another block is left.

    A masked white field has the share of finite pixels as its mean power in every DCT coefficient:
    that share is returned to divide by.
    """
    fine = np.isfinite(b_NP)
    whole = fine.all(axis=1)
    if whole.all():
        return b_NP, np.ones(len(b_NP))
    if np.count_nonzero(whole) >= max(_FEW_BLOCKS, 0.1 * np.count_nonzero(fine.any(axis=1))):
        return b_NP[whole], np.ones(np.count_nonzero(whole))
    enough = fine.mean(axis=1) >= 0.5
    b_NP, fine = b_NP[enough], fine[enough]
    means = np.sum(b_NP, axis=1, where=fine) / fine.sum(axis=1)
    return np.where(fine, b_NP, means[:, None]).astype(np.float32), fine.mean(axis=1)


def _at_edge(b: Array, edges: tuple[float, ...]) -> Array:
    low, high = (np.float32(e) for e in edges)
    result: Array = (b <= low) | (b >= high)  # comparisons with NaN are false
    return result


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


# --- sampling -------------------------------------------------------------------------------------


def _gather(
    parts: Sequence[Array], side: int, count: int, offset: float, scale: float
) -> tuple[Array, float]:
    """Take about `count` blocks spread over all parts.

    Returns
    -------
    b_CNP : ndarray (C, N, side * side) float32
        ``(pixel - offset) / scale``.
    area : float
        New pixels per block, at most side².
    """
    blocks, pixels = [], 0
    for x_HWC in parts:
        rows, columns = x_HWC.shape[:2]
        places = (rows - side + 1) * (columns - side + 1)
        # a stride of 1 would only repeat the same pixels; 2 is the finest that gains anything
        step = max(2.0 if places > 4096 else 1.0, math.sqrt(places * len(parts) / count))
        i, j = _positions(rows, side, step), _positions(columns, side, step)
        windows = np.lib.stride_tricks.sliding_window_view(x_HWC, (side, side), axis=(0, 1))
        b_NCP = windows[i[:, None], j[None, :]].reshape(len(i) * len(j), x_HWC.shape[2], side * side)
        blocks.append(np.moveaxis(b_NCP, 1, 0))
        pixels += min(rows * columns, len(i) * len(j) * side * side)
    b_CNP = np.concatenate(blocks, axis=1)
    exact = b_CNP.dtype == np.float32 or b_CNP.dtype.itemsize <= 2  # float32 holds these values
    working = np.float32 if exact else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        b_CNP = b_CNP.astype(working)
        b_CNP -= working(offset)
        b_CNP *= working(1.0 / scale)
        b_CNP = b_CNP.astype(np.float32, copy=False)
    return b_CNP, pixels / b_CNP.shape[1]


def _positions(length: int, side: int, step: float) -> NDArray[np.intp]:
    """Spread block origins evenly; the mirror image of the set is the set itself."""
    last = length - side
    even = np.linspace(0, last, int(last // step) + 1 if last else 1)
    first = np.floor(even[: (len(even) + 1) // 2]).astype(np.intp)
    return np.unique(np.concatenate([first, last - first]))


def _windows(picture: Picture, index: tuple[slice | int, ...]) -> Iterator[Array]:
    """Read one plane as (H, W, C) without alpha; a huge one through 4 x 4 windows."""
    axes = picture.plane_axes
    place = [k for k, a in enumerate(picture.axes) if a in "YX"]
    lengths = [picture.shape[k] for k in place]
    cuts: list[list[slice]] = [[slice(None)], [slice(None)]]
    if math.prod(lengths) > _WHOLE_PX:
        cuts = [
            [slice(int(p), int(p) + _WINDOW_PX) for p in _positions(n, min(n, _WINDOW_PX), max(1, n // 4))]
            for n in lengths
        ]
    for first in cuts[0]:
        for second in cuts[1]:
            where = list(index)
            where[place[0]], where[place[1]] = first, second
            x = np.asarray(picture.pixels[tuple(where)])
            x_HWC = x[:, :, None] if "S" not in axes else x
            order = [axes.index("Y"), axes.index("X"), axes.index("S") if "S" in axes else 2]
            yield np.transpose(x_HWC, order)[:, :, : picture.colours]


def _spread(places: Sequence[Any], count: int) -> list[Any]:
    """Choose at most `count`, evenly and symmetrically spread."""
    if len(places) <= count:
        return list(places)
    return [places[k] for k in _positions(len(places), 1, (len(places) - 1) / (count - 1))]


def _units(parts: Sequence[Array]) -> tuple[float, float, float]:
    """Find offset, scale and quantum of the values, so that float32 arithmetic is safe.

    The scale is a power of two: multiplying the picture by one changes nothing else. The quantum is
    the greatest common divisor of whole-numbered values (1 for most files, 16 for 12 bit kept in the
    upper part of 16), 0 for values that are not whole numbers.
    """
    thin = [_thin(p) for p in parts]
    with np.errstate(all="ignore"):
        values = np.concatenate(thin).astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0, 0.0
    with np.errstate(over="ignore"):
        middle = float(np.float32(np.median(values)))
    if not math.isfinite(middle):
        middle = float(np.median(values))
    reach = float(np.max(np.abs(values - middle)))
    scale = 2.0 ** math.floor(math.log2(reach)) if reach > 0 else 1.0
    if parts[0].dtype.kind == "f" and not np.all(values == np.rint(values)):
        return middle, scale, 0.0
    levels = np.unique(values)
    if len(levels) < 16 or np.abs(levels).max() > 2**53:  # too few values to tell a step from content
        return middle, scale, 1.0 if parts[0].dtype.kind in "uib" else 0.0
    return middle, scale, float(np.gcd.reduce(np.diff(levels).astype(np.int64)))


def _thin(x_HWC: Array, limit: int = 30_000) -> Array:
    rows, columns = x_HWC.shape[:2]
    step = max(1, math.isqrt(rows * columns // limit))
    start = ((rows - 1) % step // 2, (columns - 1) % step // 2)
    return x_HWC[start[0] :: step, start[1] :: step].ravel()


def _clip_levels(parts: Sequence[Array], range: ValueRange) -> tuple[float | None, float | None]:
    """Find the values at which the picture was clipped: black or white if no value lies beyond.

    A float picture with values beyond was not clipped there, and its values at black are ordinary.
    """
    low: float | None = range.black
    high: float | None = range.white
    for part in parts:
        values = _thin(part, 1_000_000)
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size == 0:
            continue
        if low is not None and values.min() < low:
            low = None
        if high is not None and values.max() > high:
            high = None
    return low, high


# --- DCT ------------------------------------------------------------------------------------------


def _basis(side: int) -> NDArray[np.float32]:
    """Orthonormal 2-D DCT-II as a matrix (side², side²) on row-major blocks."""
    k, n = np.arange(side)[:, None], np.arange(side)[None, :]
    line = np.sqrt(2.0 / side) * np.cos(np.pi * (2 * n + 1) * k / (2 * side))
    line[0] /= math.sqrt(2.0)
    return np.kron(line, line).astype(np.float32)


def _order(side: int) -> NDArray[np.intp]:
    """Give i+j of each row of `_basis`."""
    return np.add.outer(np.arange(side), np.arange(side)).ravel()
