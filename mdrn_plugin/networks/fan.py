"""FAN, a small RAW denoiser whose features are aligned with the noisy input (arXiv 2103.01524).

Shapes: N pictures, C channels, H rows, W columns. The input is an RGGB mosaic packed into four
planes of half its height and width, 0 black level, 1 white level.

Only the abstract of the paper is open: an encoder-decoder for packed RAW, in which "feature-align"
layers modulate the activations with the noisy input, in the manner of SPADE (Park 2019), and which
is light enough for real time. What stands here is a reconstruction that meets the size and the cost
that follow from the ratios the abstract prints (17.6 times fewer parameters and 263 times fewer
operations than CycleISP's RAW network): 163,028 parameters and 10,711 multiplications per packed
pixel without the noise map. Four levels of 16, 24, 64 and 80 channels, blocks of inverted residuals
(Sandler 2018), 2x2 stride-2 convolutions down, 1x1 convolutions and pixel shuffles up, additive skips.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

PLANES = 4
WIDTHS = (16, 24, 64, 80)
ENCODER_BLOCKS = (1, 1, 1, 2)
DECODER_BLOCKS = (0, 1, 1)
ALIGN_CHANNELS = 8

# Packed px that an output depends on, rounded up to the stride; the test measures it.
HALO = 40


class InvertedResidual(nn.Module):
    """1x1 to twice the channels, ReLU, 3x3 each for itself, ReLU, 1x1 back, + input (MobileNetV2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depth = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.merge = nn.Conv2d(wide, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        x = functional.relu(self.depth(functional.relu(self.expand(x_NCHW))))
        out: Tensor = x_NCHW + self.merge(x)
        return out


class FeatureAlign(nn.Module):
    """Scale and shift features by what a 3x3 convolution sees in the noisy picture of their size."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(inputs, ALIGN_CHANNELS, 3, padding=1)
        self.gamma = nn.Conv2d(ALIGN_CHANNELS, channels, 1)
        self.beta = nn.Conv2d(ALIGN_CHANNELS, channels, 1)

    def forward(self, x_NCHW: Tensor, noisy_NCHW: Tensor) -> Tensor:
        """Return ``x * (1 + gamma) + beta``."""
        seen = functional.relu(self.look(noisy_NCHW))
        out: Tensor = x_NCHW * (1 + self.gamma(seen)) + self.beta(seen)
        return out


class FAN(nn.Module):
    """The network: output = noisy - std · tail(features).

    Parameters
    ----------
    colours : int
        Planes of the packed mosaic.
    noise_map : bool
        Whether it is given the standard deviation of each value. It then predicts the noise in
        units of that deviation, so that one network serves a range of levels. Without it (the
        counts of the paper), output = noisy - tail.
    widths : tuple of int
        Channels of the four levels.

    Attributes
    ----------
    stride : int
        Height and width of the packed planes are multiples of this.
    halo : int
        Tiles that see so much around them equal the whole picture exactly, packed px.
    """

    def __init__(
        self, colours: int = PLANES, noise_map: bool = True, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        self.colours = colours
        self.noise_map = bool(noise_map)
        self.stride = 1 << (len(widths) - 1)
        self.halo = HALO
        inputs = 2 * colours if noise_map else colours
        blocks = ENCODER_BLOCKS
        self.head = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_blocks(n, c) for n, c in zip(blocks, widths, strict=True))
        self.encoder_align = nn.ModuleList(FeatureAlign(inputs, c) for c in widths)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.decoder = nn.ModuleList(_blocks(n, c) for n, c in zip(DECODER_BLOCKS, widths, strict=False))
        self.decoder_align = nn.ModuleList(FeatureAlign(inputs, c) for c in widths[:-1])
        self.tail = nn.Conv2d(widths[0], colours, 3, padding=1)

    def forward(self, noisy_N4HW: Tensor, std_N4HW: Tensor | None = None) -> Tensor:
        """Denoise.

        Parameters
        ----------
        noisy_N4HW : Tensor
            Packed mosaic (R, G beside red, G beside blue, B), white = 1; sizes multiples of `stride`.
        std_N4HW : Tensor, optional
            Standard deviation of each value; required with `noise_map`, refused without.

        Returns
        -------
        Tensor
            Same shape. The noise is subtracted in the dtype of the input.
        """
        noise = self.tail(self.features(noisy_N4HW, std_N4HW)[-1]).to(noisy_N4HW.dtype)
        out: Tensor = noisy_N4HW - (noise if std_N4HW is None else std_N4HW * noise)
        return out

    def residual(self, noisy_N4HW: Tensor, std_N4HW: Tensor | None = None) -> Tensor:
        """Return the noise that the network sees."""
        noise: Tensor = self.tail(self.features(noisy_N4HW, std_N4HW)[-1])
        return noise if std_N4HW is None else std_N4HW.to(noise.dtype) * noise

    def features(self, noisy_N4HW: Tensor, std_N4HW: Tensor | None = None) -> list[Tensor]:
        """Return the aligned features of the four encoder and the three decoder stages, in order."""
        if (std_N4HW is not None) != self.noise_map:
            wanted = "a noise map" if self.noise_map else "no noise map"
            raise ValueError(f"FAN: expected {wanted}; build it with the other noise_map")
        seen = [noisy_N4HW if std_N4HW is None else torch.cat([noisy_N4HW, std_N4HW], 1)]
        for _ in self.down:
            seen.append(functional.avg_pool2d(seen[-1], 2))
        stages: list[Tensor] = []
        x = self.head(seen[0])
        for level, (block, align) in enumerate(zip(self.encoder, self.encoder_align, strict=True)):
            x = align(block(x), seen[level])
            stages.append(x)
            if level < len(self.down):
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            x = functional.pixel_shuffle(self.up[level](x), 2) + stages[level]
            x = self.decoder_align[level](self.decoder[level](x), seen[level])
            stages.append(x)
        return stages


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(InvertedResidual(channels) for _ in range(count)))
