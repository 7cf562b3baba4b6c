"""Writing TIFF: a file of the kind that was read, or a new one for pixels from elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import CannotHold, CannotRead
from mdrn_plugin.formats import ifd, imagej, ome, segments
from mdrn_plugin.formats.ifd import Directory, DirectoryReader, Entry
from mdrn_plugin.formats.segments import Layout
from mdrn_plugin.formats.tiff import TiffMetadata
from mdrn_plugin.picture import Streamed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture


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
        writer.add(page, tags, layout, _reduced(page, meta.levels))
        count += 1
    writer.close()
    return count


def _reduced(page: Any, shapes: tuple[tuple[int, int], ...]) -> Iterator[NDArray[Any]]:
    """Yield the reduced copies of a page, each made of the one before."""
    for shape in shapes:
        page = segments.shrink(page, shape)
        yield page


def _write_one_directory(
    file: BinaryIO, picture: Picture, meta: TiffMetadata, layout: Layout, axes: str
) -> int:
    """Write an ImageJ stack beyond 4 GB the way ImageJ does: one directory, then all planes."""
    pages = _pages(picture, axes, meta)
    page = next(pages)
    layout = dataclasses.replace(layout, compression=segments.NONE, predictor=1, tile=None, rows=0)
    head = ifd.header(meta.order, 8, big=False)

    def directory(offset: int) -> bytes:
        nbytes = math.prod(page.shape) * page.dtype.itemsize
        tags = segments.describe(
            page.shape, page.dtype, meta.pages[0], layout, meta.order, False, [offset], [nbytes]
        )
        return ifd.pack(tags, 8, meta.order, big=False)

    file.write(head + directory(8 + len(directory(0))))
    while True:
        segments.write_segments(file, page, layout, meta.order)
        try:
            page = next(pages)
        except StopIteration:
            return 1


class _StreamedPage:
    """A plane of streamed pixels with all its samples, read where it is sliced: pages are written from it."""

    def __init__(self, pixels: Streamed, lead: tuple[int, ...]) -> None:
        self._pixels, self._lead = pixels, lead
        self.shape, self.dtype = pixels.shape[len(lead) :], pixels.dtype

    def __getitem__(self, place: slice | tuple[slice, slice]) -> NDArray[Any]:
        rest = place if isinstance(place, tuple) else (place,)
        return self._pixels[(*self._lead, *rest)]


def _pages(picture: Picture, axes: str, meta: TiffMetadata) -> Iterator[Any]:
    """Yield rows x columns [x samples] of each plane, stack axes in the order of `axes`."""
    if isinstance(picture.pixels, Streamed) and axes == picture.axes and not meta.banded:
        # What inverts or parts its samples is not streamed.
        assert meta.layout.photometric != 0
        assert not meta.layout.planar
        for index in picture.planes():
            yield _StreamedPage(picture.pixels, tuple(k for k in index if isinstance(k, int)))
        return
    inside = "CYX" if meta.banded else "YXS"
    lead = [a for a in axes if a not in inside]
    for place in np.ndindex(*(picture.length(a) for a in lead)):
        at = dict(zip(lead, place, strict=True))
        page = np.asarray(picture.pixels[tuple(at.get(a, slice(None)) for a in picture.axes)])
        page = page.astype(page.dtype.newbyteorder("="), copy=False)  # predictors subtract values
        here = [a for a in picture.axes if a in inside]
        wanted = [a for a in ("YXC" if meta.banded else "YXS") if a in here]
        page = page.transpose([here.index(a) for a in wanted])
        if page.ndim == 3 and page.shape[2] == 1:
            page = page[..., 0]
        yield segments.invert(page, meta.layout.top) if meta.layout.photometric == 0 else page


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
