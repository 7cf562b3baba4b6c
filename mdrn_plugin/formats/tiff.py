"""TIFF: plain, ImageJ and OME files, classic and BigTIFF.

tifffile decodes; which pages there are, whether all their data are, and every tag come from the
directories themselves (`ifd`), because a library that shows pictures prefers a part to nothing.
Files are written by `segments`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import CannotHold, CannotRead, NotSupported
from mdrn_plugin.formats import ifd, imagej, ome, segments
from mdrn_plugin.formats.ifd import Directory, DirectoryReader, Entry
from mdrn_plugin.formats.limits import check_pixels, check_ratio
from mdrn_plugin.formats.segments import Layout
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.picture import Metadata, Picture, decide_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tags without which the pixels are not what they were; their values must lie inside the file.
_NEEDED = frozenset(
    {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347}
)
# What a page repeats from the first of a stack that has only one directory.
_FIRST_ONLY = frozenset(
    {270, imagej.BYTE_COUNTS, imagej.BLOCK, 700, 34377, 34675, 33723, ifd.EXIF_IFD, ifd.GPS_IFD}
)
# Photoshop's layers would still show the noisy picture.
_STALE = frozenset({37724})
# The tags of a TIFF file that an EXIF block has in its main directory too.
_EXIF_MAIN = frozenset({271, 272, 274, 306, 315, 33432, ifd.EXIF_IFD, ifd.GPS_IFD})
_VENDOR = {
    "is_lsm": "Zeiss LSM", "is_stk": "MetaMorph STK", "is_ndpi": "Hamamatsu NDPI", "is_svs": "Aperio SVS",
    "is_scn": "Leica SCN", "is_qpi": "PerkinElmer QPI", "is_bif": "Ventana BIF", "is_philips": "Philips slide",
    "is_fluoview": "Olympus FluoView", "is_sis": "Olympus SIS", "is_eer": "EER", "is_mdgel": "MD Gel",
}  # fmt: skip
_PHOTOMETRIC_WORDS = {
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32844: "LogL",
    32845: "LogLuv",
    6: "YCbCr without JPEG",
}
_LOST = re.compile(r"series|missing|out of range|truncat|zeroed|corrupt|IFD|TiffPages", re.I)


@dataclasses.dataclass(frozen=True, slots=True)
class TiffMetadata(Metadata):
    """What a TIFF file needs to be written back as it was."""

    kind: str = "plain"  # "plain", "imagej", "ome"
    order: str = "<"
    big: bool = False
    layout: Layout = dataclasses.field(default_factory=Layout)
    pages: tuple[Directory, ...] = ()  # one per plane: every tag that is not structure
    axes: str = ""  # of the Picture that was read
    shape: tuple[int, ...] = ()
    dtype: str = ""
    banded: bool = False  # C of the picture is stored as samples of one pixel
    levels: tuple[tuple[int, int], ...] = ()  # rows, columns of the reduced copies


def read(path: Path, max_pixels: int | None) -> Picture:
    """Read a TIFF file.

    Raises
    ------
    CannotRead, NotSupported
        See the door, `mdrn_plugin.formats.read`.
    """
    import tifffile

    name = shown(path)
    with open_regular(path) as file:
        try:
            chain = DirectoryReader(file)
            offsets = chain.offsets()
            first = chain.directory(offsets[0], needed=_NEEDED)
            for offset in offsets[1:]:
                chain.directory(offset, skip=_NEEDED)
        except ifd.BadDirectory as error:
            raise CannotRead(
                f"{name}: its directory of pages is damaged ({error}); get an intact copy"
            ) from error
        description = ifd.text_of(first.get(270))
        _check_header(name, first, chain.order, max_pixels)
        if ome.is_ome(description):
            ome.check(description, path)
        with _log_of_tifffile() as log, tifffile.TiffFile(path) as tif:
            return _read_series(path, name, tif, chain, offsets, first, log, max_pixels)


def _check_header(name: str, first: Directory, order: str, max_pixels: int | None) -> None:
    def value(tag: int) -> int:
        entry = first.get(tag)
        numbers = entry.integers(order) if entry is not None else ()
        return numbers[0] if numbers else 0

    check_pixels(name, value(256), value(257), 1, max_pixels)
    for tag in (322, 323):
        if value(tag) > 2**16 and value(tag) > 2 * max(value(256), value(257)):
            raise CannotRead(
                f"{name}: tiles of {value(tag)} pixels are larger than the picture; get an intact copy"
            )


def _read_series(
    path: Path,
    name: str,
    tif: Any,
    chain: DirectoryReader,
    offsets: list[int],
    first: Directory,
    log: list[logging.LogRecord],
    max_pixels: int | None,
) -> Picture:
    vendor = next((words for flag, words in _VENDOR.items() if getattr(tif, flag, False)), None)
    if vendor is not None:
        raise NotSupported(
            f"{name}: is a {vendor} file, whose metadata could not be kept; export it as OME-TIFF"
        )
    series = tif.series
    _check_log(name, log)
    if len(series) != 1:
        sizes = ", ".join("x".join(map(str, s.shape)) for s in list(series)[:4])
        raise NotSupported(
            f"{name}: holds {len(series)} pictures of their own ({sizes}{', ...' if len(series) > 4 else ''}), "
            "expected one picture or one stack; save them as separate files"
        )
    one = series[0]
    page = one.keyframe
    shape, axes = tuple(one.shape), str(one.axes)
    planes = _plane_count(shape, axes)
    check_pixels(name, page.imagewidth, page.imagelength, planes, max_pixels)
    _check_page(name, page)
    kind = "ome" if tif.is_ome and one.kind.lower() == "ome" else "imagej" if tif.is_imagej else "plain"
    if kind == "imagej":
        told = imagej.declared_images(ifd.text_of(first.get(270))) or 0
        samples = shape[axes.index("S")] if "S" in axes else 1  # some writers count samples as images
        if told > planes * samples:
            raise CannotRead(
                f"{name}: expected {told} images as its description says, got {planes}; get an intact copy"
            )
    _check_pages(name, one, offsets, planes, kind, path)
    notes: list[str] = []
    levels = _levels(name, one)
    if page.subifds and not levels:
        notes.append("sub-directories that are no pyramid were left out")
    pixels = one.asarray()
    if pixels.shape != shape:
        raise CannotRead(f"{name}: expected pixels of shape {shape}, got {pixels.shape}; get an intact copy")
    _check_log(name, log)
    directories = _page_directories(path, one, chain, offsets, planes)
    if any(d.get(t) is not None for d in directories for t in _STALE):
        notes.append("Photoshop layers were left out, they would show the noisy picture")
    return _picture(name, pixels, axes, page, kind, chain, directories, levels, notes)


def _picture(
    name: str,
    pixels: NDArray[Any],
    axes: str,
    page: Any,
    kind: str,
    chain: DirectoryReader,
    directories: tuple[Directory, ...],
    levels: tuple[tuple[int, int], ...],
    notes: list[str],
) -> Picture:
    order = chain.order
    first = directories[0]
    photometric = int(page.photometric)
    extra = tuple(int(e) for e in page.extrasamples or ())
    layout = _layout_of(page, extra)
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
        axes = axes.replace("S", "") + "S"
    pixels, layout, bits = _plain_values(name, pixels, page, kind, layout, first, order, notes)
    if "S" not in axes and pixels.ndim == len(axes) + 1:  # palette turned to colour
        axes += "S"
    samples = pixels.shape[-1] if axes.endswith("S") else 1
    colours = {2: 3, 5: 4, 6: 3}.get(photometric, 1) if layout.photometric != 2 else 3
    alpha = banded = False
    if axes.endswith("S"):
        spare = samples - colours
        if spare == 1:
            alpha = True
            if extra and extra[0] == 0:
                notes.append("the last sample has no stated meaning and is carried along unchanged")
        elif spare > 1 or (colours == 1 and samples > 1):
            if "C" in axes:
                raise NotSupported(
                    f"{name}: {samples} samples per pixel and a channel axis; save it as an OME-TIFF"
                )
            banded = True
            axes = axes[:-3] + "CYX"
            pixels = np.moveaxis(pixels, -1, -3)
        elif spare < 0:
            raise CannotRead(
                f"{name}: expected {colours} samples of colour, got {samples}; get an intact copy"
            )
    axes, pixels = _known_axes(name, axes, pixels)
    if samples > 1 and not layout.extra and len(extra) and samples > colours:
        layout = dataclasses.replace(layout, extra=extra)
    metadata = TiffMetadata(
        format="tiff",
        icc=_bytes_of(first, 34675),
        exif=_exif_of(first, order),
        xmp=_bytes_of(first, 700),
        dpi=_dpi_of(first, order),
        note="; ".join(notes),
        kind=kind,
        order=order,
        big=chain.big,
        layout=layout,
        pages=tuple(d.without(segments.STRUCTURE | _STALE) for d in directories),
        axes=axes,
        shape=pixels.shape,
        dtype=pixels.dtype.newbyteorder("=").str,
        banded=banded,
        levels=levels,
    )
    return Picture(pixels, axes, decide_range(pixels, bits=bits), alpha=alpha, metadata=metadata)


def _plain_values(
    name: str,
    pixels: NDArray[Any],
    page: Any,
    kind: str,
    layout: Layout,
    first: Directory,
    order: str,
    notes: list[str],
) -> tuple[NDArray[Any], Layout, int | None]:
    """Turn palettes, few bits and inverted gray into values that grow with light."""
    if pixels.dtype.kind not in "buif":
        raise NotSupported(
            f"{name}: values of type {pixels.dtype}, expected integers or floats; convert it first"
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    width = int(page.bitspersample)
    bits = width if pixels.dtype.kind == "u" and width < pixels.dtype.itemsize * 8 else None
    if page.photometric == 3:
        colormap = np.asarray(page.colormap)
        if kind != "plain" or _is_smooth(colormap):
            layout = dataclasses.replace(layout, photometric=3, colormap=first.get(320))
            if bits is None:
                return pixels, layout, None
        notes.append("palette turned to gray or RGB, 8 bit")
        table = colormap.T if colormap.max(initial=0) < 256 else colormap.T >> 8
        values = table.astype(np.uint8)[np.minimum(pixels, len(table) - 1)]
        if (values[..., :1] == values).all():
            return values[..., 0], dataclasses.replace(layout, photometric=1), None
        return values, dataclasses.replace(layout, photometric=2), None
    if bits is not None and width < 8:
        full = 2**width - 1
        pixels = ((pixels.astype(np.uint16) * 255 + full // 2) // full).astype(np.uint8)
        notes.append(f"{width} bit stretched to 8 bit")
        bits = None
    stated = _stated_bits(first, order)
    if (
        bits is None
        and stated is not None
        and pixels.dtype.kind == "u"
        and stated < pixels.dtype.itemsize * 8
    ):
        bits = stated
    if bits is None and kind == "ome":
        bits = ome.significant_bits(ifd.text_of(first.get(270)))
    if bits is not None and bits > 8 and pixels.dtype.kind == "u" and (width % 8 or stated):
        layout = dataclasses.replace(layout, top=2**bits - 1)
    if layout.photometric == 0:
        pixels = invert(pixels, layout.top)
    return pixels, layout, bits


def invert(pixels: NDArray[Any], top: int) -> NDArray[Any]:
    """Turn MinIsWhite into MinIsBlack and back; floats and signed integers have no such meaning."""
    if pixels.dtype.kind == "b":
        return ~pixels
    if pixels.dtype.kind != "u":
        return pixels
    full = pixels.dtype.type(top or np.iinfo(pixels.dtype).max)
    # Values beyond the stated depth keep their bits: exact in both directions.
    inverted: NDArray[Any] = np.where(pixels <= full, full - np.minimum(pixels, full), pixels)
    return inverted


def _is_smooth(colormap: NDArray[Any]) -> bool:
    """Whether a palette is a look-up table over intensities: neighbours alike, 256 entries or more."""
    if colormap.shape[1] < 256:
        return False
    step = np.abs(np.diff(colormap.astype(np.int64), axis=1)).max()
    full = 255 if colormap.max() < 256 else 65535
    return bool(step <= full // 12 and colormap.max() > colormap.min())


def _known_axes(name: str, axes: str, pixels: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Give unknown stack axes one of the letters T, Z, C; join them if there are too many."""
    tail = "YXS" if axes.endswith("S") else "YX"
    if not axes.endswith(tail) or len(set(axes[-len(tail) :])) != len(tail):
        raise NotSupported(f"{name}: axes {axes}, expected rows and columns last; save it as an OME-TIFF")
    lead = axes[: -len(tail)]
    known = [a for a in lead if a in "TZC"]
    free = [a for a in "TZC" if a not in known]
    unknown = [i for i, a in enumerate(lead) if a not in "TZC" or lead.index(a) != i]
    if len(unknown) > len(free):
        if unknown != list(range(unknown[0], unknown[-1] + 1)) or not free:
            raise NotSupported(
                f"{name}: axes {axes}, expected at most time, depth and channels; split the file"
            )
        joined = math.prod(pixels.shape[unknown[0] : unknown[-1] + 1])
        pixels = pixels.reshape((*pixels.shape[: unknown[0]], joined, *pixels.shape[unknown[-1] + 1 :]))
        lead = lead[: unknown[0]] + free[0] + lead[unknown[-1] + 1 :]
    else:
        letters = iter(free)
        lead = "".join(next(letters) if i in unknown else a for i, a in enumerate(lead))
    return lead + tail, pixels


def _layout_of(page: Any, extra: tuple[int, ...]) -> Layout:
    compression = int(page.compression)
    compression = segments.DEFLATE if compression == 32946 else compression
    if compression not in segments.LOSSLESS:
        compression = segments.DEFLATE
    photometric = int(page.photometric)
    tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else None
    return Layout(
        photometric={6: 2, 3: 1}.get(photometric, photometric),
        planar=int(page.planarconfig) == 2 and int(page.samplesperpixel) > 1,
        tile=tile,
        rows=0 if tile else min(int(page.rowsperstrip), int(page.imagelength)),
        compression=compression,
        predictor=int(page.predictor),
        extra=extra,
    )


def _check_page(name: str, page: Any) -> None:
    photometric = int(page.photometric)
    lossy_colour = int(page.compression) in (6, 7, 34892, 33007, 33003, 33004, 33005, 34712, 50001)
    if photometric in (32803, 34892):
        raise NotSupported(f"{name}: holds undeveloped sensor data; develop it to TIFF first")
    if photometric not in (0, 1, 2, 3, 4, 5) and not (photometric == 6 and lossy_colour):
        words = _PHOTOMETRIC_WORDS.get(photometric, f"interpretation {photometric}")
        raise NotSupported(
            f"{name}: colours stored as {words}, expected gray, RGB or CMYK; convert it to RGB"
        )
    if page.dtype is None or page.dtype.kind not in "buif":
        raise NotSupported(
            f"{name}: values of type {page.dtype}, expected integers or floats; convert it first"
        )
    if int(page.imagedepth) > 1:
        raise NotSupported(f"{name}: pages are volumes (ImageDepth); save the slices as pages")
    if photometric == 3 and (page.colormap is None or page.dtype.kind != "u"):
        raise CannotRead(f"{name}: palette without its colours; get an intact copy")
    if not isinstance(page.bitspersample, int):
        raise NotSupported(
            f"{name}: samples of different depth {page.bitspersample}; convert it to 8 or 16 bit"
        )


def _plane_count(shape: tuple[int, ...], axes: str) -> int:
    return math.prod(n for n, a in zip(shape, axes, strict=True) if a not in "YXS")


def _check_pages(name: str, series: Any, offsets: list[int], planes: int, kind: str, path: Path) -> None:
    """Compare the pages of a series with the file: none missing, none forgotten, all data there."""
    pages = list(series.pages)
    found = len(pages)
    if any(p is None for p in pages):
        missing = sum(p is None for p in pages)
        raise CannotRead(f"{name}: expected {planes} planes, got {planes - missing}; get the missing parts")
    if found not in (1, planes):
        raise CannotRead(f"{name}: expected {planes} planes, got {found} pages; get an intact copy")
    parts = {p.parent.filehandle.path for p in pages if p is not None}
    chain = len(offsets)
    if len(parts) == 1 and chain not in (found, planes):
        raise NotSupported(
            f"{name}: holds {chain} pages, of which its description names {planes}; save the others separately"
        )
    stored = 0
    sizes: dict[str, int] = {}
    key = series.keyframe
    nbytes = int(key.nbytes) if key.dtype.kind != "b" else 0
    for number, page in enumerate(pages):
        part = page.parent.filehandle.path
        size = sizes.setdefault(part, os.stat(part).st_size)
        total = 0
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if offset == 0 or count == 0:
                raise CannotRead(f"{name}: page {number} has parts without data; get an intact copy")
            if offset + count > size:
                raise CannotRead(
                    f"{name}: page {number} needs {offset + count} bytes, got {size}: cut short; get an intact copy"
                )
            total += count
        if found == 1 and planes > 1 and page.dataoffsets[0] + nbytes * planes > size:
            raise CannotRead(f"{name}: expected {planes} planes, the file ends before; get an intact copy")
        if int(key.compression) == 1 and int(key.bitspersample) % 8 == 0 and total < nbytes:
            raise CannotRead(
                f"{name}: page {number}: expected {nbytes} bytes, got {total}; get an intact copy"
            )
        stored += total
    if int(key.compression) != 1:
        check_ratio(name, stored, nbytes * planes)


def _levels(name: str, series: Any) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of the reduced copies, which must be sub-directories."""
    levels = list(series.levels)[1:]
    found = []
    count = len(series.keyframe.subifds or ())
    if levels and count != len(levels):
        raise NotSupported(
            f"{name}: its reduced copies are not stored as sub-directories and could not be rebuilt; "
            "export it as OME-TIFF"
        )
    for level in levels:
        key = level.keyframe
        found.append((int(key.imagelength), int(key.imagewidth)))
    return tuple(found)


def _page_directories(
    path: Path, series: Any, chain: DirectoryReader, offsets: list[int], planes: int
) -> tuple[Directory, ...]:
    """Return the tags of every plane, in the order of the planes."""
    pages = list(series.pages)
    skip = segments.STRUCTURE - {280, 281, 320, 341}
    if len(pages) == planes:
        places = [(p.parent.filehandle.path, int(p.offset)) for p in pages]
        if any(os.path.realpath(part) != os.path.realpath(path) for part, _ in places):
            return _directories_of_parts(places, chain, offsets, skip)
        return tuple(chain.directory(offset, skip=skip) for _, offset in places)
    if len(offsets) == planes:
        return tuple(chain.directory(offset, skip=skip) for offset in offsets)
    first = chain.directory(offsets[0], skip=skip)
    return (first,) + (first.without(_FIRST_ONLY),) * (planes - 1)


def _directories_of_parts(
    places: Sequence[tuple[str, int]], chain: DirectoryReader, offsets: list[int], skip: frozenset[int]
) -> tuple[Directory, ...]:
    found: list[Directory] = []
    with contextlib.ExitStack() as stack:
        readers: dict[str, DirectoryReader] = {}
        for part, offset in places:
            if part not in readers:
                readers[part] = DirectoryReader(stack.enter_context(open_regular(part)))
            if readers[part].order != chain.order:
                found.append(Directory())
            else:
                found.append(readers[part].directory(offset, skip=skip).without({270}))
    # The description that was checked is the one of the file that was asked for.
    main = chain.directory(offsets[0], skip=skip)
    return (main, *found[1:])


@contextlib.contextmanager
def _log_of_tifffile() -> Iterator[list[logging.LogRecord]]:
    """Collect what tifffile logs in this thread: it logs missing data where it should fail."""
    records: list[logging.LogRecord] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                records.append(record)

    logger = logging.getLogger("tifffile")
    handler = Collector(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def _check_log(name: str, log: list[logging.LogRecord]) -> None:
    for record in log:
        text = record.getMessage()
        if text.startswith("<tifffile.TiffTag"):  # tags are read by `ifd`
            continue
        if record.levelno >= logging.ERROR or _LOST.search(text):
            raise CannotRead(f"{name}: pages or data are missing ({text[:200]}); get an intact copy")


def _bytes_of(directory: Directory, tag: int) -> bytes | None:
    entry = directory.get(tag)
    return entry.data if entry is not None and entry.type in (1, 2, 7) else None


def _dpi_of(directory: Directory, order: str) -> tuple[float, float] | None:
    unit = directory.get(296)
    factor = {2: 1.0, 3: 2.54}.get((unit.integers(order) or (2,))[0] if unit is not None else 2)
    x, y = directory.get(282), directory.get(283)
    if factor is None or x is None or y is None:
        return None
    across, down = x.number(order), y.number(order)
    if not across or not down or not (0 < across < 1e7 and 0 < down < 1e7):
        return None
    return across * factor, down * factor


def _exif_of(directory: Directory, order: str) -> bytes | None:
    main = directory.only(_EXIF_MAIN)
    if not main.children and all(main.get(t) is None for t in (271, 272, 274)):
        return None
    return ifd.pack_block(main, order)


def _stated_bits(directory: Directory, order: str) -> int | None:
    """Return the depth that MaxSampleValue states, if it is a full scale and not just a maximum."""
    entry = directory.get(281)
    values = entry.integers(order) if entry is not None else ()
    top = max(values, default=0)
    return top.bit_length() if top >= 255 and top & (top + 1) == 0 else None


# ---------------------------------------------------------------------------------------- writing


def check(name: str, dtype: np.dtype[Any], axes: str) -> None:
    """Raise `CannotHold` for what TIFF cannot store."""
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise CannotHold(f"{name}: TIFF cannot hold values of type {dtype}; convert to float32")


def write(file: BinaryIO, path: Path, picture: Picture, provenance: str | None) -> int:
    """Write a picture to an empty file and return the number of directories in its main chain."""
    source = picture.metadata
    dtype = np.dtype(picture.pixels.dtype).newbyteorder("=")
    if (
        isinstance(source, TiffMetadata)
        and source.shape == picture.shape
        and source.axes == picture.axes
        and source.dtype == dtype.str
    ):
        meta, order_of_axes = _as_one_file(source), picture.axes
    else:
        meta, order_of_axes = _fresh(path, picture, dtype)
    if provenance:
        meta = _with_provenance(meta, provenance)
    nbytes = math.prod(picture.shape) * dtype.itemsize
    if meta.layout.tile:
        nbytes *= 2  # rims of tiles
    room = nbytes + nbytes // 16 + sum(64 + sum(len(e.data) + 12 for e in d.entries) for d in meta.pages)
    big = meta.big or (room > segments.CLASSIC_LIMIT and meta.kind != "imagej")
    layout = dataclasses.replace(
        meta.layout,
        predictor=segments.stored_predictor(meta.layout.predictor, meta.layout.compression, dtype),
    )
    if layout.predictor == 3 and meta.order != {"little": "<", "big": ">"}[sys.byteorder]:
        layout = dataclasses.replace(layout, predictor=1)
    if meta.kind == "imagej" and not big and room > segments.CLASSIC_LIMIT:
        return _write_one_directory(file, picture, meta, layout, order_of_axes)
    writer = segments.PageWriter(file, meta.order, big=big)
    count = 0
    for page, tags in zip(_pages(picture, order_of_axes, meta), meta.pages, strict=True):
        reduced, level = [], page
        for shape in meta.levels:
            level = segments.shrink(level, shape)
            reduced.append(level)
        writer.add(page, tags, layout, reduced)
        count += 1
    writer.close()
    return count


def _write_one_directory(
    file: BinaryIO, picture: Picture, meta: TiffMetadata, layout: Layout, axes: str
) -> int:
    """Write an ImageJ stack beyond 4 GB the way ImageJ does: one directory, then all planes."""
    pages = _pages(picture, axes, meta)
    page = next(pages)
    layout = dataclasses.replace(layout, compression=segments.NONE, predictor=1, tile=None, rows=0)
    head = ifd.header(meta.order, 8, big=False)

    def directory(offset: int) -> bytes:
        tags = segments.describe(
            page.shape, page.dtype, meta.pages[0], layout, meta.order, False, [offset], [page.nbytes]
        )
        return ifd.pack(tags, 8, meta.order, big=False)

    file.write(head + directory(8 + len(directory(0))))
    while True:
        file.write(segments.ordered(page, meta.order).tobytes())
        try:
            page = next(pages)
        except StopIteration:
            return 1


def _pages(picture: Picture, axes: str, meta: TiffMetadata) -> Iterator[NDArray[Any]]:
    """Yield rows x columns [x samples] of each plane, stack axes in the order of `axes`."""
    inside = "CYX" if meta.banded else "YXS"
    lead = [a for a in axes if a not in inside]
    for place in np.ndindex(*(picture.length(a) for a in lead)):
        at = dict(zip(lead, place, strict=True))
        page = np.asarray(picture.pixels[tuple(at.get(a, slice(None)) for a in picture.axes)])
        here = [a for a in picture.axes if a in inside]
        wanted = [a for a in ("YXC" if meta.banded else "YXS") if a in here]
        page = page.transpose([here.index(a) for a in wanted])
        if page.ndim == 3 and page.shape[2] == 1:
            page = page[..., 0]
        yield invert(page, meta.layout.top) if meta.layout.photometric == 0 else page


def _with_provenance(meta: TiffMetadata, provenance: str) -> TiffMetadata:
    first = meta.pages[0]
    if meta.kind == "imagej":
        first = imagej.with_provenance(first, meta.order, provenance)
    elif meta.kind == "ome":
        text = ome.with_provenance(ifd.text_of(first.get(270)), provenance)
        first = _with_description(first, text)
    else:
        software = ifd.joined_software(ifd.text_of(first.get(305)), provenance)
        first = first.replace(Entry.raw(305, 2, software.encode()))
    return dataclasses.replace(meta, pages=(first, *meta.pages[1:]))


def _as_one_file(meta: TiffMetadata) -> TiffMetadata:
    """Let the description speak of the one file that is written, one directory to each plane."""
    first = meta.pages[0]
    text = ifd.text_of(first.get(270))
    if meta.kind == "ome":
        changed = ome.for_one_file(text, len(meta.pages))
    elif meta.kind == "plain" and text.startswith('{"shape":'):  # tifffile's own convention
        changed = text.replace('"truncated": true', '"truncated": false')
    else:
        return meta
    if changed == text:
        return meta
    return dataclasses.replace(meta, pages=(_with_description(first, changed), *meta.pages[1:]))


def _with_description(directory: Directory, text: str) -> Directory:
    """Put `text` in the place of the first description; others (Micro-Manager has two) stay."""
    entries = list(directory.entries)
    at = next(i for i, e in enumerate(entries) if e.tag == 270)
    entries[at] = Entry.raw(270, 2, text.encode())
    return Directory(tuple(entries), directory.children)


def _fresh(path: Path, picture: Picture, dtype: np.dtype[Any]) -> tuple[TiffMetadata, str]:
    """Describe a picture that was not read from a TIFF file of the same shape and type."""
    source = picture.metadata
    order, base = "<", Directory()
    if source.exif:
        with contextlib.suppress(ifd.BadDirectory):
            base, order = ifd.parse_block(source.exif)
            base = base.without(segments.STRUCTURE | {282, 283, 296, 700, 34675, 50838, 50839})
    own = []
    if source.icc:
        own.append(Entry.raw(34675, 7, source.icc))
    if source.xmp:
        own.append(Entry.raw(700, 1, source.xmp))
    if source.dpi:
        own += [Entry.rational(282, source.dpi[0], order), Entry.rational(283, source.dpi[1], order)]
        own.append(Entry.of(296, 3, [2], order))
    stack = [a for a in "TZC" if a in picture.axes]
    lengths = {a: picture.length(a) for a in stack}
    rgb = "S" in picture.axes
    planes = math.prod(lengths.values())
    colours = picture.colours if rgb else 1
    layout = Layout(
        photometric={3: 2, 4: 5}.get(colours, 1),
        compression=segments.DEFLATE if dtype.kind == "b" else segments.NONE,
        extra=(2,) if picture.alpha else (),
    )
    kind = "plain"
    if path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        kind = "ome"
        own.append(Entry.raw(270, 2, _ome_xml(picture, dtype, "".join(stack))))
    elif (
        planes > 1
        and (dtype == np.uint8 if rgb else dtype.str[1:] in ("u1", "u2", "f4"))
        and not picture.alpha
    ):
        kind = "imagej"
        own.append(Entry.raw(270, 2, imagej.description(lengths, rgb=rgb)))
    elif planes > 1:
        # tifffile's convention for stacks; other programs see plain pages.
        shape = [*lengths.values(), *(picture.length(a) for a in ("YXS" if rgb else "YX"))]
        words = f'{{"shape": {shape}, "axes": "{"".join(stack)}{"YXS" if rgb else "YX"}"}}'
        own.append(Entry.raw(270, 2, words.encode()))
    pages = (base.replace(*own), *([Directory()] * (planes - 1)))
    meta = TiffMetadata(kind=kind, order=order, layout=layout, pages=pages)
    return meta, "".join(stack) + ("YXS" if rgb else "YX")


def _ome_xml(picture: Picture, dtype: np.dtype[Any], stack: str) -> bytes:
    import tifffile

    samples = picture.length("S")
    shape = (*(picture.length(a) for a in stack), picture.length("Y"), picture.length("X"))
    planes = math.prod(picture.length(a) for a in stack)
    axes = stack + "YX"
    if samples > 1:
        shape, axes = (*shape, samples), axes + "S"
    xml = tifffile.OmeXml()
    try:
        xml.addimage(
            dtype, shape, (planes, 1, 1, picture.length("Y"), picture.length("X"), samples), axes=axes
        )
    except (tifffile.OmeXmlError, ValueError, KeyError) as error:
        raise CannotHold(f"OME-TIFF cannot hold values of type {dtype} with axes {axes}: {error}") from error
    return bytes(xml.tostring(declaration=True).encode())


def verify(part: Path, picture: Picture, directories: int) -> None:
    """Compare a finished file with the picture: directories, data inside the file, size of a page.

    Raises
    ------
    CannotRead, BadDirectory
        Something is missing.
    """
    name = part.name
    with open(part, "rb") as file:
        chain = DirectoryReader(file)
        offsets = chain.offsets()
        if len(offsets) != directories:
            raise CannotRead(f"{name}: expected {directories} pages, found {len(offsets)}")
        for offset in offsets:
            page = chain.directory(offset, needed=range(65536))
            values = {t: e.integers(chain.order) for t in (256, 257) if (e := page.get(t)) is not None}
            if values != {256: (picture.length("X"),), 257: (picture.length("Y"),)}:
                raise CannotRead(f"{name}: a page has another size {values}")
            starts, counts = page.get(273) or page.get(324), page.get(279) or page.get(325)
            if starts is None or counts is None:
                raise CannotRead(f"{name}: a page has no pixels")
            for start, count in zip(starts.integers(chain.order), counts.integers(chain.order), strict=True):
                if start + count > chain.size:
                    raise CannotRead(f"{name}: pixels end at byte {start + count} of {chain.size}")
