"""Noise put on clean pictures for training."""

from __future__ import annotations

import torch
from torch import Tensor


def add_awgn(
    x_NCHW: Tensor,
    sigma_255: tuple[float, float],
    seed: int,
    step: int,
    batch: int | None = None,
    share: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Add white Gaussian noise, one level per picture, uniform between two bounds, not clipped.

    Parameters
    ----------
    x_NCHW : Tensor
        Clean pictures, white = 1.
    sigma_255 : pair of float
        Lowest and highest standard deviation on the 0..255 scale.
    seed, step : int
        The noise of a picture is a function of these two and of its place in the batch.
    batch, share : int and slice, optional
        Size of the whole batch, and which of its pictures `x_NCHW` are.

    Returns
    -------
    noisy : Tensor
        Same shape.
    sigma : Tensor
        Shape (N, 1, 1, 1), 0..255 scale.
    """
    generator = torch.Generator().manual_seed(_mix(seed, step))
    low, high = sigma_255
    batch = batch or x_NCHW.shape[0]
    sigma = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)[share]
    noise = torch.randn((batch, *x_NCHW.shape[1:]), generator=generator)[share]
    return x_NCHW + noise * (sigma / 255), sigma


def _mix(seed: int, step: int) -> int:
    # Neighbouring (seed, step) pairs must not share a stream: an odd multiplier of 2^64/phi.
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**63
