"""MWRCANet and its siblings, MWResNet among them: U-shaped RAW denoisers in the wavelet domain.

Shapes: N pictures, C channels, H rows, W columns. The RAW variant takes the mosaic as one channel:
the first wavelet transform is packing and a Hadamard transform in one. 0 black level, 1 white level.

After the winner of the RAW track of NTIRE 2020's challenge on real image denoising (Abdelhamed et
al., CVPR Workshops 2020), built on MWCNN (Liu 2018) and RCAN (Zhang 2018): Haar transforms between
three levels, groups of residual channel-attention blocks, additive skips, and a residual that is
added in the wavelet domain. With 20 blocks and widths of 96, 128 and 128 it has 27,215,965
parameters (mosaic) and 27,229,797 (colour); the loss and the schedule of the original are not known.

Channel attention multiplies each channel by a function of its mean over the picture. Over tiles that
mean would differ from tile to tile and leave seams. So `pooled` returns the means of a picture or a
part of it, and `forward` takes them: every tile of one picture is then run with the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mdrn_plugin.networks.wavelet import dwt, iwt

WIDTHS = (96, 128, 128)
BLOCKS = 20
KINDS = ("attention", "residual", "dense")
STRIDE = 8
_REDUCTION = 16  # of the channels inside the attention


class Statistics:
    """The channel means of one run of the network: collected, or given and handed out in order."""

    def __init__(self, given: list[Tensor] | None = None) -> None:
        self.collected: list[Tensor] = []
        self._given: Iterator[Tensor] | None = None if given is None else iter(given)

    def of(self, x_NCHW: Tensor) -> Tensor:
        """Return the means to use for `x_NCHW`, shape (N, C, 1, 1)."""
        mean = x_NCHW.mean((2, 3), keepdim=True) if self._given is None else next(self._given).to(x_NCHW)
        self.collected.append(mean)
        return mean


class ChannelAttention(nn.Module):
    """Scale each channel by a function of all channels' means (RCAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, x_NCHW: Tensor, statistics: Statistics) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        weight = self.excite(torch.relu(self.squeeze(statistics.of(x_NCHW))))
        return x_NCHW * torch.sigmoid(weight)


class AttentionBlock(nn.Module):
    """RCAB: 3x3, PReLU, 3x3, channel attention, + input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.PReLU()
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)

    def forward(self, x_NCHW: Tensor, statistics: Statistics) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        out: Tensor = x_NCHW + self.attention(self.last(self.act(self.first(x_NCHW))), statistics)
        return out


class PlainBlock(nn.Module):
    """3x3, ReLU, 3x3, + input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor, statistics: Statistics) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        out: Tensor = x_NCHW + self.last(torch.relu(self.first(x_NCHW)))
        return out


class DenseBlock(nn.Module):
    """Two 3x3 that see all channels made before them, a 1x1 over all of these, + input (RDN, Zhang 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        growth = channels // 2
        self.first = nn.Conv2d(channels, growth, 3, padding=1)
        self.second = nn.Conv2d(channels + growth, growth, 3, padding=1)
        self.acts = nn.ModuleList(nn.PReLU() for _ in range(2))
        self.last = nn.Conv2d(channels + 2 * growth, channels, 1)

    def forward(self, x_NCHW: Tensor, statistics: Statistics) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        seen = torch.cat([x_NCHW, self.acts[0](self.first(x_NCHW))], 1)
        seen = torch.cat([seen, self.acts[1](self.second(seen))], 1)
        out: Tensor = x_NCHW + self.last(seen)
        return out


_BLOCKS: dict[str, type[nn.Module]] = {
    "attention": AttentionBlock,
    "residual": PlainBlock,
    "dense": DenseBlock,
}


class Group(nn.Module):
    """Blocks of a kind, and unless they are plain a 3x3 convolution and a skip around all of it."""

    def __init__(self, channels: int, blocks: int, block: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_BLOCKS[block](channels) for _ in range(blocks))
        self.end = None if block == "residual" else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor, statistics: Statistics) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        x = x_NCHW
        for block in self.blocks:
            x = block(x, statistics)
        return x if self.end is None else x_NCHW + self.end(x)


class Entry(nn.Module):
    """3x3 convolution and activation."""

    def __init__(self, inputs: int, outputs: int, block: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.act = nn.ReLU() if block == "residual" else nn.PReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return `outputs` channels."""
        out: Tensor = self.act(self.conv(x_NCHW))
        return out


class MWRCANet(nn.Module):
    """The network; blocks of the kind "residual" make it MWResNet.

    Parameters
    ----------
    colours : int
        1 for a Bayer mosaic, 3 for colour pictures.
    blocks : int
        Blocks of each group.
    widths : tuple of int
        Channels at a half, a quarter and an eighth of the size.
    block : str
        "attention": residual channel-attention blocks with PReLU and one group in the middle;
        "residual": plain residual blocks with ReLU and two; "dense": as attention, but with densely
        connected blocks, which no mean over the picture enters.
    noise_map : bool
        Whether it is also given the standard deviation of each value. It then predicts the noise
        in units of that deviation. The original is not.

    Attributes
    ----------
    stride : int
        Height and width of what it is given are multiples of this, px.
    halo : int
        Tiles that see so much around them, and are given the same `pooled`, equal the whole picture, px.
    """

    def __init__(
        self,
        colours: int = 1,
        blocks: int = BLOCKS,
        widths: tuple[int, ...] = WIDTHS,
        block: str = "attention",
        noise_map: bool = False,
    ) -> None:
        if block not in KINDS:
            raise ValueError(f"block: expected one of {', '.join(KINDS)}, got {block!r}")
        super().__init__()
        self.colours = colours
        self.stride = STRIDE
        self.noise_map = bool(noise_map)
        self.halo = _halo(blocks, block)
        top, middle, low = widths
        inputs = 4 * colours * (2 if noise_map else 1)
        self.head = Entry(inputs, top, block)
        self.down = Entry(4 * top, middle, block)
        self.bottom = Entry(4 * middle, low, block)
        self.encoder_top = Group(top, blocks, block)
        self.encoder_middle = Group(middle, blocks, block)
        self.centre = nn.ModuleList(Group(low, blocks, block) for _ in range(_centres(block)))
        self.up_bottom = Entry(low, 4 * middle, block)
        self.decoder_middle = Group(middle, blocks, block)
        self.up_middle = Entry(middle, 4 * top, block)
        self.decoder_top = Group(top, blocks, block)
        self.tail = nn.Conv2d(top, 4 * colours, 3, padding=1)

    def forward(
        self, x_NCHW: Tensor, std_NCHW: Tensor | None = None, pooled: list[Tensor] | None = None
    ) -> Tensor:
        """Denoise.

        Parameters
        ----------
        x_NCHW : Tensor
            Noisy mosaics or pictures, white = 1, height and width multiples of `stride`.
        std_NCHW : Tensor, optional
            Standard deviation of each value; required with `noise_map`, refused without.
        pooled : list of Tensor, optional
            The means that the attention goes by, as `pooled` returns them; default: those of `x_NCHW`.

        Returns
        -------
        Tensor
            Same shape.
        """
        noise = self.residual(x_NCHW, std_NCHW, pooled)
        return x_NCHW - noise.to(x_NCHW.dtype)

    def residual(
        self, x_NCHW: Tensor, std_NCHW: Tensor | None = None, pooled: list[Tensor] | None = None
    ) -> Tensor:
        """Return the noise that the network sees."""
        noise = iwt(self.tail(self._stages(x_NCHW, std_NCHW, Statistics(pooled))[-1]))
        return noise if std_NCHW is None else std_NCHW.to(noise.dtype) * noise

    def pooled(self, x_NCHW: Tensor, std_NCHW: Tensor | None = None) -> list[Tensor]:
        """Return the channel means of every attention, in order, each of shape (N, C, 1, 1).

        For a picture too large to be run at once, average those of a few windows of it: that is not
        exactly the mean over the picture (each window's later layers went by its own means), but it
        is one set for all tiles, which is what leaves no seams.
        """
        statistics = Statistics()
        self._stages(x_NCHW, std_NCHW, statistics)
        return statistics.collected

    def features(self, x_NCHW: Tensor, std_NCHW: Tensor | None = None) -> list[Tensor]:
        """Return what the groups of the encoder, the middle and the decoder make, in order."""
        return self._stages(x_NCHW, std_NCHW, Statistics())

    def _stages(self, x_NCHW: Tensor, std_NCHW: Tensor | None, statistics: Statistics) -> list[Tensor]:
        if (std_NCHW is not None) != self.noise_map:
            wanted = "a noise map" if self.noise_map else "no noise map"
            raise ValueError(f"MWRCANet: expected {wanted}; build it with the other noise_map")
        seen = x_NCHW if std_NCHW is None else torch.cat([x_NCHW, std_NCHW], 1)
        top = self.encoder_top(self.head(dwt(seen)), statistics)
        middle = self.encoder_middle(self.down(dwt(top)), statistics)
        x = self.bottom(dwt(middle))
        for group in self.centre:
            x = group(x, statistics)
        low = x
        x = inner = self.decoder_middle(iwt(self.up_bottom(x)) + middle, statistics)
        # The original adds the tail to the bands of the input; here the tail is the noise itself.
        return [top, middle, low, inner, self.decoder_top(iwt(self.up_middle(x)) + top, statistics)]


def _centres(block: str) -> int:
    return 2 if block == "residual" else 1


def _halo(blocks: int, block: str) -> int:
    """Return how far an output depends on the input, px.

    From the output back: the 3x3 convolutions of each level add their reach in its pixels, and on
    the way down what is reached grows to whole pixels of the level below.
    """
    group = 2 * blocks + (0 if block == "residual" else 1)
    low = _centres(block) * group + 2
    far = 2 * (group + 1)
    far = -(-far // 4) * 4 + 4 * (group + 1)
    far = -(-far // 8) * 8 + 8 * low + 4 * (group + 1) + 2 * (group + 1)
    return -(-far // STRIDE) * STRIDE


def mwresnet(colours: int = 1, blocks: int = 4, widths: tuple[int, ...] = WIDTHS) -> MWRCANet:
    """Return the plain sibling, with which the original distils."""
    return MWRCANet(colours, blocks, widths, "residual")
