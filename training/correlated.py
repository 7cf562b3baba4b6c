"""Noise whose neighbours are alike, of many colours: what cameras, scanners and microscopes leave.

Interpolation, resizing, averaging in the optics or the electronics and lossy compression make a picture's
noise smooth. How smooth differs from device to device, so every picture gets a spectrum of its own:
white noise blurred by a Gaussian, the same or not across and down, a part that rises towards frequency 0
as drift and out-of-focus light do, and a little white noise of what came after (read-out, rounding).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WHITE_SHARE = 0.1  # of the pictures have white noise: the measurement that leads here may err
_BLUR_PX = (0.35, 1.7)  # of the Gaussian: correlations of neighbours from 0.1 to 0.9
_UNEVEN_SHARE = 0.3  # of the pictures are blurred less in one direction
_RISING_SHARE = 0.5  # of the pictures have a part that rises towards frequency 0
_RISING = 0.4  # its largest part of the variance
_KNEE = (0.01, 0.08)  # cycles per pixel, below which that part no longer rises
_FLOOR = 0.1  # largest part of the variance that is white
_AROUND_PX = 32  # the noise of a larger picture is made, so that opposite borders differ


def add_correlated_noise(
    x_NCHW: Tensor, sigma_255: tuple[float, float], each: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Add Gaussian noise of one spectrum and one level per picture, not clipped.

    Parameters
    ----------
    x_NCHW : Tensor
        Clean pictures, white = 1.
    sigma_255 : pair of float
        Lowest and highest standard deviation on the 0..255 scale; uniform in its logarithm.
    each : list of torch.Generator
        One for each picture.

    Returns
    -------
    noisy : Tensor
        Same shape.
    sigma : Tensor
        Shape (N, 1, 1, 1), 0..255 scale.
    """
    low, high = (math.log(s) for s in sigma_255)
    noisy, levels = [], []
    for x, generator in zip(x_NCHW, each, strict=True):
        level = math.exp(low + (high - low) * float(torch.rand(1, generator=generator)))
        height, width = (n + _AROUND_PX for n in x.shape[-2:])
        amplitude = draw_spectrum(height, width, generator).sqrt()
        white = torch.randn((x.shape[0], height, width), generator=generator)
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
        noisy.append(x + noise[:, : x.shape[-2], : x.shape[-1]] * (level / 255))
        levels.append(level)
    return torch.stack(noisy), torch.tensor(levels)[:, None, None, None]


def draw_spectrum(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw the power of noise at each frequency.

    Returns
    -------
    Tensor (height, width // 2 + 1)
        At the frequencies of `torch.fft.rfft2`; the mean over all of `torch.fft.fft2` is 1, so that white
        noise filtered by its root keeps its variance.
    """
    u = torch.rand(8, generator=generator).tolist()
    down = torch.fft.fftfreq(height)[:, None].square()
    across = torch.fft.rfftfreq(width).square()
    if u[0] < _WHITE_SHARE:
        return torch.ones(height, width // 2 + 1)
    blur = [_BLUR_PX[0] + (_BLUR_PX[1] - _BLUR_PX[0]) * u[1]] * 2
    if u[2] < _UNEVEN_SHARE:
        blur[int(u[2] < _UNEVEN_SHARE / 2)] *= u[3]
    power = _normal(torch.exp(-((2 * math.pi) ** 2) * (blur[0] ** 2 * down + blur[1] ** 2 * across)), width)
    if u[4] < _RISING_SHARE:
        knee = _KNEE[0] * (_KNEE[1] / _KNEE[0]) ** u[5]
        part = _RISING * u[6]
        power = (1 - part) * power + part * _normal((1 + (down + across) / knee**2) ** -1.5, width)
    floor = _FLOOR * u[7] ** 2
    floored: Tensor = (1 - floor) * power + floor
    return floored


def _normal(power: Tensor, width: int) -> Tensor:
    """Divide by the mean over all frequencies, of which `rfft2` leaves out the mirrored ones."""
    twice = torch.full((power.shape[1],), 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return power / ((power * twice).sum() / (power.shape[0] * width))
