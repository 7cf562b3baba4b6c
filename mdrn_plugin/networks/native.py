"""The compiled forms of MDRN's groups: what they share, and `kernel.c`, in bf16 by AMX, with its weights.

The other form is `fp32_native`, with another library of the same functions.

A picture goes through in sweeps: in each, every group takes a few rows of what is ready for it, for
bands of columns, which threads share among themselves. Outputs of groups wait in rings of rows
(`_Ring`) until all that need them have taken them. Neither bands, threads nor the height of sweeps
show in the result: the order of the sums of a pixel is always the same.

Shapes: C channels, H rows, W columns, S samples of a pixel as the network takes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdrn_plugin.networks.compiled import OptionalLibrary, open_library
from mdrn_plugin.networks.mdrn import LEVELS, STRIDE, FoldedMDRN, node_order

_INTERFACE = 1  # of kernel.c and fp32_kernel.c
_CHANNELS = (32, 64)
_MOST_SAMPLES = 16
# Columns beside a ring's rows: one for the last 3x3, and what groups of 32 or 64 pixels read too many.
_LEFT, _RIGHT = 2, 66
# Pixels of a step below which handing its bands to threads costs more than it gains: about 50 µs.
_WORTH_THREADS = 4096


class _Rows(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("rows", ctypes.c_int64), ("row", ctypes.c_int64))


class _Group(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_int32),
        ("blocks", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("parts", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("samples", ctypes.c_int32),
        ("lanes", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("picture", ctypes.c_void_p),
        ("picture_row", ctypes.c_int64),
        ("below", _Rows),
        ("part", _Rows * 3),
        ("out", _Rows),
    )


class _Tail(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_int32),
        ("samples", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("input", _Rows),
        ("out", ctypes.c_void_p),
        ("lanes", ctypes.c_int32),
    )


_HEAD, _DOWN, _FUSE = range(3)


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What differs between the compiled forms of MDRN.

    Attributes
    ----------
    library : ctypes.CDLL
        Of the functions of `kernel.c`.
    dtype : torch.dtype
        Of what goes from group to group, and of the weights of the network that this form stands for.
    pack_group : callable
        Returns the weights of the node (level, column) of a network as bytes, in the order of the library.
    pack_tail : callable
        The same of the last 3x3.
    sweep : int
        Rows of the picture per sweep.
    band : int
        Columns that a group computes at a time at most, halo included.
    lanes : int
        Floats of a vector, for a library that has a choice.
    """

    library: ctypes.CDLL
    dtype: torch.dtype
    pack_group: Callable[[FoldedMDRN, int, int], Tensor]
    pack_tail: Callable[[FoldedMDRN], Tensor]
    sweep: int
    band: int
    lanes: int = 0


def _look() -> tuple[ctypes.CDLL | None, str]:
    return open_kernel("kernel.lib.so", "this processor has no AMX for bf16")


def open_kernel(name: str, unusable: str) -> tuple[ctypes.CDLL | None, str]:
    """Return a library of this folder, or None and why not; `unusable` says what the processor lacks."""
    found, why = open_library(Path(__file__).with_name(name), "mdrn_interface", _INTERFACE)
    if found is None:
        return None, why
    found.mdrn_state_bytes.restype = ctypes.c_int64
    for function in (found.mdrn_group, found.mdrn_tail):
        function.restype = None
    return (found, "") if found.mdrn_usable() else (None, unusable)


optional = OptionalLibrary(_look)
library, why_not = optional.library, optional.why_not


def form() -> Form | None:
    """Return the form in bf16; None where `library` is."""
    found = library()
    if found is None:
        return None
    # With shorter sweeps the rows that a band keeps are fetched for less work. With 2 blocks those of a band
    # fill half of a second-level cache of 2 MiB; narrower bands for 8 blocks gain nothing: their halo costs
    # as much.
    return Form(found, torch.bfloat16, _pack_group, _pack_tail, sweep=64, band=256)


class NativeMDRN:
    """The weights of a `FoldedMDRN` in the order of the kernel, and its run.

    Parameters
    ----------
    network : FoldedMDRN
        float32, before `FoldedMDRN.set_precision`.
    form : Form
        Which kernel.
    """

    def __init__(self, network: FoldedMDRN, form: Form) -> None:
        self.form = form
        self.channels = int(network.tail.weight.shape[1])
        self.samples = int(network.tail.weight.shape[0])
        self.blocks = network.n_blocks
        self.groups = {(i, j): form.pack_group(network, i, j) for i, j in node_order()}
        self.tail = form.pack_tail(network)

    def __deepcopy__(self, memo: dict[int, object]) -> NativeMDRN:
        return self  # nothing changes it, and a library cannot be copied

    def residual(
        self, x_NCHW: Tensor, *, rows: int | None = None, between: Callable[[], None] | None = None
    ) -> Tensor:
        """Return the noise that the network sees, float32.

        Parameters
        ----------
        x_NCHW : Tensor
            float32 on the CPU, S channels; height and width multiples of 8.
        rows : int, optional
            Of the picture per sweep.
        between : callable, optional
            Called before each sweep.
        """
        count, samples, height, width = x_NCHW.shape
        if samples != self.samples or height % STRIDE or width % STRIDE or not (height and width):
            raise AssertionError(f"shape {tuple(x_NCHW.shape)} for {self.samples} samples")
        out_NHWC = torch.empty((count, height, width, samples))
        threads = torch.get_num_threads()
        schedule = schedule_of(height, self.blocks, rows or self.form.sweep)
        with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
            for x_CHW, out_HWC in zip(x_NCHW, out_NHWC, strict=True):
                passage = _Passage(self, x_CHW, out_HWC, schedule, threads)
                for sweep in schedule.sweeps:
                    if between is not None:
                        between()
                    passage.sweep(sweep, pool)
        return out_NHWC.permute(0, 3, 1, 2)

    def sweeps(self, height: int) -> int:
        """Return how many sweeps a picture of `height` rows takes."""
        return len(schedule_of(height, self.blocks, self.form.sweep).sweeps)


def fits(network: FoldedMDRN) -> bool:
    """Whether the kernel has the sizes of a network."""
    samples, channels = network.tail.weight.shape[:2]
    return channels in _CHANNELS and samples <= _MOST_SAMPLES and network.n_blocks > 0


# What a step works on: a node by (level, column), or the last convolution.
_TAIL = (-1, 0)
_Node = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Schedule:
    """In which order rows are computed.

    Attributes
    ----------
    sweeps : tuple
        Each a list of (node, first row taken, end).
    capacity : dict
        Rows of a node's output that wait at a time at most.
    """

    sweeps: tuple[tuple[tuple[_Node, int, int], ...], ...]
    capacity: dict[_Node, int]


@functools.lru_cache(maxsize=32)
def schedule_of(height: int, blocks: int, rows: int) -> _Schedule:
    """Return the schedule of a picture of `height` rows, `rows` (a multiple of 8) of them per sweep."""
    lag = 2 * blocks
    taken, given = dict.fromkeys(node_order(), 0), dict.fromkeys(node_order(), 0)
    capacity = dict.fromkeys(node_order(), 0)
    shown, sweeps = 0, []
    while shown < height:
        needed = {node: _needed_from(node, taken, shown) for node in node_order()}
        sweep: list[tuple[_Node, int, int]] = []
        for i, j in node_order():
            full = height >> i
            if j > 0:
                ready = min(2 * given[i + 1, j - 1], *(given[i, k] for k in range(j)))
            elif i > 0:
                ready = given[i - 1, 0] // 2
            else:
                ready = full
            end = min(ready, taken[i, j] + max(1, rows >> i))
            if end > taken[i, j]:
                sweep.append(((i, j), taken[i, j], end))
                taken[i, j] = end
                given[i, j] = full if end == full else max(0, end - lag)
        last = given[0, LEVELS - 1]
        end = min(height, shown + rows, last if last == height else last - 1)
        if end > shown:
            sweep.append((_TAIL, shown, end))
        shown = max(shown, end)
        for node in node_order():
            capacity[node] = max(capacity[node], given[node] - needed[node])
        sweeps.append(tuple(sweep))
    return _Schedule(tuple(sweeps), capacity)


def _needed_from(node: _Node, taken: dict[_Node, int], shown: int) -> int:
    """Return the first row of a node's output that something has still to take."""
    i, j = node
    needed = [taken[i, later] for later in range(j + 1, LEVELS - i)]
    if j == 0 and i + 1 < LEVELS:
        needed.append(2 * taken[i + 1, 0])
    if i > 0:
        needed.append(taken[i - 1, j + 1] // 2)
    if node == (0, LEVELS - 1):
        needed.append(max(0, shown - 1))
    return min(needed)


class _Ring:
    """The last rows of a node's output, with zeros beside them."""

    def __init__(self, rows: int, width: int, channels: int, dtype: torch.dtype) -> None:
        self._memory = torch.zeros((rows, _LEFT + width + _RIGHT, channels), dtype=dtype)
        row, first = (self._memory.stride(0) * dtype.itemsize, _LEFT * channels * dtype.itemsize)
        self.rows = _Rows(self._memory.data_ptr() + first, rows, row)


class _Passage:
    """One picture on its way through a `NativeMDRN`."""

    def __init__(
        self, network: NativeMDRN, x_SHW: Tensor, out_HWS: Tensor, schedule: _Schedule, threads: int
    ) -> None:
        form = network.form
        self._library = found = form.library
        samples, height, width = x_SHW.shape
        channels, blocks = network.channels, network.blocks
        picture_HWS = torch.zeros((height + 2, width + _LEFT + _RIGHT, samples))
        picture_HWS[1 : height + 1, 1 : width + 1] = x_SHW.permute(1, 2, 0)
        rings = {
            (i, j): _Ring(max(1, schedule.capacity[i, j]), width >> i, channels, form.dtype)
            for i, j in node_order()
        }
        self._kept: list[object] = [network, picture_HWS, rings, out_HWS]
        self._groups: dict[_Node, _Group] = {}
        self._bands: dict[_Node, list[tuple[int, int]]] = {}
        self._state: dict[_Node, list[int]] = {}
        for i, j in node_order():
            group = _Group(
                channels=channels,
                blocks=blocks,
                kind=_FUSE if j else _DOWN if i else _HEAD,
                parts=j,
                width=width >> i,
                height=height >> i,
                samples=samples,
                lanes=form.lanes,
                weights=network.groups[i, j].data_ptr(),
                picture=picture_HWS.data_ptr(),
                picture_row=picture_HWS.stride(0),
                part=tuple(rings[i, k].rows for k in range(j)),
                out=rings[i, j].rows,
            )
            if i or j:
                group.below = rings[(i + 1, j - 1) if j else (i - 1, 0)].rows
            bands = bands_of(width >> i, blocks, threads, form.band)
            sizes = [
                found.mdrn_state_bytes(ctypes.byref(group), left, right) // 64 * 64 + 64
                for left, right in bands
            ]
            state = torch.empty(sum(sizes), dtype=torch.uint8)
            self._kept.append(state)
            self._groups[i, j], self._bands[i, j] = group, bands
            self._state[i, j] = [state.data_ptr() + sum(sizes[:k]) for k in range(len(sizes))]
        zeros = _Ring(1, width, channels, form.dtype)
        self._kept.append(zeros)
        self._tail = _Tail(
            channels=channels,
            samples=samples,
            width=width,
            height=height,
            weights=network.tail.data_ptr(),
            zeros=zeros.rows.data,
            input=rings[0, LEVELS - 1].rows,
            out=out_HWS.data_ptr(),
            lanes=form.lanes,
        )
        self._bands[_TAIL] = self._bands[0, 0]

    def sweep(self, steps: Iterable[tuple[_Node, int, int]], pool: ThreadPoolExecutor | None) -> None:
        """Compute the rows of one sweep; the bands of a step share the threads of the pool."""
        for node, first, end in steps:
            bands = range(len(self._bands[node]))
            run = functools.partial(self._band, node, first, end)
            if pool is None or len(bands) == 1 or (end - first) * self._bands[node][-1][1] < _WORTH_THREADS:
                for k in bands:
                    run(k)
            else:
                list(pool.map(run, bands))  # a list: the errors of the threads are raised here

    def _band(self, node: _Node, first: int, end: int, k: int) -> None:
        left, right = self._bands[node][k]
        if node == _TAIL:
            self._library.mdrn_tail(ctypes.byref(self._tail), left, right, first, end)
        else:
            state = ctypes.c_void_p(self._state[node][k])
            self._library.mdrn_group(ctypes.byref(self._groups[node]), left, right, state, first, end)


def bands_of(width: int, blocks: int, threads: int, computed: int) -> list[tuple[int, int]]:
    """Cut columns into bands; those inside begin at even columns.

    A band computes 2 * blocks columns more on either side: `computed` at most, but for bands of 64.
    """
    most = max(64, computed - 4 * blocks)
    count = -(-width // most)
    if threads > 1 and width >= 64 * threads:
        count = -(-count // threads) * threads
    size = -(-width // count)
    size += size % 2
    return [(left, min(left + size, width)) for left in range(0, width, size)]


def _pack_group(network: FoldedMDRN, i: int, j: int) -> Tensor:
    """Return the weights of a node in the order in which `run` of kernel.c reads them."""
    name = f"{i}_{j}"
    parts: list[Tensor]
    up: Any
    down: Any
    fusion: Any
    blocks: Any
    bias: Any
    if j > 0:
        up, fusion = network.rise[name], network.fusion[name]
        parts = [_tiles(up.weight[:, :, dy, dx].t()) for dy in (0, 1) for dx in (0, 1)]
        parts += [_tiles(c.weight[:, :, 0, 0]) for c in fusion]
        bias = up.bias
    elif i > 0:
        down = network.down[name]
        taps = torch.stack([_tiles_by_output(down.weight[:, :, dy, dx]) for dy in (0, 1) for dx in (0, 1)], 1)
        parts, bias = [_bytes(taps)], down.bias
    else:
        head = network.head
        parts, bias = [_bytes(head.weight.permute(2, 3, 1, 0))], head.bias
    # The running sum goes without biases: they are a constant in the biases of the blocks' first layers
    # and of what comes out, where the group's input counts a second time.
    offset = bias.double()
    blocks = network.blocks[name]
    for block in blocks:
        expand = torch.cat([block.expand_near.weight, block.expand_wide.weight])[:, :, 0, 0]
        expand_bias = torch.cat([block.expand_near.bias, block.expand_wide.bias])
        merge = torch.cat([block.merge_near.weight, block.merge_wide.weight], 1)[:, :, 0, 0]
        parts += [_tiles(expand), _tiles(merge), *_around(block.near.weight, block.wide.weight)]
        parts.append(_bytes((expand_bias.double() + expand.double() @ offset).float()))
        parts.append(_bytes(torch.cat([block.near.bias, block.wide.bias])))
        offset = offset + block.merge_near.bias.double()
    parts.append(_bytes((offset + bias.double()).float()))
    return torch.cat(parts)


def _pack_tail(network: FoldedMDRN) -> Tensor:
    weight = network.tail.weight  # samples, channels, 3, 3
    padded = torch.zeros((16, *weight.shape[1:]))
    padded[: weight.shape[0]] = weight
    bias = torch.zeros(16)
    assert network.tail.bias is not None
    bias[: weight.shape[0]] = network.tail.bias
    taps = [_one_tile(part) for tap in padded.flatten(2).unbind(2) for part in torch.split(tap, 32, 1)]
    return torch.cat([*taps, _bytes(bias)])


def _around(near: Tensor, wide: Tensor) -> list[Tensor]:
    """Return the tiles of both 3x3s: two a tap of 32 channels, one of 16 that sit beside the other 16."""
    if near.shape[0] == 32:
        return [_tiles(tap) for weight in (near, wide) for tap in weight.flatten(2).unbind(2)]
    out = []
    for k, weight in enumerate((near, wide)):
        both = torch.zeros((16, 32, 9))
        both[:, 16 * k : 16 * k + 16] = weight.flatten(2)
        out += [_one_tile(tap) for tap in both.unbind(2)]
    return out


def _tiles(matrix: Tensor) -> Tensor:
    """Return a matrix (outputs, inputs) as tiles of 16 outputs and 32 inputs, in pairs of tiles."""
    return _bytes(_tiles_by_output(matrix))


def _tiles_by_output(matrix: Tensor) -> Tensor:
    outputs, inputs = matrix.shape
    cut = matrix.reshape(outputs // 32, 2, 16, inputs // 32, 16, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).bfloat16().contiguous()


def _one_tile(matrix: Tensor) -> Tensor:
    """Return a matrix (16 outputs, 32 inputs) as one tile."""
    return _bytes(matrix.reshape(16, 16, 2).permute(1, 0, 2).bfloat16())


def _bytes(values: Tensor) -> Tensor:
    return values.detach().contiguous().view(-1).view(torch.uint8)
