"""Small pictures of every format, made by other libraries than the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

rng = np.random.default_rng(20)
GRAY = rng.integers(0, 256, (37, 53), dtype=np.uint8)
RGB = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
RGBA = rng.integers(0, 256, (37, 53, 4), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
GRAY16 = rng.integers(0, 65536, (37, 53), dtype=np.uint16)
RGB16 = rng.integers(0, 65536, (37, 53, 3), dtype=np.uint16)
STACK = rng.integers(0, 256, (6, 37, 53), dtype=np.uint8)


def encoded(pixels: Any, kind: str, mode: str | None = None, **settings: Any) -> bytes:
    """Code a picture with Pillow."""
    out = io.BytesIO()
    if "exif" in settings:
        settings["exif"] = b"Exif\0\0" + settings["exif"]
    Image.fromarray(pixels, mode).save(out, kind, **settings)
    return out.getvalue()


def tiff(pixels: Any, **settings: Any) -> bytes:
    """Code a picture or stack with tifffile."""
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **settings)
    return out.getvalue()


def png16(pixels: Any, chunks: list[tuple[bytes, bytes]] = []) -> bytes:  # noqa: B006 - never changed
    """Code 16 bit by hand; Pillow cannot."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(k, d) for k, d in parts)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif_object(orientation: int = 6) -> Image.Exif:
    """Return EXIF with main directory, EXIF and GPS directories."""
    exif = Image.Exif()
    exif[271], exif[272], exif[274], exif[305] = "Maker", "Model 1", orientation, "Firmware 2"
    exif.get_ifd(34665)[33434] = 0.004
    exif.get_ifd(34665)[36867] = "2024:05:06 07:08:09"
    exif.get_ifd(34853)[1] = "N"
    return exif


def exif_block(orientation: int = 6) -> bytes:
    """Return the same as bytes, without the prefix."""
    return exif_object(orientation).tobytes().removeprefix(b"Exif\0\0")


ICC = b"\0\0\2\x0clcms\x02\x10\0\0mntrRGB XYZ " + bytes(500)
XMP = b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def png_text() -> PngInfo:
    """Return text chunks of the three kinds."""
    info = PngInfo()
    info.add_text("Title", "grains")
    info.add_text("Long", "x" * 300, zip=True)
    info.add_itxt("Autor", "Müller", lang="de")
    return info


# Name of the file: its bytes. One of each format and of each way to store it.
SAMPLES: dict[str, Callable[[], bytes]] = {
    "gray.tif": lambda: tiff(GRAY),
    "zlib.tif": lambda: tiff(GRAY16, compression="zlib", predictor=True, rowsperstrip=5),
    "lzw.tif": lambda: tiff(RGB, compression="lzw", photometric="rgb"),
    "stack.tif": lambda: tiff(STACK, compression="zlib", photometric="minisblack"),
    "imagej.tif": lambda: tiff(STACK, imagej=True, metadata={"axes": "ZYX", "Info": "hello"}),
    "stack.ome.tif": lambda: tiff(STACK, ome=True, photometric="minisblack", metadata={"axes": "ZYX"}),
    "big.tif": lambda: tiff(GRAY, bigtiff=True, byteorder=">", tile=(16, 32)),
    "jpeg.tif": lambda: tiff(RGB, compression="jpeg", photometric="rgb"),
    "gray.png": lambda: encoded(GRAY, "PNG"),
    "rgba.png": lambda: encoded(RGBA, "PNG"),
    "rgb16.png": lambda: png16(RGB16),
    "text.png": lambda: encoded(
        RGB, "PNG", pnginfo=png_text(), dpi=(300, 300), icc_profile=ICC, exif=exif_block()
    ),
    "rgb.jpg": lambda: encoded(RGB, "JPEG", quality=80, exif=exif_block(), icc_profile=ICC, dpi=(72, 72)),
    "progressive.jpg": lambda: encoded(RGB, "JPEG", progressive=True),
    "gray.jpg": lambda: encoded(GRAY, "JPEG"),
    "lossless.webp": lambda: encoded(RGBA, "WEBP", lossless=True, exact=True),
    "lossy.webp": lambda: encoded(RGB, "WEBP", quality=70, exif=exif_block(), icc_profile=ICC),
    "rgb.bmp": lambda: encoded(RGB, "BMP", dpi=(150, 150)),
    "gray.bmp": lambda: encoded(GRAY, "BMP"),
}


def write_sample(folder: Path, name: str) -> Path:
    """Put a sample into a folder."""
    path = folder / name
    path.write_bytes(SAMPLES[name]())
    return path
