"""The orthonormal Haar wavelet transform of pictures and its inverse, as fixed convolutions.

Shapes: N pictures, C channels, H rows, W columns. Four bands per channel, interleaved: channel 4c is
the mean of channel c (times two), 4c + 1 the difference of rows, 4c + 2 of columns, 4c + 3 diagonal.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

_HALF = 0.5
_BANDS = (
    ((1, 1), (1, 1)),
    ((-1, -1), (1, 1)),
    ((-1, 1), (-1, 1)),
    ((1, -1), (-1, 1)),
)


def dwt(x_NCHW: Tensor) -> Tensor:
    """Return the four bands of each channel, shape (N, 4C, H/2, W/2); H and W are even."""
    channels = x_NCHW.shape[1]
    return functional.conv2d(
        x_NCHW, _filters(channels, x_NCHW.dtype, x_NCHW.device), stride=2, groups=channels
    )


def iwt(bands_NCHW: Tensor) -> Tensor:
    """Undo `dwt`: shape (N, C/4, 2H, 2W)."""
    channels = bands_NCHW.shape[1] // 4
    filters = _filters(channels, bands_NCHW.dtype, bands_NCHW.device)
    return functional.conv_transpose2d(bands_NCHW, filters, stride=2, groups=channels)


@functools.lru_cache(maxsize=32)
def _filters(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 2x2 filters, shape (4 · channels, 1, 2, 2)."""
    with torch.inference_mode(False):  # kept, and perhaps used for training later
        one = _HALF * torch.tensor(_BANDS, dtype=dtype, device=device)
        return one[:, None].repeat(channels, 1, 1, 1)
