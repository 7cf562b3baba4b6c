"""The compiled form of MDRN in float32 on processors with AVX2 or AVX-512: `fp32_kernel.c` and its weights.

Schedule and run are those of `native`. Sums have another order than those of torch's operators, so the
bits differ from theirs and plans name it; they do not depend on the vectors of the processor, bands,
tiles or threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.networks.compiled import OptionalLibrary
from mdrn_plugin.networks.native import Form, open_kernel

if TYPE_CHECKING:
    import ctypes

    from mdrn_plugin.networks.mdrn import FoldedMDRN

_OUTPUTS = 16  # whose weights lie side by side


def _look() -> tuple[ctypes.CDLL | None, str]:
    return open_kernel("fp32_kernel.lib.so", "this processor has no AVX2")


optional = OptionalLibrary(_look)
library, why_not = optional.library, optional.why_not


def form() -> Form | None:
    """Return what `native` runs; None where `library` is."""
    found = library()
    if found is None:
        return None
    # Bands of 256 were 1 to 11 % slower in four of five measurements, and 2 % faster in one.
    return Form(
        found, torch.float32, _pack_group, _pack_tail, sweep=32, band=512, lanes=int(found.mdrn_usable())
    )


def _pack_group(network: FoldedMDRN, i: int, j: int) -> Tensor:
    """Return the weights of a node in the order in which `rows` of fp32_rows.h reads them."""
    name = f"{i}_{j}"
    plain: Any = network
    if j > 0:
        up = plain.rise[name]
        parts = [_matrix(up.weight[:, :, dy, dx].t()) for dy in (0, 1) for dx in (0, 1)]
        parts += [_matrix(fusion.weight[:, :, 0, 0]) for fusion in plain.fusion[name]]
        bias = up.bias
    else:
        entry = plain.down[name] if i > 0 else plain.head
        parts, bias = [_taps(entry.weight)], entry.bias
    parts.append(bias)
    for block in plain.blocks[name]:
        expand, merge = [block.expand_near, block.expand_wide], [block.merge_near, block.merge_wide]
        parts += [_taps(torch.cat([c.weight for c in expand])), torch.cat([c.bias for c in expand])]
        for around in (block.near, block.wide):
            parts += [_taps(around.weight), around.bias]
        parts += [_taps(torch.cat([c.weight for c in merge], 1)), block.merge_near.bias]
    return _bytes(parts)


def _pack_tail(network: FoldedMDRN) -> Tensor:
    weight, bias = network.tail.weight, network.tail.bias
    assert bias is not None
    missing = _OUTPUTS - weight.shape[0]
    padded = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing))
    return _bytes([_taps(padded), functional.pad(bias, (0, missing))])


def _taps(weight: Tensor) -> Tensor:
    """Return a convolution (outputs, inputs, rows, columns) as `_matrix`; inputs are (row, column, input)."""
    return _matrix(weight.permute(0, 2, 3, 1).flatten(1))


def _matrix(matrix: Tensor) -> Tensor:
    """Return a matrix (outputs, inputs) by 16 outputs, and of each input 16 weights."""
    return matrix.reshape(-1, _OUTPUTS, matrix.shape[1]).transpose(1, 2)


def _bytes(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.detach().float().flatten() for part in parts]).view(torch.uint8)
