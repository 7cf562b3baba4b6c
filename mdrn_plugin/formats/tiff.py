"""TIFF: plain, ImageJ and OME files, classic and BigTIFF.

tifffile decodes; which pages there are, whether all their data are, and every tag come from the
directories themselves (`ifd`), because a library that shows pictures prefers a part to nothing.
Files are written by `tiff_write`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import CannotRead, NotSupported
from mdrn_plugin.formats import ifd, imagej, ome, segments
from mdrn_plugin.formats.ifd import Directory, DirectoryReader
from mdrn_plugin.formats.limits import check_pixels, check_ratio
from mdrn_plugin.formats.segments import Layout
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.picture import Metadata, Picture, Streamed, decide_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tags without which the pixels are not what they were; their values must lie inside the file.
NEEDED = frozenset(
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
    "is_scn": "Leica SCN", "is_qpi": "PerkinElmer QPI", "is_bif": "Ventana BIF",
    "is_philips": "Philips slide",
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
    picture = _read(path, max_pixels, None)
    assert picture is not None
    return picture


def open_streamed(path: Path, max_pixels: int | None, beyond: int) -> Picture | None:
    """Open a TIFF file whose pixels are more than `beyond` bytes, the same as `read` but for its pixels.

    None if they are not, or must be read as a whole.
    """
    return _read(path, max_pixels, beyond)


def _read(path: Path, max_pixels: int | None, beyond: int | None) -> Picture | None:
    import tifffile

    name = shown(path)
    with open_regular(path) as file:
        try:
            chain = DirectoryReader(file)
            offsets = chain.offsets()
            first = chain.directory(offsets[0], needed=NEEDED)
            for offset in offsets[1:]:
                chain.directory(offset, skip=NEEDED)
        except ifd.BadDirectory as error:
            raise CannotRead(
                f"{name}: its directory of pages is damaged ({error}); get an intact copy"
            ) from error
        description = ifd.text_of(first.get(270))
        _check_header(name, first, chain.order, max_pixels)
        if ome.is_ome(description):
            ome.check(description, path)
        with log_of_tifffile() as log, tifffile.TiffFile(path) as tif:
            return _read_series(path, name, tif, chain, offsets, first, log, max_pixels, beyond)


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
    beyond: int | None,
) -> Picture | None:
    vendor = next((words for flag, words in _VENDOR.items() if getattr(tif, flag, False)), None)
    if vendor is not None:
        raise NotSupported(
            f"{name}: is a {vendor} file, whose metadata could not be kept; export it as OME-TIFF"
        )
    series = tif.series
    check_log(name, log)
    if len(series) != 1:
        more = ", ..." if len(series) > 4 else ""
        sizes = ", ".join("x".join(map(str, s.shape)) for s in list(series)[:4])
        raise NotSupported(
            f"{name}: holds {len(series)} pictures of their own ({sizes}{more}), "
            "expected one picture or one stack; save them as separate files"
        )
    one = series[0]
    page = one.keyframe
    shape, axes = tuple(one.shape), str(one.axes)
    planes = _plane_count(shape, axes)
    check_pixels(name, page.imagewidth, page.imagelength, planes, max_pixels)
    check_page(name, page)
    kind = "ome" if tif.is_ome and one.kind.lower() == "ome" else "imagej" if tif.is_imagej else "plain"
    if kind == "imagej":
        told = imagej.declared_images(ifd.text_of(first.get(270))) or 0
        samples = shape[axes.index("S")] if "S" in axes else 1  # some writers count samples as images
        if told > planes * samples:
            raise CannotRead(
                f"{name}: expected {told} images as its description says, got {planes}; get an intact copy"
            )
    check_pages(name, one, offsets, planes, kind, path)
    notes: list[str] = []
    levels = _levels(name, one)
    if page.subifds and not levels:
        notes.append("sub-directories that are no pyramid were left out")
    pixels: Any
    if beyond is None:
        pixels = one.asarray()
    else:
        from mdrn_plugin.formats import streamed

        large = math.prod(shape) * np.dtype(one.dtype).itemsize > beyond
        pixels = streamed.of_series(path, name, one, chain.order, planes) if large else None
        if pixels is None:
            return None
    if pixels.shape != shape:
        raise CannotRead(f"{name}: expected pixels of shape {shape}, got {pixels.shape}; get an intact copy")
    check_log(name, log)
    directories = _page_directories(path, one, chain, offsets, planes)
    if any(d.get(t) is not None for d in directories for t in _STALE):
        notes.append("Photoshop layers were left out, they would show the noisy picture")
    return _picture(name, pixels, axes, page, kind, chain, directories, levels, notes)


def _picture(
    name: str,
    pixels: Any,
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
    if "S" in axes and not axes.endswith("S"):
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
    axes, pixels = known_axes(name, axes, pixels)
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
    pixels: Any,
    page: Any,
    kind: str,
    layout: Layout,
    first: Directory,
    order: str,
    notes: list[str],
) -> tuple[Any, Layout, int | None]:
    """Turn palettes, few bits and inverted gray into values that grow with light."""
    if pixels.dtype.kind not in "buif":
        raise NotSupported(
            f"{name}: values of type {pixels.dtype}, expected integers or floats; convert it first"
        )
    if not isinstance(pixels, Streamed):  # they come in native order
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
        pixels = segments.invert(pixels, layout.top)
    return pixels, layout, bits


def _is_smooth(colormap: NDArray[Any]) -> bool:
    """Whether a palette is a look-up table over intensities: neighbours alike, 256 entries or more."""
    if colormap.shape[1] < 256:
        return False
    step = np.abs(np.diff(colormap.astype(np.int64), axis=1)).max()
    full = 255 if colormap.max() < 256 else 65535
    return bool(step <= full // 12 and colormap.max() > colormap.min())


def known_axes(name: str, axes: str, pixels: Any) -> tuple[str, Any]:
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


def check_page(name: str, page: Any) -> None:
    """Refuse pages whose values are no gray, RGB or CMYK of one real type."""
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


def check_pages(name: str, series: Any, offsets: list[int], planes: int, kind: str, path: Path) -> None:
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
            f"{name}: holds {chain} pages, its description names {planes}; save the others separately"
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
                    f"{name}: page {number} needs {offset + count} bytes, got {size}; get an intact copy"
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
def log_of_tifffile() -> Iterator[list[logging.LogRecord]]:
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


def check_log(name: str, log: list[logging.LogRecord]) -> None:
    """Raise `CannotRead` if tifffile logged that something is missing."""
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
