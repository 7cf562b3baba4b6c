"""A network at two scales: what it makes of a picture of half the size corrects its coarse detail.

Where noise is strong, the mean of 2 x 2 pixels has half of it, and a network sees twice as far there.
After the multiscale denoising of Facciolo, Pierazzo & Morel (2017), "Conservative scale
recomposition": only the coarsest part of the difference is taken over, which leaves no trace of the
smaller grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Measured on 25 crops of DIV2K at noise of 15 to 75 of 255, gray and colour: decision 0027.
SHARE = 0.7  # of the difference that is taken over at frequency 0
SMOOTH_PX = 1.1  # of the smaller picture: standard deviation of the Gaussian that the difference goes through
_RADIUS = math.ceil(3 * SMOOTH_PX)


class TwoScales(nn.Module):
    """Two networks as one, called as the engine calls its own.

    Parameters
    ----------
    fine, coarse : nn.Module
        Inference forms as of `networks.mdrn.FoldedMDRN`; `coarse` for half the noise of `fine`.
    """

    def __init__(self, fine: Any, coarse: Any) -> None:
        super().__init__()
        self.fine = fine
        self.coarse = coarse
        steps = torch.arange(-_RADIUS, _RADIUS + 1)
        weights = torch.exp(-0.5 * (steps / SMOOTH_PX) ** 2)
        self._weights = (weights / weights.sum()).tolist()

    def strips(self, height: int, width: int) -> int:
        """Return how many strips a picture of this size goes through in, of both sizes."""
        count: int = self.fine.strips(height, width) + self.coarse.strips(height // 2, width // 2)
        return count

    def residual(self, x_NCHW: Tensor, *, between: Callable[[], None] | None = None) -> Tensor:
        """Return the noise that both networks see in `x_NCHW`, float32.

        With r of the fine and s of the coarse network, and m the mean of 2 x 2 pixels, the results are
        x - r and m(x) - s; the second is ahead of the first by m(r) - s.
        """
        noise: Tensor = self.fine.residual(x_NCHW, between=between).float()
        small = functional.avg_pool2d(x_NCHW, 2).contiguous(memory_format=torch.channels_last)
        ahead = functional.avg_pool2d(noise, 2) - self.coarse.residual(small, between=between).float()
        coarsest = functional.interpolate(self._smoothed(ahead), scale_factor=2, mode="bilinear")
        return noise - SHARE * coarsest

    def _smoothed(self, x_NCHW: Tensor) -> Tensor:
        """Return the Gaussian mean, column by column and row by row; borders are continued."""
        for dim, edge in ((2, (0, 0, _RADIUS, _RADIUS)), (3, (_RADIUS, _RADIUS, 0, 0))):
            wide = functional.pad(x_NCHW, edge, mode="replicate")
            mean = torch.zeros_like(x_NCHW)
            for k, weight in enumerate(self._weights):
                mean.add_(wide.narrow(dim, k, x_NCHW.shape[dim]), alpha=weight)
            x_NCHW = mean
        return x_NCHW


def at_scales(networks: list[nn.Module]) -> nn.Module:
    """Return networks of a picture, of half its size, of a quarter and so on as one."""
    network = networks[-1]
    for finer in reversed(networks[:-1]):
        network = TwoScales(finer, network)
    return network
