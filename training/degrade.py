"""Noise put on clean pictures for training."""

from __future__ import annotations

import torch
from torch import Tensor


def add_awgn(x_NCHW: Tensor, sigma_255: tuple[float, float], seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Add white Gaussian noise, one level per picture, uniform between two bounds, not clipped.

    Parameters
    ----------
    x_NCHW : Tensor
        Clean pictures, white = 1.
    sigma_255 : pair of float
        Lowest and highest standard deviation on the 0..255 scale.
    seed, step : int
        The noise is a function of these two alone.

    Returns
    -------
    noisy : Tensor
        Same shape.
    sigma : Tensor
        Shape (N, 1, 1, 1), 0..255 scale.
    """
    generator = torch.Generator().manual_seed(_mix(seed, step))
    low, high = sigma_255
    sigma = low + (high - low) * torch.rand(x_NCHW.shape[0], 1, 1, 1, generator=generator)
    noise = torch.randn(x_NCHW.shape, generator=generator)
    return x_NCHW + noise * (sigma / 255), sigma


def _mix(seed: int, step: int) -> int:
    # Neighbouring (seed, step) pairs must not share a stream: an odd multiplier of 2^64/phi.
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**63
