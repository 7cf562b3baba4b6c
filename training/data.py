"""Clean pictures for training: decoded once into a memory-mapped pack, cropped at random.

A pack is two files: ``pixels.u8`` (all pictures behind each other, uint8, row by row, samples
interleaved) and ``pack.json`` (name, height, width, samples and offset of each; the pictures left out).
Pictures of the test sets never get into a pack (`training.testsets`): what has seen them proves nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.files import write_atomic, write_bytes

from .fluorescence import draw_scene
from .testsets import find_test_set
from .textures import draw_texture

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

# Rec. 601 luma, the conversion behind the gray test sets (BSD68 is the gray form of CBSD68).
LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a pack."""

    name: str  # path relative to the data folder, with forward slashes
    height: int  # px
    width: int  # px
    samples: int  # 1 gray, 3 RGB
    offset: int  # bytes from the start of pixels.u8


@dataclasses.dataclass(frozen=True, slots=True)
class Pack:
    """Decoded pictures, memory-mapped."""

    entries: tuple[Entry, ...]
    pixels: NDArray[np.uint8]  # one dimension
    digest: str  # identifies the list of files the pack was made from
    folder: Path  # where the two files lie
    left_out: tuple[str, ...] = ()  # names of pictures of the test sets, with the set's name

    def crop(self, index: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return rows and columns of one picture, shape (height, width, samples)."""
        e = self.entries[index]
        size = e.height * e.width * e.samples
        image = self.pixels[e.offset : e.offset + size].reshape(e.height, e.width, e.samples)
        return image[top : top + height, left : left + width]

    def select(self, folder: str) -> tuple[list[int], list[int]]:
        """Split the indices into (inside `folder`, outside it)."""
        inside = [i for i, e in enumerate(self.entries) if folder in Path(e.name).parts[:-1]]
        chosen = set(inside)
        return inside, [i for i in range(len(self.entries)) if i not in chosen]


def find_pictures(folder: Path) -> list[Path]:
    """Return all picture files below `folder`, sorted by name.

    Raises
    ------
    BadOption
        The folder is missing or has no picture.
    """
    if not folder.is_dir():
        raise BadOption(f"{folder}: expected a folder of training pictures, got none; check --data")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise BadOption(f"{folder}: expected pictures ({', '.join(sorted(SUFFIXES))}), found none")
    return files


def open_pack(folder: Path, cache: Path) -> Pack:
    """Return the pack of `folder`, made in `cache` if it is missing or out of date.

    `folder` may also be a pack itself (a folder with pack.json), which needs no decoder.

    Raises
    ------
    BadOption
        No pictures, or none but those of the test sets.
    CannotRead
        A picture cannot be decoded, or the pack is damaged or of an older version.
    """
    if (folder / "pack.json").is_file():
        if not _is_checked(folder):
            raise CannotRead(
                f"{folder}: expected a pack without pictures of the test sets, got one that was never "
                "looked through for them; make it again with mdrn-train data"
            )
        return _load_pack(folder)
    files = find_pictures(folder)
    digest = _digest(folder, files)
    target = cache / digest[:16]
    if not _is_checked(target):
        target.mkdir(parents=True, exist_ok=True)
        _write_pack(folder, files, digest, target)
    return _load_pack(target)


def _is_checked(folder: Path) -> bool:
    """Tell whether there is a pack, and one whose pictures were compared with the test sets."""
    index = folder / "pack.json"
    return index.is_file() and "left_out" in json.loads(index.read_text())


def _digest(folder: Path, files: Iterable[Path]) -> str:
    text = "\n".join(f"{p.relative_to(folder).as_posix()} {p.stat().st_size}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_pack(folder: Path, files: list[Path], digest: str, target: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    entries: list[Entry] = []
    left_out: list[str] = []
    offset = 0
    with write_atomic(target / "pixels.u8") as out:
        for path in files:
            try:
                with Image.open(path) as image:
                    test_set = find_test_set(image)
                    gray = image.mode in ("L", "1", "I", "I;16", "F")
                    pixels = np.asarray(image.convert("L" if gray else "RGB"))
            except (OSError, UnidentifiedImageError) as error:
                raise CannotRead(f"{path}: cannot be decoded ({error}); remove it from the data") from error
            name = path.relative_to(folder).as_posix()
            if test_set is not None:
                left_out.append(f"{name} ({test_set})")
                continue
            pixels = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
            entries.append(Entry(name, *pixels.shape, offset))
            offset += pixels.size
            out.write(np.ascontiguousarray(pixels).data)
    if not entries:
        raise BadOption(f"{folder}: expected pictures to train on, found only those of the test sets")
    if left_out:  # other pictures than the list of files says
        digest = hashlib.sha256("\n".join([digest, *left_out]).encode()).hexdigest()
    index = {
        "digest": digest,
        "entries": [dataclasses.astuple(e) for e in entries],
        "left_out": left_out,
    }
    write_bytes(target / "pack.json", json.dumps(index).encode())


def _load_pack(folder: Path) -> Pack:
    index = json.loads((folder / "pack.json").read_text())
    entries = tuple(Entry(*row) for row in index["entries"])
    pixels: NDArray[np.uint8] = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r")
    expected = max(e.offset + e.height * e.width * e.samples for e in entries)
    if pixels.size != expected:
        raise CannotRead(
            f"{folder}: expected {expected} bytes of pixels, got {pixels.size}; delete the folder"
        )
    return Pack(entries, pixels, index["digest"], folder, tuple(index["left_out"]))


@dataclasses.dataclass(frozen=True, slots=True)
class CropRules:
    """How training patches are cut out of a pack."""

    patch: int = 64  # px, side of a patch
    colours: int = 1  # 1 gray, 3 RGB
    rescale: tuple[float, float] = (0.6, 1.0)  # random downscale of large pictures
    rescale_above_px: int = 500_000  # pictures with fewer pixels are taken as they are
    shuffle_colours: bool = False  # random order of R, G, B
    smooth: float = 0.0  # share of the patches that are smooth and dark, as a microscope's pictures are
    fluorescence: float = 0.0  # share of drawn scenes, see `training.fluorescence`
    textures: float = 0.0  # share of photographs with a drawn texture in them, see `training.textures`

    def __post_init__(self) -> None:
        shares = (self.smooth, self.fluorescence, self.textures)
        if min(shares) < 0 or sum(shares) > 1:
            raise BadOption(
                f"smooth {self.smooth:g}, fluorescence {self.fluorescence:g} and textures {self.textures:g}: "
                "expected shares of at most 1 together; mend the recipe"
            )


# What makes a patch smooth: pictures as wide as this many patches, made so many times smaller than the
# patch, enlarged to it, and darkened by an exponent.
_WIDE, _SMALLER, _DARKER = (1.0, 3.0), (1.5, 6.0), (1.0, 3.0)


class Crops:
    """Random patches; the batch of a step is a function of (seed, step) and of nothing else.

    That is what makes a resumed run equal to an unbroken one. A picture is drawn with a
    probability proportional to the square root of its pixels, so that large photographs give more
    patches than small ones without drowning them.
    """

    def __init__(self, pack: Pack, indices: list[int], rules: CropRules, seed: int) -> None:
        smallest = rules.patch
        self._indices = [i for i in indices if min(pack.entries[i].height, pack.entries[i].width) >= smallest]
        if not self._indices:
            raise BadOption(f"no training picture of at least {smallest}x{smallest} pixels; check --data")
        sizes = [pack.entries[i].height * pack.entries[i].width for i in self._indices]
        weights = np.sqrt(np.array(sizes, float))
        self._probability = weights / weights.sum()
        self._pack = pack
        self._rules = rules
        self._seed = seed

    def batch(self, step: int, size: int, share: slice = slice(None)) -> Tensor:
        """Return the clean patches of a step, or a share of them: float32 NCHW, 0..1."""
        rng = np.random.default_rng((self._seed, step))
        chosen = rng.choice(len(self._indices), size, p=self._probability)
        # A stream for each place in the batch: a share needs no other share's numbers.
        patches = [
            self._patch(np.random.default_rng((self._seed, step, k)), self._indices[int(chosen[k])])
            for k in range(size)[share]
        ]
        return torch.stack(patches)

    def _patch(self, rng: np.random.Generator, index: int) -> Tensor:
        rules, e = self._rules, self._pack.entries[index]
        draw = 1.0
        if rules.smooth or rules.fluorescence or rules.textures:
            draw = rng.random()
            if draw < rules.smooth:
                return dihedral(self._smooth(rng, index), int(rng.integers(8)))
            if draw < rules.smooth + rules.fluorescence:
                scene = torch.from_numpy(draw_scene(rng, rules.patch)).float()
                return scene.expand(rules.colours, -1, -1).contiguous()
        scale = 1.0
        if e.height * e.width > rules.rescale_above_px:
            scale = rng.uniform(*rules.rescale)
        side = min(math.ceil(rules.patch / scale), e.height, e.width)
        top = int(rng.integers(e.height - side + 1))
        left = int(rng.integers(e.width - side + 1))
        patch = _to_tensor(self._pack.crop(index, top, left, side, side), rules.colours)
        if side != rules.patch:
            patch = _resized(patch, rules.patch)
        patch = dihedral(patch, int(rng.integers(8)))
        if rules.shuffle_colours and rules.colours == 3:
            patch = patch[torch.from_numpy(rng.permutation(3))]
        if draw < rules.smooth + rules.fluorescence + rules.textures:
            patch = torch.from_numpy(draw_texture(rng, patch.numpy()))
        return patch

    def _smooth(self, rng: np.random.Generator, index: int) -> Tensor:
        """Return a patch without fine detail, mostly dark, as optics and few photons make it.

        The picture is made smaller first, which takes its own noise away.
        """
        rules, e = self._rules, self._pack.entries[index]
        side = min(int(rules.patch * rng.uniform(*_WIDE)), e.height, e.width)
        top = int(rng.integers(e.height - side + 1))
        left = int(rng.integers(e.width - side + 1))
        patch = _to_tensor(self._pack.crop(index, top, left, side, side), rules.colours)
        small = round(rules.patch / math.exp(rng.uniform(*np.log(_SMALLER))))
        patch = _resized(_resized(patch, small), rules.patch)
        return patch ** rng.uniform(*_DARKER)


def _resized(x_CHW: Tensor, side: int) -> Tensor:
    out = functional.interpolate(
        x_CHW[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return out[0].clamp_(0, 1)


def dihedral(x_CHW: Tensor, k: int) -> Tensor:
    """Return the k-th of the eight rotations and reflections of a square picture."""
    x_CHW = torch.rot90(x_CHW, k % 4, (-2, -1))
    return x_CHW.flip(-1) if k >= 4 else x_CHW


def inverse_dihedral(x_CHW: Tensor, k: int) -> Tensor:
    """Undo `dihedral`."""
    return torch.rot90(x_CHW.flip(-1) if k >= 4 else x_CHW, -(k % 4), (-2, -1))


def whole_pictures(pack: Pack, indices: list[int], colours: int, multiple: int) -> list[Tensor]:
    """Return pictures whole, cut at the right and below to a multiple of `multiple` pixels.

    Each is float32 of shape (colours, height, width), 0..1.
    """
    pictures = []
    for i in indices:
        e = pack.entries[i]
        height, width = e.height // multiple * multiple, e.width // multiple * multiple
        if height and width:
            pictures.append(_to_tensor(pack.crop(i, 0, 0, height, width), colours))
    return pictures


def _to_tensor(pixels_HWC: NDArray[np.uint8], colours: int) -> Tensor:
    x_CHW = torch.from_numpy(np.array(pixels_HWC.transpose(2, 0, 1), order="C")).float().div_(255)
    if colours == 1 and x_CHW.shape[0] == 3:
        x_CHW = (x_CHW * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    elif colours == 3 and x_CHW.shape[0] == 1:
        x_CHW = x_CHW.expand(3, -1, -1)
    return x_CHW
