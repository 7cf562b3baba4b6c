"""A paired RAW set with modelled noise, written for others to train and measure on.

    OUT/00001_noisy.npy   float32 (H, W): the mosaic as the sensor delivers it, 0 black level, 1 white
    OUT/00001_clean.npy   float32 (H, W): the same without noise
    OUT/set.json          for each pair: pattern, noise line, camera, source picture, seeds
    OUT/SOURCES.txt       every source picture, and the licence texts found beside them

The noise is Poisson-Gaussian, variance = gain · signal + offset, with gain and offset on lines that
were calibrated on real sensors (`camera.LINES`), row noise and quantisation as asked for.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes

from .camera import (
    LINES,
    XYZ_TO_CAMERA,
    Cameras,
    add_sensor_noise,
    draw_cameras,
    draw_noise,
    mid_grey_sigma_255,
    unprocess,
)
from .data import whole_pictures
from .mosaic import PATTERNS, mosaic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .data import Pack

FORMAT = 1
_LICENCE_FILES = ("licen", "readme", "sources", "copying", "attribution")


@dataclasses.dataclass(frozen=True, slots=True)
class RawSet:
    """What the set is like.

    Attributes
    ----------
    sigma_255 : pair of float
        Lowest and highest noise at mid grey, 0..255; drawn evenly in its logarithm.
    patterns : tuple of str
        Keys of `mosaic.PATTERNS`, taken in turn.
    lines : tuple of str
        Keys of `camera.LINES`.
    size : int
        px, side of the crop from the middle of each picture; 0: whole.
    bits : int
        Of the converter; 0: not quantised.
    row_share : float
        Share of the read variance that the pixels of a row have in common.
    seed : int
    """

    sigma_255: tuple[float, float] = (0.5, 25.0)
    patterns: tuple[str, ...] = ("RGGB", "BGGR", "GRBG", "GBRG")
    lines: tuple[str, ...] = ("dnd", "sidd")
    size: int = 0
    bits: int = 14
    row_share: float = 0.0
    seed: int = 1


def make_set(pack: Pack, folder: Path, options: RawSet, count: int = 0, licences: str = "") -> int:
    """Write the set and return the number of pairs.

    Parameters
    ----------
    pack : Pack
        Clean sRGB pictures.
    folder : Path
        Where to; made if it is missing.
    options : RawSet
        What kind.
    count : int
        How many; 0: one pair of every picture, more: the pictures come again with other noise.
    licences : str
        Text for SOURCES.txt.

    Raises
    ------
    BadOption
        An unknown pattern or line, or a range of noise that is none.
    """
    _check(options)
    folder.mkdir(parents=True, exist_ok=True)
    count = count or len(pack.entries)
    pairs = [_write_pair(pack, folder, options, k) for k in range(count)]
    about = {
        "format": FORMAT,
        "values": "float32, 0 black level, 1 white level, linear; variance = gain * signal + offset",
        "lines": {k: dataclasses.asdict(LINES[k]) for k in options.lines},
        "xyz_to_camera": XYZ_TO_CAMERA,
        "options": dataclasses.asdict(options),
        "pairs": pairs,
    }
    write_bytes(folder / "set.json", (json.dumps(about, indent=1) + "\n").encode())
    names = sorted({pair["source"] for pair in pairs})
    text = "The pairs were made from these pictures, whose licences they inherit:\n\n" + "\n".join(names)
    write_bytes(folder / "SOURCES.txt", (text + "\n\n" + (licences or "(no licence text given)\n")).encode())
    return count


def find_licences(folder: Path) -> str:
    """Return the licence and source texts that lie in a folder of pictures and directly below it."""
    found = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        is_text = path.suffix.lower() in ("", ".txt", ".md", ".rst", ".json", ".csv")
        if path.is_file() and is_text and path.name.lower().startswith(_LICENCE_FILES):
            text = path.read_text(encoding="utf-8", errors="replace")
            found.append(f"---- {path.relative_to(folder).as_posix()} ----\n\n{text.rstrip()}\n")
    return "\n".join(found)


def _check(options: RawSet) -> None:
    for what, given, known in (("pattern", options.patterns, PATTERNS), ("line", options.lines, LINES)):
        wrong = [name for name in given if name not in known]
        if wrong or not given:
            raise BadOption(f"{what} {', '.join(wrong) or 'none'}: expected {', '.join(known)}")
    low, high = options.sigma_255
    if not 0 < low <= high:
        raise BadOption(f"sigma {low:g} to {high:g}: expected two levels above 0, the lower first")


def _write_pair(pack: Pack, folder: Path, options: RawSet, k: int) -> dict[str, Any]:
    index = k % len(pack.entries)
    picture = _cropped(whole_pictures(pack, [index], 3, 2)[0], options.size)
    seed = options.seed * 1_000_003 + k
    generator = torch.Generator().manual_seed(seed)
    cameras = draw_cameras(1, generator)
    low, high = np.log(options.sigma_255)
    sigma = torch.exp(low + (high - low) * torch.rand(1, generator=generator))
    gain, offset = (float(v) for v in draw_noise(sigma.float(), generator, options.lines))
    pattern = options.patterns[k % len(options.patterns)]
    clean = mosaic(unprocess(picture[None], cameras), pattern)[0]
    noisy = add_sensor_noise(clean, gain, offset, generator, row_share=options.row_share, bits=options.bits)
    name = f"{k + 1:05d}"
    for kind, pixels in (("noisy", noisy), ("clean", clean)):
        write_bytes(folder / f"{name}_{kind}.npy", _npy(pixels[0]))
    level = mid_grey_sigma_255(torch.tensor(gain), torch.tensor(offset))
    return {
        "name": name,
        "source": pack.entries[index].name,
        "pattern": pattern,
        "tile": PATTERNS[pattern],
        "gain": gain,
        "offset": offset,
        "mid_grey_sigma_255": float(level),
        "camera": _camera_facts(cameras),
        "seed": seed,
    }


def _camera_facts(cameras: Cameras) -> dict[str, Any]:
    return {
        "srgb_to_camera": cameras.to_camera[0].tolist(),
        "white_balance": [float(cameras.red[0]), 1.0, float(cameras.blue[0])],
        "exposure": float(cameras.exposure[0]),
        "tone_curve": bool(cameras.toned[0]),
    }


def _cropped(x_CHW: torch.Tensor, size: int) -> torch.Tensor:
    height, width = (min(n, size or n) for n in x_CHW.shape[-2:])
    top, left = (x_CHW.shape[-2] - height) // 2, (x_CHW.shape[-1] - width) // 2
    return x_CHW[..., top : top + height, left : left + width]


def _npy(x_HW: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, x_HW.contiguous().numpy())
    return file.getvalue()


def load_pair(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (noisy, clean) of a set, float32 of shape (1, 1, H, W)."""
    kinds: Sequence[str] = ("noisy", "clean")
    noisy, clean = (torch.from_numpy(np.load(folder / f"{name}_{kind}.npy")) for kind in kinds)
    return noisy[None, None], clean[None, None]
