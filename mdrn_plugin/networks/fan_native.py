"""The compiled form of FAN on processors with AVX2 or AVX-512: `fan_kernel.c`, and its weights.

float32 throughout; its sums have another order than those of torch's operators, so the bits differ
from theirs and plans name it. They do not depend on the vectors of the processor, tiles or threads.

Shapes: ``_HW`` a mosaic. Weights: M outputs, K inputs.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdrn_plugin.networks.compiled import OptionalLibrary, open_library
from mdrn_plugin.networks.fan import FAN, PLANES

if TYPE_CHECKING:
    from mdrn_plugin.networks.fan import InvertedResidual

_INTERFACE = 1  # of fan_kernel.c
_MOST_CHANNELS = 128
_OUTPUTS = 8  # of a product that lie side by side
_LEVELS = 4
_BLOCKS = [[1, 1, 1, 2], [0, 1, 1]]  # of each level, on the way down and up


class _Block(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("expand", "depth", "merge"))


class _Level(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("enter", ctypes.c_void_p),
        ("block", _Block * 2),
        ("back", _Block),
        ("look", ctypes.c_void_p),
        ("align", ctypes.c_void_p),
        ("align_back", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("seen", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("level", _Level * _LEVELS),
        ("tail", ctypes.c_void_p),
    )


class _Task(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("deviations", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("line", ctypes.c_int64),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


def _look() -> tuple[ctypes.CDLL | None, str]:
    place = Path(__file__).with_name("fan_kernel.lib.so")
    found, why = open_library(place, "mdrn_fan_interface", _INTERFACE)
    if found is None:
        return None, why
    found.mdrn_fan_state_bytes.restype = ctypes.c_int64
    found.mdrn_fan.restype = None
    if not found.mdrn_fan_lanes():
        return None, "this processor has no AVX2"
    return found, ""


optional = OptionalLibrary(_look)
library, why_not = optional.library, optional.why_not


def fits(network: Any) -> bool:
    """Whether the kernel has the sizes of a network."""
    if not isinstance(network, FAN) or network.colours != PLANES:
        return False
    plain: Any = network
    aligns = [*plain.encoder_align, *plain.decoder_align]
    blocks = [[len(blocks) for blocks in way] for way in (plain.encoder, plain.decoder)]
    if blocks != _BLOCKS or any(len(align.look.weight) != _OUTPUTS for align in aligns):
        return False
    widths = [len(align.gamma.weight) for align in aligns]
    return all(width % _OUTPUTS == 0 and 0 < width <= _MOST_CHANNELS for width in widths)


class NativeFAN:
    """The weights of a `FAN` in the order of the kernel, and its run.

    Parameters
    ----------
    network : FAN
        float32, on the CPU; one that `fits`.
    """

    def __init__(self, network: FAN) -> None:
        self.noise_map = network.noise_map
        self.stride = 2 * network.stride  # of the mosaic
        self._kept: list[Tensor] = []
        self._memory = threading.local()
        self._network = _Network(seen=2 * PLANES if self.noise_map else PLANES)
        plain: Any = network
        for k in range(_LEVELS):
            level, deepest = self._network.level[k], k == _LEVELS - 1
            entry = plain.head if k == 0 else plain.down[k - 1]
            level.channels = entry.weight.shape[0]
            level.enter = self._keep(_product(*_taps(entry)))
            for j, block in enumerate(plain.encoder[k]):
                level.block[j] = self._block(block)
            looks = [plain.encoder_align[k].look] + ([] if deepest else [plain.decoder_align[k].look])
            level.look = self._keep(torch.cat([_product(*_taps(look)) for look in looks]))
            level.align = self._keep(_aligned(plain.encoder_align[k]))
            if not deepest:
                level.align_back = self._keep(_aligned(plain.decoder_align[k]))
                if len(plain.decoder[k]):
                    level.back = self._block(plain.decoder[k][0])
            if k:
                level.up = self._keep(_product(*_taps(plain.up[k - 1])))
        weight, bias = _taps(plain.tail)
        padding = _OUTPUTS - PLANES
        weight, bias = (torch.cat([t, t.new_zeros((padding, *t.shape[1:]))]) for t in (weight, bias))
        self._network.tail = self._keep(_product(weight, bias))

    def denoised(self, x_HW: Tensor, sigma_HW: Tensor | None = None, *, lanes: int | None = None) -> Tensor:
        """Return a mosaic without its noise.

        Parameters
        ----------
        x_HW : Tensor
            float32 on the CPU, red first, 0 black, 1 white; sides multiples of 16.
        sigma_HW : Tensor, optional
            Standard deviation of each value; with ``noise_map`` only.
        lanes : int, optional
            Floats of a vector; as many as the processor has if left out.
        """
        found = library()
        assert found is not None
        rows, columns = x_HW.shape
        planes = [x_HW] if sigma_HW is None else [x_HW, sigma_HW]
        if (sigma_HW is not None) != self.noise_map or rows % self.stride or columns % self.stride:
            raise AssertionError(f"shape {tuple(x_HW.shape)}, noise map {sigma_HW is not None}")
        if not rows or not columns or any(t.dtype != torch.float32 or t.shape != x_HW.shape for t in planes):
            raise AssertionError(f"expected two float32 mosaics, got {[(t.dtype, t.shape) for t in planes]}")
        planes = [t.contiguous() for t in planes]
        out = torch.empty((rows, columns))
        task = _Task(
            values=planes[0].data_ptr(),
            deviations=planes[1].data_ptr() if self.noise_map else None,
            out=out.data_ptr(),
            line=columns,
            rows=rows,
            columns=columns,
        )
        network = ctypes.byref(self._network)
        size = found.mdrn_fan_state_bytes(network, columns, rows)
        memory = getattr(self._memory, "block", None)
        if memory is None or len(memory) < size + 64:
            self._memory.block = memory = torch.empty(size + 64, dtype=torch.uint8)
        start = ctypes.c_void_p(-(-memory.data_ptr() // 64) * 64)
        found.mdrn_fan(network, ctypes.byref(task), start, lanes or found.mdrn_fan_lanes())
        return out

    def _block(self, block: InvertedResidual) -> _Block:
        bias = block.depth.bias
        assert bias is not None
        depth = torch.cat([block.depth.weight.flatten(1), bias[:, None]], 1)
        parts = _product(*_taps(block.expand)), depth, _product(*_taps(block.merge))
        return _Block(*map(self._keep, parts))

    def _keep(self, values: Tensor) -> int:
        kept = values.detach().float().contiguous().clone()
        self._kept.append(kept)
        return kept.data_ptr()


def _taps(conv: Any) -> tuple[Tensor, Tensor]:
    """Return the weights (M, K) of a convolution, inputs in the order (dy, dx, channel), and its biases."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias


def _aligned(align: Any) -> Tensor:
    """Return 1 + gamma and beta as one product: two channels' gamma, their beta, the next two's."""
    (gamma, gamma_bias), (beta, beta_bias) = _taps(align.gamma), _taps(align.beta)
    both = torch.stack([_with_bias(gamma, 1 + gamma_bias), _with_bias(beta, beta_bias)])
    kinds, channels, inputs = both.shape
    paired = both.reshape(kinds, channels // 2, 2, inputs).transpose(0, 1).reshape(-1, inputs)
    return _product(paired[:, 1:], paired[:, 0])


def _product(weight_MK: Tensor, bias_M: Tensor) -> Tensor:
    """Return what the kernel reads for every 8 outputs: their biases, then their weights input by input."""
    both = _with_bias(weight_MK, bias_M)
    return both.reshape(-1, _OUTPUTS, both.shape[1]).transpose(1, 2).flatten()


def _with_bias(weight_MK: Tensor, bias_M: Tensor) -> Tensor:
    return torch.cat([bias_M[:, None], weight_MK], 1)
