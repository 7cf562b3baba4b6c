"""What JPEG does to a picture, in torch: the quantised cosine coefficients, no file and no encoder.

Shapes: N pictures, C channels, H rows, W columns.

References
----------
ITU-T T.81 (JPEG), Annex K: the two quantisation tables. JFIF 1.02: the colour transform.
The scaling of the tables by quality, and the triangle filter that enlarges the chroma, are those of
the Independent JPEG Group's library, which nearly every decoder follows.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.noise.compression import TO_YCC

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))

BLOCK = 8
MCU = 16  # px, side of what 4:2:0 codes at once


def jpeg(
    x_N3HW: Tensor,
    quality_N: Tensor,
    *,
    subsample: bool = True,
    offset: tuple[int, int] = (0, 0),
) -> Tensor:
    """Return the pictures as they come back from a JPEG file.

    Parameters
    ----------
    x_N3HW : Tensor, float32
        sRGB, 0..1; values beyond are clipped, as in an 8-bit picture.
    quality_N : Tensor
        1..100 for each picture.
    subsample : bool
        Chroma at half the height and width (4:2:0); otherwise 4:4:4.
    offset : pair of int
        Rows and columns, 0..15, that are missing of the first block: the grid of blocks of a
        cropped photograph may begin anywhere.

    Returns
    -------
    Tensor, float32
        Same shape, multiples of 1/255.
    """
    height, width = x_N3HW.shape[-2:]
    below = -(height + offset[0]) % MCU
    right = -(width + offset[1]) % MCU
    x = (x_N3HW.clamp(0, 1) * 255).round()
    x = functional.pad(x, (offset[1], right, offset[0], below), mode="replicate")
    ycc = mix_channels(x, x.new_tensor(TO_YCC))
    luma = ycc[:, :1].round() - 128
    chroma = ycc[:, 1:]
    if subsample:
        chroma = functional.avg_pool2d(chroma, 2)
    tables = quantisation(quality_N.to(x.device))
    luma = _coded(luma, tables[:, 0]) + 128
    chroma = _coded(chroma.round(), tables[:, 1])
    if subsample:
        chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = mix_channels(torch.cat([luma.clamp(0, 255), chroma], 1), x.new_tensor(_TO_RGB))
    rgb = rgb[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    return rgb.round().clamp(0, 255) / 255


def quantisation(quality_N: Tensor) -> Tensor:
    """Return the luma and chroma tables of each quality (1..100), shape (N, 2, 8, 8)."""
    quality = quality_N.float().clamp(1, 100)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    base = torch.tensor((_LUMA, _CHROMA), dtype=torch.float32, device=quality.device)
    return ((base * scale.floor()[:, None, None, None] + 50) / 100).floor().clamp(1, 255)


def mix_channels(x_NCHW: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the vector of channels at each pixel by a matrix, (C', C) or one per picture (N, C', C)."""
    out = torch.matmul(matrix, x_NCHW.flatten(2))
    return out.reshape(*out.shape[:2], *x_NCHW.shape[2:])


def _coded(x_NCHW: Tensor, table_N88: Tensor) -> Tensor:
    """Quantise the cosine coefficients of all 8x8 blocks."""
    count, channels = x_NCHW.shape[:2]
    basis = _basis().to(x_NCHW.device)
    planes = x_NCHW.reshape(count * channels, 1, *x_NCHW.shape[2:])
    coefficients = functional.conv2d(planes, basis, stride=BLOCK)
    step = table_N88.reshape(count, 1, 64, 1, 1).expand(-1, channels, -1, -1, -1).reshape(-1, 64, 1, 1)
    coefficients = (coefficients / step).round() * step
    return functional.conv_transpose2d(coefficients, basis, stride=BLOCK).reshape(x_NCHW.shape).round()


@functools.cache
def _basis() -> Tensor:
    """Return the 64 orthonormal cosine patterns of 8x8 pixels, shape (64, 1, 8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi * k[:, None] * (2 * k[None, :] + 1) / 16) / 2
    rows[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->uvij", rows, rows).reshape(64, 1, 8, 8).float()
