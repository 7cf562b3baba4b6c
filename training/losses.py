"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from torch import Tensor


def l1(x_NCHW: Tensor, target_NCHW: Tensor, sigma: Tensor) -> Tensor:
    """Mean absolute error, the reconstruction loss of the paper."""
    return (x_NCHW - target_NCHW).abs().mean()


def squared_per_sigma(x_NCHW: Tensor, target_NCHW: Tensor, sigma: Tensor) -> Tensor:
    """Squared error divided by the noise level of the picture.

    PSNR is a mean of log squared errors. The squared error that denoisers leave grows about
    linearly with sigma (MDRN on Set12: 32, 56 and 114 at 15, 25 and 50), so that the quotient
    gives every level of a wide range the same weight. `sigma` is (N, 1, 1, 1) on 0..255.
    """
    return ((x_NCHW - target_NCHW).square() / (sigma / 255).clamp_min(1 / 255)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "squared-per-sigma": squared_per_sigma,
}


def get_loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a loss by its recipe name; `BadOption` lists the choices."""
    if name not in LOSSES:
        raise BadOption(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}; mend the recipe")
    return LOSSES[name]
