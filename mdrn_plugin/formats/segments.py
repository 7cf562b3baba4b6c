"""The pages of a TIFF file as bytes: strips and tiles, compression, the chain of directories.

Written here and not by a library because tags must be copied exactly, known or unknown, in the
byte order they were in, and ImageJ needs the planes of a stack to follow one another without gap.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.formats.ifd import SUB_IFDS, Directory, Entry, header, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Everything a page writer decides anew; all other tags are copied.
STRUCTURE = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320}
    | {322, 323, 324, 325, SUB_IFDS, 338, 339, 340, 341, 280, 281, 347, 50674}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 559}
    | {32995, 32996, 32997, 32998}
)
NONE, LZW, DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32773, 34925, 50000
LOSSLESS = frozenset({NONE, LZW, DEFLATE, PACKBITS, LZMA, ZSTD})
# Offsets of a classic file are 32 bit; the rest is room for the directories.
CLASSIC_LIMIT = 2**32 - 2**25
_STRIP_BYTES = 2**18
_BAND_BYTES = 2**24  # written at a time of a strip that is not compressed
_SHRUNK_ROWS = 64  # made at a time of a reduced copy


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How the pages of a file are stored."""

    photometric: int = 1
    planar: bool = False  # one plane per sample
    tile: tuple[int, int] | None = None  # rows, columns
    rows: int = 0  # per strip, 0: as many as make 256 KB
    compression: int = NONE
    predictor: int = 1
    extra: tuple[int, ...] = ()  # ExtraSamples
    top: int = 0  # MaxSampleValue, 0: not stated
    colormap: Entry | None = None
    subfile: int = 0


class PageWriter:
    """Writes planes one after the other, then all directories.

    Parameters
    ----------
    file : binary file
        Empty, seekable.
    order : str
        ``<`` or ``>``.
    big : bool
        BigTIFF.
    """

    def __init__(self, file: BinaryIO, order: str, *, big: bool) -> None:
        self.file, self.order, self.big = file, order, big
        self._pending: list[tuple[Directory, tuple[Directory, ...]]] = []
        file.seek(0)
        file.write(header(order, 0, big=big))

    def add(self, page: Any, tags: Directory, layout: Layout, levels: Iterable[NDArray[Any]] = ()) -> None:
        """Write the pixels of one page, rows x columns [x samples], and remember its directory.

        The page has shape and dtype, and is sliced strip by strip or tile by tile. Reduced copies are asked
        for one after the other, when the one before is written.
        """
        main = self._store(page, tags, layout)
        small = dataclasses.replace(layout, subfile=1)
        self._pending.append((main, tuple(self._store(level, Directory(), small) for level in levels)))

    def close(self) -> None:
        """Write the directories and the pointer to the first."""
        pointer = "Q" if self.big else "I"
        link = 8 if self.big else 4  # where the offset of the next directory goes
        for directory, levels in self._pending:
            places = [self._append(level) for level in levels]
            if places:
                directory = directory.replace(Entry.of(SUB_IFDS, 18 if self.big else 13, places, self.order))
            at = self._append(directory)
            self.file.seek(link)
            self.file.write(struct.pack(self.order + pointer, at))
            rows = len(directory.entries) + len(directory.children)
            link = at + (8 + 20 * rows if self.big else 2 + 12 * rows)
        self.file.seek(0, 2)

    def _append(self, directory: Directory) -> int:
        at = self.file.seek(0, 2)
        if at % 2:
            self.file.write(b"\0")
            at += 1
        self.file.write(pack(directory, at, self.order, big=self.big))
        return at

    def _store(self, page: Any, tags: Directory, layout: Layout) -> Directory:
        offsets, counts = write_segments(self.file, page, layout, self.order)
        return describe(page.shape, page.dtype, tags, layout, self.order, self.big, offsets, counts)


def write_segments(file: BinaryIO, page: Any, layout: Layout, order: str) -> tuple[list[int], list[int]]:
    """Write the pixels of one page where the file stands; return where segments begin, and their bytes."""
    offsets, counts = [], []
    for pieces in _segments(page, layout, order):
        offsets.append(file.tell())
        counts.append(0)
        for data in pieces:
            counts[-1] += len(data)
            file.write(data)
    return offsets, counts


def describe(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    tags: Directory,
    layout: Layout,
    order: str,
    big: bool,
    offsets: Sequence[int],
    counts: Sequence[int],
) -> Directory:
    """Return the directory of one page: `tags` and what its structure needs."""
    height, width = shape[:2]
    samples = shape[2] if len(shape) == 3 else 1
    bits = 1 if dtype.kind == "b" else dtype.itemsize * 8
    kind = {"b": 1, "u": 1, "i": 2, "f": 3}[dtype.kind]
    long = 16 if big else 4

    def entry(tag: int, values: Sequence[int], code: int = 3) -> Entry:
        return Entry.of(tag, code, values, order)

    own = [
        entry(256, [width], 4),
        entry(257, [height], 4),
        entry(258, [bits] * samples),
        entry(259, [layout.compression]),
        entry(262, [layout.photometric]),
        entry(277, [samples]),
        entry(284, [2 if layout.planar and samples > 1 else 1]),
        entry(339, [kind] * samples),
    ]
    if layout.subfile:
        own.append(entry(254, [layout.subfile], 4))
    if layout.predictor != 1:
        own.append(entry(317, [layout.predictor]))
    if layout.extra:
        own.append(entry(338, layout.extra))
    if layout.top:
        own.append(entry(281, [layout.top] * samples, 3 if layout.top < 65536 else 4))
    if layout.colormap is not None:
        own.append(layout.colormap)
    if layout.tile:
        own += [entry(322, [layout.tile[1]], 4), entry(323, [layout.tile[0]], 4)]
        own += [entry(324, offsets, long), entry(325, counts, long)]
    else:
        own += [entry(278, [strip_rows(shape, dtype, layout)], 4)]
        own += [entry(273, offsets, long), entry(279, counts, long)]
    return tags.without(STRUCTURE).replace(*own)


def strip_rows(shape: tuple[int, ...], dtype: np.dtype[Any], layout: Layout) -> int:
    """Return the rows of one strip."""
    if layout.rows:
        return min(layout.rows, shape[0])
    if layout.compression == NONE:
        return shape[0]
    samples = shape[2] if len(shape) == 3 and not layout.planar else 1
    return min(shape[0], max(1, _STRIP_BYTES // max(1, shape[1] * samples * dtype.itemsize)))


def _segments(page: Any, layout: Layout, order: str) -> Iterator[Iterable[bytes | memoryview]]:
    """Yield each segment as the pieces that follow one another in it."""
    encode = _encoder(layout.compression)
    planar = len(page.shape) == 3 and layout.planar
    parts = [page[..., s] for s in range(page.shape[2])] if planar else [page]
    for part in parts:
        if layout.tile:
            rows, columns = layout.tile
            for y in range(0, part.shape[0], rows):
                for x in range(0, part.shape[1], columns):
                    block = part[y : y + rows, x : x + columns]
                    pad = [(0, rows - block.shape[0]), (0, columns - block.shape[1])]
                    pad += [(0, 0)] * (block.ndim - 2)
                    yield [encode(_block_bytes(np.pad(block, pad, mode="edge"), layout, order), block.dtype)]
        else:
            rows = strip_rows(page.shape, page.dtype, layout)
            row_bytes = math.prod(part.shape[1:]) * part.dtype.itemsize
            band = max(1, _BAND_BYTES // max(1, row_bytes)) if layout.compression == NONE else rows
            for y in range(0, part.shape[0], rows):
                end = min(part.shape[0], y + rows)
                yield (
                    encode(_block_bytes(part[top : min(end, top + band)], layout, order), part.dtype)
                    for top in range(y, end, band)
                )


def _block_bytes(block: NDArray[Any], layout: Layout, order: str) -> bytes | memoryview:
    if block.dtype.kind == "b":
        return np.packbits(block, axis=1).tobytes()
    if layout.predictor == 2:
        flat = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}")
        difference = flat.copy()
        difference[:, 1:] -= flat[:, :-1]  # wraps, as the format means it to
        block = difference
    elif layout.predictor == 3:
        import imagecodecs

        native = np.ascontiguousarray(block.astype(block.dtype.newbyteorder("=")))
        coded = imagecodecs.floatpred_encode(native, axis=1)
        return bytes(coded.tobytes())
    # Not a copy where none is needed: an uncompressed page is one block.
    return np.ascontiguousarray(ordered(block, order)).reshape(-1).view(np.uint8).data


def _encoder(compression: int) -> Callable[[Any, np.dtype[Any]], bytes | memoryview]:
    if compression == NONE:
        return lambda data, dtype: data
    import imagecodecs

    if compression == DEFLATE:
        return lambda data, dtype: bytes(imagecodecs.zlib_encode(data, level=6))
    if compression == LZW:
        return lambda data, dtype: bytes(imagecodecs.lzw_encode(data))
    if compression == PACKBITS:
        return lambda data, dtype: bytes(imagecodecs.packbits_encode(data))
    if compression == LZMA:
        return lambda data, dtype: bytes(imagecodecs.lzma_encode(data))
    if compression == ZSTD:
        return lambda data, dtype: bytes(imagecodecs.zstd_encode(data))
    raise AssertionError(f"compression {compression} has no encoder")


def stored_predictor(predictor: int, compression: int, dtype: np.dtype[Any]) -> int:
    """Return the predictor that can be kept: 2 for integers, 3 for floats, only where it helps."""
    if compression not in (LZW, DEFLATE, LZMA, ZSTD):
        return 1
    if predictor == 2 and dtype.kind in "ui":
        return 2
    return 3 if predictor == 3 and dtype.kind == "f" else 1


def invert(pixels: NDArray[Any], top: int) -> NDArray[Any]:
    """Turn MinIsWhite into MinIsBlack and back; floats and signed integers have no such meaning."""
    if pixels.dtype.kind == "b":
        flipped: NDArray[Any] = ~pixels
        return flipped
    if pixels.dtype.kind != "u":
        return pixels
    full = pixels.dtype.type(top or np.iinfo(pixels.dtype).max)
    # Values beyond the stated depth keep their bits: exact in both directions.
    inverted: NDArray[Any] = np.where(pixels <= full, full - np.minimum(pixels, full), pixels)
    return inverted


def shrink(page: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the page reduced to `shape` by means over blocks, in its own dtype.

    Of a page that is not in memory some rows are read at a time.
    """
    if not isinstance(page, np.ndarray):
        starts = np.append(np.arange(shape[0]) * page.shape[0] // shape[0], page.shape[0])
        found = np.empty((*shape, *page.shape[2:]), page.dtype)
        for k in range(0, shape[0], _SHRUNK_ROWS):
            end = min(shape[0], k + _SHRUNK_ROWS)
            found[k:end] = _shrunk(page[starts[k] : starts[end]], starts[k:end] - starts[k], shape[1])
        return found
    if page.dtype.kind == "b":
        rows = np.arange(shape[0]) * page.shape[0] // shape[0]
        columns = np.arange(shape[1]) * page.shape[1] // shape[1]
        picked: NDArray[Any] = page[rows][:, columns]
        return picked
    return _shrunk(page, np.arange(shape[0]) * page.shape[0] // shape[0], shape[1])


def _shrunk(page: NDArray[Any], rows: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return means over blocks that begin at `rows`, in so many columns."""
    total: NDArray[Any] = page.astype(np.float64)
    for axis, starts in enumerate((rows, np.arange(columns) * page.shape[1] // columns)):
        ends = np.append(starts[1:], page.shape[axis])
        view = [1] * page.ndim
        view[axis] = len(starts)
        total = np.add.reduceat(total, starts, axis=axis) / (ends - starts).reshape(view)
    if page.dtype.kind in "ui":
        info = np.iinfo(page.dtype)
        # 2**64 - 1 is no float64: clip to the float below it first.
        high = float(info.max) if page.dtype.itemsize < 8 else math.nextafter(float(info.max), 0)
        total = np.clip(np.rint(total), float(info.min), high)
    reduced: NDArray[Any] = total.astype(page.dtype)
    return reduced


def ordered(block: NDArray[Any], order: str) -> NDArray[Any]:
    """Return the values in the byte order ``<`` or ``>``."""
    turned: NDArray[Any] = block.astype(block.dtype.newbyteorder("<" if order == "<" else ">"), copy=False)
    return turned
