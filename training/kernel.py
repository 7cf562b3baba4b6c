"""The compiled steps of training MDRN on processors with AMX: `kernel.c` behind torch's autograd.

The network is computed as it is for inference (see `FoldedMDRN`): two linear layers with nothing between
them are one, so that the fusing 1x1 disappears in the head, in the steps down and in its share of the
steps up. The products of their weights are formed by torch, in float32, which also carries the gradients
back to the weights themselves. Everything else works on planes, of which `kernel.c` says how they look.

Like torch's autocast the compiled steps multiply in bfloat16 and keep activations in it; sums are float32.
A picture goes in as the sum of two bfloat16 numbers, so that its rounding does not pass for noise.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from mdrn_plugin.networks import native
from mdrn_plugin.networks.compiled import OptionalLibrary, open_library
from mdrn_plugin.networks.mdrn import LEVELS, MDRN, MSAB, MSAG, Up, node_order, unshuffle_columns

if TYPE_CHECKING:
    from collections.abc import Sequence


_INTERFACE = 1  # of kernel.c
_CHANNELS = 64
_LEAD, _BEHIND = 64, 96  # zero pixels around a plane
_STRIP = 512  # px, as in kernel.c
_SCRATCH = 5  # planes of one part
_PACKED = 60 * 1024  # bytes, of a block's weights as tiles
_TOGETHER = 4608  # px that a block handles at a time: what it works on fits into a second-level cache
_SAMPLES = 7  # of a pixel, whose 9 taps fit into 64 channels


class _Shape(ctypes.Structure):
    _fields_ = (
        ("images", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("together", ctypes.c_int32),
        ("lead", ctypes.c_int64),
    )


_PARAMETERS = 8  # of a block, in the order of kernel.c


class _Block(ctypes.Structure):
    _fields_ = tuple((f"p{k}", ctypes.c_void_p) for k in range(_PARAMETERS))


def _look() -> tuple[ctypes.CDLL | None, str]:
    found, why = open_library(Path(__file__).with_name("kernel.lib.so"), "train_interface", _INTERFACE)
    if found is not None and native.library() is None:  # which asks for the same processors
        return None, native.why_not()
    return found, why


optional = OptionalLibrary(_look)
library, why_not = optional.library, optional.why_not


# They use one processor. Torch's operators on two take as long: 0.4 s a step of 2B.
_MOST_THREADS = 2


def fits(network: object, device: torch.device) -> bool:
    """Whether the compiled steps can train a network there, and it pays."""
    return (
        isinstance(network, MDRN)
        and network.channels == _CHANNELS
        and device.type == "cpu"
        and torch.get_num_threads() <= _MOST_THREADS
        and library() is not None
    )


class Compiled:
    """An `MDRN` whose features and residual are computed by the compiled steps; the weights stay its own.

    Parameters
    ----------
    network : MDRN
        64 channels, float32, on the CPU.
    """

    def __init__(self, network: MDRN) -> None:
        self.network = network

    def nodes(self, x_NCHW: Tensor) -> dict[tuple[int, int], Plane]:
        """Return the outputs of all ten MSAGs, by (level, column).

        Parameters
        ----------
        x_NCHW : Tensor
            As for `MDRN.forward`.
        """
        with torch.autocast("cpu", enabled=False):
            return self._nodes(x_NCHW.float())

    def noise_of(self, nodes: dict[tuple[int, int], Plane]) -> Tensor:
        """Return the noise that they amount to, float32; see `MDRN.noise_of`."""
        network, plane = self.network, nodes[0, LEVELS - 1]
        assert network.tail.bias is not None
        with torch.autocast("cpu", enabled=False):
            parts = zip(
                torch.split(network.tail.weight, _SAMPLES),
                torch.split(network.tail.bias, _SAMPLES),
                strict=True,
            )
            noise = torch.cat([_tail(plane, weight, bias) for weight, bias in parts], 1)
        return functional.pixel_shuffle(noise, network.unshuffle) if network.unshuffle > 1 else noise

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        """Denoise, as `MDRN.forward` does."""
        return x_NCHW - self.noise_of(self.nodes(x_NCHW)).to(x_NCHW.dtype)

    def _nodes(self, x_NCHW: Tensor) -> dict[tuple[int, int], Plane]:
        network = self.network
        if network.unshuffle > 1:
            x_NCHW = functional.pixel_unshuffle(x_NCHW, network.unshuffle)
        count, _, height, width = x_NCHW.shape
        layouts = [layout_of(count, height >> i, width >> i) for i in range(LEVELS)]
        out: dict[tuple[int, int], Plane] = {}
        for i, j in node_order():
            group = network.msag[f"{i}_{j}"]
            assert isinstance(group, MSAG)
            weight, bias = group.fusion.weight[:, :, 0, 0], group.fusion.bias
            assert bias is not None
            layout = layouts[i]
            if j > 0:
                up = network.up[f"{i}_{j}"]
                assert isinstance(up, Up)
                assert up.bias is not None
                last = weight[:, -_CHANNELS:]
                rise = torch.einsum("om,imrs->rsoi", last, up.weight).reshape(4, _CHANNELS, _CHANNELS)
                fused = _apply(
                    _Join,
                    layout,
                    layouts[i + 1],
                    out[i + 1, j - 1].values,
                    rise,
                    bias + last @ up.bias,
                    weight[:, :-_CHANNELS],
                    *(out[i, k].values for k in range(j)),
                )
            elif i > 0:
                down = network.down[i - 1]
                assert isinstance(down, torch.nn.Conv2d)
                assert down.bias is not None
                folded = torch.einsum("om,mirs->orsi", weight, down.weight).reshape(_CHANNELS, -1)
                fused = _apply(
                    _Down, layouts[i - 1], layout, out[i - 1, 0].values, folded, bias + weight @ down.bias
                )
            else:
                head = network.head
                assert head.bias is not None
                folded = torch.einsum("om,mirs->orsi", weight, head.weight).reshape(_CHANNELS, -1)
                planes = _picture(layout, x_NCHW)
                columns = functional.pad(
                    torch.cat([folded, folded], 1), (0, len(planes) * _CHANNELS - 2 * folded.shape[1])
                )
                fused = _apply(_Fuse, layout, columns, bias + weight @ head.bias, *planes)
            values = [p for block in group.blocks for p in _parameters(block)]
            out[i, j] = Plane(layout, _apply(_Group, layout, fused, *values))
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """The features of a batch at one level."""

    layout: _Layout
    values: Tensor  # (pixels, 64), bfloat16

    def pictures(self) -> Tensor:
        """Return them without what lies between the pictures: (N, 64, H, W)."""
        return _apply(_Cut, self.layout, self.values)

    def float(self) -> Tensor:
        """Return `pictures` in float32, for losses."""
        return self.pictures().float()


Features: TypeAlias = Tensor | Plane


class _Layout:
    """Where the pixels of a batch lie in a plane, and what the steps at that size work in."""

    def __init__(self, images: int, height: int, width: int) -> None:
        self.images, self.height, self.width = images, height, width
        most = images if width < 16 else max(1, _TOGETHER // ((height + 2) * (width + 2)))
        together = max(k for k in range(1, most + 1) if images % k == 0)
        self.shape = _Shape(images, height, width, together, _LEAD)
        line = width + 2
        self.pixels = _LEAD + (images * (height + 2) + 2) * line + _BEHIND
        part = (together * (height + 2) - 2) * line
        margin = 2 * line + 64
        size = (part + 2 * margin) * _CHANNELS
        self._margin = margin * _CHANNELS * 2  # bytes
        self._parts = [torch.zeros(size, dtype=torch.bfloat16) for _ in range(_SCRATCH)]
        self.scratch = (ctypes.c_void_p * _SCRATCH)(*(p.data_ptr() + self._margin for p in self._parts))
        pairs = max(_STRIP, 2 * (_STRIP + 4 * line + 8)) * 64
        self.strips = torch.empty(64 * (_STRIP * 2 + 64) + 2 * pairs, dtype=torch.uint8)
        self._quarters: list[Tensor] = []

    def empty(self) -> Tensor:
        """Return a plane that is zero beside the pictures and anything inside them."""
        plane = torch.empty((self.pixels, _CHANNELS), dtype=torch.bfloat16)
        _call("clear", self.shape, plane, ctypes.c_int64(self.pixels))
        return plane

    def quarters(self) -> list[Tensor]:
        """Return four planes that the next user overwrites."""
        self._quarters = self._quarters or [self.empty() for _ in range(4)]
        return self._quarters

    def cut(self, plane: Tensor) -> Tensor:
        """Return the pictures of a plane, a view (N, H, W, 64)."""
        line = self.width + 2
        return plane.as_strided(
            (self.images, self.height, self.width, _CHANNELS),
            ((self.height + 2) * line * _CHANNELS, line * _CHANNELS, _CHANNELS, 1),
            plane.storage_offset() + (_LEAD + 2 * line) * _CHANNELS,
        )

    def around(self, plane: Tensor) -> Tensor:
        """Return the pictures and a pixel around each, a view (N, H + 2, W + 2, 64)."""
        line = self.width + 2
        return plane.as_strided(
            (self.images, self.height + 2, line, _CHANNELS),
            ((self.height + 2) * line * _CHANNELS, line * _CHANNELS, _CHANNELS, 1),
            plane.storage_offset() + (_LEAD + line - 1) * _CHANNELS,
        )


@functools.lru_cache(maxsize=16)
def layout_of(images: int, height: int, width: int) -> _Layout:
    """Return the layout of a batch at one level."""
    return _Layout(images, height, width)


def _call(name: str, shape: _Shape, *values: Any) -> None:
    found = library()
    assert found is not None
    pointers = [ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else v for v in values]
    getattr(found, f"train_{name}")(ctypes.byref(shape), *pointers)


def _pointers(planes: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(4, len(planes)))(*(p.data_ptr() for p in planes))


def _linear(
    layout: _Layout,
    out: Tensor,
    planes: Sequence[Tensor],
    weights: Tensor,
    strides: tuple[int, int, int],
    bias: Tensor | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """Put the sum of 1x1 convolutions of up to four planes into `out`; strides of (output, input, part)."""
    _call(
        "linear",
        layout.shape,
        _pointers(planes),
        ctypes.c_int32(len(planes)),
        weights,
        *(ctypes.c_int64(n) for n in strides),
        bias,
        plus,
        out,
    )
    return out


def _linear_weights(
    layout: _Layout, x: Tensor, g: Tensor, weights: Tensor, row: int, bias: Tensor | None = None
) -> None:
    """Add the gradients of a 1x1's weights, which begin at `weights`, and bias."""
    _call("linear_weights", layout.shape, x, g, weights, ctypes.c_int64(row), bias, layout.strips)


def _quarter(layout: _Layout, whole: Tensor, quarters: Sequence[Tensor], *, join: bool) -> None:
    _call("quarter", layout.shape, whole, _pointers(quarters), ctypes.c_int32(join))


def _apply(function: type[Function], *values: Any) -> Tensor:
    out: Tensor = function.apply(*values)  # type: ignore[no-untyped-call]
    return out


class _Fuse(Function):
    """1x1 convolution of planes side by side."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, weight: Tensor, bias: Tensor | None, *planes: Tensor) -> Tensor:
        weight = weight.contiguous()
        ctx.layout = layout
        ctx.save_for_backward(weight, *planes)
        bias = None if bias is None else bias.contiguous()
        return _linear(layout, layout.empty(), planes, weight, (weight.shape[1], 1, _CHANNELS), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        weight, *planes = ctx.saved_tensors
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros(_CHANNELS)
        by_plane = _back_to_planes(
            ctx.layout,
            planes,
            weight,
            g,
            by_weight,
            by_bias if ctx.needs_input_grad[2] else None,
            needed=ctx.needs_input_grad[3:],
        )
        return None, by_weight, by_bias if ctx.needs_input_grad[2] else None, *by_plane


def _back_to_planes(
    layout: _Layout,
    planes: Sequence[Tensor],
    weight: Tensor,
    g: Tensor,
    by_weight: Tensor,
    by_bias: Tensor | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of planes side by side; add those of weight and bias."""
    row = weight.shape[1]
    out: list[Tensor | None] = []
    for k, plane in enumerate(planes):
        columns = slice(k * _CHANNELS, (k + 1) * _CHANNELS)
        _linear_weights(layout, plane, g, by_weight[:, columns], row, by_bias if k == 0 else None)
        back = _linear(layout, layout.empty(), [g], weight[:, columns], (1, row, 0)) if needed[k] else None
        out.append(back)
    return out


class _Down(Function):
    """2x2 convolution of stride 2."""

    @staticmethod
    def forward(ctx: Any, above: _Layout, layout: _Layout, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.contiguous()
        ctx.layouts = above, layout
        ctx.save_for_backward(weight, x)
        quarters = layout.quarters()
        _quarter(above, x, quarters, join=False)
        return _linear(
            layout, layout.empty(), quarters, weight, (4 * _CHANNELS, 1, _CHANNELS), bias.contiguous()
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        above, layout = ctx.layouts
        weight, x = ctx.saved_tensors
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros(_CHANNELS)
        quarters = layout.quarters()
        _quarter(above, x, quarters, join=False)
        for k, quarter in enumerate(quarters):
            part = by_weight[:, k * _CHANNELS :]
            _linear_weights(layout, quarter, g, part, weight.shape[1], by_bias if k == 0 else None)
        for k, quarter in enumerate(quarters):
            _linear(layout, quarter, [g], weight[:, k * _CHANNELS :], (1, weight.shape[1], 0))
        by_x = above.empty()
        _quarter(above, by_x, quarters, join=True)
        return None, None, by_x, by_weight, by_bias


class _Join(Function):
    """1x1 convolution of planes side by side, and of the plane below brought to twice its size."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: _Layout,
        under: _Layout,
        below: Tensor,
        rise: Tensor,
        bias: Tensor,
        weight: Tensor,
        *planes: Tensor,
    ) -> Tensor:
        weight, rise = weight.contiguous(), rise.contiguous()
        ctx.layouts = layout, under
        ctx.save_for_backward(below, rise, weight, *planes)
        quarters = under.quarters()
        for k, quarter in enumerate(quarters):
            _linear(under, quarter, [below], rise[k], (_CHANNELS, 1, 0))
        out = layout.empty()
        _quarter(layout, out, quarters, join=True)
        strides = (weight.shape[1], 1, _CHANNELS)
        return _linear(layout, out, planes, weight, strides, bias.contiguous(), plus=out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        layout, under = ctx.layouts
        below, rise, weight, *planes = ctx.saved_tensors
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros(_CHANNELS)
        by_rise = torch.zeros_like(rise)
        by_plane = _back_to_planes(layout, planes, weight, g, by_weight, by_bias, needed=[True] * len(planes))
        quarters = under.quarters()
        _quarter(layout, g, quarters, join=False)
        for k, quarter in enumerate(quarters):
            _linear_weights(under, below, quarter, by_rise[k], _CHANNELS)
        by_below = _linear(under, under.empty(), quarters, rise, (1, _CHANNELS, _CHANNELS**2))
        return None, None, by_below, by_rise, by_bias, by_weight, *by_plane


class _Group(Function):
    """The blocks of an MSAG, and what goes in added to what comes out."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, x: Tensor, *parameters: Tensor) -> Tensor:
        values = [p.contiguous() for p in parameters]
        blocks = len(values) // _PARAMETERS
        middle, out = ([layout.empty() for _ in range(blocks)] for _ in range(2))
        _call(
            "group_forward",
            layout.shape,
            ctypes.c_int32(blocks),
            _blocks(values),
            x,
            _pointers(middle),
            _pointers(out),
            ctypes.c_void_p(layout.scratch[0]),
            _packed(blocks),
        )
        ctx.layout = layout
        ctx.save_for_backward(x, *out[:-1], *middle, *values)
        return out[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        layout, saved = ctx.layout, ctx.saved_tensors
        blocks = len(saved) // (2 + _PARAMETERS)
        values = saved[2 * blocks :]
        by_values = [torch.zeros_like(p) for p in values]
        by_x = layout.empty()
        _call(
            "group_backward",
            layout.shape,
            ctypes.c_int32(blocks),
            _blocks(values),
            _pointers(saved[:blocks]),
            _pointers(saved[blocks : 2 * blocks]),
            g,
            by_x,
            _blocks(by_values),
            layout.scratch,
            _packed(blocks),
            layout.strips,
        )
        return None, by_x, *by_values


def _blocks(values: Sequence[Tensor]) -> Any:
    """Return the addresses of the parameters of all blocks of a group, or of their gradients."""
    pointers = [v.data_ptr() for v in values]
    count = len(pointers) // _PARAMETERS
    return (_Block * count)(
        *(_Block(*pointers[k * _PARAMETERS : (k + 1) * _PARAMETERS]) for k in range(count))
    )


@functools.cache
def _packed(blocks: int) -> Tensor:
    """Return where the weights of a group are laid out as tiles."""
    return torch.empty(blocks * _PACKED, dtype=torch.uint8)


class _Cut(Function):
    """The pictures of a plane."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, values: Tensor) -> Tensor:
        ctx.layout = layout
        return layout.cut(values).clone().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        plane = ctx.layout.empty()
        ctx.layout.cut(plane).copy_(g.permute(0, 2, 3, 1))
        return None, plane


class _Gather(Function):
    """Sum over taps of the products that stand in a plane, tap by tap: the last step of a 3x3."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, samples: int, products: Tensor) -> Tensor:
        ctx.layout = layout
        height, width = layout.height, layout.width
        around = layout.around(products)
        out = torch.zeros((layout.images, height, width, samples))
        for tap in range(9):
            y, x = divmod(tap, 3)
            out += around[:, y : y + height, x : x + width, tap * samples : (tap + 1) * samples]
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        plane = ctx.layout.empty()
        _taps(ctx.layout.cut(plane), g, mirrored=True)
        return None, None, plane


def _taps(to_NHWC: Tensor, x_NCHW: Tensor, *, mirrored: bool = False) -> None:
    """Put the nine neighbours of each pixel side by side, from channel 0 on; zeros behind them."""
    samples, height, width = x_NCHW.shape[1:]
    padded = functional.pad(x_NCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    taps = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    side_by_side = torch.cat(taps[::-1] if mirrored else taps, 3)
    to_NHWC.copy_(functional.pad(side_by_side, (0, to_NHWC.shape[3] - 9 * samples)))


def _picture(layout: _Layout, x_NCHW: Tensor) -> list[Tensor]:
    """Return the taps of the head on pictures as planes: first the large parts, then the small ones."""
    large = x_NCHW.bfloat16().float()
    channels = 9 * x_NCHW.shape[1]
    both = torch.empty((layout.images, layout.height, layout.width, 2 * channels), dtype=torch.bfloat16)
    _taps(both[..., :channels], large)
    _taps(both[..., channels:], x_NCHW - large)
    planes = []
    for part in torch.split(both, _CHANNELS, 3):
        plane = layout.empty()
        layout.cut(plane).copy_(functional.pad(part, (0, _CHANNELS - part.shape[3])))
        planes.append(plane)
    return planes


def _tail(plane: Plane, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a 3x3 convolution of a plane, (N, S, H, W)."""
    samples = weight.shape[0]
    matrix = functional.pad(
        weight.permute(2, 3, 0, 1).reshape(9 * samples, _CHANNELS), (0, 0, 0, _CHANNELS - 9 * samples)
    )
    products = _apply(_Fuse, plane.layout, matrix, None, plane.values)
    return _apply(_Gather, plane.layout, samples, products) + bias[:, None, None]


def _parameters(block: Any) -> tuple[Tensor, ...]:
    assert isinstance(block, MSAB)
    return (
        block.expand.weight,
        block.expand.bias,
        block.near.weight,
        block.near.bias,
        block.wide.weight,
        block.wide.bias,
        unshuffle_columns(block.merge.weight),
        block.merge.bias,
    )  # type: ignore[return-value]
