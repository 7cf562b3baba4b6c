"""D-BSN and its noise networks (Unpaired Learning of Deep Image Denoising, ECCV 2020, arXiv 2008.13711).

Shapes: N pictures, C channels of colour, H rows, W columns, white = 1.

A blind-spot network predicts each pixel from its surroundings, never from the pixel itself, so that
it can learn from noisy pictures alone: the noise of a pixel cannot be predicted, its signal can. Two
small networks of 1x1 convolutions give the variance of that prediction and of the noise; Bayes' rule
joins prediction and observation.

Why it is blind (section 3.2 of the paper): a centrally masked k x k convolution depends on offsets
0 < max(|dx|, |dy|) <= r = (k - 1) / 2. Everything behind it is 1x1 or dilated by d = r + 1, which adds
multiples of d to both offsets. Offset zero would need an offset of the first kind that is a multiple
of d in both coordinates; none is, since r < d.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

NOISE_MODELS = ("gaussian", "poisson-gaussian", "multivariate")

_FLOOR = 1e-3  # smallest standard deviation of the noise, white = 1
_ENTRY = 6  # layers of a branch in front of its blocks
_EPSILON = 1e-6  # added to variances that are inverted


class MaskedConv2d(nn.Conv2d):
    """A convolution that does not see its own centre."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__(channels, channels, side, padding=side // 2)
        mask = torch.ones(1, 1, side, side)
        mask[..., side // 2, side // 2] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        assert isinstance(self.mask, torch.Tensor)
        return functional.conv2d(x_NCHW, self.weight * self.mask, self.bias, padding=self.padding)


class MDC(nn.Module):
    """Multi-dilated convolution block: 5x5, 3x3 and 1x1 paths of one dilation, fused, + input.

    It works on the phases that `Branch` splits a picture into, where its convolutions are not dilated.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def one() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())

        def dilated(side: int) -> nn.Sequential:
            return nn.Sequential(*one(), nn.Conv2d(channels, channels, side, padding=side // 2), nn.ReLU())

        self.wide = dilated(5)
        self.near = dilated(3)
        self.own = one()
        self.fusion = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), nn.ReLU())
        self.after = nn.Sequential(*one(), *one())

    def forward(self, x_NCHW: Tensor, inside: Tensor | None = None) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`; pixels where `inside` is 0 are none."""

        def path(layers: nn.Sequential) -> Tensor:
            within = layers[:2](x_NCHW)
            found: Tensor = layers[2:](within if inside is None else within * inside)
            return found

        paths = torch.cat([path(self.wide), path(self.near), self.own(x_NCHW)], 1)
        out: Tensor = self.after(self.fusion(paths) + x_NCHW)
        return out


class Branch(nn.Sequential):
    """A masked convolution, and behind it 1x1 convolutions and blocks dilated by half its side, rounded up.

    A convolution dilated by d joins pixels that lie d apart: it is a plain one on each of the d x d
    pictures of every d-th row and column. The blocks run on these, which is the same sum in less time
    (convolutions of 32 channels alone on a CPU: 1.4 to 1.9 times as fast).
    """

    def __init__(self, channels: int, blocks: int, side: int) -> None:
        def one() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, 1)

        entry = [MaskedConv2d(channels, side), nn.ReLU(), one(), nn.ReLU(), one(), nn.ReLU()]
        super().__init__(*entry, *(MDC(channels) for _ in range(blocks)), one())
        self.dilation = (side + 1) // 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return a tensor of the shape of `x_NCHW`."""
        layers, x = list(self), x_NCHW
        for layer in layers[:_ENTRY]:
            x = layer(x)
        x, inside = self._phases(x)
        for block in layers[_ENTRY:-1]:
            x = block(x, inside)
        return self._joined(layers[-1](x), x_NCHW)

    def _phases(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the phases, and 0 where they had to be filled up to one size; None if nowhere."""
        d, (height, width) = self.dilation, x_NCHW.shape[2:]
        rows, columns = -height % d, -width % d
        if not rows and not columns:
            return _phases(x_NCHW, d), None
        edges = (0, columns, 0, rows)
        inside = functional.pad(x_NCHW.new_ones(x_NCHW.shape[0], 1, height, width), edges)
        return _phases(functional.pad(x_NCHW, edges), d), _phases(inside, d)

    def _joined(self, x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
        d, (count, _, height, width) = self.dilation, like_NCHW.shape
        grid = x_NCHW.permute(0, 2, 3, 1).reshape(count, d, d, *x_NCHW.shape[2:], -1)
        whole = grid.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)
        return whole[:, :height, :width].permute(0, 3, 1, 2)


def _phases(x_NCHW: Tensor, d: int) -> Tensor:
    """Return every d-th row and column from each of d x d beginnings: (N d d, C, H / d, W / d)."""
    count, _, height, width = x_NCHW.shape
    grid = x_NCHW.permute(0, 2, 3, 1).reshape(count, height // d, d, width // d, d, -1)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What the networks say of a noisy picture.

    Covariances are (N, H, W, C, C), or (N, 1, 1, C, C) where one holds for the whole picture; of one
    channel C = 1 they are variances.
    """

    mean: Tensor  # (N, C, H, W); the signal, predicted from the surroundings
    mean_covariance: Tensor  # of that prediction
    noise_covariance: Tensor  # of the noise


class DBSN(nn.Module):
    """Blind-spot network, variance of its prediction, and noise level network (CNN_est).

    Parameters
    ----------
    colours : int
        1 gray, 3 RGB.
    channels, blocks : int
        Of each branch. 96 and 8 are the paper's: 6,612,289 parameters of the blind-spot network in
        gray, 6,612,675 in RGB.
    noise : str
        "gaussian" (one level per picture and channel), "poisson-gaussian" (a level per pixel, a
        function of the predicted signal), "multivariate" (one covariance of the channels per picture).
    """

    def __init__(
        self, colours: int = 1, channels: int = 96, blocks: int = 8, noise: str = "gaussian"
    ) -> None:
        super().__init__()
        if noise not in NOISE_MODELS:
            raise ValueError(f"noise {noise!r}: expected one of {', '.join(NOISE_MODELS)}")
        self.colours = colours
        self.noise = noise
        self.backbone = BlindSpot(colours, channels, blocks)
        width = 16 if colours == 1 and noise == "gaussian" else 32
        entries = colours * (colours + 1) // 2 if noise == "multivariate" else colours
        self.mean_net = _pointwise([channels, width, width, entries])
        self.noise_net = _pointwise([colours, width, width, width, width, entries])

    @torch.no_grad()
    def start_noise_at(self, sigma: float) -> None:
        """Let the noise level begin at a known standard deviation, white = 1."""
        last = self.noise_net[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.weight.mul_(0.01)
        if self.noise == "multivariate":
            rows, columns = torch.triu_indices(self.colours, self.colours)
            last.bias.copy_((rows == columns) * sigma)
        else:
            last.bias.fill_(4 + math.log(math.expm1(max(sigma - _FLOOR, 1e-6))))

    def forward(self, noisy_NCHW: Tensor) -> Prediction:
        """Return signal, its covariance and the noise's for noisy pictures."""
        mean, features = self.backbone(noisy_NCHW)
        with torch.autocast(noisy_NCHW.device.type, enabled=False):
            return self._covariances(noisy_NCHW, mean, features)

    def _covariances(self, noisy_NCHW: Tensor, mean: Tensor, features: Tensor) -> Prediction:
        spread = self.mean_net(features)
        seen = mean if self.noise == "poisson-gaussian" else noisy_NCHW
        level = self.noise_net(seen)
        if self.noise != "poisson-gaussian":
            level = level.mean((2, 3), keepdim=True)
        if self.noise == "multivariate":
            return Prediction(
                mean,
                _full(spread, self.colours).mean((1, 2), keepdim=True),
                _full(level, self.colours),
            )
        level = functional.softplus(level - 4) + _FLOOR
        return Prediction(mean, _diagonal(spread.square()), _diagonal(level.square()))


class BlindSpot(nn.Module):
    """The blind-spot network: two branches of masked and dilated convolutions, fused by 1x1."""

    def __init__(self, colours: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(colours, channels, 1)
        self.branches = nn.ModuleList(Branch(channels, blocks, side) for side in (3, 5))
        self.fusion = nn.Conv2d(2 * channels, channels, 1)
        self.tail = _pointwise([channels, channels, channels, colours])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, noisy_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction (N, C, H, W) and the features behind it (N, channels, H, W).

        Pixels go in and come out in the precision of the weights even under autocast: bfloat16 has
        steps of 1/256 below white.
        """
        kind, dtype = noisy_NCHW.device.type, self.head.weight.dtype
        with torch.autocast(kind, enabled=False):
            x = self.head(noisy_NCHW.to(dtype)).relu()
        features = self.fusion(torch.cat([branch(x) for branch in self.branches], 1))
        with torch.autocast(kind, enabled=False):
            features = features.to(dtype)
            return self.tail(features), features

    @staticmethod
    def radius(blocks: int) -> int:
        """Return how far a prediction looks, px (50 with the paper's 8 blocks)."""
        return 2 + blocks * 2 * 3


def posterior(noisy_NCHW: Tensor, prediction: Prediction) -> Tensor:
    """Return the mean of the signal given its surroundings and itself.

    (S_mu^-1 + S_n^-1)^-1 (S_mu^-1 mu + S_n^-1 y), computed as mu + S_mu (S_mu + S_n)^-1 (y - mu),
    which needs no inverse of a covariance that may be singular.
    """
    mean = prediction.mean.permute(0, 2, 3, 1)[..., None]
    noisy = noisy_NCHW.permute(0, 2, 3, 1)[..., None]
    both = prediction.mean_covariance + prediction.noise_covariance
    eye = torch.eye(both.shape[-1], dtype=both.dtype, device=both.device)
    step = prediction.mean_covariance @ torch.linalg.solve(both + _EPSILON**2 * eye, noisy - mean)
    out: Tensor = (mean + step)[..., 0].permute(0, 3, 1, 2)
    return out


def negative_log_likelihood(noisy_NCHW: Tensor, prediction: Prediction) -> Tensor:
    """Return -log p(y) per pixel without its constant, shape (N, H, W) ("MAPLoss").

    1/2 (y - mu)' S_y^-1 (y - mu) + 1/2 log det S_y with S_y = S_mu + S_n.
    """
    error, both = _error(noisy_NCHW, prediction), prediction.mean_covariance + prediction.noise_covariance
    return 0.5 * (_quadratic(error, both) + _log_det(both))


def constrained_loss(noisy_NCHW: Tensor, prediction: Prediction) -> Tensor:
    """Return the constrained loss per pixel, shape (N, H, W).

    1/2 { (y - mu)' S_y^-1 (y - mu) + log det S_n + tr(S_n^-1 S_mu) }. Since log det(I + A) <= tr A it
    is never below the likelihood's, and it keeps S_mu from taking over what belongs to S_n.
    """
    error, noise = _error(noisy_NCHW, prediction), prediction.noise_covariance
    both = prediction.mean_covariance + noise
    eye = torch.eye(noise.shape[-1], dtype=noise.dtype, device=noise.device)
    ratio = torch.linalg.solve(noise + _EPSILON * eye, prediction.mean_covariance.expand_as(both))
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    out: Tensor = 0.5 * (_quadratic(error, both) + _log_det(noise) + trace)
    return out


def _error(noisy_NCHW: Tensor, prediction: Prediction) -> Tensor:
    return (noisy_NCHW - prediction.mean).permute(0, 2, 3, 1)[..., None]


def _quadratic(error: Tensor, covariance: Tensor) -> Tensor:
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    solved = torch.linalg.solve(covariance + _EPSILON * eye, error)
    out: Tensor = (error * solved).sum((-2, -1))
    return out


def _log_det(covariance: Tensor) -> Tensor:
    out: Tensor = torch.linalg.det(covariance).clamp_min(_EPSILON ** covariance.shape[-1]).log()
    return out


def _pointwise(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _diagonal(variances_NCHW: Tensor) -> Tensor:
    return torch.diag_embed(variances_NCHW.permute(0, 2, 3, 1))


def _full(entries_NCHW: Tensor, colours: int) -> Tensor:
    """Return L L' of the triangular matrices whose entries the channels are."""
    entries = entries_NCHW.permute(0, 2, 3, 1)
    rows, columns = torch.triu_indices(colours, colours)
    factor = entries.new_zeros(*entries.shape[:-1], colours, colours)
    factor[..., rows, columns] = entries
    return factor @ factor.mT
