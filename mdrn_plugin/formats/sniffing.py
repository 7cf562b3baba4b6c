"""What a file is, by its first bytes and never by its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mdrn_plugin.errors import CannotRead
from mdrn_plugin.formats.ifd import SUB_IFDS, BadDirectory, Directory, DirectoryReader

# Photometric interpretations of undeveloped sensor data: colour filter array, linear raw.
_RAW_PHOTOMETRIC = {32803, 34892}
_DNG_VERSION = 50706

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
    (0, b"ZISRAWFILE", "czi"),
    (0, b"\xda\xce\xbe\x0a", "nd2"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (0, b"\xff\x4f\xff\x51", "jp2"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (0, b"\xff\x0a", "jxl"),
    (0, b"8BPS", "psd"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"SIMPLE  =", "fits"),
    (0, b"\x76\x2f\x31\x01", "exr"),
    (0, b"NRRD000", "nrrd"),
    (128, b"DICM", "dicom"),
    (0, b"%PDF", "pdf"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"#?RADIANCE", "hdr"),
    (0, b"IIRO", "raw"),
    (0, b"IIRS", "raw"),
    (0, b"MMOR", "raw"),
    (0, b"IIU\0", "raw"),
    (0, b"FUJIFILMCCD-RAW", "raw"),
    (6, b"HEAPCCDR", "raw"),
    (0, b"FOVb", "raw"),
    (0, b"\0MRM", "raw"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "oib"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; never wait for a pipe, never read a device.

    Raises
    ------
    CannotRead
        Missing, a folder, a pipe or device, or not allowed.
    """
    name = os.fspath(path)
    # A pipe without a writer blocks the plain open for ever.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        if os.path.isdir(name):
            raise CannotRead(f"{_shown(name)}: is a folder, expected a picture; give the files in it")
        descriptor = os.open(name, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotRead(
            f"{_shown(name)}: cannot be opened ({reason}); check that it exists and may be read"
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise CannotRead(f"{_shown(name)}: is a folder, expected a picture; give the files in it")
        if not stat.S_ISREG(mode):
            raise CannotRead(f"{_shown(name)}: is a pipe or device, expected a file; save it to a file first")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sniff(path: str | os.PathLike[str]) -> str | None:
    """Name the format of a file by its content.

    Returns
    -------
    str or None
        ``tiff``, ``png``, ``jpeg``, ``webp``, ``bmp``, ``zarr`` can be read; other names (``gif``, ``czi``,
        ``raw``, ...) are recognised only. ``zarr`` is a folder. None: another folder, or nothing known.

    Raises
    ------
    CannotRead
        The file cannot be opened, or is a pipe or device.
    """
    if os.path.isdir(path):
        return "zarr" if is_zarr(path) else None
    with open_regular(path) as file:
        return sniff_open(file)


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a zarr store, group or array, of version 2 or 3."""
    names = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
    return any(os.path.isfile(os.path.join(os.fspath(path), name)) for name in names)


def sniff_open(file: BinaryIO) -> str | None:
    """Name the format of an open file; its position is lost."""
    file.seek(0)
    head = file.read(512)
    if head[:4] in _TIFF:
        return _tiff_or_raw(file, head)
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name if name != "webp" or head[:4] == b"RIFF" else None
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(len(head), 64), 4)}
        if head[8:11] == b"crx":
            return "raw"
        return "avif" if b"avif" in brands else "heic" if brands & _HEIF else None
    if head[:2] == b"BM" and len(head) >= 26 and head[14] in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    if head[:1] == b"\x70" and head[8:9] == b"\x2a":
        return "lif"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF") and head[2:3].isspace():
        return "pnm"
    start = head.lstrip()[:14].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if start.startswith(b"<?xml"):
        return "xml"
    if head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) and _is_utf8(head):
        return "text"
    return None


def _tiff_or_raw(file: BinaryIO, head: bytes) -> str:
    if head[8:10] == b"CR" and head[:2] == b"II":  # Canon's mark behind the header
        return "raw"
    try:
        reader = DirectoryReader(file)
        first = reader.directory(reader.first, needed=(SUB_IFDS,))
        directories = [first]
        pointers = first.get(SUB_IFDS)
        if pointers is not None:
            directories += [reader.directory(at) for at in pointers.integers(reader.order)[:16]]
    except BadDirectory:
        return "tiff"  # the reader says what is wrong with it
    if first.get(_DNG_VERSION) is not None:
        return "dng"
    return "raw" if any(_photometric(d, reader.order) in _RAW_PHOTOMETRIC for d in directories) else "tiff"


def _photometric(directory: Directory, order: str) -> int | None:
    entry = directory.get(262)
    values = entry.integers(order) if entry is not None else ()
    return values[0] if values else None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # cut inside the last character
    return True


def _shown(path: str | bytes) -> str:
    """Return a name that can be printed, whatever bytes it has."""
    return os.fsdecode(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(path: str | os.PathLike[str]) -> str:
    """Return the name of a file for messages."""
    return _shown(str(Path(path)))
