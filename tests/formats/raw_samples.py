"""Small RAW pictures of every kind of sensor, from a synthetic scene, and DNG files of them."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mdrn_plugin import formats
from mdrn_plugin.formats.ifd import EXIF_IFD, Directory, Entry
from mdrn_plugin.formats.raw import RawMetadata
from mdrn_plugin.formats.raw_tags import Tags
from mdrn_plugin.mosaic import make_mosaic
from mdrn_plugin.picture import Picture, ValueRange

BAYER = ("RGGB", "BGGR", "GRBG", "GBRG")
KINDS = (*BAYER, "X-Trans", "mono", "linear")
BALANCE = (2.0, 1.0, 1.6)
WHITE = 15000.0
# A camera whose colours are nearly those of sRGB, D65.
MATRIX = (0.9, -0.25, -0.1, -0.45, 1.25, 0.2, -0.05, 0.2, 0.6)


def scene(height: int = 96, width: int = 132, seed: int = 5) -> Any:
    """Return smooth coloured light as a camera sees it, 0..1, float, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = np.zeros((height, width, 3))
    for k in range(3):
        for _ in range(4):
            a, b, c = *rng.uniform(-9, 9, 2), rng.uniform(0, 6)
            light[..., k] += np.sin(a * x + b * y + c)
    light = (light - light.min()) / (light.max() - light.min())
    disk = (y - 0.35) ** 2 + (x - 0.5) ** 2 < 0.03
    light[disk] = 0.75 * light[disk] + 0.2
    return (0.04 + 0.8 * light) / np.array(BALANCE)


def exif(order: str = "<") -> Directory:
    """Return main directory entries and EXIF as cameras write them."""
    shot = (
        Entry(33434, 5, 1, struct.pack(order + "2I", 1, 250)),
        Entry(33437, 5, 1, struct.pack(order + "2I", 28, 10)),
        Entry.of(34855, 3, [1600], order),
        Entry.raw(36867, 2, b"2024:05:06 07:08:09"),
        Entry(37386, 5, 1, struct.pack(order + "2I", 35, 1)),
        Entry.raw(42036, 2, b"Lens 35mm F2"),
    )
    main = (
        Entry.raw(271, 2, b"Maker"),
        Entry.raw(272, 2, b"Maker One"),
        Entry.raw(305, 2, b"Firmware 2"),
        Entry.raw(306, 2, b"2024:05:06 07:08:09"),
    )
    return Directory(main, ((EXIF_IFD, Directory(shot)),))


def raw_picture(
    kind: str = "RGGB",
    *,
    size: tuple[int, int] = (96, 132),
    noise: tuple[float, float] | None = None,
    told: tuple[float, float] | None = None,
    orientation: int = 1,
    blacks: tuple[float, ...] = (512.0,),
    seed: int = 1,
) -> Picture:
    """Return a RAW picture; `noise` is gain and offset of its variance, signal 0..1, `told` what it says."""
    light = scene(*size)
    common = {
        "format": "raw",
        "tags": Tags(exif()),
        "make": "Maker",
        "model": "Maker One",
        "orientation": orientation,
        "crop": (0, 0, size[1], size[0]),
        "balance": BALANCE,
        "matrices": ((21, MATRIX),),
        "noise": (told,) * 3 if told else None,
        "levels": (blacks[0],) * 3,
    }
    metadata = RawMetadata(**common)  # type: ignore[arg-type]
    black = blacks[0]
    mosaic = None
    values: Any = light
    if kind == "mono":
        values = light[..., 1]
        metadata = dataclasses.replace(metadata, matrices=(), balance=None)
    elif kind != "linear":
        count = 4 if kind in BAYER else 36
        levels = blacks * count if len(blacks) == 1 else blacks
        mosaic = make_mosaic(
            kind, black=levels, white=WHITE, balance=BALANCE, noise=(told,) * 3 if told else None
        )
        colours = mosaic.colours_at(0, 0, *size)
        values = np.take_along_axis(light, colours[..., None], 2)[..., 0]
        black = mosaic.blacks_at(0, 0, *size)
    if noise is not None:
        rng = np.random.default_rng(seed)
        values = values + np.sqrt(noise[0] * values + noise[1]) * rng.normal(size=values.shape)
    pixels = np.clip(np.rint(black + values * (WHITE - black)), 0, 65535).astype(np.uint16)
    floor = mosaic.floor if mosaic is not None else float(blacks[0])
    return Picture(
        pixels, "YXS" if kind == "linear" else "YX", ValueRange(floor, WHITE, "made"), False, metadata, mosaic
    )


def write_dng(path: Path, kind: str = "RGGB", **wishes: Any) -> Picture:
    """Write a DNG and return what is in it."""
    picture = raw_picture(kind, **wishes)
    formats.write(path, picture)
    return picture
