"""What a RAW file says beside its pixels: camera, exposure, EXIF, the tags of a DNG.

Read by our own directory reader, since the decoder tells only a part of it; and lengths are checked
here, since the decoder takes a file that was cut short for a darker picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import struct
from collections.abc import Collection, Iterator
from typing import BinaryIO

from mdrn_plugin.errors import CannotRead
from mdrn_plugin.formats import ifd
from mdrn_plugin.formats.ifd import (
    EXIF_IFD,
    GPS_IFD,
    SUB_IFDS,
    BadDirectory,
    Directory,
    DirectoryReader,
    Entry,
)

# TIFF, BigTIFF; Panasonic's RW2 (0x55) and Olympus' ORF (RO, SR) are TIFF but for this number.
_VERSIONS = (42, 43, 0x55, 0x4F52, 0x5352)
_RAW_PHOTOMETRIC = {32803, 34892}
_MAKER_NOTE, _MAKER_NOTE_SAFE = 37500, 50741
# Of the main directory of a camera's own format; the rest of it describes a preview, or is private.
_KEPT = frozenset({270, 271, 272, 274, 305, 306, 315, 700, 33432, EXIF_IFD, GPS_IFD})
_HEAD = 4 * 2**20  # where the metadata of the formats that are no TIFF lies


@dataclasses.dataclass(frozen=True, slots=True)
class Tags:
    """The directories of a RAW file.

    Attributes
    ----------
    main : Directory
        What is worth keeping of the first directory; EXIF and GPS are its children.
    raw : Directory
        Of a DNG: the directory of the sensor's pixels. Else empty.
    order : str
        Byte order of the values, "<" or ">".
    dng : bool
        The file is a DNG.
    """

    main: Directory = dataclasses.field(default_factory=Directory)
    raw: Directory = dataclasses.field(default_factory=Directory)
    order: str = "<"
    dng: bool = False

    def find(self, tag: int) -> Entry | None:
        """Return an entry of the directory of the pixels, else of the first, else of EXIF."""
        return self.raw.get(tag) or self.main.get(tag) or self.exif.get(tag)

    @property
    def exif(self) -> Directory:
        """The EXIF directory, empty if there is none."""
        return next((d for t, d in self.main.children if t == EXIF_IFD), Directory())

    def number(self, tag: int) -> float | None:
        """Return the first value of a tag."""
        entry = self.find(tag)
        return entry.number(self.order) if entry is not None else None

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Return all values of a tag, none if it is missing or not of numbers."""
        entry = self.find(tag)
        return () if entry is None else numbers_of(entry, self.order)

    def text(self, tag: int) -> str:
        """Return a text, empty if there is none."""
        return ifd.text_of(self.find(tag)).strip()


def numbers_of(entry: Entry, order: str) -> tuple[float, ...]:
    """Return the values of an entry as floats; fractions with a denominator of 0 are NaN."""
    if entry.type in (5, 10):
        code = "I" if entry.type == 5 else "i"
        parts = struct.unpack(f"{order}{2 * entry.count}{code}", entry.data)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return tuple(top / bottom if bottom else math.nan for top, bottom in pairs)
    if entry.type in (11, 12):
        code = "f" if entry.type == 11 else "d"
        return struct.unpack(f"{order}{entry.count}{code}", entry.data)
    return tuple(map(float, entry.integers(order)))


def read_tags(name: str, file: BinaryIO, size_px: tuple[int, int] | None = None) -> Tags:
    """Read the directories of a RAW file of any make.

    Parameters
    ----------
    name : str
        For messages.
    file : binary file
        Seekable.
    size_px : pair of int, optional
        Width and height of the sensor's pixels, to find their directory among several.

    Raises
    ------
    CannotRead
        The file is shorter than it says.
    """
    file.seek(0)
    head = file.read(_HEAD)
    if head[:2] in (b"II", b"MM") and head[6:14] != b"HEAPCCDR":
        return _of_tiff(name, file, size_px)
    if head[:15] == b"FUJIFILMCCD-RAW":
        return _of_raf(name, file, head)
    if head[4:8] == b"ftyp":
        return _of_boxes(name, file, head)
    if head[:4] == b"\0MRM":  # Minolta: blocks, the one named TTW is a TIFF header with its directories
        at = head.find(b"\0TTW", 0, 4096)
        return _of_block(head[at + 8 :]) if at > 0 else Tags()
    return Tags()


def _of_tiff(name: str, file: BinaryIO, size_px: tuple[int, int] | None) -> Tags:
    try:
        reader = DirectoryReader(file, _VERSIONS)
        chain = [reader.directory(reader.first)]
    except BadDirectory as error:
        raise CannotRead(f"{name}: is damaged or cut short ({error}); get an intact copy") from error
    with contextlib.suppress(BadDirectory):  # some cameras end their chain in nothing: LibRaw decides
        chain += [reader.directory(at) for at in reader.offsets(64)[1:]]
    found = list(chain)
    for directory in chain:
        found += _sub_directories(reader, directory)
    _check_lengths(name, reader, found)
    first = chain[0]
    dng = first.get(50706) is not None
    if not dng:
        return Tags(_plain(first.only(_KEPT)), order=reader.order)
    return Tags(first, _of_pixels(found, reader.order, size_px), reader.order, dng=True)


def _sub_directories(reader: DirectoryReader, directory: Directory) -> Iterator[Directory]:
    pointers = directory.get(SUB_IFDS)
    for at in pointers.integers(reader.order)[:16] if pointers is not None else ():
        with contextlib.suppress(BadDirectory):
            yield reader.directory(at)


def _of_pixels(directories: list[Directory], order: str, size_px: tuple[int, int] | None) -> Directory:
    """Return the directory of the sensor's pixels."""

    def integer(directory: Directory, tag: int) -> int:
        entry = directory.get(tag)
        values = entry.integers(order) if entry is not None else ()
        return values[0] if values else 0

    fit = [d for d in directories if integer(d, 262) in _RAW_PHOTOMETRIC and integer(d, 254) == 0]
    exact = [d for d in fit if (integer(d, 256), integer(d, 257)) == size_px]
    return next(iter(exact or fit), Directory())


def _check_lengths(name: str, reader: DirectoryReader, directories: list[Directory]) -> None:
    """Raise `CannotRead` if strips or tiles of the sensor's pixels end behind the file.

    They are those of the directories that say so, and the largest there are: some makers do not say,
    and previews with wrong lengths are no reason to refuse a file.
    """
    reach = []
    for directory in directories:
        starts = directory.get(273) or directory.get(324)
        counts = directory.get(279) or directory.get(325)
        kind = directory.get(262)
        if starts is None or counts is None:
            continue
        pairs = list(zip(starts.integers(reader.order), counts.integers(reader.order), strict=False))
        if not pairs or any(count == 2**32 - 1 for _, count in pairs):
            continue
        sensor = kind is not None and set(kind.integers(reader.order)) <= _RAW_PHOTOMETRIC
        reach.append((sensor, sum(c for _, c in pairs), max(s + c for s, c in pairs)))
    largest = max((total for _, total, _ in reach), default=0)
    for sensor, total, end in reach:
        if (sensor or total == largest) and end > reader.size:
            raise CannotRead(f"{name}: is cut short: {reader.size} bytes of {end}; get an intact copy")


def _of_raf(name: str, file: BinaryIO, head: bytes) -> Tags:
    """Fujifilm: a header with the places of a JPEG (with EXIF) and of the sensor's data."""
    size = file.seek(0, io.SEEK_END)
    if len(head) < 108:
        raise CannotRead(f"{name}: is cut short: {size} bytes; get an intact copy")
    places = struct.unpack(">6I", head[84:108])
    end = max(places[k] + places[k + 1] for k in (0, 2, 4))
    if end > size:
        raise CannotRead(f"{name}: is cut short: {size} bytes of {end}; get an intact copy")
    file.seek(places[0])
    return tags_of_jpeg(file.read(min(places[1], _HEAD)))


def _of_boxes(name: str, file: BinaryIO, head: bytes) -> Tags:
    """Canon's CR3: boxes, among them small TIFF blocks with the directories."""
    size = file.seek(0, io.SEEK_END)
    at = 0
    while at + 8 <= size:
        file.seek(at)
        start = file.read(16)
        length = struct.unpack(">I", start[:4])[0]
        if length == 1 and len(start) == 16:
            length = struct.unpack(">Q", start[8:])[0]
        length = length or size - at  # 0: up to the end
        if length < 8 or at + length > size:
            raise CannotRead(f"{name}: is cut short: {size} bytes of {at + length}; get an intact copy")
        at += length
    blocks = {}
    for mark in (b"CMT1", b"CMT2", b"CMT4"):
        place = head.find(mark)
        if place >= 4:
            length = struct.unpack(">I", head[place - 4 : place])[0]
            blocks[mark] = _of_block(head[place + 4 : place - 4 + length])
    main = blocks.get(b"CMT1", Tags())
    children = [(EXIF_IFD, blocks[b"CMT2"].main)] if b"CMT2" in blocks else []
    children += [(GPS_IFD, blocks[b"CMT4"].main)] if b"CMT4" in blocks else []
    if any(t.order != main.order for t in blocks.values()):
        children = []
    whole = Directory(main.main.only(_KEPT).entries, tuple(children))
    return Tags(_plain(whole), order=main.order)


def tags_of_jpeg(data: bytes) -> Tags:
    """Return the EXIF of an embedded JPEG picture, empty if it has none."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            found = _of_block(body[6:])
            return dataclasses.replace(found, main=_plain(found.main.only(_KEPT)))
        if marker == 0xDA or length < 2:
            break
        at += 2 + length
    return Tags()


def _of_block(block: bytes) -> Tags:
    with contextlib.suppress(BadDirectory):
        directory, order = ifd.parse_block(block)
        return Tags(directory, order=order)
    return Tags()


def _plain(main: Directory) -> Directory:
    return without_maker_notes(main, ())


def without_maker_notes(main: Directory, safe: Collection[int]) -> Directory:
    """Leave out the maker's note of the EXIF directory: its offsets would point elsewhere in a new file."""
    if 1 in safe:
        return main
    children = tuple((t, d.without({_MAKER_NOTE}) if t == EXIF_IFD else d) for t, d in main.children)
    return Directory(main.entries, children)


def maker_note_is_safe(tags: Tags) -> bool:
    """Whether a DNG says that its maker's note may be moved (MakerNoteSafety)."""
    entry = tags.main.get(_MAKER_NOTE_SAFE)
    return entry is not None and entry.integers(tags.order)[:1] == (1,)
