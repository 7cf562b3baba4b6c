"""How large a picture may be, decided from the header before a byte is decoded."""

from __future__ import annotations

import contextlib
import io
import os
from typing import BinaryIO

from mdrn_plugin.errors import BadOption, CannotRead, NotSupported

# 2 gigapixels: the largest slide scans; beyond it a file is read only if the user says so.
DEFAULT_MAX_PIXELS = 2_000_000_000
# Deflate stores at most 1032 bytes in one (RFC 1951: 258 bytes in two bits); LZW about 1400.
# Small files are let through whatever their ratio: a constant picture is not an attack.
_MAX_RATIO = 2000
_RATIO_FREE_BYTES = 256 * 2**20
MAX_WHOLE_BYTES = 2**31
# Pictures of more bytes than this stay in their file. Held whole, a picture in work takes its size twice, and
# with the default of --jobs two others may be read and written meanwhile: an eighth of what is free.
STREAM_BYTES = 256 * 2**20
_STREAM_SHARE = 8


def stream_bytes() -> int:
    """Return the bytes of pixels from which on a TIFF file is streamed; `MDRN_STREAM_BYTES` decides if set.

    Raises
    ------
    BadOption
        It is no number.
    """
    told = os.environ.get("MDRN_STREAM_BYTES", "")
    if told:
        if not told.isdecimal():
            raise BadOption(f"MDRN_STREAM_BYTES={told}: expected a number of bytes such as 268435456")
        return int(told)
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return min(STREAM_BYTES, int(line.split()[1]) * 1024 // _STREAM_SHARE)
    return STREAM_BYTES


def check_pixels(name: str, width: int, height: int, planes: int, max_pixels: int | None) -> None:
    """Refuse empty and over-large pictures.

    Parameters
    ----------
    name : str
        The file, for the message.
    width, height, planes : int
        As the header says; samples of one pixel do not count.
    max_pixels : int or None
        None is `DEFAULT_MAX_PIXELS`.

    Raises
    ------
    CannotRead
        A length is not positive.
    NotSupported
        More pixels than allowed.
    """
    limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    if min(width, height, planes) < 1:
        raise CannotRead(
            f"{name}: expected at least one pixel, got {width} x {height} x {planes}; get an intact copy"
        )
    if width * height * planes > limit:
        raise NotSupported(
            f"{name}: {width} x {height} pixels in {planes} plane(s): expected at most {limit} pixels; "
            "raise the limit (--max-pixels) if the file is genuine"
        )


def read_whole(name: str, file: BinaryIO) -> bytes:
    """Read a file of a format that is decoded in one piece.

    Raises
    ------
    NotSupported
        Larger than any file of these formats that is a picture and not an attack.
    """
    size = file.seek(0, io.SEEK_END)
    if size > MAX_WHOLE_BYTES:
        raise NotSupported(
            f"{name}: expected at most {MAX_WHOLE_BYTES} bytes of PNG, JPEG, WebP or BMP, got {size}; "
            "save it as TIFF"
        )
    file.seek(0)
    return file.read()


def check_ratio(name: str, stored: int, decoded: int) -> None:
    """Refuse a file that would grow beyond what its compression can honestly hold."""
    if decoded > _RATIO_FREE_BYTES and decoded > stored * _MAX_RATIO:
        raise CannotRead(
            f"{name}: expected at least {decoded // _MAX_RATIO} bytes of data, got {stored}; "
            "the file is damaged or made to exhaust memory, get an intact copy"
        )
