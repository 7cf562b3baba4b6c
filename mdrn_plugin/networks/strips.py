"""Convolutions over a picture that comes by in strips of rows.

A layer that looks r rows up and down keeps the last 2 r rows of what it was given and answers r
rows late; the last strip brings the zero rows below the picture. So every row of every layer is
computed once, from the same numbers as in one piece, while only a few strips are in memory: the
activations of a network need neither halos nor memory in proportion to the height.

Shapes: N pictures, C channels, S rows of a strip, W columns; strips are channels_last. What may
have no rows to give returns a list of strips.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Module):
    """A convolution in its inference form, fused with the ReLU or the sum behind it where torch can.

    Columns are padded with zeros to keep the width (stride 1); rows are not, see `Rows`.

    Parameters
    ----------
    weight : Tensor (outputs, inputs, rows, columns)
        Copied.
    bias : Tensor (outputs,), optional
        Copied.
    stride, dilation : int
        As of `torch.nn.Conv2d`.
    pad_rows : bool
        Pad rows like columns, for a picture in one piece.

    Notes
    -----
    On CPUs the fused operators and the reordered weights are those that torch's own compiler
    calls (``torch.ops.mkldnn``). They are not public and may change, so they are tried once
    against the plain operators, which serve where they are missing or answer otherwise.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad_rows: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.stride = [stride, stride]
        self.dilation = [dilation, dilation]
        margin = dilation * (weight.shape[3] - 1) // 2 if stride == 1 else 0
        self.padding = [margin if pad_rows else 0, margin]
        self._packed: Tensor | None = None

    @property
    def _geometry(self) -> _Geometry:
        return self.padding, self.stride, self.dilation

    def forward(self, x_NCSW: Tensor, *, relu: bool = False) -> Tensor:
        """Return the convolution, after a ReLU if asked for."""
        if fused_operators(x_NCSW):
            return _fused(x_NCSW, self._packed_weight(), self.bias, self._geometry, relu=relu)
        out = functional.conv2d(
            x_NCSW, self.weight, self.bias, tuple(self.stride), tuple(self.padding), tuple(self.dilation)
        )
        return out.relu_() if relu else out

    def add_to(self, target_NCSW: Tensor, x_NCSW: Tensor) -> None:
        """Add the convolution to `target_NCSW`, in place."""
        if fused_operators(x_NCSW) and target_NCSW.is_contiguous(memory_format=torch.channels_last):
            _fused_add(target_NCSW, x_NCSW, self._packed_weight(), self.bias, self._geometry)
        else:
            target_NCSW.add_(self(x_NCSW))

    def _packed_weight(self) -> Tensor:
        if self._packed is None:
            self._packed = _reordered(self.weight, self._geometry)
        return self._packed

    def _apply(self, fn: Any, recurse: bool = True) -> Convolution:
        self._packed = None  # the weights are about to change type or device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Reordered weights can be neither copied nor saved, and are made again when needed.
        return {**self.__dict__, "_packed": None}


_Geometry = tuple[list[int], list[int], list[int]]  # padding, stride, dilation


def fused_operators(x: Tensor) -> bool:
    """Whether torch has its fused CPU convolutions for a tensor like `x`."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and _work(x.dtype)


@functools.cache
def _work(dtype: torch.dtype) -> bool:
    """Try the fused operators on a tiny picture: whether they give what the plain ones give."""
    weight = torch.linspace(-1, 1, 4 * 4 * 9, dtype=torch.float32).reshape(4, 4, 3, 3).to(dtype)
    x = torch.linspace(-1, 1, 4 * 6 * 5).reshape(1, 4, 6, 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.tensor([0.5, -0.5, 0.0, 1.0], dtype=dtype)
    geometry = ([1, 1], [1, 1], [1, 1])
    expected = functional.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.inference_mode():
            packed = _reordered(weight, geometry)
            relu = _fused(x, packed, bias, geometry, relu=True)
            total = x.clone(memory_format=torch.channels_last)
            _fused_add(total, x, packed, bias, geometry)
    except (AttributeError, RuntimeError, TypeError):  # another torch
        return False
    near = 0.05 if dtype == torch.bfloat16 else 1e-4
    return bool(
        torch.allclose(relu.float(), expected.relu(), rtol=near, atol=near)
        and torch.allclose(total.float(), x.float() + expected, rtol=near, atol=near)
    )


def _reordered(weight: Tensor, geometry: _Geometry) -> Tensor:
    return torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight.to_mkldnn(), *geometry, 1, None
    )


def _fused(x: Tensor, packed: Tensor, bias: Tensor | None, geometry: _Geometry, *, relu: bool) -> Tensor:
    after = "relu" if relu else "none"
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, 1, after, [], "")
    return out


def _fused_add(target: Tensor, x: Tensor, packed: Tensor, bias: Tensor | None, geometry: _Geometry) -> None:
    torch.ops.mkldnn._convolution_pointwise_(
        target, x, packed, bias, *geometry, 1, "add", None, None, [], None
    )


class Rows:
    """The rows of one layer's input that later rows of its output still need.

    Parameters
    ----------
    reach : int
        How many rows up and down the layer looks.
    """

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self._held: Tensor | None = None

    def window(self, new_NCSW: Tensor, count: int, *, last: bool) -> Tensor:
        """Take new rows and return those that the next `count` rows of the output need.

        `count` is at most what is there: rows held and new, less 2 * `reach`; with the zero rows
        below the picture when `last`.
        """
        held = _zeros(new_NCSW, self.reach) if self._held is None else self._held
        below = [_zeros(new_NCSW, self.reach)] if last else []
        rows = torch.cat([held, new_NCSW, *below], 2)
        # A copy, or it would keep the whole strip in memory.
        self._held = rows[:, :, count:].clone(memory_format=torch.channels_last)
        return rows[:, :, : count + 2 * self.reach]


class Stage:
    """A convolution whose output comes `reach` rows late.

    Parameters
    ----------
    convolution : Convolution
        Stride 1.
    reach : int
        How many rows up and down it looks.
    """

    def __init__(self, convolution: Convolution, reach: int) -> None:
        self._convolution = convolution
        self._reach = reach
        self._rows = Rows(reach)
        self._owed = 0

    def push(self, new_NCSW: Tensor, *, last: bool) -> list[Tensor]:
        """Take rows and return those of the output that they complete."""
        self._owed += new_NCSW.shape[2]
        count = self._owed if last else max(0, self._owed - self._reach)
        self._owed -= count
        window = self._rows.window(new_NCSW, count, last=last)
        return [self._convolution(window)] if count else []


class Queue:
    """Rows that were computed and wait for those that they will be added to."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def push(self, strips_NCSW: list[Tensor]) -> None:
        """Append rows."""
        self._parts += strips_NCSW

    def take(self, count: int) -> list[Tensor]:
        """Remove the first `count` rows; return them in as many pieces as they lie in."""
        taken = []
        while count > 0:
            part = self._parts.pop(0)
            if part.shape[2] > count:
                self._parts.insert(0, part[:, :, count:])
                part = part[:, :, :count]
            taken.append(part)
            count -= part.shape[2]
        return taken


class Pairs:
    """Rows that go on in pairs, to a convolution of stride 2."""

    def __init__(self) -> None:
        self._odd: Tensor | None = None

    def push(self, rows_NCSW: Tensor) -> list[Tensor]:
        """Take rows and return an even number of them."""
        if self._odd is not None:
            rows_NCSW = torch.cat([self._odd, rows_NCSW], 2)
        even = rows_NCSW.shape[2] // 2 * 2
        self._odd = rows_NCSW[:, :, even:].clone() if even < rows_NCSW.shape[2] else None
        return [rows_NCSW[:, :, :even]] if even else []


def _zeros(like: Tensor, rows: int) -> Tensor:
    n, c, _, w = like.shape
    return torch.zeros((n, rows, w, c), dtype=like.dtype, device=like.device).permute(0, 3, 1, 2)
