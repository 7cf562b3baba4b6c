"""Pixels that stay in a file: in one piece, or in strips and tiles that are decoded when asked for."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import CannotRead, MdrnError
from mdrn_plugin.files import open_scratch, write_at
from mdrn_plugin.formats import segments, tiff
from mdrn_plugin.formats.slicing import boxes, without_integers
from mdrn_plugin.formats.sniffing import open_regular
from mdrn_plugin.picture import Streamed

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Decoded segments that are kept: a row of tiles of the engine (1,024 rows and their halo) of a picture of
# 40,000 columns, 16 bit. Of wider ones, strips are decoded again for the next tile beside it.
_KEPT_BYTES = 96 * 2**20
# A strip or tile that decodes to more than this is no way to read a picture in parts.
_SEGMENT_BYTES = 64 * 2**20
_OLD_DEFLATE = 32946  # Deflate by its first number


class InFile(Streamed):
    """Pixels that lie in a file, those of a plane one after the other; read and written where asked for.

    Parameters
    ----------
    file : binary file
        Open; it is closed with the last reference to the pixels.
    name : str
        Of the file, for messages.
    offsets : sequence of int
        Of the first pixel of each plane; planes that follow one another are a `range`.
    shape : tuple of int
        Rows and columns last, then samples if there are some.
    dtype : dtype
        As the values are stored, byte order included.
    samples : bool
        The last axis is the samples of a pixel.
    target : Path, optional
        What is written for; left out, the pixels cannot be written to.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        offsets: Sequence[int],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        samples: bool,
        target: Path | None = None,
    ) -> None:
        self._file, self._name, self._offsets, self._stored = file, name, offsets, dtype
        self._inner = 3 if samples else 2  # axes of a plane
        self._target = target
        self._lock = threading.Lock()
        self.shape, self.ndim, self.dtype = shape, len(shape), dtype.newbyteorder("=")

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read a box; integers and slices of step 1."""
        asked = boxes(place, self.shape)
        lead, (rows, columns, *_) = asked[: -self._inner], asked[-self._inner :]
        out = np.empty((*(b.stop - b.start for b in (*lead, rows, columns)), self._samples), self._stored)
        for index in np.ndindex(*out.shape[: len(lead)]):
            for some, at in self._runs(out[index], index, lead, rows, columns):
                self._fill(some, at)
        found = out[..., 0] if self._inner == 2 else out[..., asked[-1]]
        return without_integers(found.astype(self.dtype, copy=False), place)

    def __setitem__(self, place: Any, values: Any) -> None:
        """Write a box; integers and slices of step 1."""
        assert self._target is not None
        asked = boxes(place, self.shape)
        lead, (rows, columns, *_) = asked[: -self._inner], asked[-self._inner :]
        kept = np.empty([b.stop - b.start for b in asked], self._stored)
        without_integers(kept, place)[...] = values
        if self._inner == 3 and asked[-1] != slice(0, self._samples):  # the other samples stay
            whole = self[(*asked[:-1], slice(None))].astype(self._stored, copy=False)
            whole[..., asked[-1]] = kept
            kept = whole
        kept = kept.reshape(*kept.shape[: len(lead) + 2], self._samples)
        for index in np.ndindex(*kept.shape[: len(lead)]):
            for some, at in self._runs(kept[index], index, lead, rows, columns):
                write_at(self._file, some.view(np.uint8).reshape(-1).data, at, self._target)

    def __del__(self) -> None:
        """Close the file with the last reference to the pixels."""
        self._file.close()

    @property
    def _samples(self) -> int:
        return self.shape[-1] if self._inner == 3 else 1

    def _runs(
        self, box: NDArray[Any], index: tuple[int, ...], lead: tuple[slice, ...], rows: slice, columns: slice
    ) -> list[tuple[NDArray[Any], int]]:
        """Return the pieces of a box of one plane that lie in one piece in the file, and where."""
        width = self.shape[-self._inner + 1]
        plane = 0
        for i, part, n in zip(index, lead, self.shape, strict=False):
            plane = plane * n + part.start + i
        pixel = self._samples * self._stored.itemsize
        first = self._offsets[plane] + (rows.start * width + columns.start) * pixel
        if box.shape[1] == width:
            return [(box, first)] if box.size else []
        return [(row, first + k * width * pixel) for k, row in enumerate(box) if row.size]

    def _fill(self, values: NDArray[Any], offset: int) -> None:
        view = values.view(np.uint8).reshape(-1).data
        while view:
            if hasattr(os, "preadv"):
                count = os.preadv(self._file.fileno(), [view], offset)
            else:
                with self._lock:
                    self._file.seek(offset)
                    count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise CannotRead(f"{self._name}: ends before its pixels do; get an intact copy")
            view, offset = view[count:], offset + count


def one_after_another(offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], samples: bool) -> range:
    """Return where the planes of an array begin that lies in a file in one piece."""
    inner = 3 if samples else 2
    plane = math.prod(shape[-inner:]) * dtype.itemsize
    return range(offset, offset + math.prod(shape[:-inner]) * plane, plane)


def scratch(target: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, samples: bool) -> InFile:
    """Return pixels to write to, on the disk that `target` will lie on; their file has no name.

    Raises
    ------
    OutputUnusable
        The folder cannot be written, or has no room for them.
    """
    kind = np.dtype(dtype)
    file = open_scratch(target, math.prod(shape) * kind.itemsize)
    offsets = one_after_another(0, shape, kind, samples)
    return InFile(file, target.name, offsets, shape, kind.newbyteorder("="), samples, target)


class InSegments(Streamed):
    """Pixels in strips or tiles, one page to each plane, decoded where they are asked for.

    Parameters
    ----------
    name : str
        Of the file, for messages.
    pages : sequence
        tifffile's pages, in the order of the planes.
    shape : tuple of int
        Rows and columns last, then samples if there are some.
    dtype : dtype
        Native.
    samples : bool
        The last axis is the samples of a pixel.
    """

    def __init__(
        self, name: str, pages: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any], samples: bool
    ) -> None:
        key = pages[0].keyframe
        self._name, self._pages, self._decode = name, pages, key.decode
        self._step = (
            (int(key.tilelength), int(key.tilewidth))
            if key.is_tiled
            else (min(int(key.rowsperstrip), int(key.imagelength)), int(key.imagewidth))
        )
        self._inner = 3 if samples else 2
        self._files: dict[str, BinaryIO] = {}
        self._kept: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self.shape, self.ndim, self.dtype = shape, len(shape), dtype

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read a box; integers and slices of step 1."""
        asked = boxes(place, self.shape)
        lead, inner = asked[: -self._inner], asked[-self._inner :]
        out = np.empty([b.stop - b.start for b in asked], self.dtype)
        for index in np.ndindex(*out.shape[: len(lead)]):
            plane = 0
            for i, part, n in zip(index, lead, self.shape, strict=False):
                plane = plane * n + part.start + i
            self._fill(out[index], plane, *inner)
        return without_integers(out, place)

    def __del__(self) -> None:
        """Close the files with the last reference to the pixels."""
        for file in self._files.values():
            file.close()

    def _fill(
        self, out: NDArray[Any], plane: int, rows: slice, columns: slice, samples: slice | None = None
    ) -> None:
        if not out.size:
            return
        high, wide = self._step
        across = -(-self.shape[-self._inner :][1] // wide)
        for i in range(rows.start // high, -(-rows.stop // high)):
            for j in range(columns.start // wide, -(-columns.stop // wide)):
                segment = self._segment(plane, i * across + j)
                (y, inside_y), (x, inside_x) = _shared(rows, i, high), _shared(columns, j, wide)
                found = segment[inside_y, inside_x, 0 if samples is None else samples]
                if found.shape != out[y, x].shape:
                    raise CannotRead(f"{self._name}: page {plane} lacks pixels; get an intact copy")
                out[y, x] = found

    def _segment(self, plane: int, number: int) -> NDArray[Any]:
        with self._lock:
            key = (plane, number)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            found = self._decoded(plane, number)
            self._kept[key] = found
            self._kept_bytes += found.nbytes
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return found

    def _decoded(self, plane: int, number: int) -> NDArray[Any]:
        page = self._pages[plane]
        path = page.parent.filehandle.path
        if path not in self._files:
            self._files[path] = open_regular(Path(path))
        file = self._files[path]
        file.seek(page.dataoffsets[number])
        data = file.read(page.databytecounts[number])
        try:
            with tiff.log_of_tifffile() as log:
                found = self._decode(data, number)[0]
            tiff.check_log(self._name, log)
        except (MdrnError, MemoryError):
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise CannotRead(
                f"{self._name}: page {plane} is damaged ({reason}); get an intact copy"
            ) from error
        pixels: NDArray[Any] = found[0]  # of one slice (ImageDepth is 1)
        return pixels


def _shared(asked: slice, number: int, length: int) -> tuple[slice, slice]:
    """Return what a range shares with a segment: its place in the range, and in the segment."""
    start, stop = max(asked.start, number * length), min(asked.stop, (number + 1) * length)
    return (
        slice(start - asked.start, stop - asked.start),
        slice(start - number * length, stop - number * length),
    )


def _in_one_piece(page: Any, strip: int) -> bool:
    """Whether the strips of a page follow one another, all but the last of `strip` bytes."""
    starts, counts = list(page.dataoffsets), list(page.databytecounts)
    return starts == [starts[0] + k * strip for k in range(len(starts))] and set(counts[:-1]) <= {strip}


def of_series(path: Path, name: str, series: Any, order: str, planes: int) -> Streamed | None:
    """Return the pixels of a series of pages without reading them; None if they must be read as a whole.

    That is where they must be changed to be a picture (palette, inverted gray, odd bits, bands), where the
    decoder is one for photographs, and where the strips or tiles are large themselves.
    """
    page, shape, axes = series.keyframe, tuple(series.shape), str(series.axes)
    dtype = np.dtype(page.dtype)
    samples = "S" in axes
    inner = 3 if samples else 2
    stored = shape[-1] if samples else 1
    # Another order of the axes, or more of them than there are letters: `tiff` turns and joins them.
    if not axes.endswith("YXS" if samples else "YX") or len(set(axes)) != len(axes) or len(axes) > inner + 3:
        return None
    if tuple(page.shape) != shape[-inner:] or (int(page.planarconfig) != 1 and stored > 1):
        return None
    colours = {1: 1, 2: 3, 5: 4}.get(int(page.photometric))
    if colours is None or stored - colours not in (0, 1):
        return None
    if dtype.kind not in "uif" or int(page.bitspersample) != dtype.itemsize * 8:
        return None
    if int(page.fillorder) != 1 or int(page.compression) not in segments.LOSSLESS | {_OLD_DEFLATE}:
        return None
    pages = list(series.pages)
    rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))
    columns = int(page.tilewidth if page.is_tiled else page.imagewidth)
    segment = rows * columns * stored * dtype.itemsize
    if int(page.predictor) == 1 and int(page.compression) == segments.NONE and not series.is_multifile:
        in_order = dtype.newbyteorder("<" if order == "<" else ">")
        starts: Sequence[int] | None = None
        if series.dataoffset is not None:
            starts = one_after_another(int(series.dataoffset), shape, dtype, samples)
        elif len(pages) == planes and not page.is_tiled and all(_in_one_piece(p, segment) for p in pages):
            starts = [int(p.dataoffsets[0]) for p in pages]
        if starts is not None:
            return InFile(open_regular(path), name, starts, shape, in_order, samples)
    if len(pages) != planes or segment > _SEGMENT_BYTES:
        return None
    count = -(-shape[-inner] // rows) * -(-shape[1 - inner] // columns)
    if any(len(p.dataoffsets) != count or len(p.databytecounts) != count for p in pages):
        return None
    return InSegments(name, pages, shape, dtype.newbyteorder("="), samples)
