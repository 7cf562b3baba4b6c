"""JPEG, WebP and BMP: Pillow codes the pixels, everything around them is copied as it is."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import BadOption, CannotHold, CannotRead, NotSupported
from mdrn_plugin.formats import ifd
from mdrn_plugin.formats.limits import check_pixels, check_ratio, read_whole
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.picture import Metadata, Picture, decide_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_QUALITY = 95  # the highest that Pillow recommends for JPEG; above it files grow for nothing
JPEG_MAX_PX = 65_500  # libjpeg's limit, a little below the 65,535 of the format
WEBP_MAX_PX = 16_383
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_NOTE = b"mdrn "


@dataclasses.dataclass(frozen=True, slots=True)
class JpegMetadata(Metadata):
    """The segments of a JPEG file in front of the pixels, and how these were coded."""

    segments: tuple[tuple[int, bytes], ...] = ()  # marker, data
    tables: tuple[tuple[int, tuple[int, ...]], ...] = ()  # number, 64 divisors as Pillow orders them
    subsampling: int = -1  # Pillow's code: 0 4:4:4, 1 4:2:2, 2 4:2:0, -1 other
    progressive: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WebpMetadata(Metadata):
    """How a WebP file was coded."""

    lossless: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BmpMetadata(Metadata):
    """Resolution of a BMP file in pixels per metre, as stored."""

    per_metre: tuple[int, int] = (0, 0)


# ------------------------------------------------------------------------------------------- JPEG


def read_jpeg(path: Path, max_pixels: int | None) -> Picture:
    """Read a JPEG file; see `mdrn_plugin.formats.read` for what it raises."""
    from PIL import JpegImagePlugin

    name = shown(path)
    with open_regular(path) as file:
        data = read_whole(name, file)
    parts, frame = _jpeg_segments(name, data)
    precision, height, width, components = frame
    if precision != 8:
        raise NotSupported(f"{name}: JPEG of {precision} bit, expected 8; convert it to 16-bit TIFF or PNG")
    check_pixels(name, width, height, 1, max_pixels)
    check_ratio(name, len(data), width * height * components)
    # The class itself, not Image.open: its limit on pixels is a global of the whole program.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if image.size != (width, height) or image.mode not in ("L", "RGB", "CMYK"):
        raise NotSupported(f"{name}: JPEG of kind {image.mode}, expected gray, RGB or CMYK; convert it")
    tables = tuple((int(k), tuple(int(v) for v in t)) for k, t in sorted(image.quantization.items()))
    subsampling = int(JpegImagePlugin.get_sampling(image))
    progressive = bool(image.info.get("progressive"))
    image.load()
    pixels = np.array(image)
    kept = tuple((m, d) for m, d in parts if not (m == 0xEE or (m == 0xE2 and d.startswith(b"MPF\0"))))
    notes = (
        "further pictures in the file (MPF) were left out"
        if len(kept) < sum(m != 0xEE for m, _ in parts)
        else ""
    )
    metadata = JpegMetadata(
        format="jpeg",
        icc=b"".join(
            d[14:]
            for _, d in sorted(
                (d[12], d) for m, d in parts if m == 0xE2 and d.startswith(_ICC) and len(d) > 14
            )
        )
        or None,
        exif=next((d[6:] for m, d in parts if m == 0xE1 and d.startswith(_EXIF)), None),
        xmp=next((d[len(_XMP) :] for m, d in parts if m == 0xE1 and d.startswith(_XMP)), None),
        dpi=_jfif_dpi(parts),
        note=notes,
        segments=kept,
        tables=tables,
        subsampling=subsampling,
        progressive=progressive,
    )
    return Picture(pixels, "YXS" if pixels.ndim == 3 else "YX", decide_range(pixels), metadata=metadata)


def check_jpeg(name: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], alpha: bool) -> None:
    """Raise `CannotHold` for what JPEG cannot store."""
    sizes = _one_plane(name, "JPEG", shape, axes, dtype)
    if alpha or sizes.get("S", 1) not in (1, 3, 4):
        raise CannotHold(f"{name}: JPEG holds gray, RGB or CMYK without alpha; write PNG or TIFF")
    if max(sizes["Y"], sizes["X"]) > JPEG_MAX_PX:
        raise CannotHold(
            f"{name}: JPEG holds at most {JPEG_MAX_PX} pixels a side, got {shape}; write PNG or TIFF"
        )


def write_jpeg(
    file: BinaryIO, pixels: NDArray[Any], metadata: Metadata, provenance: str | None, quality: int | None
) -> None:
    """Write rows x columns [x samples], coded like the source if that was JPEG too."""
    from PIL import Image

    check_quality(quality)
    image = Image.fromarray(np.ascontiguousarray(pixels), mode_of(pixels, cmyk=True))
    settings: dict[str, Any] = {"quality": DEFAULT_QUALITY if quality is None else quality, "optimize": True}
    if isinstance(metadata, JpegMetadata):
        settings["progressive"] = metadata.progressive
        if image.mode == "RGB" and metadata.subsampling >= 0:
            settings["subsampling"] = metadata.subsampling
        tables = {number: list(table) for number, table in metadata.tables}
        # A gray file has one table, a colour file may have up to four: only like to like.
        same_kind = len(tables) == 1 if image.mode == "L" else 1 <= len(tables) <= 4
        if quality is None and same_kind and sorted(tables) == list(range(len(tables))):
            settings["qtables"] = tables
            del settings["quality"]
        before = list(metadata.segments)
    else:
        settings["subsampling"] = 0
        before = _common_segments(metadata)
    if provenance:
        before = [p for p in before if not (p[0] == 0xFE and p[1].startswith(_NOTE))]
        before.append((0xFE, (_NOTE + provenance.encode())[:65533]))
    coded = io.BytesIO()
    try:
        image.save(coded, "JPEG", **settings)
    except OSError:
        # Pillow reserves two bytes per pixel for these two; pure noise at the best quality needs
        # three. Without them it writes as it goes.
        coded = io.BytesIO()
        image.save(coded, "JPEG", **{**settings, "optimize": False, "progressive": False})
    data = coded.getvalue()
    # Pillow's own JFIF segment gives way to the source's; its Adobe segment (CMYK) is needed.
    start = 2
    while data[start + 1] == 0xE0:
        start += 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
    if (
        not any(m == 0xE0 for m, _ in before)
        and not isinstance(metadata, JpegMetadata)
        and image.mode != "CMYK"
    ):
        before.insert(0, (0xE0, data[6:20]))
    file.write(data[:2])
    for marker, body in before:
        file.write(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    file.write(data[start:])


def verify_jpeg(part: Path, shape: tuple[int, ...]) -> None:
    """Find the end mark and the size of a finished file."""
    _, frame = _jpeg_segments(part.name, part.read_bytes())
    if frame[1:3] != shape[:2]:
        raise CannotRead(f"{part.name}: the picture has another size")


def _jpeg_segments(name: str, data: bytes) -> tuple[list[tuple[int, bytes]], tuple[int, int, int, int]]:
    """Return application and comment segments, and the frame header; the end mark is there."""
    at, parts, frame = 2, [], None
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 4 > len(data) or data[at] != 0xFF:
            raise CannotRead(f"{name}: JPEG is cut short or damaged before its pixels; get an intact copy")
        marker = data[at + 1]
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        if length < 2 or at + 2 + length > len(data):
            raise CannotRead(f"{name}: JPEG is cut short or damaged before its pixels; get an intact copy")
        body = data[at + 4 : at + 2 + length]
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            parts.append((marker, body))
        elif marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
            raise NotSupported(f"{name}: lossless or arithmetic JPEG; convert it to PNG or TIFF")
        elif marker in (0xC0, 0xC1, 0xC2) and len(body) >= 6:
            frame = struct.unpack(">BHHB", body[:6])
        at += 2 + length
        if marker == 0xDA:
            break
    # libjpeg fills missing pixels with gray and calls it a warning: insist on the end mark.
    if not re.search(rb"\xff\xd9", data[at:]):
        raise CannotRead(f"{name}: JPEG is cut short, its end mark is missing; get an intact copy")
    if frame is None:
        raise CannotRead(f"{name}: JPEG without frame header; get an intact copy")
    return parts, frame


def _jfif_dpi(parts: list[tuple[int, bytes]]) -> tuple[float, float] | None:
    for marker, data in parts:
        if marker == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 12:
            unit, across, down = struct.unpack(">BHH", data[7:12])
            factor = {1: 1.0, 2: 2.54}.get(unit)
            if factor and across and down:
                return across * factor, down * factor
    return None


def _common_segments(metadata: Metadata) -> list[tuple[int, bytes]]:
    parts = []
    if metadata.dpi:
        across, down = (min(65535, max(1, round(v))) for v in metadata.dpi)
        parts.append((0xE0, struct.pack(">5sHBHHBB", b"JFIF\0", 0x0101, 1, across, down, 0, 0)))
    if metadata.exif and len(metadata.exif) < 65500:
        parts.append((0xE1, _EXIF + metadata.exif))
    if metadata.xmp and len(metadata.xmp) < 65500:
        parts.append((0xE1, _XMP + metadata.xmp))
    if metadata.icc:
        pieces = [metadata.icc[i : i + 65000] for i in range(0, len(metadata.icc), 65000)]
        if len(pieces) < 256:
            parts += [(0xE2, _ICC + bytes([i + 1, len(pieces)]) + p) for i, p in enumerate(pieces)]
    return parts


# ------------------------------------------------------------------------------------------- WebP


def read_webp(path: Path, max_pixels: int | None) -> Picture:
    """Read a WebP file; see `mdrn_plugin.formats.read` for what it raises."""
    from PIL import WebPImagePlugin

    name = shown(path)
    with open_regular(path) as file:
        data = read_whole(name, file)
    chunks = _webp_chunks(name, data)
    if b"ANIM" in chunks or b"ANMF" in chunks:
        raise NotSupported(f"{name}: is an animation; save its frames as separate files or a TIFF stack")
    width, height = _webp_size(name, chunks)
    check_pixels(name, width, height, 1, max_pixels)
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    if image.size != (width, height):
        raise CannotRead(f"{name}: expected {width} x {height} pixels, got {image.size}; get an intact copy")
    image.load()
    pixels = np.array(image)
    exif = chunks.get(b"EXIF")
    metadata = WebpMetadata(
        format="webp",
        icc=chunks.get(b"ICCP"),
        exif=exif.removeprefix(_EXIF) if exif else None,
        xmp=chunks.get(b"XMP "),
        lossless=b"VP8L" in chunks,
    )
    return Picture(pixels, "YXS", decide_range(pixels), alpha=pixels.shape[2] == 4, metadata=metadata)


def check_webp(name: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], alpha: bool) -> None:
    """Raise `CannotHold` for what WebP cannot store."""
    sizes = _one_plane(name, "WebP", shape, axes, dtype)
    if sizes.get("S", 1) - alpha not in (1, 3):
        raise CannotHold(f"{name}: WebP holds gray or RGB, got {sizes['S']} samples; write TIFF")
    if max(sizes["Y"], sizes["X"]) > WEBP_MAX_PX:
        raise CannotHold(
            f"{name}: WebP holds at most {WEBP_MAX_PX} pixels a side, got {shape}; write PNG or TIFF"
        )


def write_webp(
    file: BinaryIO, pixels: NDArray[Any], metadata: Metadata, provenance: str | None, quality: int | None
) -> None:
    """Write rows x columns [x samples]; lossless if the source was, unless `quality` is given."""
    from PIL import Image

    check_quality(quality)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    exif = metadata.exif or b""
    if provenance:
        exif = _noted(exif, provenance)
    lossless = quality is None and (
        metadata.lossless if isinstance(metadata, WebpMetadata) else metadata.format != "jpeg"
    )
    Image.fromarray(np.ascontiguousarray(pixels), mode_of(pixels)).save(
        file,
        "WEBP",
        lossless=lossless,
        exact=True,  # colours under full transparency stay
        alpha_quality=100,
        quality=80 if lossless else DEFAULT_QUALITY if quality is None else quality,
        method=4,
        icc_profile=metadata.icc or b"",
        exif=exif,
        xmp=metadata.xmp or b"",
    )


def verify_webp(part: Path, shape: tuple[int, ...]) -> None:
    """Walk the chunks of a finished file and compare the size."""
    if _webp_size(part.name, _webp_chunks(part.name, part.read_bytes())) != (shape[1], shape[0]):
        raise CannotRead(f"{part.name}: the picture has another size")


def _noted(exif: bytes, provenance: str) -> bytes:
    if not exif:
        software = ifd.Entry.raw(305, 2, ifd.joined_software("", provenance).encode())
        return ifd.pack_block(ifd.Directory((software,)), "<")
    try:
        old = ifd.text_of(ifd.parse_block(exif)[0].get(305))
        return ifd.with_software(exif, ifd.joined_software(old, provenance))
    except ifd.BadDirectory:
        return exif  # damaged EXIF is copied, not repaired


def _webp_chunks(name: str, data: bytes) -> dict[bytes, bytes]:
    if len(data) < 20 or 8 + struct.unpack("<I", data[4:8])[0] > len(data) + 1:
        raise CannotRead(f"{name}: WebP is cut short; get an intact copy")
    end = min(len(data), 8 + struct.unpack("<I", data[4:8])[0])
    at = 12
    chunks: dict[bytes, bytes] = {}
    while at + 8 <= end:
        length = struct.unpack("<I", data[at + 4 : at + 8])[0]
        if at + 8 + length > len(data):
            raise CannotRead(f"{name}: WebP is cut short; get an intact copy")
        chunks.setdefault(data[at : at + 4], data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return chunks


def _webp_size(name: str, chunks: dict[bytes, bytes]) -> tuple[int, int]:
    big, lossy, exact = chunks.get(b"VP8X"), chunks.get(b"VP8 "), chunks.get(b"VP8L")
    if big is not None and len(big) >= 10:
        return 1 + int.from_bytes(big[4:7], "little"), 1 + int.from_bytes(big[7:10], "little")
    if exact is not None and len(exact) >= 5:
        packed = int.from_bytes(exact[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if lossy is not None and len(lossy) >= 10:
        across, down = struct.unpack("<HH", lossy[6:10])
        return across & 0x3FFF, down & 0x3FFF
    raise CannotRead(f"{name}: WebP without picture; get an intact copy")


# -------------------------------------------------------------------------------------------- BMP


def read_bmp(path: Path, max_pixels: int | None) -> Picture:
    """Read a BMP file; see `mdrn_plugin.formats.read` for what it raises."""
    from PIL import BmpImagePlugin, Image

    name = shown(path)
    with open_regular(path) as file:
        data = read_whole(name, file)
    start, head = struct.unpack("<II", data[10:18])
    if head == 12:
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
        coding, per_metre = 0, (0, 0)
    else:
        if len(data) < 54:
            raise CannotRead(f"{name}: BMP is cut short; get an intact copy")
        width, height, _, bits, coding = struct.unpack("<iiHHI", data[18:34])
        per_metre = struct.unpack("<ii", data[38:46])
    height = abs(height)
    check_pixels(name, width, height, 1, max_pixels)
    if coding in (4, 5):
        raise NotSupported(f"{name}: BMP with JPEG or PNG inside; convert it to PNG")
    check_ratio(name, len(data), width * height * max(1, bits // 8))
    if coding in (0, 3) and start + (width * bits + 31) // 32 * 4 * height > len(data):
        raise CannotRead(f"{name}: BMP is cut short; get an intact copy")
    if coding in (1, 2) and not data[start:].rstrip(b"\0").endswith(b"\1") and b"\0\1" not in data[-4:]:
        raise CannotRead(f"{name}: BMP is cut short, its end mark is missing; get an intact copy")
    image: Image.Image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    image.load()
    note = ""
    if image.mode in ("1", "P"):
        note = "palette turned to gray or RGB, 8 bit" if image.mode == "P" else "1 bit stretched to 8 bit"
        image = image.convert("L" if image.mode == "1" else "RGB")
    elif bits == 16:
        note = "16 bit per pixel stretched to 8 bit per colour"
    pixels = np.array(image)
    if note.startswith("palette") and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., 0]
    dpi = (per_metre[0] * 0.0254, per_metre[1] * 0.0254) if min(per_metre) > 0 else None
    metadata = BmpMetadata(format="bmp", dpi=dpi, note=note, per_metre=per_metre)
    alpha = image.mode == "RGBA"
    return Picture(
        pixels, "YXS" if pixels.ndim == 3 else "YX", decide_range(pixels), alpha=alpha, metadata=metadata
    )


def check_bmp(name: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any], alpha: bool) -> None:
    """Raise `CannotHold` for what BMP cannot store."""
    sizes = _one_plane(name, "BMP", shape, axes, dtype)
    if (sizes.get("S", 1), alpha) not in ((1, False), (3, False), (4, True)):
        raise CannotHold(
            f"{name}: BMP holds gray, RGB or RGBA, got {sizes.get('S')} samples; write PNG or TIFF"
        )
    if sizes["Y"] * (sizes["X"] + 1) * sizes.get("S", 1) > 2**32 - 2048:
        raise CannotHold(f"{name}: BMP holds at most 4 GB, got {shape}; write PNG or TIFF")


def write_bmp(file: BinaryIO, pixels: NDArray[Any], metadata: Metadata) -> None:
    """Write rows x columns [x samples]; Pillow would lose alpha."""
    if isinstance(metadata, BmpMetadata):
        across, down = metadata.per_metre
    else:
        across, down = (round(v / 0.0254) for v in metadata.dpi) if metadata.dpi else (0, 0)
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    palette = b"".join(bytes((v, v, v, 0)) for v in range(256)) if samples == 1 else b""
    rows = pixels.reshape(height, width, samples)[::-1]
    if samples == 3:
        rows = rows[..., ::-1]
    elif samples == 4:
        rows = rows[..., [2, 1, 0, 3]]
    flat = np.ascontiguousarray(rows).reshape(height, width * samples)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4)))
    # Only the fourth version of the header can say where alpha is.
    masks = (
        struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
        if samples == 4
        else b""
    )
    head = 40 + len(masks)
    start = 14 + head + len(palette)
    coding = 3 if samples == 4 else 0
    file.write(b"BM" + struct.pack("<IHHI", start + flat.size, 0, 0, start))
    file.write(
        struct.pack(
            "<IiiHHIIiiII",
            head,
            width,
            height,
            1,
            samples * 8,
            coding,
            flat.size,
            across,
            down,
            len(palette) // 4,
            0,
        )
    )
    file.write(masks + palette)
    file.write(flat.tobytes())


def verify_bmp(part: Path, shape: tuple[int, ...]) -> None:
    """Compare length and size of a finished file with its header."""
    data = part.read_bytes()
    if struct.unpack("<I", data[2:6])[0] != len(data) or struct.unpack("<ii", data[18:26]) != (
        shape[1],
        shape[0],
    ):
        raise CannotRead(f"{part.name}: the picture has another size")


# ------------------------------------------------------------------------------------------ common


def check_quality(quality: int | None) -> None:
    """Raise `BadOption` unless the quality is None or 1 to 100."""
    if quality is not None and not 1 <= quality <= 100:
        raise BadOption(f"quality: expected 1 to 100, got {quality}")


def mode_of(pixels: NDArray[Any], *, cmyk: bool = False) -> str:
    """Return Pillow's name for 8-bit rows x columns [x samples]."""
    if pixels.ndim == 2:
        return "L"
    return {2: "LA", 3: "RGB", 4: "CMYK" if cmyk else "RGBA"}[pixels.shape[2]]


def _one_plane(
    name: str, words: str, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any]
) -> dict[str, int]:
    if dtype != np.uint8:
        raise CannotHold(f"{name}: {words} holds 8 bit unsigned, got {dtype}; write PNG (16 bit) or TIFF")
    sizes = dict(zip(axes, shape, strict=True))
    if math.prod(n for a, n in sizes.items() if a not in "YXS") != 1:
        raise CannotHold(f"{name}: {words} holds one plane, got axes {axes} of {shape}; write TIFF")
    return sizes
