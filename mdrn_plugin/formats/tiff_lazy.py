"""TIFF read in parts: large stacks and mosaics of plain gray or colour.

The same checks as for a file that is read as a whole (`tiff`), then pixels when they are asked for:
straight from the file where they lie in it in one piece, else decoded strip by strip or tile by tile.
A file whose values must be changed to be pictures (palette, inverted gray, odd bits) is left to `tiff`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mdrn_plugin.errors import CannotRead, NotSupported
from mdrn_plugin.formats import ifd, ome, segments, streamed, tiff, zarr
from mdrn_plugin.formats.ifd import DirectoryReader
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.formats.tiff import TiffMetadata
from mdrn_plugin.picture import Picture


def open_lazily(path: Path) -> Picture:
    """Open a TIFF file without reading its pixels.

    Raises
    ------
    CannotRead
        Damaged, or parts are missing.
    NotSupported
        A file that can only be read as a whole, or not at all.
    """
    import tifffile

    name = shown(path)
    with open_regular(path) as file:
        try:
            chain = DirectoryReader(file)
            offsets = chain.offsets()
            first = chain.directory(offsets[0], needed=tiff.NEEDED)
        except ifd.BadDirectory as error:
            raise CannotRead(
                f"{name}: its directory of pages is damaged ({error}); get an intact copy"
            ) from error
        description = ifd.text_of(first.get(270))
        if ome.is_ome(description):
            ome.check(description, path)
        kept = chain.directory(offsets[0], skip=segments.STRUCTURE)
        with tiff.log_of_tifffile() as log:
            tif = tifffile.TiffFile(path)  # stays open: pixels come later
            series = tif.series
            tiff.check_log(name, log)
        if len(series) != 1:
            raise NotSupported(
                f"{name}: holds {len(series)} pictures of their own; save them as separate files"
            )
        one = series[0]
        page = one.keyframe
        tiff.check_page(name, page)
        kind = "ome" if tif.is_ome and one.kind.lower() == "ome" else "imagej" if tif.is_imagej else "plain"
        axes, shape = str(one.axes), tuple(one.shape)
        planes = math.prod(n for n, a in zip(shape, axes, strict=True) if a not in "YXS")
        tiff.check_pages(name, one, offsets, planes, kind, path)
    colours = {1: 1, 2: 3}.get(int(page.photometric))
    samples = shape[axes.index("S")] if "S" in axes else 1
    stored = np.dtype(one.dtype).newbyteorder("<" if chain.order == "<" else ">")
    whole = int(page.bitspersample) == stored.itemsize * 8 and stored.kind in "uif"
    if colours != samples or not whole:
        raise NotSupported(f"{name}: cannot be read in parts; use plain gray or RGB without opacity")
    axes, probe = tiff.known_axes(name, axes, np.broadcast_to(np.uint8(0), shape))
    if probe.shape != shape:
        raise NotSupported(f"{name}: cannot be read in parts; save it as an OME-TIFF")
    metadata = TiffMetadata(
        format="tiff", kind=kind, order=chain.order, big=chain.big, pages=(kept,), axes=axes, shape=shape
    )
    pixels: Any
    if one.dataoffset is not None and not one.is_multifile:
        tif.close()
        starts = streamed.one_after_another(int(one.dataoffset), shape, stored, "S" in axes)
        pixels = streamed.InFile(open_regular(path), name, starts, shape, stored, "S" in axes)
    else:
        array = zarr.library().open(one.aszarr(level=0), mode="r")
        pixels = zarr.Lazy(array, name)
    return Picture(pixels, axes, zarr.range_of(stored.newbyteorder("=")), metadata=metadata)
