"""Writing DNG 1.4: the sensor's pixels in a sub-directory, a fresh preview in front.

Sections named below are those of Adobe's "Digital Negative (DNG) Specification", version 1.4.0.0.
Tags of a DNG that was read are copied as they are, but for what describes pixels that are no longer
there; of other RAW files camera, exposure and place are kept.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import CannotHold
from mdrn_plugin.formats import ifd, ljpeg, segments
from mdrn_plugin.formats.ifd import SUB_IFDS, Directory, Entry
from mdrn_plugin.formats.raw import D65, RawMetadata, black_table, read_open, visible_rows
from mdrn_plugin.formats.rendering import preview

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture

_TILE_PX = 512  # a power of two, as most readers expect; 24 megapixels are 96 of them
_LEAST_PX = 22  # LibRaw takes smaller pictures for damage
_LIMIT_BYTES = 2**32 - 2**25  # DNG 1.4 is classic TIFF
_CFA, _LINEAR, _YCBCR = 32803, 34892, 6
_JPEG = 7
_PREVIEW_QUALITY = 90
_VERSION = (1, 4, 0, 0)
# Lossless JPEG needs 1.1 (section "Compression"); opcode lists need 1.3 ("OpcodeList1").
_BACKWARD, _BACKWARD_OPCODES = (1, 1, 0, 0), (1, 3, 0, 0)

# XYZ (D65) to linear sRGB, IEC 61966-2-1: stands for the camera's own matrix where the file has none.
_SRGB = (
    3.2404542,
    -1.5371385,
    -0.4985314,
    -0.9692660,
    1.8760108,
    0.0415560,
    0.0556434,
    -0.2040259,
    1.0572252,
)

# Of the first directory of a DNG, not copied: they describe other previews, digests or the old file's
# layout, or are written anew.
_MAIN_GONE = segments.STRUCTURE | {254, 255, 271, 272, 274, 305, 330, 50706, 50707, 50708}
_MAIN_GONE |= {50827, 50828, 50933, 50966, 50967, 50968, 50969, 50970, 50971, 50972, 50781, 51111}
_MAIN_GONE |= {33421, 33422}
# Tags of the raw directory that keep their meaning while the visible area does ("Raw IFD" tags of
# the specification): BlackLevel*, WhiteLevel, DefaultScale, DefaultCrop*, BayerGreenSplit,
# AntiAliasStrength, ChromaBlurRadius, BestQualityScale, opcodes behind the linearisation,
# DefaultUserCrop. Without: LinearizationTable (the decoder has applied it), MaskedAreas, OpcodeList1
# (its coordinates count masked pixels).
_RAW_KEPT = frozenset({50713, 50714, 50715, 50716, 50717, 50718, 50719, 50720, 50733, 50738, 50737, 50780})
_RAW_KEPT |= {51009, 51022, 51125}
_OF_PIXELS = frozenset({33421, 33422, 50710, 50711, 50712, 50829, 50830, 51008, 51041, 50935})
# Standard deviation that is left of the noise where the strength is 1, as a share: on flat areas 0.10 at
# strong noise (gain of the variance 0.02), 0.14 at 0.004, 0.25 to 0.30 at 0.0005.
LEFT_SHARE = 0.2


def check(name: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], metadata: Any) -> None:
    """Raise `CannotHold` for what is no RAW picture."""
    if not isinstance(metadata, RawMetadata):
        raise CannotHold(f"{name}: DNG holds the pixels of a RAW file only; write TIFF or PNG")
    if dtype != np.uint16 or axes not in ("YX", "YXS"):
        raise CannotHold(f"{name}: DNG holds 16-bit sensor data (YX or YXS), got {dtype} with axes {axes}")
    if min(shape[:2]) < _LEAST_PX:
        raise CannotHold(
            f"{name}: expected at least {_LEAST_PX} pixels a side in a DNG, got {shape}; write TIFF"
        )
    if math.prod(shape) * 2 > _LIMIT_BYTES:
        raise CannotHold(f"{name}: DNG holds at most 4 GB, got {shape}; write TIFF")


def write(file: BinaryIO, picture: Picture, provenance: str | None) -> None:
    """Write a RAW picture to an empty file.

    Parameters
    ----------
    file : binary file
        Seekable.
    picture : Picture
        uint16, with `RawMetadata`; YX with or without a mosaic, or YXS.
    provenance : str, optional
        Goes behind what Software says.

    Notes
    -----
    Pixels that were denoised say so in NoiseReductionApplied, and in NoiseProfile what is left.
    """
    metadata = picture.metadata
    assert isinstance(metadata, RawMetadata)
    order = metadata.tags.order
    file.write(ifd.header(order, 0, big=False))
    small = preview(picture)
    coded = _preview_jpeg(small)
    offset_of_preview = file.tell()
    file.write(coded + b"\0" * (len(coded) % 2))
    digest = hashlib.sha256()
    offsets, counts = [], []
    rows = visible_rows(picture)
    side = _tile_width(rows.shape[1])
    for tile in _tiles(rows, side, picture.mosaic is not None):
        data = ljpeg.encode(tile)
        digest.update(data)
        offsets.append(file.tell())
        counts.append(len(data))
        file.write(data + b"\0" * (len(data) % 2))
    raw = Directory(tuple(_raw_entries(picture, metadata, order, offsets, counts)))
    at_raw = file.tell()
    packed = ifd.pack(raw, at_raw, order, big=False)
    file.write(packed + b"\0" * (len(packed) % 2))
    at_main = file.tell()
    main = _main(picture, metadata, order, provenance, digest.digest()[:16])
    structure = _preview_entries(small.shape, order, offset_of_preview, len(coded))
    main = main.replace(*structure, Entry.of(SUB_IFDS, 4, [at_raw], order))
    file.write(ifd.pack(main, at_main, order, big=False))
    if file.tell() > 2**32 - 1:
        raise CannotHold("DNG holds at most 4 GB; write TIFF")
    file.seek(0)
    file.write(ifd.header(order, at_main, big=False))
    file.seek(0, io.SEEK_END)


def verify(part: Path, picture: Picture) -> None:
    """Decode a finished file and compare: pixels, pattern, black, white.

    Raises
    ------
    ValueError
        Something is not as it was meant.
    """
    with open(part, "rb") as file:
        back = read_open(part.name, file, max(1, math.prod(picture.shape)))
    if back.axes != picture.axes or not np.array_equal(np.asarray(back.pixels), np.asarray(picture.pixels)):
        raise ValueError("decodes to other pixel values than were written")
    one, other = back.mosaic, picture.mosaic
    if (one is None) != (other is None) or (one and other and one.pattern != other.pattern):
        raise ValueError("decodes to another pattern of colour filters than was written")
    if one is not None and other is not None:
        blacks = np.abs(np.array(one.black) - np.array(other.black)).max()
        if blacks > 1e-3 or one.white != other.white:
            raise ValueError("decodes to other levels of black and white than were written")


# --- pixels -----------------------------------------------------------------------------------------


def _tile_width(width: int) -> int:
    """Return the width of tiles: LibRaw breaks lines where the picture ends if one tile is wider than it."""
    return min(_TILE_PX, width // 16 * 16)


def _tiles(rows_HWS: NDArray[Any], side: int, mosaic: bool) -> Iterable[NDArray[np.uint16]]:
    """Yield tiles as the encoder wants them, the last ones filled up by repeating the edge."""
    height, width = rows_HWS.shape[:2]
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, side):
            tile = rows_HWS[top : top + _TILE_PX, left : left + side]
            down, across = _TILE_PX - tile.shape[0], side - tile.shape[1]
            if down or across:
                tile = np.pad(tile, ((0, down), (0, across), (0, 0)), mode="edge")
            # Two components per row: the left neighbour of the same colour (section "Compression").
            yield tile.reshape(_TILE_PX, side // 2, 2) if mosaic else tile


def _preview_jpeg(small: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    coded = io.BytesIO()
    Image.fromarray(small).save(coded, "JPEG", quality=_PREVIEW_QUALITY, subsampling=0)
    return coded.getvalue()


# --- tags -------------------------------------------------------------------------------------------


def _preview_entries(shape: tuple[int, ...], order: str, offset: int, count: int) -> list[Entry]:
    """Return the structure of the first directory: a JPEG of YCbCr (section "Preview Images")."""
    height, width = shape[:2]
    levels = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
    return [
        Entry.of(254, 4, [1], order),  # NewSubFileType: preview
        Entry.of(256, 4, [width], order),
        Entry.of(257, 4, [height], order),
        Entry.of(258, 3, [8, 8, 8], order),
        Entry.of(259, 3, [_JPEG], order),
        Entry.of(262, 3, [_YCBCR], order),
        Entry.of(273, 4, [offset], order),
        Entry.of(277, 3, [3], order),
        Entry.of(278, 4, [height], order),
        Entry.of(279, 4, [count], order),
        Entry.of(284, 3, [1], order),
        Entry.of(530, 3, [1, 1], order),
        Entry.of(531, 3, [1], order),
        Entry(532, 5, 6, struct.pack(f"{order}12I", *levels)),
        Entry.of(50970, 4, [2], order),  # PreviewColorSpace: sRGB
    ]


def _main(
    picture: Picture, metadata: RawMetadata, order: str, provenance: str | None, identity: bytes
) -> Directory:
    tags = metadata.tags
    base = tags.main.without(_MAIN_GONE | _OF_PIXELS | (_RAW_KEPT if tags.dng else frozenset()))
    version, backward = _versions(metadata)
    own = [
        Entry.raw(271, 2, metadata.make.encode() or b"Unknown"),
        Entry.raw(272, 2, metadata.model.encode() or b"Unknown"),
        Entry.of(274, 3, [metadata.orientation], order),
        Entry.raw(50706, 1, bytes(version)),
        Entry.raw(50707, 1, bytes(backward)),
        Entry.raw(50708, 2, tags.text(50708).encode() or metadata.camera.encode() or b"Unknown camera"),
        Entry.raw(50781, 1, identity),  # RawDataUniqueID: these are other pixels than before
        Entry.raw(50966, 2, b"mdrn-plugin"),
    ]
    software = tags.text(305)
    if provenance:
        software = ifd.joined_software(software, provenance)
    if software:
        own.append(Entry.raw(305, 2, software.encode()))
    if metadata.xmp and base.get(700) is None:
        own.append(Entry.raw(700, 1, metadata.xmp))
    if not tags.dng or not metadata.matrices:
        own += _colour_entries(picture, metadata, order)
    return base.replace(*own)


def _colour_entries(picture: Picture, metadata: RawMetadata, order: str) -> list[Entry]:
    """Return ColorMatrix1 and AsShotNeutral; nothing of a sensor without colours ("ColorMatrix1")."""
    if picture.mosaic is None and "S" not in picture.axes:
        return []
    matrices = metadata.matrices or ((D65, _SRGB),)
    entries = []
    for (illuminant, values), tag, light in zip(matrices, (50721, 50722), (50778, 50779), strict=False):
        entries.append(_signed_rationals(tag, values, order))
        entries.append(Entry.of(light, 3, [illuminant or D65], order))
    if metadata.balance is not None:
        entries.append(_rationals(50728, [1 / v for v in metadata.balance], order))
    return entries


def _versions(metadata: RawMetadata) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tags = metadata.tags
    opcodes = any(tags.raw.get(t) is not None for t in (51009, 51022))
    backward = _BACKWARD_OPCODES if opcodes else _BACKWARD
    version: tuple[int, ...] = _VERSION
    for tag in (50706, 50707):
        entry = tags.main.get(tag)
        there = entry.integers(tags.order) if entry is not None else ()
        if len(there) == 4 and tag == 50706:
            version = max(version, there)
        elif len(there) == 4:
            backward = max(backward, there)
    return max(version, backward), backward


def _raw_entries(
    picture: Picture,
    metadata: RawMetadata,
    order: str,
    offsets: list[int],
    counts: list[int],
) -> list[Entry]:
    height, width = picture.length("Y"), picture.length("X")
    samples = picture.length("S")
    kept = [e for e in metadata.tags.raw.entries if e.tag in _RAW_KEPT] if metadata.tags.dng else []
    there = {e.tag for e in kept}
    own = [
        Entry.of(254, 4, [0], order),
        Entry.of(256, 4, [width], order),
        Entry.of(257, 4, [height], order),
        Entry.of(258, 3, [16] * samples, order),
        Entry.of(259, 3, [_JPEG], order),
        Entry.of(262, 3, [_LINEAR if picture.mosaic is None else _CFA], order),
        Entry.of(277, 3, [samples], order),
        Entry.of(284, 3, [1], order),
        Entry.of(322, 4, [_tile_width(width)], order),
        Entry.of(323, 4, [_TILE_PX], order),
        Entry.of(324, 4, offsets, order),
        Entry.of(325, 4, counts, order),
        Entry.of(50829, 4, [0, 0, height, width], order),  # ActiveArea
    ]
    if picture.mosaic is not None:
        period = picture.mosaic.period
        pattern = bytes(k for row in picture.mosaic.pattern for k in row)
        own += [
            Entry.of(33421, 3, [period, period], order),
            Entry.raw(33422, 1, pattern),
            Entry.raw(50710, 1, bytes((0, 1, 2))),  # CFAPlaneColor: red, green, blue
            Entry.of(50711, 3, [1], order),  # CFALayout: rectangular
        ]
    if 50714 not in there or not _same_grid(picture, metadata):
        there -= {50713, 50714, 50715, 50716}
        kept = [e for e in kept if e.tag not in (50713, 50714, 50715, 50716)]
        own += _black_entries(picture, metadata, order)
    white = metadata.tags.number(50717)
    if 50717 not in there or white != picture.range.white:
        kept = [e for e in kept if e.tag != 50717]
        own.append(Entry.of(50717, 4, [round(picture.range.white)] * samples, order))
    if 50718 not in there:
        own.append(_rationals(50718, [1.0, 1.0], order))
    if not {50719, 50720} <= there:
        left, top, wide, high = metadata.crop
        inside = wide > 0 and high > 0
        kept = [e for e in kept if e.tag not in (50719, 50720)]
        own.append(Entry.of(50719, 4, [left, top] if inside else [0, 0], order))
        own.append(Entry.of(50720, 4, [wide, high] if inside else [width, height], order))
    if metadata.denoised is not None:
        own.append(_rationals(50935, [metadata.denoised], order))  # NoiseReductionApplied
    if metadata.noise is not None:
        own.append(_noise_entry(metadata, samples, picture.mosaic is not None, order))
    return kept + own


def _same_grid(picture: Picture, metadata: RawMetadata) -> bool:
    """Whether the black levels that were read are those of these pixels."""
    if picture.mosaic is None:
        return True
    if metadata.tags.find(50715) or metadata.tags.find(50716):  # LibRaw tells their mean
        return not picture.range.given
    return black_table(metadata.tags, picture.mosaic.period) == picture.mosaic.black


def _black_entries(picture: Picture, metadata: RawMetadata, order: str) -> list[Entry]:
    if picture.mosaic is None:
        samples = picture.length("S")
        levels: list[float] = list(metadata.levels[:samples])
        shape = (1, 1)
    else:
        levels = [v for row in picture.mosaic.black for v in row]
        shape = (picture.mosaic.period, picture.mosaic.period)
        if len(set(levels)) == 1:
            levels, shape = levels[:1], (1, 1)
    return [Entry.of(50713, 3, shape, order), _rationals(50714, levels, order)]


def _noise_entry(metadata: RawMetadata, samples: int, mosaic: bool, order: str) -> Entry:
    """Return NoiseProfile: what is left of the noise (section "NoiseProfile", pairs of doubles)."""
    noise = metadata.noise or ()
    left = 1.0 if metadata.denoised is None else (1 - (1 - LEFT_SHARE) * metadata.denoised) ** 2
    planes = 3 if mosaic or samples == 3 else 1
    values = [v * left for pair in noise[:planes] for v in pair]
    if len({noise[k] for k in range(planes)}) == 1:
        values = values[:2]
    return Entry(51041, 12, len(values), struct.pack(f"{order}{len(values)}d", *values))


def _rationals(tag: int, values: Iterable[float], order: str) -> Entry:
    parts = []
    for value in values:
        whole = float(value).is_integer()
        parts += [round(value) if whole else round(value * 1_000_000), 1 if whole else 1_000_000]
        if not whole and value >= 4000:
            parts[-2:] = [round(value * 10_000), 10_000]
    return Entry(tag, 5, len(parts) // 2, struct.pack(f"{order}{len(parts)}I", *parts))


def _signed_rationals(tag: int, values: Iterable[float], order: str) -> Entry:
    parts = [n for v in values for n in (round(v * 10_000), 10_000)]
    return Entry(tag, 10, len(parts) // 2, struct.pack(f"{order}{len(parts)}i", *parts))
