"""Noise put on clean pictures for training.

Five kinds: white Gaussian noise (`add_awgn`); few photons, stabilised (`photons`); both in turn, as a
microscope has them; RAW mosaics of a simulated sensor; and finished photographs of a simulated camera,
whose noise went through demosaicing, the camera's own noise reduction, tone curve and JPEG. Everything is
a function of (seed, step) and of the place in the batch.

Shapes: N pictures, C channels, H rows, W columns; white = 1.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise.compression import TO_YCC

from .camera import Cameras, add_sensor_noise, develop, draw_cameras, draw_noise, unprocess
from .jpeg import jpeg, mix_channels
from .mosaic import BAYER, demosaic, mosaic, pack
from .photons import add_photon_noise

KINDS = ("awgn", "photons", "microscope", "raw", "camera-jpeg")

# px by which a crop must be larger than the patch, so that the patch's borders have been computed
# from true neighbours and the grid of JPEG blocks begins anywhere.
_MARGIN = 8

_LEAST_SIGMA_255 = 0.3  # a camera's lowest; below, 8 bits drown it
_QUALITY = (78, 98)  # phones write 80 to 95
_PLAIN_SHARE = 0.1  # of the photographs are not JPEG
_SUBSAMPLED_SHARE = 0.65  # of the batches are 4:2:0
_XTRANS_SHARE = 0.1  # of the batches
_SMOOTHED_SHARE = 0.6  # of the cameras reduce noise themselves
_SHARPENED_SHARE = 0.3
# Of the pictures were made smaller after the camera, as most on the web are: nothing is left of the
# interpolation of colours, they are sharp to the pixel, and this much of the noise's variance is left.
_SMALLER_SHARE = 0.3
_SMALLER_VARIANCE = (0.0, 0.4)
_LENS_PX = (0.2, 1.2)  # Gaussian of lens, focus and low-pass filter in front of the sensor
# Of the cameras correct their lens or shake, which interpolates picture and noise alike: a Gaussian as wide.
_INTERPOLATED_SHARE = 0.6
_INTERPOLATED_PX = (0.3, 1.0)
_TAPS = 10  # px, radius of the kernels of the camera's own filters


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """What a network is shown, and what it should say.

    Attributes
    ----------
    noisy, clean : Tensor (N, C, H, W)
        White = 1.
    sigma : Tensor (N, 1, 1, 1)
        Noise level, 0..255: of the Gaussian, of a RAW's mid grey, or the measured root mean square
        of the difference for photographs.
    std : Tensor, optional
        Standard deviation of each RAW value, as the noise line gives it for the noisy value.
    """

    noisy: Tensor
    clean: Tensor
    sigma: Tensor
    std: Tensor | None = None

    def to(self, device: torch.device) -> Pair:
        """Move all of it; what the network is shown in channels_last order."""
        return Pair(
            _placed(self.noisy, device),
            self.clean.to(device),
            self.sigma.to(device),
            None if self.std is None else _placed(self.std, device),
        )


def _placed(x_NCHW: Tensor, device: torch.device) -> Tensor:
    return x_NCHW.to(device).contiguous(memory_format=torch.channels_last)


def margin(kind: str) -> int:
    """Return by how many px the crops for a kind of noise must be larger than the patch."""
    if kind not in KINDS:
        raise BadOption(f"degrade: expected one of {', '.join(KINDS)}, got {kind!r}; mend the recipe")
    return _MARGIN if kind == "camera-jpeg" else 0


def degrade(
    kind: str,
    x_NCHW: Tensor,
    sigma_255: tuple[float, float],
    seed: int,
    step: int,
    batch: int | None = None,
    share: slice = slice(None),
    *,
    packed: bool = True,
) -> Pair:
    """Make training pairs.

    Parameters
    ----------
    kind : str
        "awgn", "photons", "microscope" (every other picture the one, the rest the other), "raw" or
        "camera-jpeg".
    x_NCHW : Tensor
        Clean pictures, 0..1; sRGB for the last two kinds; `margin` px larger than the pairs.
    sigma_255 : pair of float
        Lowest and highest noise, 0..255 scale: for cameras, that of mid grey in the RAW.
    seed, step, batch, share
        As for `add_awgn`.
    packed : bool
        RAW as four planes of half the size; otherwise a mosaic.
    """
    if kind == "awgn":
        noisy, sigma = add_awgn(x_NCHW, sigma_255, seed, step, batch, share)
        return Pair(noisy, x_NCHW, sigma)
    if kind in ("photons", "microscope"):
        count = batch or x_NCHW.shape[0]
        streams = [torch.Generator().manual_seed(_mix(seed, step * count + k)) for k in range(count)[share]]
        pair = Pair(*add_photon_noise(x_NCHW, sigma_255, streams))
        if kind == "photons":
            return pair
        noisy, sigma = add_awgn(x_NCHW, sigma_255, seed, step, batch, share)
        white = torch.tensor([k % 2 == 1 for k in range(count)[share]])[:, None, None, None]
        return Pair(
            torch.where(white, noisy, pair.noisy),
            torch.where(white, x_NCHW, pair.clean),
            torch.where(white, sigma, pair.sigma),
        )
    batch = batch or x_NCHW.shape[0]
    generator = torch.Generator().manual_seed(_mix(seed, step))
    cameras = draw_cameras(batch, generator).part(share)
    levels = _draw_levels(batch, sigma_255, generator)
    gain, offset = (v[share] for v in draw_noise(levels, generator))
    each = [torch.Generator().manual_seed(_mix(seed + 1, step * batch + k)) for k in range(batch)[share]]
    if kind == "raw":
        return _raw_pair(unprocess(x_NCHW, cameras), gain, offset, levels[share], each, packed=packed)
    look = draw_look(batch, generator)
    width = _LENS_PX[0] + (_LENS_PX[1] - _LENS_PX[0]) * torch.rand(batch, 1, generator=generator)
    width = torch.where(look.left[:, None] < 0, width, 0.0)[share].clamp_min(0.05)
    raw = unprocess(blur(x_NCHW, width.expand(-1, 3)), cameras)
    return photograph(raw, cameras, gain, offset, each, look, share)


def _draw_levels(batch: int, sigma_255: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw levels, more low ones than high ones: a camera's steps of ISO are factors, not sums."""
    low, high = (max(_LEAST_SIGMA_255, s) for s in sigma_255)
    return low + (high - low) * torch.rand(batch, generator=generator).square()


def sensor_noise(
    x_NCHW: Tensor, gain: Tensor, offset: Tensor, each: list[torch.Generator], *, row_share: float = 0.0
) -> Tensor:
    """Return RAW pictures with the noise of a sensor each; see `camera.add_sensor_noise`."""
    noisy = [
        add_sensor_noise(x, float(a), float(b), g, row_share=row_share)
        for x, a, b, g in zip(x_NCHW, gain, offset, each, strict=True)
    ]
    return torch.stack(noisy)


def _raw_pair(
    raw_N3HW: Tensor,
    gain: Tensor,
    offset: Tensor,
    levels: Tensor,
    each: list[torch.Generator],
    *,
    packed: bool,
) -> Pair:
    clean = mosaic(raw_N3HW)
    noisy = sensor_noise(clean, gain, offset, each)
    if packed:
        clean, noisy = pack(clean), pack(noisy)
    std = std_map(noisy, gain[:, None, None, None], offset[:, None, None, None])
    return Pair(noisy, clean, levels[:, None, None, None], std)


def std_map(noisy_NCHW: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return the standard deviation of each RAW value: the root of gain · value + offset."""
    return (gain * noisy_NCHW.clamp(0, 1) + offset).sqrt()


# ---- photographs -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """How cameras make finished pictures; one value per picture (shape (N,)) or per batch.

    Attributes
    ----------
    pattern : str
        Key of `mosaic.PATTERNS`.
    luma_px, chroma_px : Tensor
        Width of the Gaussian of the camera's own noise reduction, px.
    luma_share, chroma_share : Tensor
        How much of that Gaussian is mixed in, 0 (no noise reduction) to 1.
    soft_px : Tensor
        Width of the Gaussian that picture and noise went through behind the demosaicing, px; 0: none.
    sharpening : Tensor
        Of an unsharp mask of width 1 px, 0 to 1.
    quality : Tensor
        Of the JPEG, 1 to 100.
    plain : Tensor, bool
        8 bits, but not JPEG.
    left : Tensor
        Share of the noise's variance that is left in a picture that was made smaller; negative: it was not.
    subsample : bool
        4:2:0 rather than 4:4:4.
    offset : pair of int
        Where the grid of JPEG blocks begins, see `jpeg.jpeg`.
    """

    pattern: str
    luma_px: Tensor
    chroma_px: Tensor
    luma_share: Tensor
    chroma_share: Tensor
    soft_px: Tensor
    sharpening: Tensor
    quality: Tensor
    plain: Tensor
    left: Tensor
    subsample: bool
    offset: tuple[int, int]


def draw_look(batch: int, generator: torch.Generator) -> Look:
    """Return how random cameras make their pictures."""
    u = torch.rand(9, batch, generator=generator)
    low, high = _SMALLER_VARIANCE
    of_batch = torch.rand(3, generator=generator)
    smoothed = (u[0] < _SMOOTHED_SHARE).float()
    offset = torch.randint(16, (2,), generator=generator)
    which = int(torch.randint(len(BAYER), (1,), generator=generator))
    # From a stream beside it: what follows in `generator` is what it was before cameras interpolated.
    beside = torch.Generator().set_state(generator.get_state())
    soft = torch.rand(10, batch, generator=beside)[-1] / _INTERPOLATED_SHARE
    narrow, wide = _INTERPOLATED_PX
    return Look(
        pattern="XTRANS" if float(of_batch[0]) < _XTRANS_SHARE else BAYER[which],
        luma_px=0.4 + 2.6 * u[1],
        chroma_px=0.6 + 4.4 * u[2],
        luma_share=smoothed * (0.2 + 0.8 * u[3]),
        chroma_share=smoothed * (0.4 + 0.6 * u[4]),
        soft_px=torch.where(soft < 1, narrow + (wide - narrow) * soft, 0.0),
        sharpening=(u[5] < _SHARPENED_SHARE) * (u[5] / _SHARPENED_SHARE),
        quality=(_QUALITY[0] + (_QUALITY[1] - _QUALITY[0]) * u[6]).round(),
        plain=u[7] < _PLAIN_SHARE,
        left=torch.where(u[8] < _SMALLER_SHARE, low + (high - low) * u[8] / _SMALLER_SHARE, -1.0),
        subsample=float(of_batch[1]) < _SUBSAMPLED_SHARE,
        offset=(int(offset[0]), int(offset[1])),
    )


def photograph(
    raw_N3HW: Tensor,
    cameras: Cameras,
    gain: Tensor,
    offset: Tensor,
    each: list[torch.Generator],
    look: Look,
    share: slice = slice(None),
) -> Pair:
    """Develop a RAW with noise and without; only the noisy one becomes JPEG.

    Parameters
    ----------
    raw_N3HW : Tensor
        Linear camera RGB, as `camera.unprocess` gives it; `margin` px larger than the pairs.
    cameras : Cameras
        Those that it was unprocessed for.
    gain, offset : Tensor (N,)
        Of the noise.
    each : list of torch.Generator
        One for each picture's noise.
    look : Look
        Of the whole batch.
    share : slice
        Which of the batch's pictures these are.
    """
    mosaiced = mosaic(raw_N3HW, look.pattern)
    noisy = sensor_noise(mosaiced, gain, offset, each)
    count = raw_N3HW.shape[0]
    # Colours are interpolated after the white balance: the filters take it that red, green and blue
    # change by the same steps where a picture is neutral.
    balance = mosaic(cameras.gains.expand_as(raw_N3HW), look.pattern)
    both = demosaic(torch.cat([mosaiced * balance, noisy * balance]), look.pattern)
    smaller = (look.left[share] >= 0)[:, None, None, None]
    if bool(smaller.any()):
        left = look.left[share].clamp_min(0)
        whole = sensor_noise(raw_N3HW, gain * left, offset * left, each)
        whole = torch.cat([raw_N3HW, whole]) * cameras.gains.repeat(2, 1, 1, 1)
        both = torch.where(smaller.repeat(2, 1, 1, 1), whole, both)
    clean, noisy = (develop(x, cameras) for x in (both[:count], both[count:]))
    noise = torch.where(smaller, noisy - clean, _smooth_noise(noisy - clean, look, share))
    soft_px = torch.where(smaller.flatten(), 0.0, look.soft_px[share])
    if bool((soft_px > 0).any()):
        both = blur(torch.cat([clean, noise], 1), soft_px.clamp_min(0.05)[:, None].expand(-1, 6))
        clean, noise = both[:, :3], both[:, 3:]
    sharpening = look.sharpening[share][:, None, None, None]
    if bool((sharpening > 0).any()):
        width = torch.ones(count, 3)
        both = torch.cat([clean, noise], 1)
        soft = torch.cat([blur(clean, width), blur(noise, width)], 1)
        both = both + sharpening * (both - soft)
        clean, noise = both[:, :3].clamp(0, 1), both[:, 3:]
    shown = (clean + noise).clamp(0, 1)
    plain = look.plain[share][:, None, None, None]
    coded = jpeg(shown, look.quality[share], subsample=look.subsample, offset=look.offset)
    noisy = torch.where(plain, (shown * 255).round() / 255, coded)
    inner = slice(_MARGIN // 2, -_MARGIN // 2)
    noisy, clean = noisy[..., inner, inner], clean[..., inner, inner]
    level = 255 * (noisy - clean).square().mean((1, 2, 3), keepdim=True).sqrt()
    return Pair(noisy.contiguous(), clean.contiguous(), level)


def _smooth_noise(noise_N3HW: Tensor, look: Look, share: slice) -> Tensor:
    """Smooth noise as a camera's noise reduction does: coarser in colour than in brightness.

    A camera spares edges, so its picture of the scene hardly changes and what is left of the noise
    is what a blur leaves: here the noise alone is blurred.
    """
    luma, chroma = look.luma_share[share], look.chroma_share[share]
    if not bool((luma > 0).any()):
        return noise_N3HW
    to_ycc = torch.tensor(TO_YCC)
    ycc = mix_channels(noise_N3HW, to_ycc)
    widths = torch.stack([look.luma_px[share], look.chroma_px[share], look.chroma_px[share]], 1)
    shares = torch.stack([luma, chroma, chroma], 1)[..., None, None]
    return mix_channels(torch.lerp(ycc, blur(ycc, widths), shares), torch.linalg.inv(to_ycc))


def blur(x_NCHW: Tensor, width_NC: Tensor) -> Tensor:
    """Blur each plane by a Gaussian of its own width, px; borders are mirrored."""
    planes = x_NCHW.flatten(0, 1)[None]
    t = torch.arange(-_TAPS, _TAPS + 1)
    line = torch.exp(-(t**2) / (2 * width_NC.reshape(-1, 1) ** 2))
    line = line / line.sum(1, keepdim=True)
    count = planes.shape[1]
    padded = functional.pad(planes, (_TAPS, _TAPS, _TAPS, _TAPS), mode="reflect")
    rows = functional.conv2d(padded, line[:, None, :, None], groups=count)
    return functional.conv2d(rows, line[:, None, None, :], groups=count).reshape(x_NCHW.shape)


def add_awgn(
    x_NCHW: Tensor,
    sigma_255: tuple[float, float],
    seed: int,
    step: int,
    batch: int | None = None,
    share: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Add white Gaussian noise, one level per picture, uniform between two bounds, not clipped.

    Parameters
    ----------
    x_NCHW : Tensor
        Clean pictures, white = 1.
    sigma_255 : pair of float
        Lowest and highest standard deviation on the 0..255 scale.
    seed, step : int
        The noise of a picture is a function of these two and of its place in the batch.
    batch, share : int and slice, optional
        Size of the whole batch, and which of its pictures `x_NCHW` are.

    Returns
    -------
    noisy : Tensor
        Same shape.
    sigma : Tensor
        Shape (N, 1, 1, 1), 0..255 scale.
    """
    generator = torch.Generator().manual_seed(_mix(seed, step))
    low, high = sigma_255
    batch = batch or x_NCHW.shape[0]
    sigma = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)[share]
    noise = torch.randn((batch, *x_NCHW.shape[1:]), generator=generator)[share]
    return x_NCHW + noise * (sigma / 255), sigma


def _mix(seed: int, step: int) -> int:
    # Neighbouring (seed, step) pairs must not share a stream: an odd multiplier of 2^64/phi.
    return (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**63
