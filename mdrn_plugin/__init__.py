"""MDRN: image denoising that people can trust without tuning.

>>> import mdrn_plugin
>>> clean = mdrn_plugin.denoise(noisy)  # doctest: +SKIP

The functions here are a thin door to `mdrn_plugin.pipeline`; torch is imported when the first of
them needs it.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.result import Result
    from mdrn_plugin.training.selfsupervised import Learnt
    from mdrn_plugin.zoo import Descriptor

__version__ = "0.1.0"
__all__ = ["__version__", "denoise", "denoise_raw", "estimate_noise", "models", "read", "train_on", "write"]


def denoise(
    pixels: Any,
    *,
    axes: str | None = None,
    noise: str | float = "auto",
    noise_model: str = "auto",
    quality: str = "balanced",
    model: str | None = None,
    range: tuple[float, float] | None = None,
    strength: float = 1.0,
    device: str = "auto",
    tile: int | None = None,
    threads: int | None = None,
    return_result: bool = False,
) -> Any:
    """Denoise an array.

    Parameters
    ----------
    pixels : array
        numpy, torch, dask or xarray; any real dtype. Never written to.
    axes : str, optional
        One letter of ``T Z C Y X S`` per dimension. Left out: the names of an xarray, else YX,
        YXS if the last dimension is 3 or 4, or ZYX, TZYX, TZCYX by the number of dimensions.
    noise : str or float
        "auto"; 25 or "25" for a standard deviation of 25/255 of white; "25dn" in units of the pixels;
        "0.01,0.0004" for a variance of 0.01 * signal + 0.0004, signal 0..1; "2.5,30dn" in units of
        the pixels.
    noise_model : str
        "auto" decides by what is measured; "gaussian" (white, one level), "poisson-gaussian" (grows
        with the signal: stabilised) or "correlated" (neighbours alike: filled up to white).
    quality : str
        "fast", "balanced", "best" or "best+" (mean over eight symmetries).
    model : str, optional
        Name of a model, see `models`; instead of the choice by noise and quality.
    range : pair of float, optional
        The values that mean black and white; left out: decided from dtype and values.
    strength : float
        0 keeps the input, 1 takes the network's result.
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    tile : int, optional
        Side of a tile, px, a multiple of 16.
    threads : int, optional
        CPU threads.
    return_result : bool
        Return a `mdrn_plugin.result.Result` (picture, noise, plan, verdict) instead.

    Returns
    -------
    array
        Of the same kind (numpy, torch or xarray; dask gives numpy), shape and dtype.

    Raises
    ------
    mdrn_plugin.errors.BadOption
        An option or `axes` is impossible.
    mdrn_plugin.errors.NotSupported
        Complex values.
    """
    from mdrn_plugin.options import Options
    from mdrn_plugin.pipeline import denoise_picture

    options = Options(
        noise=str(noise),
        noise_model=noise_model,
        quality=quality,
        model=model,
        device=device,
        tile=tile,
        threads=threads,
        strength=strength,
    )
    result: Result = denoise_picture(_as_picture(pixels, axes, range), options)
    return result if return_result else _like(pixels, result.picture.pixels)


def denoise_raw(
    source: Any,
    *,
    pattern: str | None = None,
    black: float | tuple[float, ...] | None = None,
    white: float | None = None,
    noise: str | float = "auto",
    quality: str = "balanced",
    model: str | None = None,
    strength: float = 1.0,
    chroma_strength: float | None = None,
    device: str = "auto",
    tile: int | None = None,
    threads: int | None = None,
    return_result: bool = False,
) -> Any:
    """Denoise undeveloped pixels of a sensor.

    Parameters
    ----------
    source : path-like or array (Y, X)
        A RAW or DNG file, or a mosaic: numpy or torch, integers or floats. Never written to.
    pattern : str, optional
        Needed with a mosaic: "RGGB", "BGGR", "GRBG", "GBRG", "X-Trans", or the rows of a repeat with
        slashes between them, from the upper left pixel.
    black : float or tuple of float, optional
        Value of no light, one or one for each place of the pattern, row by row. Left out: as the file
        says, 0 for a mosaic.
    white : float, optional
        Value of clipped pixels, which are kept as they are. Left out: as the file says; for a mosaic
        decided from dtype and values, see `mdrn_plugin.picture.decide_range`.
    noise, quality, model, strength, device, tile, threads
        As of `denoise`. "auto" takes what a file says of its noise (DNG's NoiseProfile), else measures.
    chroma_strength : float, optional
        0 keeps colour noise, 1 takes it away; left out: as `strength`.
    return_result : bool
        Return a `mdrn_plugin.result.Result` instead; its picture can be written as DNG by `write`.

    Returns
    -------
    array
        Denoised pixels, shape and dtype of those in the file or given: (Y, X), or (Y, X, 3) of a linear
        DNG. Of a file, the visible area.

    Raises
    ------
    mdrn_plugin.errors.BadOption
        No pattern with a mosaic, or levels that contradict it.
    mdrn_plugin.errors.CannotRead, mdrn_plugin.errors.NotSupported
        The file is damaged, or of a kind that is not read.
    """
    from mdrn_plugin.options import Options
    from mdrn_plugin.pipeline import denoise_picture

    options = Options(
        noise=str(noise),
        quality=quality,
        model=model,
        device=device,
        tile=tile,
        threads=threads,
        strength=strength,
        chroma_strength=chroma_strength,
    )
    result: Result = denoise_picture(_as_raw(source, pattern, black, white), options)
    of_file = isinstance(source, str | os.PathLike)
    if return_result:
        return result
    return result.picture.pixels if of_file else _like(source, result.picture.pixels)


def estimate_noise(
    pixels: Any, *, axes: str | None = None, range: tuple[float, float] | None = None
) -> tuple[NoiseProfile, ...]:
    """Measure the noise of an array: one profile per channel; see `denoise` for the parameters."""
    from mdrn_plugin.noise import estimate_channels

    return estimate_channels(_as_picture(pixels, axes, range))


def read(path: str | os.PathLike[str]) -> Picture:
    """Read a picture with its axes, value range and metadata; see `mdrn_plugin.formats.read`."""
    from mdrn_plugin import formats

    return formats.read(path)


def write(path: str | os.PathLike[str], picture: Picture, *, overwrite: bool = False) -> None:
    """Write a picture in the format that the suffix names; see `mdrn_plugin.formats.write`."""
    from mdrn_plugin import formats

    formats.write(path, picture, overwrite=overwrite)


def models() -> tuple[Descriptor, ...]:
    """Return what is known of every model, the user's own last: name, noise band, measured PSNR."""
    from mdrn_plugin.zoo import available

    return available().all()


def train_on(sources: Sequence[Any], name: str, *, minutes: float = 30.0, **options: Any) -> Learnt:
    """Learn a model from noisy pictures alone; see `mdrn_plugin.training.own.train_on`."""
    from mdrn_plugin.training import own

    return own.train_on(sources, name, minutes=minutes, **options)


def _as_picture(pixels: Any, axes: str | None, limits: tuple[float, float] | None) -> Picture:
    import numpy as np

    from mdrn_plugin.errors import BadOption
    from mdrn_plugin.picture import Picture, ValueRange, decide_range

    if axes is None:
        axes = _guess_axes(pixels)
    is_torch = hasattr(pixels, "detach")
    array = pixels.detach().cpu().numpy() if is_torch else np.asarray(pixels)
    if 0 in array.shape:
        raise BadOption(f"pixels: expected at least one pixel, got shape {array.shape}")
    decided = decide_range(array)
    if limits is not None:
        low, high = limits
        if not low < high:
            raise BadOption(f"range {limits}: expected black below white")
        decided = ValueRange(float(low), float(high), "given by the user", given=True)
    picture = Picture(array, axes.upper(), decided)
    return dataclasses.replace(picture, alpha=picture.length("S") in (2, 4))


def _as_raw(
    source: Any, pattern: str | None, black: float | tuple[float, ...] | None, white: float | None
) -> Picture:
    from mdrn_plugin import formats
    from mdrn_plugin.errors import BadOption
    from mdrn_plugin.mosaic import make_mosaic

    if isinstance(source, str | os.PathLike):
        picture = formats.read(source)
        if picture.metadata.format not in ("raw", "dng"):
            raise BadOption(f"{source}: expected a RAW file, got {picture.metadata.format}; use denoise")
        found = picture.mosaic
        if found is None and (pattern is not None or black is not None or white is not None):
            raise BadOption(f"{source}: has no mosaic; leave out pattern, black and white")
        if found is None:
            return picture
        name = pattern or "/".join("".join("RGB"[k] for k in row) for row in found.pattern)
        levels = tuple(b for row in found.black for b in row)
    elif pattern is None:
        raise BadOption("pattern: expected RGGB, BGGR, GRBG, GBRG or X-Trans for a mosaic; give one")
    else:
        picture, found, name, levels = _as_picture(source, "YX", None), None, pattern, (0.0,)
    given = levels if black is None else black
    one = given[0] if isinstance(given, tuple) and len(given) == 1 else given
    mosaic = make_mosaic(
        name,
        black=one,
        white=picture.range.white if white is None else white,
        balance=found.balance if found else None,
        noise=found.noise if found else None,
    )
    limits = dataclasses.replace(picture.range, black=mosaic.floor, white=mosaic.white, given=True)
    return dataclasses.replace(picture, range=limits, mosaic=mosaic)


def _guess_axes(pixels: Any) -> str:
    from mdrn_plugin.errors import BadOption
    from mdrn_plugin.picture import AXES

    shape = tuple(pixels.shape)
    dims = getattr(pixels, "dims", None)
    if dims is not None and all(len(str(d)) == 1 and str(d).upper() in AXES for d in dims):
        return "".join(str(d).upper() for d in dims)
    colour = len(shape) >= 3 and shape[-1] in (3, 4)
    by_length = ("YX", "ZYX", "TZYX", "TZCYX")
    count = len(shape) - (1 if colour else 0)
    if not 2 <= count <= 5:
        raise BadOption(f"pixels: expected 2 to 6 dimensions, got shape {shape}; give axes")
    return by_length[count - 2] + ("S" if colour else "")


def _like(original: Any, pixels: Any) -> Any:
    if hasattr(original, "detach"):
        import torch

        return torch.from_numpy(pixels).to(original.device)
    if hasattr(original, "dims") and hasattr(original, "copy"):
        return original.copy(data=pixels)
    return pixels
