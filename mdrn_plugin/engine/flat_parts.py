"""The rest of a photograph's noise that a blind network leaves, told by the flattest parts of the picture.

A network that is told no level judges noise by what lies within its reach. Where that is all texture it
hedges, and takes a part of the noise only; on real cameras' pictures what it takes is right in kind and too
little (decision 0029). The flattest blocks of the whole picture show how much: what is left there, beside
its coarsest part, is noise. So of the fine detail that the network takes, as many times as much is taken
as those blocks ask for.

Texture in a picture without any flat part asks for the same. What tells them apart is colour: sensors'
noise is colourful and the network takes it in colour, where texture hardly is. If what was taken from the
flattest blocks and what was there do not agree in colour, nothing is done.

H rows, W columns, samples R, G, B; y of luma and the two differences of colour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.engine.run import store
from mdrn_plugin.noise.compression import TO_YCC

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# Measured on photographs of CC and PolyU, simulated ones and clean JPEGs: decision 0029.
_BLOCK_PX = 16
_FLATTEST = 0.05  # of the blocks
_FEWEST = 8  # blocks that say anything
_FINE_PX = 4.0  # what a Gaussian of this standard deviation leaves over is fine detail
_COLOUR_PX = 8.0  # the same for the question of colour, whose noise is coarser
_AGREEMENT = (0.55, 0.75)  # correlation in colour: below nothing is done, above all
_MOST = 2.0  # times what the network takes

_WINDOW_PX, _WINDOWS = 512, 4  # measured on so many windows along each side at most
_STRIP_PX = 256  # rows treated at a time

_TO_YCC = np.array(TO_YCC, np.float32)
_TO_RGB = np.linalg.inv(_TO_YCC).astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Shares:
    """How many times what the network took is noise: of luma and the two differences of colour; 1 to 2."""

    luma: float
    blue: float
    red: float

    def __bool__(self) -> bool:
        """Whether there is more to take."""
        return max(self.luma, self.blue, self.red) > 1.01

    def explain(self) -> str:
        """Return it in words."""
        return (
            f"the flattest parts kept noise: of fine detail, {self.luma:.2f} times what the network takes is "
            f"taken in brightness, {max(self.blue, self.red):.2f} in colour"
        )


NONE = Shares(1.0, 1.0, 1.0)


def measure_shares(before_HWC: Any, after_HWC: Any, strength: float = 1.0) -> Shares:
    """Return how much of the noise the network takes.

    Parameters
    ----------
    before_HWC, after_HWC : array (H, W, 3)
        The picture and the network's result, same units; pixels that are not finite count as equal.
    strength : float
        That the result was made with, above 0.

    Returns
    -------
    Shares
        `NONE` if the picture is too small or its flattest parts are not known to be flat.
    """
    activity, sums = [], []
    for rows, columns in _windows(*before_HWC.shape[:2]):
        values, taken = _as_ycc(before_HWC[rows, columns], after_HWC[rows, columns])
        result = _fine((values - taken)[:1], _FINE_PX)
        activity.append(_blocks(result[0]).std(-1))
        pairs = []
        for width_px in (_FINE_PX, _COLOUR_PX):
            v, t = _blocks(_fine(values, width_px)), _blocks(_fine(taken, width_px))
            pairs.append(np.stack([(t * t).sum(-1), (t * v).sum(-1), (v * v).sum(-1)]))
        sums.append(np.stack(pairs))
    active = np.concatenate(activity)
    if len(active) < _FEWEST / _FLATTEST:
        return NONE
    flattest = np.argsort(active)[: round(_FLATTEST * len(active))]
    fine, coarse = np.concatenate(sums, -1)[..., flattest].sum(-1)  # each: (3 products, 3 planes)
    if not (fine[0] > 0).all() or not (coarse[[0, 2]] > 0).all():
        return NONE
    agreement = (coarse[1] / np.sqrt(coarse[0] * coarse[2]))[1:].mean()
    low, high = _AGREEMENT
    sure = float(np.clip((agreement - low) / (high - low), 0, 1))
    wanted = np.clip(strength * fine[1] / fine[0], 1, _MOST)
    return Shares(*(float(1 + sure * (w - 1)) for w in wanted))


def take_rest(
    before_HWC: Any, after_HWC: Any, shares: Shares, saturate: tuple[float, float] | None = None
) -> None:
    """Take the rest of the noise too, in place, a few rows at a time.

    Parameters
    ----------
    before_HWC, after_HWC, shares
        As of `measure_shares`; `after_HWC` is written to.
    saturate : pair of float, optional
        Lowest and highest value of integers.
    """
    height = before_HWC.shape[0]
    reach = _radius(_FINE_PX)
    more = np.array((shares.luma, shares.blue, shares.red), np.float32) - 1
    above = np.empty(
        (0, *after_HWC.shape[1:]), after_HWC.dtype
    )  # rows over the strip, as the network left them
    for top in range(0, height, _STRIP_PX):
        bottom, first = min(top + _STRIP_PX, height), max(0, top - reach)
        last = min(bottom + reach, height)
        before = np.asarray(before_HWC[first:last])
        after = np.concatenate([above, np.asarray(after_HWC[top:last])])
        _, taken = _as_ycc(before, after)
        rest = np.moveaxis(_fine(taken, _FINE_PX) * more[:, None, None], 0, -1) @ _TO_RGB.T
        inner = slice(top - first, bottom - first)
        result = after[inner] - rest[inner].astype(np.float64)
        same = ~np.isfinite(after[inner].astype(np.float64))
        stored = store(np.where(same, 0.0, result), after.dtype, saturate)
        above = after[max(0, bottom - first - reach) : bottom - first].copy()
        after_HWC[top:bottom, : after.shape[1]] = np.where(same, after[inner], stored)


def _windows(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield the parts that are measured: all of a small picture, evenly spread ones of a large one."""

    def along(length: int) -> list[slice]:
        count = min(_WINDOWS, max(1, -(-length // _WINDOW_PX)))
        starts = np.linspace(0, max(0, length - _WINDOW_PX), count).round().astype(int)
        return [slice(int(s), min(length, int(s) + _WINDOW_PX)) for s in starts]

    for rows in along(height):
        for columns in along(width):
            yield rows, columns


def _as_ycc(before_HWC: Any, after_HWC: Any) -> tuple[Floats, Floats]:
    """Return the values and what was taken from them, (3, H, W)."""
    before = np.asarray(before_HWC).astype(np.float32)
    with np.errstate(invalid="ignore"):
        taken = before - np.asarray(after_HWC).astype(np.float32)
    odd = ~np.isfinite(taken)
    before, taken = np.where(odd, 0, before), np.where(odd, 0, taken)
    values, noise = (np.ascontiguousarray(np.moveaxis(x @ _TO_YCC.T, -1, 0)) for x in (before, taken))
    return values, noise


def _radius(width_px: float) -> int:
    return round(3 * width_px)


def _fine(planes_CHW: Floats, width_px: float) -> Floats:
    """Return the planes less their Gaussian means; borders are continued."""
    radius = _radius(width_px)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / width_px) ** 2)
    line = (line / line.sum())[None, None]
    x = torch.from_numpy(planes_CHW)[:, None]
    padded = functional.pad(x, (radius, radius, radius, radius), mode="replicate")
    mean = functional.conv2d(functional.conv2d(padded, line[..., None]), line[:, :, None])
    return (x - mean)[:, 0].numpy()


def _blocks(plane: Floats) -> Floats:
    """Return the pixels of whole blocks, (..., blocks, pixels)."""
    *lead, height, width = plane.shape
    rows, columns = height // _BLOCK_PX, width // _BLOCK_PX
    cut = plane[..., : rows * _BLOCK_PX, : columns * _BLOCK_PX]
    cut = cut.reshape(*lead, rows, _BLOCK_PX, columns, _BLOCK_PX)
    return np.moveaxis(cut, -2, -3).reshape(*lead, rows * columns, _BLOCK_PX**2)
