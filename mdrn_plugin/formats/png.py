"""PNG: libpng codes the pixels, the chunks around them are copied as they are."""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import CannotHold, CannotRead, NotSupported
from mdrn_plugin.formats.limits import check_pixels, check_ratio, read_whole
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.picture import Metadata, Picture, ValueRange, decide_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type: stored samples
_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"hIST"})
# Copied though marked unsafe to copy: they speak of the whole picture, which keeps its meaning.
_KEPT = frozenset(
    {b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCv", b"cLLi", b"pHYs", b"tIME", b"sPLT", b"eXIf"}
)
_KEPT |= {b"tEXt", b"zTXt", b"iTXt"}
_PROFILE_LIMIT = 16 * 2**20  # decompressed bytes of one profile or packet
_XMP_KEY = b"XML:com.adobe.xmp\0"
_NOTE_KEY = b"mdrn\0"
_MAX_SIDE = 1_000_000  # libpng's own limit


@dataclasses.dataclass(frozen=True, slots=True)
class PngMetadata(Metadata):
    """The chunks of a PNG file that do not hold pixels."""

    before: tuple[tuple[bytes, bytes], ...] = ()  # kind, data; in front of the pixels
    after: tuple[tuple[bytes, bytes], ...] = ()


def read(path: Path, max_pixels: int | None) -> Picture:
    """Read a PNG file; see `mdrn_plugin.formats.read` for what it raises."""
    import imagecodecs

    name = shown(path)
    with open_regular(path) as file:
        data = read_whole(name, file)
    chunks = list(_chunks(name, data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise CannotRead(f"{name}: PNG without header; get an intact copy")
    width, height, bits, kind = struct.unpack(">IIBB", chunks[0][1][:10])
    check_pixels(name, width, height, 1, max_pixels)
    if bits not in _BITS.get(kind, ()):
        raise CannotRead(
            f"{name}: PNG of colour type {kind} with {bits} bit does not exist; get an intact copy"
        )
    found = dict(reversed(chunks))
    if b"acTL" in found and len(found[b"acTL"]) >= 4 and struct.unpack(">I", found[b"acTL"][:4])[0] != 1:
        raise NotSupported(f"{name}: is an animation; save its frames as separate files or a TIFF stack")
    stored = sum(len(d) for k, d in chunks if k == b"IDAT")
    check_ratio(name, stored, width * height * _SAMPLES[kind] * max(1, bits // 8))
    pixels: NDArray[Any] = imagecodecs.png_decode(data)
    if pixels.shape[:2] != (height, width):
        raise CannotRead(
            f"{name}: expected {width} x {height} pixels, got {pixels.shape}; get an intact copy"
        )
    notes = []
    transparent = b"tRNS" in found
    if kind == 3:
        notes.append("palette turned to gray or RGB, 8 bit")
        if not transparent and b"iCCP" not in found and (pixels[..., :1] == pixels).all():
            pixels = pixels[..., 0]
    elif bits < 8:
        notes.append(f"{bits} bit stretched to 8 bit")
    if transparent:
        notes.append("transparent colour turned to an alpha channel")
    alpha = kind in (4, 6) or transparent
    colour_kept = kind in (0, 2, 4, 6) and bits >= 8 and not transparent
    metadata = PngMetadata(
        format="png",
        icc=_profile(found.get(b"iCCP")),
        exif=found.get(b"eXIf"),
        xmp=_xmp(chunks),
        dpi=_dpi(found.get(b"pHYs")),
        note="; ".join(notes),
        before=_copied(chunks, before=True, colour_kept=colour_kept),
        after=_copied(chunks, before=False, colour_kept=colour_kept),
    )
    axes = "YXS" if pixels.ndim == 3 else "YX"
    opaque = pixels[..., :-1] if alpha else pixels
    return Picture(pixels, axes, _range(opaque, bits, found.get(b"sBIT")), alpha=alpha, metadata=metadata)


def check(name: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], alpha: bool) -> None:
    """Raise `CannotHold` for what PNG cannot store."""
    if dtype.str[1:] not in ("u1", "u2", "b1"):
        raise CannotHold(f"{name}: PNG holds 8 or 16 bit unsigned, got {dtype}; write TIFF")
    sizes = dict(zip(axes, shape, strict=True))
    if math.prod(n for a, n in sizes.items() if a not in "YXS") != 1:
        raise CannotHold(f"{name}: PNG holds one plane, got axes {axes} of {shape}; write TIFF")
    if sizes.get("S", 1) - alpha not in (1, 3):
        raise CannotHold(f"{name}: PNG holds gray or RGB, got {sizes['S']} samples; write TIFF")
    if max(sizes["Y"], sizes["X"]) > _MAX_SIDE:
        raise CannotHold(f"{name}: PNG holds at most {_MAX_SIDE} pixels a side, got {shape}; write TIFF")


def write(file: BinaryIO, pixels: NDArray[Any], metadata: Metadata, provenance: str | None) -> None:
    """Write rows x columns [x samples]."""
    import imagecodecs

    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8) * 255
    coded = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=6))
    if isinstance(metadata, PngMetadata):
        before, after = list(metadata.before), list(metadata.after)
    else:
        before, after = _common(metadata), []
    if provenance:
        before = [c for c in before if not (c[0] == b"iTXt" and c[1].startswith(_NOTE_KEY))]
        after = [c for c in after if not (c[0] == b"iTXt" and c[1].startswith(_NOTE_KEY))]
        before.append((b"iTXt", _NOTE_KEY + b"\0\0\0\0" + provenance.encode()))
    file.write(SIGNATURE)
    chunks = list(_chunks("encoded", coded))
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    for kind, data in [*chunks[:first], *before, *chunks[first:-1], *after, chunks[-1]]:
        file.write(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        )


def verify(part: Path, shape: tuple[int, ...]) -> None:
    """Walk the chunks of a finished file and compare the size."""
    data = part.read_bytes()
    chunks = list(_chunks(part.name, data))
    if struct.unpack(">II", chunks[0][1][:8]) != (shape[1], shape[0]):
        raise CannotRead(f"{part.name}: the picture has another size")


def _chunks(name: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every chunk up to IEND; the checksum of each is right."""
    if data[:8] != SIGNATURE:
        raise CannotRead(f"{name}: PNG signature is damaged; get an intact copy")
    at = 8
    while True:
        if at + 12 > len(data):
            raise CannotRead(f"{name}: cut short, no end mark; get an intact copy")
        length = struct.unpack(">I", data[at : at + 4])[0]
        kind = data[at + 4 : at + 8]
        chunk = kind.decode("latin-1")
        if at + 12 + length > len(data):
            raise CannotRead(f"{name}: cut short inside its chunk {chunk}; get an intact copy")
        body = data[at + 8 : at + 8 + length]
        if (
            zlib.crc32(body, zlib.crc32(kind))
            != struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        ):
            raise CannotRead(f"{name}: checksum of its chunk {chunk} is wrong; get an intact copy")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length


def _copied(
    chunks: list[tuple[bytes, bytes]], *, before: bool, colour_kept: bool
) -> tuple[tuple[bytes, bytes], ...]:
    first = next((i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT"), len(chunks))
    part = chunks[:first] if before else chunks[first:]
    kept = []
    for kind, data in part:
        if kind in _PIXEL_CHUNKS:
            continue
        if kind in (b"sBIT", b"bKGD"):  # laid out by colour type
            if colour_kept:
                kept.append((kind, data))
        elif kind in _KEPT or kind[3:4].islower():
            kept.append((kind, data))
    return tuple(kept)


def _common(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    chunks = []
    if metadata.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        across, down = (round(v / 0.0254) for v in metadata.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append((b"iTXt", _XMP_KEY + b"\0\0\0\0" + metadata.xmp))
    return chunks


def _range(pixels: NDArray[Any], bits: int, sbit: bytes | None) -> ValueRange:
    """Decide the range; sBIT counts only where the writer did not scale the samples up.

    The standard wants samples scaled to the full depth: then the bits below the significant ones
    repeat the highest, which are zero in values this small.
    """
    stated = max(sbit, default=0) if sbit and bits == 16 else 0
    if 8 <= stated < 16 and pixels.max(initial=0) < 2**stated and (pixels & ((1 << (16 - stated)) - 1)).any():
        return decide_range(pixels, bits=stated)
    return decide_range(pixels)


def _profile(data: bytes | None) -> bytes | None:
    if data is None or b"\0" not in data[:80]:
        return None
    return _inflate(data[data.index(b"\0") + 2 :])


def _inflate(data: bytes) -> bytes | None:
    """Decompress, or None if damaged or too large."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, _PROFILE_LIMIT)
    except zlib.error:
        return None
    return out if stream.eof else None


def _xmp(chunks: list[tuple[bytes, bytes]]) -> bytes | None:
    for kind, data in chunks:
        if kind == b"iTXt" and data.startswith(_XMP_KEY):
            rest = data[len(_XMP_KEY) :]
            fields = rest[2:].split(b"\0", 2)
            if len(fields) == 3:
                return _inflate(fields[2]) if rest[:1] == b"\1" else fields[2]
    return None


def _dpi(data: bytes | None) -> tuple[float, float] | None:
    if data is None or len(data) != 9:
        return None
    across, down, unit = struct.unpack(">IIB", data)
    return (across * 0.0254, down * 0.0254) if unit == 1 and across and down else None
