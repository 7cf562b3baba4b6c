"""Colour filter arrays: mosaics, packing, demosaicing, and augmentation that keeps the pattern.

Shapes: N pictures, C channels, H rows, W columns. A mosaic has one channel.

References
----------
H. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned
color images", ICASSP 2004: the 5x5 filters.
J. Liu et al., "Learning raw image denoising with Bayer pattern unification and Bayer preserving
augmentation", CVPR Workshops 2019: `unify` and `augment`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

# Colour of each photosite of the repeating tile: 0 red, 1 green, 2 blue.
PATTERNS: dict[str, tuple[tuple[int, ...], ...]] = {
    "RGGB": ((0, 1), (1, 2)),
    "BGGR": ((2, 1), (1, 0)),
    "GRBG": ((1, 0), (2, 1)),
    "GBRG": ((1, 2), (0, 1)),
    "XTRANS": (  # Fujifilm's 6x6 array, in the phase of the X-T1
        (1, 2, 1, 1, 0, 1),
        (0, 1, 0, 2, 1, 2),
        (1, 2, 1, 1, 0, 1),
        (1, 0, 1, 1, 2, 1),
        (2, 1, 2, 0, 1, 0),
        (1, 0, 1, 1, 2, 1),
    ),
}
BAYER = ("RGGB", "BGGR", "GRBG", "GBRG")

# Rows and columns to drop in front, so that the pattern begins with its red site.
PHASE = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}

_GREEN = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
_ALONG = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
_ACROSS = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


def colour_of_sites(pattern: str, height: int, width: int) -> Tensor:
    """Return the colour of each photosite, 0 red, 1 green, 2 blue: int64 of shape (height, width)."""
    tile = torch.tensor(PATTERNS[pattern])
    side = tile.shape[0]
    return tile.repeat(-(-height // side), -(-width // side))[:height, :width]


def mosaic(x_N3HW: Tensor, pattern: str = "RGGB") -> Tensor:
    """Keep one colour per photosite: shape (N, 1, H, W)."""
    sites = colour_of_sites(pattern, *x_N3HW.shape[-2:]).to(x_N3HW.device)
    return x_N3HW.gather(1, sites.expand(x_N3HW.shape[0], 1, -1, -1))


def pack(mosaic_N1HW: Tensor) -> Tensor:
    """Turn an RGGB mosaic into four planes R, G (beside red), G (beside blue), B at half the size."""
    return functional.pixel_unshuffle(mosaic_N1HW, 2)


def unpack(planes_N4HW: Tensor) -> Tensor:
    """Undo `pack`."""
    return functional.pixel_shuffle(planes_N4HW, 2)


def unify(mosaic_N1HW: Tensor, pattern: str, *, grow: bool = False) -> Tensor:
    """Shift a Bayer mosaic so that it begins with its red site and has an even size.

    Parameters
    ----------
    mosaic_N1HW : Tensor
        Any of the four Bayer patterns.
    pattern : str
        Its pattern.
    grow : bool
        Mirror the missing rows and columns in, so that nothing is lost (take the result back with
        `take_back`); otherwise crop, as in training.
    """
    top, left = PHASE[pattern]
    height, width = mosaic_N1HW.shape[-2:]
    if grow:
        pads = (left, (width + left) % 2, top, (height + top) % 2)
        return functional.pad(mosaic_N1HW, pads, mode="reflect")  # mirrors about a site: the phase stays
    bottom, right = height - (height - top) % 2, width - (width - left) % 2
    return mosaic_N1HW[..., top:bottom, left:right]


def take_back(unified_N1HW: Tensor, pattern: str, height: int, width: int) -> Tensor:
    """Return the part of a grown mosaic that was there before `unify`."""
    top, left = PHASE[pattern]
    return unified_N1HW[..., top : top + height, left : left + width]


def augment(mosaic_N1HW: Tensor, k: int) -> Tensor:
    """Reflect an RGGB mosaic in the k-th of eight ways, cropped so that it stays RGGB.

    A flip moves the first red site by one; one row or column at each end is dropped then, so that
    sizes stay even. A transposition leaves RGGB as it is.
    """
    x = mosaic_N1HW
    if k & 1:
        x = x.flip(-1)[..., 1:-1]
    if k & 2:
        x = x.flip(-2)[..., 1:-1, :]
    return x.transpose(-2, -1) if k & 4 else x


def demosaic(mosaic_N1HW: Tensor, pattern: str = "RGGB") -> Tensor:
    """Interpolate the missing colours: shape (N, 3, H, W).

    Bayer: the linear 5x5 filters of Malvar, He and Cutler. X-Trans: green by a Gaussian-weighted
    mean of its neighbours, red and blue by that of their differences from green.
    """
    if pattern == "XTRANS":
        return _demosaic_by_means(mosaic_N1HW, pattern)
    height, width = mosaic_N1HW.shape[-2:]
    filters = _malvar().to(mosaic_N1HW)
    found = functional.conv2d(functional.pad(mosaic_N1HW, (2, 2, 2, 2), mode="reflect"), filters)
    green, along, down, across = found.unbind(1)
    own = mosaic_N1HW[:, 0]
    out = torch.empty((own.shape[0], 3, height, width), dtype=own.dtype, device=own.device)
    top, left = PHASE[pattern]
    red_rows, blue_rows = slice(top, None, 2), slice(1 - top, None, 2)
    red_columns, blue_columns = slice(left, None, 2), slice(1 - left, None, 2)
    quarters = (
        (red_rows, red_columns, (own, green, across)),
        (red_rows, blue_columns, (along, own, down)),
        (blue_rows, red_columns, (down, own, along)),
        (blue_rows, blue_columns, (across, green, own)),
    )
    for rows, columns, colours in quarters:
        for c, source in enumerate(colours):
            out[:, c, rows, columns] = source[:, rows, columns]
    return out


@functools.cache
def _malvar() -> Tensor:
    """Green at red or blue; red at green in its row; in its column; red at blue. Shape (4, 1, 5, 5)."""
    along = torch.tensor(_ALONG)
    filters = [torch.tensor(_GREEN, dtype=torch.float32), along, along.T, torch.tensor(_ACROSS)]
    return torch.stack(filters)[:, None] / 8


def _demosaic_by_means(mosaic_N1HW: Tensor, pattern: str) -> Tensor:
    sites = colour_of_sites(pattern, *mosaic_N1HW.shape[-2:]).to(mosaic_N1HW.device)
    masks = [(sites == c).to(mosaic_N1HW.dtype)[None, None] for c in range(3)]
    green = _mean_where(mosaic_N1HW, masks[1], width=0.7)
    green = torch.where(masks[1] > 0, mosaic_N1HW, green)
    colours = []
    for c in range(3):
        filled = green + _mean_where(mosaic_N1HW - green, masks[c], width=1.2)
        colours.append(green if c == 1 else torch.where(masks[c] > 0, mosaic_N1HW, filled))
    return torch.cat(colours, 1)


def _mean_where(x_N1HW: Tensor, mask_11HW: Tensor, width: float) -> Tensor:
    """Gaussian-weighted mean (width in px, 7x7) over the sites where the mask is 1."""
    t = torch.arange(-3, 4, device=x_N1HW.device, dtype=x_N1HW.dtype)
    line = torch.exp(-t * t / (2 * width**2))
    kernel = (line[:, None] * line)[None, None]
    return functional.conv2d(x_N1HW * mask_11HW, kernel, padding=3) / functional.conv2d(
        mask_11HW, kernel, padding=3
    )
