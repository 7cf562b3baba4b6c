"""Networks of other papers, for their speed only: random weights, written from the papers.

Shapes: N pictures, C channels, H rows, W columns. All take a gray picture and return the residual or
the clean picture, whichever the paper's network does; the time is the same. They run on the
operators of our own engine (fused convolutions, channels_last), batch normalisation folded away.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrn_plugin.networks.strips import Convolution


def _convolution(
    inputs: int, outputs: int, side: int = 3, *, stride: int = 1, bias: bool = True
) -> Convolution:
    weight = torch.randn(outputs, inputs, side, side) / (side * inputs**0.5)
    return Convolution(weight, torch.zeros(outputs) if bias else None, stride=stride, pad_rows=True)


class DnCNN(nn.Module):
    """17 layers of 3x3, 64 channels (Zhang 2017, IEEE TIP 26; DnCNN-S)."""

    def __init__(self, layers: int = 17, channels: int = 64) -> None:
        super().__init__()
        widths = [1, *[channels] * (layers - 1), 1]
        self.layers = nn.ModuleList(_convolution(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the residual."""
        *inner, last = self.layers
        for layer in inner:
            x_NCHW = layer(x_NCHW, relu=True)
        out: Tensor = last(x_NCHW)
        return out


class FFDNet(nn.Module):
    """15 layers of 3x3, 64 channels, on half the resolution, with a noise map (Zhang 2018, IEEE TIP 27)."""

    def __init__(self, layers: int = 15, channels: int = 64) -> None:
        super().__init__()
        widths = [5, *[channels] * (layers - 1), 4]
        self.layers = nn.ModuleList(_convolution(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the clean picture."""
        blocks = functional.pixel_unshuffle(x_NCHW, 2)
        level = torch.full_like(blocks[:, :1], 0.1)
        x = torch.cat([blocks, level], 1).contiguous(memory_format=torch.channels_last)
        *inner, last = self.layers
        for layer in inner:
            x = layer(x, relu=True)
        return functional.pixel_shuffle(last(x), 2)


class DRUNet(nn.Module):
    """A residual U-Net, 64 to 512 channels, four blocks a scale, no biases (Zhang 2021, IEEE TPAMI 44)."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), blocks: int = 4) -> None:
        super().__init__()
        self.head = _convolution(2, widths[0], bias=False)
        self.tail = _convolution(widths[0], 1, bias=False)

        def scale(width: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList([_convolution(width, width, bias=False) for _ in range(2)])
                for _ in range(blocks)
            )

        self.down = nn.ModuleList(scale(w) for w in widths[:-1])
        self.body = scale(widths[-1])
        self.up = nn.ModuleList(scale(w) for w in reversed(widths[:-1]))
        steps = list(itertools.pairwise(widths))
        self.shrink = nn.ModuleList(_convolution(a, b, 2, stride=2, bias=False) for a, b in steps)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in reversed(steps))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the clean picture."""
        x = torch.cat([x_NCHW, torch.full_like(x_NCHW, 0.1)], 1)
        x = self.head(x.contiguous(memory_format=torch.channels_last))
        passed = [x]
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            x = shrink(_residual_blocks(blocks, x))
            passed.append(x)
        x = _residual_blocks(self.body, x)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            x = _residual_blocks(blocks, grow(x + passed.pop()))
        out: Tensor = self.tail(x + passed.pop())
        return out


def _residual_blocks(blocks: nn.ModuleList, x_NCHW: Tensor) -> Tensor:
    x = x_NCHW.clone(memory_format=torch.channels_last)
    for first, second in blocks:
        second.add_to(x, first(x, relu=True))
    return x
