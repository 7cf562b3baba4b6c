"""Denoising a mosaic as one plane of full size, by a gray network, colour laid aside.

The four (or 36) colour planes of a mosaic by themselves are pictures of half (a sixth) of the
resolution, and denoise badly. Here the mosaic stays whole: its noise is stabilised colour by colour,
what makes the colours differ is estimated around every pixel and subtracted, the network sees one
gray picture of full resolution with white noise, and the colours are added back. The same for Bayer
and X-Trans. PSNR against independent planes, stabilised MDRN-2B both: docs/decisions/0010-raw.md.

The difference of a colour from the luminance is a line in the luminance, fitted in a window
(a guided filter: K. He, J. Sun, X. Tang, "Guided image filtering", TPAMI 35(6), 2013; as residual
interpolation uses it for demosaicing: D. Kiku, Y. Monno, M. Tanaka, M. Okutomi, ICIP 2013). The
guide is the mosaic itself, smoothed over a repeat of its colours; the noise in it is known, and taken
out of the sums that the line comes from.

Shapes: ``_HW`` one value per pixel, ``_111HW`` the same for torch with its leading axes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.engine.run import count_tiles, run_plane, store
from mdrn_plugin.engine.tiles import Tile, cut
from mdrn_plugin.errors import Cancelled
from mdrn_plugin.noise.stabilise import stabiliser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from mdrn_plugin.engine.run import Job, Stop
    from mdrn_plugin.mosaic import Mosaic
    from mdrn_plugin.noise.curve import NoiseCurve

_PIECE_PX = 2048
_ROWS = 128  # transformed at a time: double precision in between
# The line is drawn towards slope 1 (no dependence of the colour on the luminance) by this many
# variances of the noise; from 0.3 to 3 the result changes by less than 0.1 dB.
_RIDGE = 1.0
# Where the power of what the network took out, over this window, is above this of the noise's, less is
# taken out, in proportion. The mean of 49 squares scatters by 0.2: three times that is more than chance. A
# limit of 1.2 wins another 0.2 dB at a noise of 1.5/255, and leaves single noisy pixels everywhere.
_POWER_PX, _POWER_MAX, _OUTLIER = 7, 1.6, 3.0
_FIRST_PX = 7  # window of the first guess of the colours, applied twice
_WEIGHTS = (0.25, 0.5, 0.25)  # of red, green and blue in what is called luminance here


@dataclasses.dataclass(frozen=True, slots=True)
class MosaicRoute:
    """How a mosaic is denoised by a gray network.

    Attributes
    ----------
    mosaic : Mosaic
        Pattern and levels.
    curves : tuple of NoiseCurve
        Variance of red, green and blue by the signal, units of the file, for black at ``mosaic.floor``.
    window : int
        Of the fit of the colours, px, odd.
    strength, chroma_strength : float
        0 keeps the noise of luminance or colour, 1 takes it away.
    """

    mosaic: Mosaic
    curves: tuple[NoiseCurve, ...]
    window: int
    strength: float = 1.0
    chroma_strength: float = 1.0


def count_mosaic_tiles(height: int, width: int, job: Job, route: MosaicRoute) -> int:
    """Return how many tiles `run_mosaic` will go through."""
    return sum(
        count_tiles(p.read_bottom - p.read_top, p.read_right - p.read_left, job)
        for p in _pieces(height, width, job, route)
    )


def run_mosaic(
    source_HW: Any,
    target_HW: NDArray[Any],
    job: Job,
    route: MosaicRoute,
    *,
    tile_done: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> Job:
    """Denoise a mosaic into `target_HW`; otherwise as `engine.run.run_plane`.

    Parameters
    ----------
    source_HW : array (H, W)
        Integers or floats, units of the file; never written to.
    target_HW : ndarray (H, W)
        Same dtype.
    job : Job
        Black, gain and fill are those of the stabilised luminance.
    route : MosaicRoute
        Pattern, noise, strengths.
    tile_done, stop
        As of `run_plane`.

    Notes
    -----
    Pixels at white or beyond are kept: nothing is known of what they saw.
    """
    height, width = source_HW.shape
    inner = dataclasses.replace(job, strength=1.0, saturate=None)
    for piece in _pieces(height, width, job, route):
        if stop is not None and stop():
            raise Cancelled("stopped on request; nothing was written")
        read = np.s_[piece.read_top : piece.read_bottom, piece.read_left : piece.read_right]
        z_HW = np.asarray(source_HW[read])
        place = (piece.read_top, piece.read_left, *z_HW.shape)
        colour_HW = route.mosaic.colours_at(*place)
        # Places of different black are brought to a common one, which the curves are for.
        shift_HW = route.mosaic.blacks_at(*place) - np.float32(route.mosaic.floor)
        s_HW = _transformed(z_HW - shift_HW, colour_HW, route, inverse=False)
        offset_HW = colour_offsets(s_HW, colour_HW, route.window, cell=route.mosaic.cell)
        gray_HWC = (s_HW - offset_HW)[..., None]
        d_HWC = np.empty_like(gray_HWC)
        inner = run_plane(gray_HWC, d_HWC, inner, tile_done=tile_done, stop=stop)
        kept_HW = _plausible(gray_HWC[..., 0], d_HWC[..., 0])
        after_HW = _transformed(kept_HW + offset_HW, colour_HW, route, inverse=True) + shift_HW
        kept = np.s_[
            piece.top - piece.read_top : piece.bottom - piece.read_top,
            piece.left - piece.read_left : piece.right - piece.read_left,
        ]
        result = blended(z_HW, after_HW, route)[kept]
        stored = store(result, z_HW.dtype, job.saturate)
        target = target_HW[piece.top : piece.bottom, piece.left : piece.right]
        target[...] = keep_clipped(z_HW[kept], result, stored, route)
    return dataclasses.replace(job, tile=inner.tile, device=inner.device, precision=inner.precision)


def _pieces(height: int, width: int, job: Job, route: MosaicRoute) -> Iterator[Tile]:
    grid = int(np.lcm(job.stride, route.mosaic.period))
    # What the fit of the colours sees around a pixel: two windows, the guide, the first guess.
    around = job.halo + route.window + _FIRST_PX + 4
    margin = -(-around // grid) * grid
    yield from cut(height, width, _PIECE_PX // grid * grid, margin, grid)


def _transformed(
    values_HW: NDArray[Any], colour_HW: NDArray[np.intp], route: MosaicRoute, *, inverse: bool
) -> NDArray[np.float32]:
    """Stabilise, or bring back, each pixel by the curve of its colour; a few rows at a time."""
    kinds = [stabiliser(curve) for curve in route.curves]
    change = [k.inverse if inverse else k.forward for k in kinds]
    same = len(set(route.curves)) == 1
    out = np.empty(values_HW.shape, np.float32)
    for top in range(0, len(values_HW), _ROWS):
        rows = slice(top, top + _ROWS)
        if same:
            out[rows] = change[0](values_HW[rows])
            continue
        for k, function in enumerate(change):
            chosen = colour_HW[rows] == k
            out[rows][chosen] = function(values_HW[rows][chosen])
    return out


def _plausible(noisy_HW: NDArray[np.float32], denoised_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the denoised values, drawn back to the noisy ones where more was taken out than noise has.

    Noise has variance 1. Where detail is finer than the colours tell, what is left of the pattern of
    the filters is taken for noise as well, and with little noise that costs more than is won.
    """
    with torch.inference_mode():
        noise = _leading(noisy_HW - denoised_HW)
        # Single pixels far out are hot ones, and rightly taken out.
        power = _box((noise * noise).clamp_max(_OUTLIER**2), _POWER_PX)
        power /= _box(torch.ones_like(noise), _POWER_PX)
        noise *= (_POWER_MAX / power.clamp_min(1e-9)).clamp_max(1.0)
        return np.asarray(noisy_HW - noise[0, 0].numpy())


def blended(z_HW: NDArray[Any], after_HW: NDArray[np.float32], route: MosaicRoute) -> NDArray[np.float32]:
    """Take out as much of what was found to be noise as the strengths say.

    What is common to the colours around a pixel is luminance, the rest is colour.
    """
    light, chroma = route.strength, route.chroma_strength
    if light == chroma == 1:
        return after_HW
    noise_HW = z_HW.astype(np.float32) - after_HW
    if light == chroma:
        return np.asarray(z_HW - light * noise_HW, np.float32)
    common_HW = _smoothed(_leading(noise_HW), route.mosaic.cell)[0, 0].numpy()
    return np.asarray(z_HW - chroma * noise_HW - (light - chroma) * common_HW, np.float32)


def keep_clipped(
    before: NDArray[Any], result: NDArray[np.float32], stored: NDArray[Any], route: MosaicRoute
) -> NDArray[Any]:
    """Return `stored`, with pixels as they were before where they are clipped or not finite."""
    white: Any = route.mosaic.white
    with np.errstate(invalid="ignore"):
        if before.dtype.kind == "u" and 0 < math.ceil(white) <= np.iinfo(before.dtype).max:
            # Compared in its own type, which is several times faster.
            untouched = before >= before.dtype.type(math.ceil(white))
        else:
            untouched = (before >= white) | ~np.isfinite(before)
    untouched |= ~np.isfinite(result)
    return np.where(untouched, before, stored)


def colour_offsets(
    s_HW: NDArray[np.float32], colour_HW: NDArray[np.intp], window: int, *, cell: int
) -> NDArray[np.float32]:
    """Return how much each pixel of a mosaic differs from the luminance there because of its colour.

    Parameters
    ----------
    s_HW : ndarray, float32, (height, width)
        Mosaic whose noise has standard deviation 1.
    colour_HW : ndarray, int, (height, width)
        0 red, 1 green, 2 blue.
    window : int
        Of the fit, px, odd.
    cell : int
        Side of a square that holds all colours: 2 or 3.
    """
    with torch.inference_mode():
        s = _leading(s_HW)
        masks = [_leading((colour_HW == k).astype(np.float32)) for k in range(3)]
        ones = torch.ones_like(s)
        # First guess: every colour smoothed widely, less their mean.
        means = []
        for mask in masks:
            for_all = _box(_box(mask, _FIRST_PX), _FIRST_PX)
            means.append(_box(_box(s * mask, _FIRST_PX), _FIRST_PX) / for_all.clamp_min(1e-6))
        luminance = sum(w * m for w, m in zip(_WEIGHTS, means, strict=True))
        assert isinstance(luminance, torch.Tensor)
        flat = s - sum(m * (p - luminance) for m, p in zip(masks, means, strict=True))
        guide = _smoothed(flat, cell)
        middle = guide.mean()
        guide, centred = guide - middle, s - middle
        # Noise that the guide has, and shares with the pixel at its centre.
        own, shared = (36 / 256, 4 / 16) if cell == 2 else (1 / 9, 1 / 9)
        inside = _box(ones, window)
        offset = torch.zeros_like(s)
        for mask in masks:
            count = _box(mask, window).clamp_min(1e-6)
            mean_g, mean_s = _box(mask * guide, window) / count, _box(mask * centred, window) / count
            variance = (_box(mask * guide * guide, window) / count - mean_g * mean_g - own).clamp_min(0)
            covariance = _box(mask * guide * centred, window) / count - mean_g * mean_s - shared
            slope = (covariance + _RIDGE) / (variance + _RIDGE)
            level = mean_s - slope * mean_g
            slope, level = _box(slope, window) / inside, _box(level, window) / inside
            offset += mask * ((slope - 1) * guide + level)
        return np.ascontiguousarray(offset[0, 0].numpy())


def _leading(values_HW: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values_HW))[None, None]


def _box(x_11HW: Tensor, side: int) -> Tensor:
    """Return the sums over a square around each pixel divided by its area; nothing beyond the edge."""
    half = side // 2
    across = functional.avg_pool2d(x_11HW, (1, side), 1, (0, half))
    return functional.avg_pool2d(across, (side, 1), 1, (half, 0))


def _smoothed(x_11HW: Tensor, cell: int) -> Tensor:
    """Return means over all colours alike: 1 2 1 for cells of two, 1 1 1 for cells of three."""
    weights = [1.0, 2.0, 1.0] if cell == 2 else [1.0, 1.0, 1.0]
    kernel = torch.outer(torch.tensor(weights), torch.tensor(weights))[None, None]
    around = functional.conv2d(torch.ones_like(x_11HW), kernel, padding=1)
    return functional.conv2d(x_11HW, kernel, padding=1) / around
