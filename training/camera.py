"""A camera, forwards and backwards: sRGB pictures to linear RAW, sensor noise, and the way back.

Shapes: N pictures, C channels, H rows, W columns. RAW values: 0 black level, 1 white level, linear
in light. Everything drawn at random comes from a generator that the caller seeded.

References
----------
T. Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019: the inverse pipeline,
the care for highlights, the ranges of white balance gains, and the noise line of the Darmstadt set.
S. Zamir et al., "CycleISP", CVPR 2020: the noise line of the SIDD set.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .jpeg import mix_channels

# XYZ (D65) to camera, as the makers' DNG files hold it (ColorMatrix2): the four cameras of the
# Darmstadt set (Plötz and Roth 2017): Nexus 6P, Sony ILCE-7R, Olympus E-M10, Sony DSC-RX100M4.
XYZ_TO_CAMERA = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
# IEC 61966-2-1.
SRGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)

# Brooks et al.: what daylight to tungsten asks of the red and the blue channel.
RED_GAIN = (1.9, 2.4)
BLUE_GAIN = (1.5, 1.9)
EXPOSURE = (0.8, 0.1)  # mean and spread of the RAW value of white

# Above this share of white, the inverse of a gain fades to 1: a blown highlight was saturated in
# the RAW as well (Brooks et al.).
_INFLECTION = 0.9

MID_GREY = 0.18  # linear signal at which a noise line is given one number


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseLine:
    """How the two noise parameters of a kind of sensor go together over its ISO settings.

    Variance = gain · signal + offset; log10 offset = slope · log10 gain + intercept, give or take
    a Gaussian `spread`.
    """

    slope: float
    intercept: float
    spread: float
    gain: tuple[float, float]  # lowest and highest in the set it was fitted on
    source: str


LINES = {
    "dnd": NoiseLine(2.18, 1.20, 0.26, (1e-4, 0.012), "Brooks et al. 2019: four cameras, ISO 100 to 12800"),
    "sidd": NoiseLine(
        1.85, 0.30, 0.20, (6.8674e-4, 0.02194856), "Zamir et al. 2020: five phones, ISO 50 to 10000"
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Cameras:
    """One camera and one scene's light for each picture.

    Attributes
    ----------
    to_camera : Tensor (N, 3, 3)
        Linear sRGB to camera colours; its rows sum to 1, so that white stays white.
    red, blue : Tensor (N,)
        White balance gains; green has 1.
    exposure : Tensor (N,)
        RAW green value of a picture's white.
    toned : Tensor (N,), bool
        Whether the camera lays a contrast curve over its pictures.
    """

    to_camera: Tensor
    red: Tensor
    blue: Tensor
    exposure: Tensor
    toned: Tensor

    def part(self, share: slice) -> Cameras:
        """Return those of some of the pictures."""
        values = (self.to_camera, self.red, self.blue, self.exposure, self.toned)
        return Cameras(*(v[share] for v in values))

    @property
    def gains(self) -> Tensor:
        """What the camera multiplies red, green and blue by, shape (N, 3, 1, 1)."""
        gains = torch.stack([self.red, torch.ones_like(self.red), self.blue], 1)
        return (gains / self.exposure[:, None])[..., None, None]


def draw_cameras(count: int, generator: torch.Generator) -> Cameras:
    """Return random cameras: convex mixtures of the four matrices, gains and exposures as published."""
    weights = torch.rand(count, len(XYZ_TO_CAMERA), generator=generator)
    matrix = torch.einsum("nk,kij->nij", weights / weights.sum(1, keepdim=True), torch.tensor(XYZ_TO_CAMERA))
    matrix = matrix @ torch.tensor(SRGB_TO_XYZ)
    u = torch.rand(3, count, generator=generator)
    exposure = EXPOSURE[0] + EXPOSURE[1] * torch.randn(count, generator=generator)
    return Cameras(
        to_camera=matrix / matrix.sum(2, keepdim=True),
        red=RED_GAIN[0] + (RED_GAIN[1] - RED_GAIN[0]) * u[0],
        blue=BLUE_GAIN[0] + (BLUE_GAIN[1] - BLUE_GAIN[0]) * u[1],
        exposure=exposure.clamp(0.5, 1.0),
        toned=u[2] < 0.7,
    )


def unprocess(x_N3HW: Tensor, cameras: Cameras) -> Tensor:
    """Turn sRGB pictures (0..1) into linear camera RGB before white balance, 0..1."""
    toned = cameras.toned[:, None, None, None]
    x = x_N3HW.clamp(0, 1)
    x = to_linear(torch.where(toned, inverse_tone(x), x))
    x = mix_channels(x, cameras.to_camera)
    return _divide_gains(x, cameras.gains).clamp(0, 1)


def process(raw_N3HW: Tensor, cameras: Cameras) -> Tensor:
    """Turn linear camera RGB into sRGB pictures: white balance, colours, gamma, tone curve; 0..1."""
    return develop(raw_N3HW * cameras.gains, cameras)


def develop(balanced_N3HW: Tensor, cameras: Cameras) -> Tensor:
    """Do what `process` does after the white balance."""
    x = balanced_N3HW.clamp(0, 1)
    x = mix_channels(x, torch.linalg.inv(cameras.to_camera)).clamp(0, 1)
    x = to_srgb(x)
    return torch.where(cameras.toned[:, None, None, None], tone(x), x)


def tone(x: Tensor) -> Tensor:
    """Lay the contrast curve 3x² - 2x³ over values of 0..1."""
    return x * x * (3 - 2 * x)


def inverse_tone(x: Tensor) -> Tensor:
    """Undo `tone`."""
    return 0.5 - torch.sin(torch.asin(1 - 2 * x) / 3)


def to_linear(x: Tensor) -> Tensor:
    """Undo the transfer curve of sRGB (IEC 61966-2-1), values of 0..1."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def to_srgb(x: Tensor) -> Tensor:
    """Apply the transfer curve of sRGB to linear values of 0..1."""
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def _divide_gains(x_N3HW: Tensor, gains_N311: Tensor) -> Tensor:
    """Divide by the gains, but leave saturated pixels saturated."""
    bright = x_N3HW.mean(1, keepdim=True)
    fade = ((bright - _INFLECTION).clamp_min(0) / (1 - _INFLECTION)).square()
    inverse = 1 / gains_N311
    return x_N3HW * torch.maximum(fade + (1 - fade) * inverse, inverse)


def mid_grey_sigma_255(gain: Tensor, offset: Tensor) -> Tensor:
    """Return the standard deviation that a noise line gives to mid grey, on the 0..255 scale."""
    return 255 * (gain * MID_GREY + offset).sqrt()


def draw_noise(
    sigma_255: Tensor, generator: torch.Generator, lines: tuple[str, ...] = ("dnd", "sidd")
) -> tuple[Tensor, Tensor]:
    """Return gain and offset of sensors whose noise at mid grey is as given.

    Parameters
    ----------
    sigma_255 : Tensor (N,)
        Standard deviation at a linear signal of 0.18, 0..255 scale, above 0.
    generator : torch.Generator
        Chooses among the lines, and the spread about them.
    lines : tuple of str
        Keys of `LINES`.

    Returns
    -------
    gain, offset : Tensor (N,)
        Of variance = gain · signal + offset, RAW values of 0..1.
    """
    count = sigma_255.shape[0]
    which = torch.randint(len(lines), (count,), generator=generator)
    spread = torch.randn(count, generator=generator).clamp(-2, 2)
    table = torch.tensor([(LINES[k].slope, LINES[k].intercept, LINES[k].spread) for k in lines])[which]
    slope, intercept = table[:, 0], table[:, 1] + table[:, 2] * spread
    variance = (sigma_255 / 255).square()
    # Both terms grow with the gain: bisect its logarithm.
    low, high = torch.full((count,), -9.0), torch.full((count,), 1.0)
    for _ in range(30):
        middle = (low + high) / 2
        above = MID_GREY * 10**middle + 10 ** (slope * middle + intercept) > variance
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    gain = 10 ** ((low + high) / 2)
    return gain, (variance - MID_GREY * gain).clamp_min(0)


def add_sensor_noise(
    x_CHW: Tensor,
    gain: float,
    offset: float,
    generator: torch.Generator,
    *,
    row_share: float = 0.0,
    bits: int = 0,
    limits: tuple[float, float] | None = (-1 / 16, 1.0),
) -> Tensor:
    """Return one RAW picture as a sensor delivers it: Poisson-Gaussian noise, rows, quantisation.

    Parameters
    ----------
    x_CHW : Tensor
        Clean linear values, 0..1.
    gain : float
        Variance per signal: one photoelectron is a value of `gain`.
    offset : float
        Variance of the read noise, row noise included.
    generator : torch.Generator
        Where the noise comes from.
    row_share : float
        Share of the read variance that all pixels of a row have in common, 0..1.
    bits : int
        Of the converter, 0: not quantised.
    limits : pair of float, optional
        Black level below zero and saturation: what a file cannot hold is clipped.
    """
    x: Tensor = x_CHW.clamp_min(0)
    if gain > 0:
        x = torch.poisson(x / gain, generator=generator) * gain
    read: Tensor = torch.randn(x.shape, generator=generator) * (offset * (1 - row_share)) ** 0.5
    if row_share > 0:
        rows = torch.randn((*x.shape[:-1], 1), generator=generator)
        read = read + rows * (offset * row_share) ** 0.5
    x = x + read
    if bits:
        steps = 2**bits - 1
        x = (x * steps).round() / steps
    if limits is not None:
        x = x.clamp(*limits)
    return x
