"""Blocks of pixels spread over a picture, their DCT, and which of them can show noise at all.

Shapes: ``x_HWC`` rows, columns, channels or samples; ``b_CNP`` channel, block, pixel of the block.
Block origins lie symmetrically: a picture flipped or turned by a quarter gives the same blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdrn_plugin.picture import Streamed, StreamedPlane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mdrn_plugin.picture import Picture, ValueRange

Array = NDArray[Any]
Floats = NDArray[np.float64]

PLANES = 8  # planes looked at in a stack
_WINDOW_PX = 1024  # a plane of more than _WHOLE_PX is read through 4 x 4 windows of this side
_WHOLE_PX = 48_000_000
_HELD_BYTES = 2**24  # a streamed plane of more than this is read where it is looked at
FEW_BLOCKS = 100  # fewer independent blocks than this in all: doubt


def gather(parts: Sequence[Array], side: int, count: int, offset: float, scale: float) -> tuple[Array, float]:
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
        first = np.zeros(1, np.intp)
        if isinstance(x_HWC, StreamedPlane):  # a row of blocks at a time
            b_NCP = np.concatenate([_cut(x_HWC[y : y + side], first, j, side) for y in i])
        else:
            b_NCP = _cut(x_HWC, i, j, side)
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


def _cut(x_HWC: Array, i: NDArray[np.intp], j: NDArray[np.intp], side: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x_HWC, (side, side), axis=(0, 1))
    return windows[i[:, None], j[None, :]].reshape(len(i) * len(j), x_HWC.shape[2], side * side)


def _positions(length: int, side: int, step: float) -> NDArray[np.intp]:
    """Spread block origins evenly; the mirror image of the set is the set itself."""
    last = length - side
    even = np.linspace(0, last, int(last // step) + 1 if last else 1)
    first = np.floor(even[: (len(even) + 1) // 2]).astype(np.intp)
    return np.unique(np.concatenate([first, last - first]))


def windows(picture: Picture, index: tuple[slice | int, ...]) -> Iterator[Any]:
    """Read one plane as (H, W, C) without alpha; a huge one through 4 x 4 windows.

    Of streamed pixels a `StreamedPlane` may come, which holds none of them: several planes are looked at.
    """
    axes = picture.plane_axes
    place = [k for k, a in enumerate(picture.axes) if a in "YX"]
    lengths = [picture.shape[k] for k in place]
    cuts: list[list[slice]] = [[slice(None)], [slice(None)]]
    if math.prod(lengths) > _WHOLE_PX:
        cuts = [
            [slice(int(p), int(p) + _WINDOW_PX) for p in _positions(n, min(n, _WINDOW_PX), max(1, n // 4))]
            for n in lengths
        ]
    elif isinstance(picture.pixels, Streamed) and min(lengths) >= _WINDOW_PX:
        plane = picture.plane(index)
        if math.prod(plane.shape) * plane.dtype.itemsize > _HELD_BYTES:
            yield plane
            return
    for first in cuts[0]:
        for second in cuts[1]:
            where = list(index)
            where[place[0]], where[place[1]] = first, second
            x = np.asarray(picture.pixels[tuple(where)])
            x_HWC = x[:, :, None] if "S" not in axes else x
            order = [axes.index("Y"), axes.index("X"), axes.index("S") if "S" in axes else 2]
            yield np.transpose(x_HWC, order)[:, :, : picture.colours]


def spread(places: Sequence[Any], count: int) -> list[Any]:
    """Choose at most `count`, evenly and symmetrically spread."""
    if len(places) <= count:
        return list(places)
    return [places[k] for k in _positions(len(places), 1, (len(places) - 1) / (count - 1))]


def units(parts: Sequence[Array]) -> tuple[float, float, float]:
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


def clip_levels(parts: Sequence[Array], range: ValueRange) -> tuple[float | None, float | None]:
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


def usable_blocks(b_NP: Array, side: int, edges: tuple[float, ...]) -> tuple[Array, str]:
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
    # A frame touches few blocks; where most blocks have a constant quarter, that is the picture. A dark
    # background without a photon is constant too, but only it, and the rest has many values.
    few = np.count_nonzero(usable) < 0.25 * np.count_nonzero(begun)
    if few and not (np.mean(bottom[still] == b_NP.min()) > 0.99 and _many_values(b_NP[usable])):
        return usable, "rendered picture: hardly a block without exactly constant parts"
    return usable, ""


def _many_values(b_NP: Array) -> bool:
    return len(b_NP) >= 50 and len(np.unique(b_NP[:: max(1, len(b_NP) // 200)])) > 8


def least(energy: Floats, keep: int) -> Array:
    """Return the places of the `keep` smallest values, at least one."""
    keep = min(max(1, keep), len(energy))
    return np.argpartition(energy, keep - 1)[:keep]


def finite_blocks(b_NP: Array) -> tuple[Array, Floats]:
    """Drop blocks with NaN or infinity, or fill them where hardly another block is left.

    A masked white field has the share of finite pixels as its mean power in every DCT coefficient:
    that share is returned to divide by.
    """
    fine = np.isfinite(b_NP)
    whole = fine.all(axis=1)
    if whole.all():
        return b_NP, np.ones(len(b_NP))
    if np.count_nonzero(whole) >= max(FEW_BLOCKS, 0.1 * np.count_nonzero(fine.any(axis=1))):
        return b_NP[whole], np.ones(np.count_nonzero(whole))
    enough = fine.mean(axis=1) >= 0.5
    b_NP, fine = b_NP[enough], fine[enough]
    means = np.sum(b_NP, axis=1, where=fine) / fine.sum(axis=1)
    return np.where(fine, b_NP, means[:, None]).astype(np.float32), fine.mean(axis=1)


def at_edge(b: Array, edges: tuple[float, ...]) -> Array:
    """Mark pixels at the clip levels (low, high); NaN for a level that there is not."""
    low, high = (np.float32(e) for e in edges)
    result: Array = (b <= low) | (b >= high)  # comparisons with NaN are false
    return result


def dct_basis(side: int) -> NDArray[np.float32]:
    """Orthonormal 2-D DCT-II as a matrix (side², side²) on row-major blocks."""
    k, n = np.arange(side)[:, None], np.arange(side)[None, :]
    line = np.sqrt(2.0 / side) * np.cos(np.pi * (2 * n + 1) * k / (2 * side))
    line[0] /= math.sqrt(2.0)
    return np.kron(line, line).astype(np.float32)


def dct_order(side: int) -> NDArray[np.intp]:
    """Give i+j of each row of `dct_basis`."""
    return np.add.outer(np.arange(side), np.arange(side)).ravel()
