"""TIFF directories as raw entries: read, change, pack. EXIF blocks are the same structure.

Values stay the bytes they were in the file, so that a tag this program has never heard of is
copied exactly. Only pointers to other directories (EXIF, GPS) are resolved and written anew.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import BinaryIO

EXIF_IFD, GPS_IFD, INTEROP_IFD, SUB_IFDS = 34665, 34853, 40965, 330
CHILD_TAGS = frozenset({EXIF_IFD, GPS_IFD, INTEROP_IFD})

# Bytes per value of each TIFF type (TIFF 6.0 section 2; 13, 16-18 from the supplements).
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_STRUCT = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

# More directories than any instrument writes; a chain this long is damage or malice.
MAX_DIRECTORIES = 200_000
_MAX_DEPTH = 3  # main directory, EXIF, interoperability


class BadDirectory(ValueError):
    """The directory structure contradicts itself or the length of the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tag; `data` holds `count` values in the byte order of its file."""

    tag: int
    type: int
    count: int
    data: bytes

    @classmethod
    def of(cls, tag: int, kind: int, values: Iterable[int], order: str) -> Entry:
        """Make an entry of integers."""
        numbers = list(values)
        return cls(tag, kind, len(numbers), struct.pack(f"{order}{len(numbers)}{_STRUCT[kind]}", *numbers))

    @classmethod
    def raw(cls, tag: int, kind: int, data: bytes) -> Entry:
        """Make an entry of bytes (type 1 or 7) or text (type 2, NUL added)."""
        if kind == 2 and not data.endswith(b"\0"):
            data += b"\0"
        return cls(tag, kind, len(data), data)

    @classmethod
    def rational(cls, tag: int, value: float, order: str) -> Entry:
        """Make a fraction that is exact to six digits after the point."""
        scale = 1_000_000 if value < 4000 else 1
        return cls(tag, 5, 1, struct.pack(f"{order}2I", round(value * scale), scale))

    def integers(self, order: str) -> tuple[int, ...]:
        """Return the values as integers; none if the type is not an integer type."""
        code = _STRUCT.get(self.type)
        return struct.unpack(f"{order}{self.count}{code}", self.data) if code else ()

    def number(self, order: str) -> float | None:
        """Return the first value as a number, fractions divided out."""
        if self.type in (5, 10) and len(self.data) >= 8:
            top, bottom = struct.unpack(f"{order}2{'I' if self.type == 5 else 'i'}", self.data[:8])
            return top / bottom if bottom else None
        if self.type in (11, 12) and self.count:
            return float(
                struct.unpack(f"{order}{'f' if self.type == 11 else 'd'}", self.data[: 4 * (self.type - 10)])[
                    0
                ]
            )
        values = self.integers(order)
        return float(values[0]) if values else None


@dataclasses.dataclass(frozen=True, slots=True)
class Directory:
    """Entries in file order, and the directories that some of them point to."""

    entries: tuple[Entry, ...] = ()
    children: tuple[tuple[int, Directory], ...] = ()

    def get(self, tag: int) -> Entry | None:
        """Return the first entry of a tag."""
        return next((e for e in self.entries if e.tag == tag), None)

    def without(self, tags: Collection[int]) -> Directory:
        """Leave out entries and children of these tags."""
        return Directory(
            tuple(e for e in self.entries if e.tag not in tags),
            tuple((t, d) for t, d in self.children if t not in tags),
        )

    def only(self, tags: Collection[int]) -> Directory:
        """Keep entries and children of these tags only."""
        return Directory(
            tuple(e for e in self.entries if e.tag in tags),
            tuple((t, d) for t, d in self.children if t in tags),
        )

    def replace(self, *entries: Entry) -> Directory:
        """Put `entries` in the place of all others of the same tags."""
        rest = self.without({e.tag for e in entries})
        return Directory(rest.entries + entries, rest.children)


class DirectoryReader:
    """Walks the directories of a TIFF file or an EXIF block without decoding any picture.

    Parameters
    ----------
    file : binary file
        Seekable; its length is what every pointer is checked against.
    versions : collection of int
        Second numbers of the header that are taken for it: 42, 43 (BigTIFF), and those that some cameras
        write in their place.
    """

    def __init__(self, file: BinaryIO, versions: Collection[int] = (42, 43)) -> None:
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise BadDirectory("no TIFF header")
        self.order = order
        version = struct.unpack(f"{order}H", head[2:4])[0]
        if version not in versions:
            raise BadDirectory(f"TIFF version {version}, expected 42 or 43")
        self.big = version == 43
        if self.big and len(head) < 16:
            raise BadDirectory("header cut short")
        self.first: int = (
            struct.unpack(f"{order}Q", head[8:16])[0]
            if self.big
            else struct.unpack(f"{order}I", head[4:8])[0]
        )
        self._count = struct.Struct(order + ("Q" if self.big else "H"))
        self._pointer = struct.Struct(order + ("Q" if self.big else "I"))
        self._entry = struct.Struct(order + ("HHQ8s" if self.big else "HHI4s"))

    def offsets(self, limit: int = MAX_DIRECTORIES) -> list[int]:
        """Return the offset of every directory of the main chain.

        Raises
        ------
        BadDirectory
            A pointer leaves the file or the chain bites its tail.
        """
        found: list[int] = []
        seen: set[int] = set()
        offset = self.first
        if offset == 0:
            raise BadDirectory("no directory at all")
        while offset:
            if offset in seen:
                raise BadDirectory(f"directory {len(found)} points back to an earlier one")
            if len(found) >= limit:
                raise BadDirectory(f"more than {limit} directories")
            seen.add(offset)
            found.append(offset)
            rows, offset = self._rows(offset)
            del rows
        return found

    def directory(
        self, offset: int, *, skip: Collection[int] = (), needed: Collection[int] = (), depth: int = 0
    ) -> Directory:
        """Read one directory with the values of its entries.

        Parameters
        ----------
        offset : int
            Where it starts.
        skip : collection of int
            Tags whose values are not wanted.
        needed : collection of int
            Tags whose values must lie inside the file; others that do not are left out, as other
            programs do with damaged private tags.
        depth : int
            How many directories pointed here already.
        """
        rows, _ = self._rows(offset)
        entries: list[Entry] = []
        children: list[tuple[int, Directory]] = []
        inline = 8 if self.big else 4
        for tag, kind, count, field in rows:
            if tag in skip:
                continue
            if kind not in TYPE_BYTES:
                continue
            length = TYPE_BYTES[kind] * count
            if tag in CHILD_TAGS and count == 1 and kind in (4, 13, 16, 18):
                if depth < _MAX_DEPTH:
                    at = self._pointer.unpack(field)[0] if kind in (16, 18) or not self.big else 0
                    if self.big and kind in (4, 13):
                        at = struct.unpack(f"{self.order}I", field[:4])[0]
                    try:
                        children.append((tag, self.directory(at, depth=depth + 1)))
                    except BadDirectory:
                        if tag in needed:
                            raise
                continue
            if length <= inline:
                data = field[:length]
            else:
                at = self._pointer.unpack(field)[0]
                if at + length > self.size:
                    if tag in needed:
                        raise BadDirectory(f"tag {tag} needs bytes {at} to {at + length} of {self.size}")
                    continue
                self.file.seek(at)
                data = self.file.read(length)
                if len(data) != length:
                    raise BadDirectory(f"tag {tag} cut short")
            entries.append(Entry(tag, kind, count, data))
        return Directory(tuple(entries), tuple(children))

    def _rows(self, offset: int) -> tuple[list[tuple[int, int, int, bytes]], int]:
        """Return the entries of a directory without their far values, and the next offset."""
        # Compared first: seeking to where no file can reach is an error of the system, not of the file.
        inside = offset + self._count.size <= self.size
        head = self.file.read(self._count.size) if inside and self.file.seek(offset) == offset else b""
        if len(head) < self._count.size:
            raise BadDirectory(f"directory at byte {offset} of {self.size}: outside the file")
        number = self._count.unpack(head)[0]
        if number == 0 or number > 65535:
            raise BadDirectory(f"directory at byte {offset} has {number} entries")
        body = self.file.read(number * self._entry.size)
        if len(body) < number * self._entry.size:
            raise BadDirectory(f"directory at byte {offset} is cut short")
        tail = self.file.read(self._pointer.size)
        # Some writers omit the final pointer of an EXIF block; a TIFF without it still has its pages.
        after = self._pointer.unpack(tail)[0] if len(tail) == self._pointer.size else 0
        return list(self._entry.iter_unpack(body)), after


def pack(directory: Directory, offset: int, order: str, *, big: bool, after: int = 0) -> bytes:
    """Return the bytes of a directory that will start at `offset`, children and values behind it."""
    pointer = "Q" if big else "I"
    inline, row = (8, 20) if big else (4, 12)
    rows: list[tuple[int, int, int, bytes | Directory]] = [
        (e.tag, e.type, e.count, e.data) for e in directory.entries
    ]
    rows += [(tag, 18 if big else 4, 1, child) for tag, child in directory.children]
    rows.sort(key=lambda r: r[0])
    head = struct.pack(order + ("Q" if big else "H"), len(rows))
    cursor = offset + len(head) + row * len(rows) + inline
    body, far = [], []
    for tag, kind, count, value in rows:
        if isinstance(value, bytes) and len(value) <= inline:
            field = value.ljust(inline, b"\0")
        else:
            if cursor % 2:  # values start on even bytes (TIFF 6.0, page 15)
                far.append(b"\0")
                cursor += 1
            data = value if isinstance(value, bytes) else pack(value, cursor, order, big=big)
            field = struct.pack(order + pointer, cursor)
            far.append(data)
            cursor += len(data)
        body.append(struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + field)
    return b"".join([head, *body, struct.pack(order + pointer, after), *far])


def header(order: str, first: int, *, big: bool) -> bytes:
    """Return the first bytes of a TIFF file whose first directory is at `first`."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQ", 43, 8, 0, first)
    return mark + struct.pack(order + "HI", 42, first)


def parse_block(blob: bytes) -> tuple[Directory, str]:
    """Read the main directory of an EXIF block (without the ``Exif`` prefix) and its byte order.

    Raises
    ------
    BadDirectory
        It is damaged.
    """
    reader = DirectoryReader(io.BytesIO(blob))
    return reader.directory(reader.first), reader.order


def pack_block(directory: Directory, order: str) -> bytes:
    """Return an EXIF block (without the ``Exif`` prefix)."""
    return header(order, 8, big=False) + pack(directory, 8, order, big=False)


def text_of(entry: Entry | None) -> str:
    """Return the text of an ASCII entry, empty if there is none."""
    return entry.data.split(b"\0")[0].decode("utf-8", "replace") if entry is not None else ""


def with_software(blob: bytes, text: str) -> bytes:
    """Set the Software tag of an EXIF block without moving any byte of it.

    Maker notes hold offsets into the whole block, so the new text and a new main directory go to
    the end and only the pointer to the main directory changes.
    """
    reader = DirectoryReader(io.BytesIO(blob))
    rows, after = reader._rows(reader.first)
    data = text.encode() + b"\0"
    out = bytearray(blob + b"\0" * (len(blob) % 2))
    at = len(out)
    out += data + b"\0" * (len(data) % 2)
    order = reader.order
    kept = [struct.pack(order + "HHI", t, k, n) + field for t, k, n, field in rows if t != 305]
    field = struct.pack(order + "I", at) if len(data) > 4 else data.ljust(4, b"\0")
    kept.append(struct.pack(order + "HHI", 305, 2, len(data)) + field)
    kept.sort(key=lambda r: struct.unpack(order + "H", r[:2])[0])
    out[4:8] = struct.pack(order + "I", len(out))
    out += struct.pack(order + "H", len(kept)) + b"".join(kept) + struct.pack(order + "I", after)
    return bytes(out)


def joined_software(old: str, provenance: str) -> str:
    """Return the Software text: what was there, then our note, once."""
    kept: Sequence[str] = [p for p in old.split("; ") if p and not p.startswith("mdrn {")] if old else []
    return "; ".join([*kept, f"mdrn {provenance}"])
