"""From a blind-spot network's predictions to denoised pictures, and how good they are without a clean one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from mdrn_plugin.networks.dbsn import MDC, BlindSpot, posterior

from .precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mdrn_plugin.networks.dbsn import DBSN

_GROUPS = 32  # of pixels by how sure the network is of them
_SURE_STEP = 1e-3  # of the Monte Carlo divergence, white = 1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """How far predictions were off, measured on noisy pictures.

    Attributes
    ----------
    spread : Tensor (K,)
        Variance of the prediction as the network says it, increasing.
    residual : Tensor (K,)
        Mean squared difference of prediction and noisy pixel where it says so, not decreasing.
    """

    spread: Tensor
    residual: Tensor


@torch.no_grad()
def calibrate(network: DBSN, noisy: Sequence[Tensor]) -> Trust:
    """Measure how far the predictions are off, by how sure the network is of them.

    The constrained loss keeps the variance of the prediction small: for a pixel whose residual has
    the variance v it is least at sqrt(v s) - s with s the variance of the noise, not at v - s, and it
    takes a part of the error of the prediction for noise. Both leave too much of the prediction in
    the Bayes result. What the residual really has can be measured without a clean picture.

    Parameters
    ----------
    network : DBSN
        Of noise that is the same everywhere.
    noisy : sequence of Tensor
        (1, C, H, W) each, white = 1.
    """
    spreads, squares = [], []
    for y in noisy:
        prediction = network(y)
        spread = prediction.mean_covariance.diagonal(dim1=-2, dim2=-1).permute(0, 3, 1, 2)
        spreads.append(spread.flatten())
        squares.append((y - prediction.mean).square().flatten())
    spread, square = torch.cat(spreads), torch.cat(squares)
    order = torch.argsort(spread)
    groups = min(_GROUPS, max(1, len(order) // 1000))
    means = [(spread[part].mean(), square[part].mean()) for part in order.tensor_split(groups)]
    residual = torch.stack([m for _, m in means]).cummax(0).values
    return Trust(torch.stack([m for m, _ in means]), residual)


def bayes(
    network: DBSN, noisy_CHW: Tensor, level: float, trust: Trust | None = None, bf16: bool = True
) -> Tensor:
    """Return the Bayes result for a whole picture, in tiles whose margin is all that a pixel sees.

    `level` is the standard deviation of the noise, white = 1, taken once for all pictures: the
    network's own average over a tile would change from tile to tile. With `trust` the variances of
    predictions are as measured, without it as the network says.
    """
    from mdrn_plugin.engine.tiles import cut

    colours, height, width = noisy_CHW.shape
    blocks = sum(isinstance(m, MDC) for m in network.backbone.branches[0].children())
    out = torch.empty_like(noisy_CHW)
    noise = torch.eye(colours, device=noisy_CHW.device) * level**2
    for tile in cut(height, width, 160, BlindSpot.radius(blocks), 1):
        part = noisy_CHW[None, :, tile.read_top : tile.read_bottom, tile.read_left : tile.read_right]
        part = part.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(part.device.type, bf16):
            prediction = network(part)
        if trust is not None:
            spread = prediction.mean_covariance.diagonal(dim1=-2, dim2=-1)
            measured = (_interpolate(spread, trust) - level**2).clamp_min(0)
            prediction = dataclasses.replace(prediction, mean_covariance=torch.diag_embed(measured))
        result = posterior(
            part, dataclasses.replace(prediction, noise_covariance=noise.expand(1, 1, 1, -1, -1))
        )
        top, left = tile.top - tile.read_top, tile.left - tile.read_left
        rows, columns = tile.bottom - tile.top, tile.right - tile.left
        out[:, tile.top : tile.bottom, tile.left : tile.right] = result[
            0, :, top : top + rows, left : left + columns
        ]
    return out


def _interpolate(spread: Tensor, trust: Trust) -> Tensor:
    """Return the residual variance at each spread; beyond the ends, that of the ends."""
    if len(trust.spread) == 1:
        return torch.full_like(spread, float(trust.residual[0]))
    place = torch.searchsorted(trust.spread, spread.contiguous()).clamp(1, len(trust.spread) - 1)
    low, high = trust.spread[place - 1], trust.spread[place]
    share = ((spread - low) / (high - low).clamp_min(1e-20)).clamp(0, 1)
    return torch.lerp(trust.residual[place - 1], trust.residual[place], share)


@torch.no_grad()
def sure(noisy: Sequence[Tensor], denoise: Callable[[Tensor], Tensor], sigma: float) -> float:
    """Return Stein's unbiased estimate of the mean squared error against the unknown clean pictures.

    mean (f(y) - y)^2 - sigma^2 + 2 sigma^2 div f(y) / n, the divergence by one random direction (Monte
    Carlo SURE, Ramani, Blu and Unser 2008). Holds for white Gaussian noise.

    Parameters
    ----------
    noisy : sequence of Tensor
        (1, C, H, W) each, white = 1.
    denoise : callable
        From such a tensor to its denoised form.
    sigma : float
        Standard deviation of the noise, white = 1.
    """
    generator = torch.Generator().manual_seed(0)
    risks = []
    for y in noisy:
        direction = torch.randint(0, 2, y.shape, generator=generator).mul_(2).sub_(1).to(y)
        out = denoise(y)
        divergence = (direction * (denoise(y + _SURE_STEP * direction) - out)).mean() / _SURE_STEP
        risks.append((out - y).square().mean() - sigma**2 + 2 * sigma**2 * divergence)
    return float(torch.stack(risks).mean())
