"""MDRN, a light UNet++-shaped denoiser (CVPRW 2022, arXiv 2204.13873).

Shapes: N pictures, C channels, H rows, W columns. ``x_NCHW`` is a picture divided by white.

The paper publishes neither the number of blocks nor the channels. What stands here is a
reconstruction: the simplest structure found whose parameter counts equal the two that the paper
prints (770 K and 2.38 M; 770,435 and 2,379,395 for colour). Four levels joined by three 2x2
stride-2 convolutions, ten MSAG nodes X[i,j] with i + j <= 3 in the triangle of UNet++ (Zhou 2018),
64 channels throughout, and a global residual: output = input - tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrn_plugin.networks.strips import Convolution, Pairs, Queue, Rows, Stage, fused_operators

if TYPE_CHECKING:
    from mdrn_plugin.networks.native import NativeMDRN

LEVELS = 4
CHANNELS = 64
STRIDE = 1 << (LEVELS - 1)

# The nodes whose outputs feature distillation compares (MSAG-2, 3, 4 of the paper).
FEATURE_NODES = ((0, 1), (0, 2), (0, 3))


class MSAB(nn.Module):
    """Multi-scale attention block: two 3x3 paths of dilation 1 and 2 over halves of the channels.

    1x1, ReLU, split, 3x3 | 3x3 dilated, ReLU, concatenate, channel shuffle, 1x1, + input.
    The shuffle is a fixed permutation of the channels in front of a 1x1 convolution, so it is
    carried out on the columns of that convolution's weight: the same sums, twice the speed of a
    training step on a CPU (85 to 38 ms for 16 patches of 64x64, one thread, bf16).
    """

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        half = channels // 2
        self.expand = nn.Conv2d(channels, channels, 1)
        self.near = nn.Conv2d(half, half, 3, padding=1)
        self.wide = nn.Conv2d(half, half, 3, padding=2, dilation=2)
        self.merge = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        near, wide = functional.relu(self.expand(x_NCHW)).chunk(2, 1)
        near = functional.relu(self.near(near))
        wide = functional.relu(self.wide(wide))
        weight = unshuffle_columns(self.merge.weight)
        return x_NCHW + functional.conv2d(torch.cat([near, wide], 1), weight, self.merge.bias)


def unshuffle_columns(weight: Tensor) -> Tensor:
    """Permute the input channels of `weight` so that it acts on channels not yet shuffled.

    A shuffle in two groups sends channel g * half + k to 2 * k + g (ShuffleNet, Zhang 2018).
    """
    return torch.cat([weight[:, 0::2], weight[:, 1::2]], 1)


class MSAG(nn.Module):
    """Multi-scale attention group: a 1x1 fusion of its inputs, `blocks` MSABs, and a long skip."""

    def __init__(self, inputs: int, blocks: int, channels: int = CHANNELS) -> None:
        super().__init__()
        self.fusion = nn.Conv2d(inputs * channels, channels, 1)
        self.blocks = nn.Sequential(*(MSAB(channels) for _ in range(blocks)))

    def forward(self, *inputs_NCHW: Tensor) -> Tensor:
        """Return one tensor of the shape of each input."""
        joined = inputs_NCHW[0] if len(inputs_NCHW) == 1 else torch.cat(inputs_NCHW, 1)
        fused = self.fusion(joined)
        out: Tensor = self.blocks(fused) + fused
        return out


class Up(nn.ConvTranspose2d):
    """2x2 stride-2 transposed convolution, computed as a 1x1 convolution and a pixel shuffle.

    Bit for bit the same as the transposed convolution, and cheaper in both directions on CPUs.
    """

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__(channels, channels, 2, stride=2)

    def forward(self, x_NCHW: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the input at twice its height and width."""
        inputs, outputs = self.weight.shape[:2]
        weight = self.weight.permute(1, 2, 3, 0).reshape(outputs * 4, inputs, 1, 1)
        assert self.bias is not None
        bias = self.bias.repeat_interleave(4)
        return functional.pixel_shuffle(functional.conv2d(x_NCHW, weight, bias), 2)


class MDRN(nn.Module):
    """The network: X[i,0] = MSAG(down(X[i-1,0])), X[i,j] = MSAG(X[i,0..j-1], up(X[i+1,j-1])).

    Parameters
    ----------
    colours : int
        Channels of the picture: 1 gray, 3 colour.
    blocks : int
        MSABs per MSAG: 2 for "2B" (768,129 gray / 770,435 colour parameters),
        8 for "8B" (2,377,089 / 2,379,395).
    channels : int
        Of all inner features; even. The paper's sizes have 64.
    unshuffle : int
        Side of the blocks of pixels that are turned into channels in front of the network and back
        behind it (FFDNet, Zhang 2018): 2 runs it at half the height and width, four times as fast.

    Attributes
    ----------
    stride : int
        Height and width of what it is given are multiples of this, px.
    """

    def __init__(
        self, colours: int = 1, blocks: int = 2, channels: int = CHANNELS, unshuffle: int = 1
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels {channels}: expected an even number, such as 64")
        if unshuffle < 1:
            raise ValueError(f"unshuffle {unshuffle}: expected 1 or more")
        self.colours = colours
        self.n_blocks = blocks
        self.channels = channels
        self.unshuffle = unshuffle
        self.stride = STRIDE * unshuffle
        samples = colours * unshuffle**2
        self.head = nn.Conv2d(samples, channels, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 2, stride=2) for _ in range(LEVELS - 1))
        self.up = nn.ModuleDict({f"{i}_{j}": Up(channels) for i, j in node_order() if j > 0})
        self.msag = nn.ModuleDict({f"{i}_{j}": MSAG(j + 1, blocks, channels) for i, j in node_order()})
        self.tail = nn.Conv2d(channels, samples, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Denoise.

        Parameters
        ----------
        x_NCHW : Tensor
            Noisy pictures, white = 1, `colours` channels, height and width multiples of `stride`.

        Returns
        -------
        Tensor
            Same shape. The subtraction of the residual is done in the dtype of `x_NCHW`.
        """
        return x_NCHW - self.residual(x_NCHW).to(x_NCHW.dtype)

    def residual(self, x_NCHW: Tensor) -> Tensor:
        """Return the noise that the network sees in `x_NCHW`."""
        return self.noise_of(self.nodes(x_NCHW))

    def noise_of(self, nodes: dict[tuple[int, int], Tensor]) -> Tensor:
        """Return the noise that the outputs of the MSAGs (see `nodes`) amount to."""
        noise: Tensor = self.tail(nodes[0, LEVELS - 1])
        return functional.pixel_shuffle(noise, self.unshuffle) if self.unshuffle > 1 else noise

    def nodes(self, x_NCHW: Tensor) -> dict[tuple[int, int], Tensor]:
        """Return the outputs of all ten MSAGs, by (level, column); see `FEATURE_NODES`."""
        if self.unshuffle > 1:
            x_NCHW = functional.pixel_unshuffle(x_NCHW, self.unshuffle)
        x: dict[tuple[int, int], Tensor] = {}
        for i, j in node_order():
            if j > 0:
                row = [x[i, k] for k in range(j)]
                x[i, j] = self.msag[f"{i}_{j}"](*row, self.up[f"{i}_{j}"](x[i + 1, j - 1]))
            elif i > 0:
                x[i, 0] = self.msag[f"{i}_0"](self.down[i - 1](x[i - 1, 0]))
            else:
                x[0, 0] = self.msag["0_0"](self.head(x_NCHW))
        return x


def node_order() -> list[tuple[int, int]]:
    """Return the ten (level, column) pairs, each after those it depends on."""
    return [(i, d - i) for d in range(LEVELS) for i in range(d, -1, -1)]


def exact_halo(blocks: int, unshuffle: int = 1) -> int:
    """Return how far a pixel of a tile can depend on pixels outside it, in px.

    For tiles whose origin and size are multiples of the network's stride; rounded up to one. 96
    for 2B, 368 for 8B; `unshuffle` times as far with it. Follows the longest path back from the
    last pixel of a tile to the input: `reach` is the position of the right-most pixel that it
    depends on.
    """
    last = STRIDE - 1
    reach: int = last + 1  # tail
    for level in range(LEVELS):  # X[0,3] down to X[3,0]
        block = 1 << level
        reach = reach // block * block + block - 1  # a pixel of this level covers a block
        reach += 2 * blocks * block  # each MSAB: dilation 2
    for level in reversed(range(LEVELS - 1)):  # X[2,0] up to X[0,0], block edges coincide
        reach += 2 * blocks * (1 << level)
    reach += 1  # head
    halo: int = -(-(reach - last) // STRIDE) * STRIDE
    return halo * unshuffle


class FoldedMDRN(nn.Module):
    """The same function as a trained `MDRN`, arranged for inference.

    Exact in real arithmetic: the channel shuffle moves into the columns of the merging 1x1 (as in
    training); a 1x1 convolution of a concatenation is the sum of 1x1 convolutions of its parts,
    each added in place; and two linear layers with nothing between them are one, so that the
    fusing 1x1 disappears in the head, in the steps down and in its share of the steps up. A
    picture goes through in strips of rows (see `strips`): the result does not depend on their
    height, the memory hardly on that of the picture.

    Attributes
    ----------
    kernel : NativeMDRN or None
        Set by `set_precision`, or by `use_fp32_kernel`, where a compiled kernel can run it; it runs on the
        CPU in the precision that it is for.
    """

    @torch.no_grad()
    def __init__(self, network: MDRN) -> None:
        super().__init__()
        self.colours = network.colours
        self.unshuffle = network.unshuffle
        self.n_blocks = network.n_blocks
        self._split = False
        self.kernel: NativeMDRN | None = None
        self.identity = Convolution(
            torch.eye(network.channels)[:, :, None, None].to(network.head.weight), None
        )
        channels = network.channels
        first = network.msag["0_0"].fusion
        assert isinstance(first, nn.Conv2d)
        self.head = Convolution(*_chain(network.head, first.weight, first.bias))
        self.tail = Convolution(network.tail.weight, network.tail.bias)
        self.down = nn.ModuleDict()
        self.rise = nn.ModuleDict()
        self.fusion = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for i, j in node_order():
            name = f"{i}_{j}"
            group = network.msag[name]
            assert isinstance(group, MSAG)
            fusion = group.fusion
            if j > 0:
                parts = torch.split(fusion.weight, channels, 1)
                self.fusion[name] = nn.ModuleList(Convolution(part, None) for part in parts[:-1])
                up = network.up[name]
                assert isinstance(up, Up)
                self.rise[name] = _fold_up(up, parts[-1], fusion.bias)
            elif i > 0:
                down = network.down[i - 1]
                assert isinstance(down, nn.Conv2d)
                self.down[name] = Convolution(*_chain(down, fusion.weight, fusion.bias), stride=2)
            self.blocks[name] = nn.ModuleList(_FoldedMSAB(b) for b in group.blocks)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Denoise; the subtraction of the residual is done in the dtype of `x_NCHW`."""
        return x_NCHW - self.residual(x_NCHW).to(x_NCHW.dtype)

    @torch.no_grad()
    def set_precision(self, dtype: torch.dtype) -> FoldedMDRN:
        """Turn all weights into `dtype`, once, from float32.

        bfloat16 has steps of 1/256 below white, which would add noise of 0.3/255 to every picture
        before the network has seen it. So the picture and the head's weights go in as the sum of
        two bfloat16 numbers each; only the product of the two small parts, 2^-18, is left out. (The
        compiled kernel, which runs from here on where it can, multiplies the picture in float32.)
        """
        if dtype == torch.bfloat16 and not self._split:
            from mdrn_plugin.networks import native

            form = native.form()
            if form is not None and native.fits(self):
                self.kernel = native.NativeMDRN(self, form)
            weight = self.head.weight
            large = weight.bfloat16()
            small = (weight - large).bfloat16()
            self.head = Convolution(torch.cat([large, large, small], 1), self.head.bias)
            self._split = True
        self.to(dtype)
        return self

    @torch.no_grad()
    def use_fp32_kernel(self) -> FoldedMDRN:
        """Run in float32 by the compiled kernel from here on, where it can; only before `set_precision`.

        Its sums have another order than those of the operators, so this is never done unasked.
        """
        from mdrn_plugin.networks import fp32_native, native

        form = fp32_native.form()
        if form is not None and native.fits(self):
            self.kernel = native.NativeMDRN(self, form)
        return self

    def residual(
        self, x_NCHW: Tensor, *, strip: int | None = None, between: Callable[[], None] | None = None
    ) -> Tensor:
        """Return the noise that the network sees, in the dtype of the inner weights; the kernel in float32.

        Parameters
        ----------
        x_NCHW : Tensor
            As for `MDRN.forward`.
        strip : int, optional
            Rows that go through at a time, at least 1; chosen by the size of caches if not given.
        between : callable, optional
            Called before each strip; may raise to give up.
        """
        if self.unshuffle > 1:
            x_NCHW = functional.pixel_unshuffle(x_NCHW, self.unshuffle)
        kernel = self._in_kernel()
        if kernel is not None:
            noise = kernel.residual(x_NCHW.float(), rows=strip, between=between)
            return functional.pixel_shuffle(noise, self.unshuffle) if self.unshuffle > 1 else noise
        height, width = x_NCHW.shape[2:]
        rows = strip or self._strip(height, width)
        passage = _Passage(self, rows)
        done: list[Tensor] = []
        for top in range(0, height, rows):
            if between is not None:
                between()
            new = self._seen(x_NCHW[:, :, top : top + rows])
            done += passage.push(new, last=top + rows >= height)
        joined = torch.cat(done, 2)
        return functional.pixel_shuffle(joined, self.unshuffle) if self.unshuffle > 1 else joined

    def strips(self, height: int, width: int) -> int:
        """Return how many strips a picture of this size goes through in."""
        height, width = height // self.unshuffle, width // self.unshuffle
        kernel = self._in_kernel()
        if kernel is not None:
            return kernel.sweeps(height)
        return -(-height // self._strip(height, width))

    def _in_kernel(self) -> NativeMDRN | None:
        weight, kernel = self.tail.weight, self.kernel
        runs = kernel is not None and weight.device.type == "cpu" and weight.dtype == kernel.form.dtype
        return kernel if runs else None

    def _strip(self, height: int, width: int) -> int:
        weight = self.tail.weight
        if weight.device.type != "cpu":
            return height
        row = width * weight.shape[1] * weight.element_size()
        rows: int = _STRIP_BYTES // row // STRIDE * STRIDE
        return max(STRIDE, rows)

    def _seen(self, x_NCSW: Tensor) -> Tensor:
        """Return rows of the picture as the head takes them."""
        if self._split:
            large = x_NCSW.bfloat16()
            small = (x_NCSW - large).bfloat16()
            x = torch.cat([large, small, large], 1)
        else:
            x = x_NCSW.to(self.head.weight.dtype)
        # One channel counts as both layouts; torch asks the strides which is meant.
        return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


# The activations of one strip, bytes; measured, see docs/decisions/0005-engine.md.
_STRIP_BYTES = 8 << 20


class _FoldedMSAB(nn.Module):
    """The convolutions of one `MSAB`."""

    def __init__(self, block: MSAB) -> None:
        super().__init__()
        assert block.expand.bias is not None
        expand = zip(block.expand.weight.chunk(2), block.expand.bias.chunk(2), strict=True)
        self.expand_near, self.expand_wide = (Convolution(weight, bias) for weight, bias in expand)
        self.near = Convolution(block.near.weight, block.near.bias)
        self.wide = Convolution(block.wide.weight, block.wide.bias, dilation=2)
        near, wide = unshuffle_columns(block.merge.weight).chunk(2, 1)
        self.merge_near = Convolution(near, block.merge.bias)
        self.merge_wide = Convolution(wide, None)


class _Passage:
    """One picture on its way through a `FoldedMDRN`, strip by strip.

    Parameters
    ----------
    network : FoldedMDRN
        Only read.
    strip : int
        Rows that are pushed at a time.
    """

    def __init__(self, network: FoldedMDRN, strip: int) -> None:
        self._network = network
        self._strip = strip
        self._head = Stage(network.head, 1)
        self._tail = Stage(network.tail, 1)
        self._pairs = [Pairs() for _ in range(LEVELS - 1)]
        self._groups = {(i, j): _Group(network, f"{i}_{j}") for i, j in node_order()}
        # What X[i,k] has ready for X[i,j].
        self._waiting = {(i, j): [Queue() for _ in range(j)] for i, j in node_order()}

    def push(self, x_NCSW: Tensor, *, last: bool) -> list[Tensor]:
        """Take the next rows of the picture; return the rows of the residual that they complete."""
        x: dict[tuple[int, int], list[Tensor]] = {}
        fused: Iterator[Tensor]
        for i, j in node_order():
            if j > 0:
                fused = (self._fuse(i, j, rows) for rows in self._pieces(i, x[i + 1, j - 1]))
            elif i > 0:
                down = self._network.down[f"{i}_0"]
                fused = (down(pair) for rows in x[i - 1, 0] for pair in self._pairs[i - 1].push(rows))
            else:
                fused = iter(self._head.push(x_NCSW, last=last))
            x[i, j] = _push_all(self._groups[i, j].push, fused, last=last)
            for later in range(j + 1, LEVELS - i):
                self._waiting[i, later][j].push(x[i, j])
        return _push_all(self._tail.push, iter(x[0, LEVELS - 1]), last=last)

    def _pieces(self, i: int, below: list[Tensor]) -> Iterator[Tensor]:
        """Cut what the last strip brings at once into strips of the usual size."""
        rows = max(1, (self._strip << i) // 2)
        return (piece for part in below for piece in torch.split(part, rows, 2))

    def _fuse(self, i: int, j: int, below: Tensor) -> Tensor:
        """Return the fusion of X[i,0..j-1] and X[i+1,j-1]; the latter is always the latest."""
        name = f"{i}_{j}"
        fused: Tensor = self._network.rise[name](below)
        convolutions = self._network.fusion[name]
        assert isinstance(convolutions, nn.ModuleList)
        for convolution, queue in zip(convolutions, self._waiting[i, j], strict=True):
            top = 0
            for rows in queue.take(fused.shape[2]):
                convolution.add_to(fused[:, :, top : top + rows.shape[2]], rows)  # type: ignore[operator]
                top += rows.shape[2]
        return fused


class _Group:
    """The blocks of one MSAG while strips go by: each is two rows behind the one before it."""

    def __init__(self, network: FoldedMDRN, name: str) -> None:
        blocks = network.blocks[name]
        assert isinstance(blocks, nn.ModuleList)
        self._blocks: list[tuple[_FoldedMSAB, Rows, Rows]] = [
            (block, Rows(1), Rows(2))  # type: ignore[misc]
            for block in blocks
        ]
        self._identity = network.identity
        # Rows from the first that is not out yet; blocks add to them in place. `_done[k]` of them
        # are what block k has read.
        self._rows: Tensor | None = None
        self._done = [0] * (len(self._blocks) + 1)
        self._skip = Queue()

    def push(self, fused_NCSW: Tensor, *, last: bool) -> list[Tensor]:
        """Take rows and return those that are finished."""
        self._skip.push([fused_NCSW])
        rows = fused_NCSW.clone() if self._rows is None else torch.cat([self._rows, fused_NCSW], 2)
        before, done = self._done, [rows.shape[2]]
        for k, (block, near, wide) in enumerate(self._blocks):
            start, end = before[k + 1], done[k] if last else max(before[k + 1], done[k] - 2)
            done.append(end)
            if done[k] == before[k]:
                continue
            new = rows[:, :, before[k] : done[k]]
            near_rows = near.window(block.expand_near(new, relu=True), end - start, last=last)
            wide_rows = wide.window(block.expand_wide(new, relu=True), end - start, last=last)
            if end > start:
                target = rows[:, :, start:end]
                block.merge_near.add_to(target, block.near(near_rows, relu=True))
                block.merge_wide.add_to(target, block.wide(wide_rows, relu=True))
        finished = done[-1]
        self._rows = rows[:, :, finished:].clone()
        self._done = [d - finished for d in done]
        if finished == 0:
            return []
        out = rows[:, :, :finished]
        top = 0
        for part in self._skip.take(finished):
            target = out[:, :, top : top + part.shape[2]]
            if part.dtype == torch.bfloat16 and fused_operators(part):
                # The same sum, 10 % of a group's time faster than torch's own.
                self._identity.add_to(target, part)
            else:
                target.add_(part)
            top += part.shape[2]
        return [out]


def _push_all(push: Callable[..., list[Tensor]], strips: Iterator[Tensor], *, last: bool) -> list[Tensor]:
    """Push strips one by one, the last one as the picture's last if it is; return what comes out."""
    out: list[Tensor] = []
    waiting = next(strips, None)
    while waiting is not None:
        following = next(strips, None)
        out += push(waiting, last=last and following is None)
        waiting = following
    return out


def _chain(first: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `first` followed by a 1x1 convolution, in double precision inside."""
    assert first.bias is not None
    assert bias is not None
    matrix = weight[:, :, 0, 0].double()
    joined = torch.einsum("oc,cirs->oirs", matrix, first.weight.double())
    offset = matrix @ first.bias.double() + bias.double()
    return joined.to(weight.dtype), offset.to(weight.dtype)


def _fold_up(up: Up, fusion: Tensor, fusion_bias: Tensor | None) -> nn.ConvTranspose2d:
    """Return the transposed convolution that is fusion(up(x)), in double precision inside."""
    assert up.bias is not None
    assert fusion_bias is not None
    matrix = fusion[:, :, 0, 0].double()
    folded = nn.ConvTranspose2d(
        up.weight.shape[0], matrix.shape[0], 2, stride=2, dtype=up.weight.dtype
    ).requires_grad_(False)
    folded.weight.copy_(torch.einsum("oc,icrs->iors", matrix, up.weight.double()))
    assert folded.bias is not None
    folded.bias.copy_(matrix @ up.bias.double() + fusion_bias.double())
    return folded
