"""What ``mdrn-batch`` has for RAW files: their options, and what `info` says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import Picture


def chroma_option(command: Any) -> Any:
    """Add to a command the strength for the colour noise of RAW files."""
    return click.option(
        "--chroma-strength",
        type=click.FloatRange(0, 1),
        metavar="0..1",
        help="The same for the colour noise of RAW files.  [default: as --strength]",
    )(command)


def output_option(command: Any) -> Any:
    """Add to a command what becomes of RAW files."""
    return click.option(
        "--raw-output",
        type=click.Choice(["dng", "tiff", "jpeg"]),
        default="dng",
        show_default=True,
        help="What RAW files become: undeveloped DNG, or developed with the camera's white balance, "
        "16-bit TIFF or JPEG. --format has precedence.",
    )(command)


def facts(picture: Picture) -> dict[str, Any] | None:
    """Return what a RAW file says, for JSON; None of other files."""
    from mdrn_plugin.formats.raw import RawMetadata

    about = picture.metadata
    if not isinstance(about, RawMetadata):
        return None
    mosaic = picture.mosaic
    return {
        "camera": about.camera,
        "iso": about.iso,
        "exposure_s": about.exposure_s,
        "aperture": about.aperture,
        "focal_mm": about.focal_mm,
        "lens": about.lens,
        "date": about.date,
        "orientation": about.orientation,
        "pattern": mosaic.name if mosaic else None,
        "black": mosaic.black if mosaic else about.levels[: picture.colours],
        "white": picture.range.white,
        "white_balance": about.balance,
        "noise_profile": about.noise,
    }


def told_once(profile: NoiseProfile) -> NoiseProfile:
    """Return a profile whose samples all say the same with one of them."""
    if len(set(profile.sigma)) == 1 and len(set(profile.curves)) <= 1:
        return dataclasses.replace(profile, sigma=profile.sigma[:1], curves=profile.curves[:1])
    return profile


def lines(picture: Picture) -> Iterator[str]:
    """Yield what `info` shows of a RAW file."""
    from mdrn_plugin.formats.raw import RawMetadata

    about = picture.metadata
    if not isinstance(about, RawMetadata):
        return
    yield f"camera   {about.camera or 'not in the file'}{f', {about.lens}' if about.lens else ''}"
    shot = [f"ISO {about.iso:g}" if about.iso else "ISO not in the file"]
    if about.exposure_s:
        shot.append(
            f"1/{1 / about.exposure_s:.0f} s" if about.exposure_s < 0.3 else f"{about.exposure_s:g} s"
        )
    shot += [f"f/{about.aperture:g}"] if about.aperture else []
    shot += [f"{about.focal_mm:g} mm"] if about.focal_mm else []
    yield f"exposure {', '.join(shot)}{f', {about.date}' if about.date else ''}"
    kind = (
        picture.mosaic.name if picture.mosaic else ("linear" if picture.colours == 3 else "no colour filters")
    )
    levels = picture.mosaic.black if picture.mosaic else (about.levels[: picture.colours],)
    different = sorted({b for row in levels for b in row})
    black = "/".join(f"{b:g}" for b in different)
    balance = "not in the file"
    if about.balance:
        balance = " ".join(f"{b:.3f}" for b in about.balance)
    yield f"sensor   {kind}, black {black}, white {picture.range.white:g}, white balance {balance}"
    told = "none in the file: measured"
    if about.noise:
        a, b = about.noise[len(about.noise) // 2]
        told = f"in the file: variance {a:.3g} * signal + {b:.3g}, signal 0..1"
    yield f"profile  {told}"
