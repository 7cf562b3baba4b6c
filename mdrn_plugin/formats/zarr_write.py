"""Writing OME-Zarr: how a store is laid out, its metadata, and its pyramid, a region at a time.

A region is a whole number of shards (of chunks where there are none), so that two of them never
share a file and may be written by different processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import CannotHold
from mdrn_plugin.formats.tiff import TiffMetadata
from mdrn_plugin.formats.tiff_scale import Placing, placing
from mdrn_plugin.formats.zarr import (
    AXIS_TYPES,
    ORDER,
    VERSIONS,
    ZarrMetadata,
    library,
    missing_files,
    open_lazily,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture

# Pyramids that are made where the source has none end at this many px; shards hold 4 x 4 chunks.
_TOP_PX = 1024
_CHUNK_PX = 512
_SHARD_PX = 2048
# Values of a shard at most: what a worker holds of it, several times over.
_MAX_SHARD = 2**26
_MAX_BLOCK_PX = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid; tuples have one entry per axis."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]  # as chunks where there are none


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A store that is to be written.

    Attributes
    ----------
    axes : str
        Letters of `ORDER`.
    dtype : str
        Of numpy, native byte order.
    version : str
        Of OME-Zarr.
    levels : tuple of Level
        The full resolution first.
    scale, translation : tuple of float
        Of level 0.
    units : tuple of str
    name, attributes : str
        As of `ZarrMetadata`.
    """

    axes: str
    dtype: str
    version: str
    levels: tuple[Level, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str, ...]
    name: str
    attributes: str


def check(name: str, dtype: np.dtype[Any], axes: str, alpha: bool) -> None:
    """Raise `CannotHold` unless a store can hold such a picture."""
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise CannotHold(f"{name}: OME-Zarr cannot hold values of type {dtype}; write TIFF")
    if alpha:
        raise CannotHold(f"{name}: OME-Zarr has no opacity; write TIFF, or remove the alpha channel")
    if "S" in axes and "C" in axes:
        raise CannotHold(f"{name}: OME-Zarr has one axis for channels and colours; write TIFF")


def axes_of_store(axes: str) -> str:
    """Return the axes of a store that holds a picture of these axes: colours (S) become channels."""
    there = axes.replace("S", "C")
    return "".join(a for a in ORDER if a in there)


def order_of_axes(axes: str) -> tuple[int, ...]:
    """Return which axis of a picture each axis of its store is."""
    return tuple(axes.replace("S", "C").index(a) for a in axes_of_store(axes))


def lay_out(picture: Picture, version: str | None = None) -> Layout:
    """Decide how a picture is stored: as its source was if that was OME-Zarr.

    Parameters
    ----------
    picture : Picture
        Its pixels are not looked at.
    version : str, optional
        Of OME-Zarr; left out, that of the source, or the newest.
    """
    axes = axes_of_store(picture.axes)
    order = order_of_axes(picture.axes)
    shape = tuple(picture.shape[k] for k in order)
    source = picture.metadata if isinstance(picture.metadata, ZarrMetadata) else None
    if source is not None and source.axes != picture.axes:
        source = None
    if source is None:
        chosen = version or VERSIONS[-1]
        chunks, shards = _usual_chunks(axes, shape, "S" in picture.axes, chosen)
        stated = placing(picture.metadata) if isinstance(picture.metadata, TiffMetadata) else Placing({})
        scale = tuple(stated.steps.get(a, (1.0, ""))[0] for a in axes)
        units = tuple(stated.steps.get(a, (1.0, ""))[1] for a in axes)
        translation = (0.0,) * len(axes)
        name, attributes, count = "", _channels(picture, stated.channels), 0
    else:
        chosen = version or source.version
        chunks, shards = (tuple(t[k] for k in order) for t in (source.chunks, source.shards))
        scale, translation = (tuple(t[k] for k in order) for t in (source.scale, source.translation))
        units = tuple(source.units[k] for k in order)
        name, attributes, count = source.name, source.attributes, source.levels
        if chosen != source.version:
            attributes = _of_version(attributes, chosen)
    chunks, shards = _modest(axes, chunks, shards if chosen == "0.5" else chunks)
    levels = tuple(_levels(axes, shape, chunks, shards, count if count > 1 else 0))
    dtype = np.dtype(picture.pixels.dtype).newbyteorder("=").name
    return Layout(axes, dtype, chosen, levels, scale, translation, units, name, attributes)


def _channels(picture: Picture, names: tuple[str, ...]) -> str:
    """Return what viewers are told of the channels, as JSON: names, and the colours of a colour picture."""
    white = picture.range.white
    window = {"min": 0, "max": white, "start": 0, "end": white}
    if "S" in picture.axes and picture.colours == 3:
        named = [("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF")]
    elif names and len(names) == picture.length("C"):
        named = [(name, "FFFFFF") for name in names]
    else:
        return "{}"
    channels = [{"label": n, "color": c, "active": True, "window": window} for n, c in named]
    return json.dumps({"omero": {"channels": channels, "rdefs": {"model": "color"}}})


def _of_version(attributes: str, version: str) -> str:
    inner = json.loads(attributes)
    ome = inner.pop("ome", {})
    if version == "0.4":
        return json.dumps({**inner, **ome})
    ome = {**ome, **({"omero": inner.pop("omero")} if "omero" in inner else {})}
    return json.dumps({**inner, "ome": ome})


def _usual_chunks(
    axes: str, shape: tuple[int, ...], joint: bool, version: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    chunks, shards = [], []
    for axis, length in zip(axes, shape, strict=True):
        plain = length if joint and axis == "C" else 1
        chunks.append(min(_CHUNK_PX, -(-length // 16) * 16) if axis in "YX" else plain)
        shards.append(min(_SHARD_PX, -(-length // chunks[-1]) * chunks[-1]) if axis in "YX" else plain)
    return tuple(chunks), tuple(shards) if version == "0.5" else tuple(chunks)


def _modest(
    axes: str, chunks: tuple[int, ...], shards: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Make chunks and shards that blocks can be cut along: on a grid of 16 px, and not enormous."""
    new_chunks, new_shards = list(chunks), list(shards)
    for k, axis in enumerate(axes):
        if axis in "YX" and math.lcm(shards[k], 16) > max(_MAX_BLOCK_PX, shards[k]):
            new_chunks[k] = min(_MAX_BLOCK_PX, -(-chunks[k] // 16) * 16)
            new_shards[k] = new_chunks[k] * max(1, min(shards[k], _MAX_BLOCK_PX) // new_chunks[k])
    while math.prod(new_shards) > _MAX_SHARD:
        k = int(np.argmax([n if a not in "YX" else 0 for a, n in zip(axes, new_shards, strict=True)]))
        if axes[k] in "YX" or new_shards[k] == 1:
            k = int(np.argmax(new_shards))
        if new_shards[k] > new_chunks[k]:
            new_shards[k] = max(1, new_shards[k] // new_chunks[k] // 2) * new_chunks[k]
        else:
            new_chunks[k] = max(1, new_chunks[k] // 2)
            if axes[k] in "YX":
                new_chunks[k] = -(-new_chunks[k] // 16) * 16
            new_shards[k] = new_chunks[k]
    return tuple(new_chunks), tuple(new_shards)


def _levels(
    axes: str, shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...], count: int
) -> Iterator[Level]:
    number = 0
    while True:
        sizes = list(zip(axes, shape, chunks, strict=True))
        here = tuple(min(c, -(-n // 16) * 16 if a in "YX" else n) for a, n, c in sizes)
        many = (s // c for s, c in zip(shards, chunks, strict=True))
        there = tuple(min(m, -(-n // c)) * c for m, n, c in zip(many, shape, here, strict=True))
        yield Level(shape, here, there)
        number += 1
        side = max(shape[axes.index("Y")], shape[axes.index("X")])
        if side == 1 or (number >= count if count else side <= _TOP_PX):
            return
        shape = tuple(-(-n // 2) if a in "YX" else n for a, n in zip(axes, shape, strict=True))


def create(folder: Path, layout: Layout, provenance: str | None) -> None:
    """Make the store in an empty folder: all metadata, no chunk."""
    zarr = library()
    group = zarr.open_group(str(folder), mode="w", zarr_format=2 if layout.version == "0.4" else 3)
    for number, level in enumerate(layout.levels):
        _create_level(zarr, group, str(number), level, layout)
    attributes = json.loads(layout.attributes)
    if provenance is not None:
        attributes["mdrn"] = json.loads(provenance)
    multiscales = [_multiscales(layout)]
    if layout.version == "0.4":
        attributes["multiscales"] = multiscales
    else:
        attributes["ome"] = {**attributes.get("ome", {}), "version": "0.5", "multiscales": multiscales}
        if "omero" in attributes:
            attributes["ome"]["omero"] = attributes.pop("omero")
    group.attrs.put(attributes)


def _create_level(zarr: Any, group: Any, name: str, level: Level, layout: Layout) -> None:
    common: dict[str, Any] = {
        "shape": level.shape,
        "dtype": layout.dtype,
        "chunks": level.chunks,
        "fill_value": 0,
        # Every file is there, so that a missing one is seen.
        "config": {"write_empty_chunks": True},
    }
    if layout.version == "0.4":
        import numcodecs

        group.create_array(
            name,
            compressors=numcodecs.Blosc("zstd", 3, numcodecs.Blosc.SHUFFLE),
            chunk_key_encoding={"name": "v2", "separator": "/"},
            **common,
        )
        return
    group.create_array(
        name,
        shards=level.shards if level.shards != level.chunks else None,
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
        dimension_names=tuple(layout.axes.lower()),
        **common,
    )


def _multiscales(layout: Layout) -> dict[str, Any]:
    axes = []
    for axis, unit in zip(layout.axes, layout.units, strict=True):
        axes.append({"name": axis.lower(), "type": AXIS_TYPES[axis], **({"unit": unit} if unit else {})})
    datasets = []
    for number in range(len(layout.levels)):
        # Pixel centres of a level of means lie between those that it is the mean of.
        scale, translation = list(layout.scale), list(layout.translation)
        for k, axis in enumerate(layout.axes):
            if axis in "YX":
                translation[k] += scale[k] * (2**number - 1) / 2
                scale[k] *= 2**number
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(translation):
            transforms.append({"type": "translation", "translation": translation})
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    version = {"version": "0.4"} if layout.version == "0.4" else {}
    made = {"type": "mean", "metadata": {"description": "mean of 2 x 2 pixels in y and x"}}
    return {**version, "name": layout.name, "axes": axes, "datasets": datasets, **made}


def open_level(folder: Path, number: int, layout: Layout) -> Any:
    """Open a level of a store made by `create`, to be read and written by regions."""
    zarr = library()
    array = zarr.open_array(
        str(folder / str(number)), mode="r+", zarr_format=2 if layout.version == "0.4" else 3
    )
    return array.with_config({"write_empty_chunks": True})


def write_region(
    folder: Path, number: int, layout: Layout, region: tuple[slice, ...], values: NDArray[Any]
) -> None:
    """Write a region of whole shards."""
    # What a killed process left may be damaged, and the library would read it to keep a part.
    for file in files_of_region(folder, number, layout, region):
        file.unlink(missing_ok=True)
    open_level(folder, number, layout)[region] = values


def halved(values: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Return the means of 2 x 2 pixels; at an odd border, of those that are there.

    Parameters
    ----------
    values : ndarray
        Any real dtype; integers are rounded, half up, without overflow.
    rows, columns : int
        Which dimensions Y and X are.
    """
    for axis in (rows, columns):
        if values.shape[axis] % 2:
            last = np.take(values, [-1], axis)
            values = np.concatenate([values, last], axis)
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            place = [slice(None)] * values.ndim
            place[rows], place[columns] = slice(row, None, 2), slice(column, None, 2)
            parts.append(values[tuple(place)])
    if values.dtype.kind == "b":
        return np.asarray(sum(p.astype(np.uint8) for p in parts) >= 2)
    if values.dtype.kind == "f":
        quarter = np.float64(0.25) if values.dtype.itemsize == 8 else np.float32(0.25)
        total = parts[0] * quarter
        for part in parts[1:]:
            total = total + part * quarter
        return np.asarray(total.astype(values.dtype))
    four, two = values.dtype.type(4), values.dtype.type(2)
    whole, rest = np.zeros_like(parts[0]), np.zeros_like(parts[0])
    for part in parts:
        whole += part // four
        rest += part % four
    return np.asarray(whole + (rest + two) // four)


def regions(level: Level, factors: tuple[int, ...] | None = None) -> Iterator[tuple[slice, ...]]:
    """Yield the parts that are written at once: whole shards, cut at the end of the array."""
    steps = [s * f for s, f in zip(level.shards, factors or (1,) * len(level.shards), strict=True)]
    counts = [-(-n // s) for n, s in zip(level.shape, steps, strict=True)]
    for place in np.ndindex(*counts):
        yield tuple(
            slice(int(i) * s, min(n, (int(i) + 1) * s))
            for i, s, n in zip(place, steps, level.shape, strict=True)
        )


def build_region(folder: Path, number: int, layout: Layout, region: tuple[slice, ...]) -> None:
    """Write a part of a level from the level below it."""
    below = layout.levels[number - 1].shape
    place = tuple(
        slice(2 * s.start, min(n, 2 * s.stop)) if a in "YX" else s
        for a, s, n in zip(layout.axes, region, below, strict=True)
    )
    values = np.asarray(open_level(folder, number - 1, layout)[place])
    made = halved(values, layout.axes.index("Y"), layout.axes.index("X"))
    write_region(folder, number, layout, region, made)


def write(folder: Path, picture: Picture, provenance: str | None) -> None:
    """Write a picture with its pyramid into an empty folder, a shard at a time."""
    layout = lay_out(picture)
    create(folder, layout, provenance)
    order = order_of_axes(picture.axes)
    back = np.argsort(order)
    for region in regions(layout.levels[0]):
        part = np.asarray(picture.pixels[tuple(region[k] for k in back)])
        write_region(folder, 0, layout, region, part.transpose(order))
    for number in range(1, len(layout.levels)):
        for region in regions(layout.levels[number]):
            build_region(folder, number, layout, region)


def verify(folder: Path, picture_shape: tuple[int, ...], axes: str) -> None:
    """Raise `ValueError` or `CannotRead` unless a store is complete: metadata and all files."""
    back = open_lazily(folder)
    expected = tuple(picture_shape[k] for k in order_of_axes(axes))
    if back.axes != axes_of_store(axes) or back.shape != expected:
        raise ValueError(f"has shape {back.shape} and axes {back.axes}, expected {expected}")
    missing = missing_files(folder)
    if missing:
        raise ValueError(f"{missing} of its files are not there")


def compare(folder: Path, picture: Picture) -> None:
    """Raise `ValueError` unless a store decodes to the pixels of a picture, and each level to means."""
    layout = lay_out(picture)
    order = order_of_axes(picture.axes)
    back = np.argsort(order)
    full = open_lazily(folder).pixels
    floats = full.dtype.kind == "f"
    for region in regions(layout.levels[0]):
        meant = np.asarray(picture.pixels[tuple(region[k] for k in back)]).transpose(order)
        if not np.array_equal(meant, full[region], equal_nan=floats):
            raise ValueError("decodes to other pixel values than were written")


def files_of_region(folder: Path, number: int, layout: Layout, region: tuple[slice, ...]) -> list[Path]:
    """Return the files that a region of whole shards consists of."""
    array = open_level(folder, number, layout)
    spans = [
        range(s.start // shard, -(-s.stop // shard))
        for s, shard in zip(region, layout.levels[number].shards, strict=True)
    ]
    base = folder / str(number)
    return [base / array.metadata.encode_chunk_key(place) for place in itertools.product(*spans)]
