"""Self-ensemble over the eight symmetries of the square (MDRN+; Timofte 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def eightfold(network: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    """Return the mean of the network's answers to the eight rotated and mirrored inputs.

    Each answer is turned back before the mean, so a network of stride s makes the result follow
    flips and rotations exactly on pictures whose sides are multiples of s.
    """
    total: Tensor | None = None
    for k in range(8):
        turned = torch.rot90(x_NCHW.flip(-1) if k >= 4 else x_NCHW, k % 4, (-2, -1))
        answer = network(turned.contiguous(memory_format=torch.channels_last))
        back = torch.rot90(answer, -(k % 4), (-2, -1))
        back = back.flip(-1) if k >= 4 else back
        total = back.clone() if total is None else total.add_(back)
    assert total is not None
    return total / 8
