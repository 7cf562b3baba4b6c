"""MDRN, a light UNet++-shaped denoiser (CVPRW 2022, arXiv 2204.13873).

Shapes: N pictures, C channels, H rows, W columns. ``x_NCHW`` is a picture divided by white.

The paper publishes neither the number of blocks nor the channels. What stands here is a
reconstruction: the simplest structure found whose parameter counts equal the two that the paper
prints (770 K and 2.38 M; 770,435 and 2,379,395 for colour). Four levels joined by three 2x2
stride-2 convolutions, ten MSAG nodes X[i,j] with i + j <= 3 in the triangle of UNet++ (Zhou 2018),
64 channels throughout, and a global residual: output = input - tail.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4
CHANNELS = 64
STRIDE = 2 ** (LEVELS - 1)

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
        self.up = nn.ModuleDict({f"{i}_{j}": Up(channels) for i, j in _nodes() if j > 0})
        self.msag = nn.ModuleDict({f"{i}_{j}": MSAG(j + 1, blocks, channels) for i, j in _nodes()})
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
        for i, j in _nodes():
            if j > 0:
                row = [x[i, k] for k in range(j)]
                x[i, j] = self.msag[f"{i}_{j}"](*row, self.up[f"{i}_{j}"](x[i + 1, j - 1]))
            elif i > 0:
                x[i, 0] = self.msag[f"{i}_0"](self.down[i - 1](x[i - 1, 0]))
            else:
                x[0, 0] = self.msag["0_0"](self.head(x_NCHW))
        return x


def _nodes() -> list[tuple[int, int]]:
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

    Three identities, exact in real arithmetic: the channel shuffle moves into the columns of the
    merging 1x1 (as in training); a 1x1 convolution of a concatenation is the sum of 1x1
    convolutions of its parts; and "transposed convolution, then its share of the fusion" is one
    1x1 convolution followed by a pixel shuffle.
    """

    @torch.no_grad()
    def __init__(self, network: MDRN) -> None:
        super().__init__()
        self.colours = network.colours
        self.unshuffle = network.unshuffle
        channels = network.channels
        self.head = _copy(network.head.weight, network.head.bias, padding=1)
        self.tail = _copy(network.tail.weight, network.tail.bias, padding=1)
        self.down = nn.ModuleList(_copy(d.weight, d.bias, stride=2) for d in network.down)  # type: ignore[arg-type]
        self.fusion = nn.ModuleDict()
        self.rise = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for i, j in _nodes():
            name = f"{i}_{j}"
            group = network.msag[name]
            assert isinstance(group, MSAG)
            fusion = group.fusion
            if j == 0:
                self.fusion[name] = _copy(fusion.weight, fusion.bias)
            else:
                self.fusion[name] = _copy(fusion.weight[:, : j * channels], None)
                up = network.up[name]
                assert isinstance(up, Up)
                self.rise[name] = _fold_up(up, fusion.weight[:, j * channels :], fusion.bias)
            self.blocks[name] = nn.ModuleList(_FoldedMSAB(b) for b in group.blocks)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Denoise; the subtraction of the residual is done in the dtype of `x_NCHW`."""
        return x_NCHW - self.residual(x_NCHW).to(x_NCHW.dtype)

    def set_precision(self, dtype: torch.dtype) -> FoldedMDRN:
        """Turn all weights but the head's into `dtype`.

        The head stays in float32: bfloat16 has steps of 1/256 below white, which would add
        noise of 0.3/255 to every picture before the network has seen it.
        """
        self.to(dtype)
        self.head.float()
        return self

    def residual(self, x_NCHW: Tensor) -> Tensor:
        """Return the noise that the network sees, in the dtype of the inner weights."""
        if self.unshuffle > 1:
            x_NCHW = functional.pixel_unshuffle(x_NCHW, self.unshuffle)
        x: dict[tuple[int, int], Tensor] = {}
        for i, j in _nodes():
            name = f"{i}_{j}"
            if j > 0:
                row = torch.cat([x[i, k] for k in range(j)], 1) if j > 1 else x[i, 0]
                fused = self.fusion[name](row)
                fused += functional.pixel_shuffle(self.rise[name](x[i + 1, j - 1]), 2)
            elif i > 0:
                fused = self.fusion[name](self.down[i - 1](x[i - 1, 0]))
            else:
                inner = self.tail.weight.dtype
                fused = self.fusion[name](self.head(x_NCHW.to(self.head.weight.dtype)).to(inner))
            value = fused
            for block in self.blocks[name]:  # type: ignore[attr-defined]
                value = block(value)
            x[i, j] = value + fused
        noise: Tensor = self.tail(x[0, LEVELS - 1])
        return functional.pixel_shuffle(noise, self.unshuffle) if self.unshuffle > 1 else noise


class _FoldedMSAB(nn.Module):
    def __init__(self, block: MSAB) -> None:
        super().__init__()
        self.expand = _copy(block.expand.weight, block.expand.bias)
        self.near = _copy(block.near.weight, block.near.bias, padding=1)
        self.wide = _copy(block.wide.weight, block.wide.bias, padding=2, dilation=2)
        self.merge = _copy(unshuffle_columns(block.merge.weight), block.merge.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        near, wide = self.expand(x_NCHW).relu_().chunk(2, 1)
        out: Tensor = self.merge(torch.cat([self.near(near).relu_(), self.wide(wide).relu_()], 1))
        return out.add_(x_NCHW)


def _copy(
    weight: Tensor, bias: Tensor | None, *, padding: int = 0, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    outputs, inputs, rows, columns = weight.shape
    convolution = nn.Conv2d(
        inputs,
        outputs,
        (rows, columns),
        stride,
        padding,
        dilation,
        bias=bias is not None,
        dtype=weight.dtype,
    ).requires_grad_(False)
    convolution.weight.copy_(weight)
    if bias is not None:
        assert convolution.bias is not None
        convolution.bias.copy_(bias)
    return convolution


def _fold_up(up: Up, fusion: Tensor, fusion_bias: Tensor | None) -> nn.Conv2d:
    """Return the 1x1 convolution whose pixel shuffle is fusion(up(x)), in double precision inside."""
    assert up.bias is not None
    assert fusion_bias is not None
    matrix = fusion[:, :, 0, 0].double()
    # up.weight is (input, output, row, column); pixel_shuffle wants channel = output * 4 + place.
    weight = torch.einsum("oc,icrs->orsi", matrix, up.weight.double())
    bias = matrix @ up.bias.double() + fusion_bias.double()
    outputs, inputs = matrix.shape[0], up.weight.shape[0]
    return _copy(
        weight.reshape(outputs * 4, inputs, 1, 1).to(up.weight.dtype),
        bias.repeat_interleave(4).to(up.weight.dtype),
    )
