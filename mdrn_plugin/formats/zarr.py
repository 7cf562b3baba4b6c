"""OME-Zarr 0.4 (zarr 2) and 0.5 (zarr 3, with or without shards): one picture of axes t, c, z, y, x.

What the metadata say is read by this module from its JSON files and checked before the library
sees the store: where the levels lie, which codecs they use, which values they hold. A chunk that
is not there has the array's fill value, as both versions of zarr define; how many those are is
said in ``metadata.note``. A chunk that is there and damaged is an error. Stores are written by `zarr_write`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import CannotRead, NotSupported
from mdrn_plugin.formats.limits import check_pixels
from mdrn_plugin.formats.slicing import boxes
from mdrn_plugin.formats.sniffing import shown
from mdrn_plugin.formats.zarr_chunks import ChunkFiles
from mdrn_plugin.picture import Metadata, Picture, ValueRange, decide_range

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

VERSIONS = ("0.4", "0.5")
ORDER = "TCZYX"  # of the axes of a store, by both versions
AXIS_TYPES = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}
_MAX_JSON = 64 * 2**20  # bytes; a plate of 1536 wells with full metadata is smaller
# Decoders that turn bytes into bytes or numbers. Others (pickle above all) may do anything.
_CODECS = frozenset(
    (
        *("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle", "bitround", "packbits"),
        *("bytes", "transpose", "crc32c", "sharding_indexed", "fixedscaleoffset"),
        *("fletcher32", "crc32", "adler32"),
    )
)
_COLLECTIONS = {"plate": "a plate", "well": "a well", "bioformats2raw.layout": "several pictures"}
_MAX_CHUNK_BYTES = 2**31  # what blosc can hold


@dataclasses.dataclass(frozen=True, slots=True)
class ZarrMetadata(Metadata):
    """What an OME-Zarr store needs to be written back as it was; tuples have one entry per axis.

    Attributes
    ----------
    version : str
        Of OME-Zarr, one of `VERSIONS`.
    attributes : str
        JSON: all attributes of the group but the multiscales.
    name : str
        Of the multiscales.
    axes : str
        Of the picture that was read.
    units : tuple of str
        As in the file, "micrometer"; empty if none.
    scale, translation : tuple of float
        Of level 0, in these units.
    levels : int
        Of the pyramid, the full resolution included.
    chunks : tuple of int
        Smallest unit that is decoded, values.
    shards : tuple of int
        Unit that is stored as one file, values; as `chunks` where there are no shards.
    """

    version: str = "0.5"
    attributes: str = "{}"
    name: str = ""
    axes: str = ""
    units: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    translation: tuple[float, ...] = ()
    levels: int = 1
    chunks: tuple[int, ...] = ()
    shards: tuple[int, ...] = ()


def library() -> Any:
    """Import zarr.

    Raises
    ------
    NotSupported
        It is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise NotSupported("OME-Zarr needs the extra: pip install 'mdrn-plugin[zarr]'") from error
    return zarr


# --- reading ----------------------------------------------------------------------------------------


class Lazy:
    """The pixels of a level: sliced like numpy, decoded when sliced, native byte order."""

    def __init__(self, array: Any, name: str, files: ChunkFiles | None = None) -> None:
        self._array, self._name, self._files = array, name, files
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")
        self.ndim = len(self.shape)

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Decode a part."""
        try:
            if self._files is not None:
                self._files.check(boxes(place, self.shape))
            values = np.asarray(self._array[place])
        except (IndexError, MemoryError):
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise CannotRead(f"{self._name}: a chunk is damaged ({reason}); get an intact copy") from error
        return values.astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Decode everything."""
        return self[...].astype(dtype or self.dtype, copy=False)


def read(path: Path, max_pixels: int | None) -> Picture:
    """Read the full resolution of a store into memory.

    Raises
    ------
    CannotRead, NotSupported
        See the door, `mdrn_plugin.formats.read`.
    """
    picture = open_lazily(path)
    planes = math.prod(n for a, n in zip(picture.axes, picture.shape, strict=True) if a not in "YX")
    check_pixels(shown(path), picture.length("X"), picture.length("Y"), planes, max_pixels)
    pixels = np.asarray(picture.pixels)
    return dataclasses.replace(picture, pixels=pixels, range=decide_range(pixels))


def open_lazily(path: Path) -> Picture:
    """Open a store; pixels are read when they are sliced.

    Integers have the range of their type: nothing was looked at. Floats have white = 1, for the caller to
    decide from a sample.
    """
    zarr = library()
    name = shown(path)
    found = _find(path, name)
    folder = _inside(path, found.datasets[0], name)
    _check_array(folder, found.format, name)
    try:
        array = zarr.open_array(str(folder), mode="r", zarr_format=found.format)
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
        chunks = tuple(array.chunks)
        shards = tuple(array.shards or array.chunks)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CannotRead(f"{name}: its array cannot be opened ({reason}); get an intact copy") from error
    if len(shape) != len(found.axes):
        raise CannotRead(
            f"{name}: expected {len(found.axes)} dimensions as its axes say, got {len(shape)}; "
            "get an intact copy"
        )
    if min(shape, default=0) < 1:
        raise CannotRead(f"{name}: expected at least one pixel, got shape {shape}; get an intact copy")
    if dtype.kind not in "buif":
        raise NotSupported(f"{name}: values of type {dtype}, expected integers or floats; convert it first")
    if math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise NotSupported(
            f"{name}: chunks of {math.prod(chunks) * dtype.itemsize} bytes, expected at most "
            f"{_MAX_CHUNK_BYTES}; store it in smaller chunks"
        )
    notes = list(found.notes)
    missing = _missing(folder, array, shards)
    if missing:
        if array.fill_value is None:
            raise CannotRead(
                f"{name}: {missing} chunks are missing and no fill value is stated; get an intact copy"
            )
        total = math.prod(-(-n // c) for n, c in zip(shape, shards, strict=True))
        notes.append(f"{missing} of {total} chunks are not there: read as the fill value {array.fill_value}")
    scale, translation = found.placed(len(shape), name)
    metadata = ZarrMetadata(
        format="zarr",
        note="; ".join(notes),
        version=found.version,
        attributes=json.dumps(found.attributes),
        name=found.name,
        axes=found.axes,
        units=found.units,
        scale=scale,
        translation=translation,
        levels=len(found.datasets),
        chunks=chunks,
        shards=shards,
    )
    lazy = Lazy(array, name, ChunkFiles(folder, array, shards, chunks))
    return Picture(lazy, found.axes, range_of(dtype), metadata=metadata)


def range_of(dtype: np.dtype[Any]) -> ValueRange:
    """Return the range of values of a type that nobody has looked at."""
    if dtype.kind in "ui":
        top = float(np.iinfo(dtype).max)
        return ValueRange(0.0, top, f"{dtype.name}: black 0, white the largest value of the type")
    return ValueRange(0.0, 1.0, "boolean" if dtype.kind == "b" else "floats: white 1")


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What the metadata of a group say, checked."""

    format: int  # of zarr: 2 or 3
    version: str
    axes: str
    units: tuple[str, ...]
    datasets: tuple[str, ...]
    transforms: tuple[Any, ...]  # of level 0, then of all levels
    name: str
    attributes: dict[str, Any]
    notes: tuple[str, ...]

    def placed(self, count: int, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return scale and translation of level 0, all transforms taken together."""
        scale, translation = np.ones(count), np.zeros(count)
        for transform in self.transforms:
            kind = transform.get("type") if isinstance(transform, dict) else None
            if kind == "identity":
                continue
            values = transform.get(kind) if kind in ("scale", "translation") else None
            if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
                raise CannotRead(
                    f"{name}: expected scale or translation of {count} numbers, got {str(transform)[:100]}; "
                    "mend its metadata"
                )
            if kind == "scale":
                scale, translation = scale * values, translation * values
            else:
                translation = translation + values
        return tuple(map(float, scale)), tuple(map(float, translation))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _find(path: Path, name: str) -> _Found:
    if (path / "zarr.json").is_file():
        node = _load(path / "zarr.json", name)
        if node.get("node_type") == "array":
            raise _no_metadata(name, "is a zarr array by itself")
        attributes = dict(node.get("attributes") or {})
        ome = attributes.pop("ome", None)
        if not isinstance(ome, dict):
            raise _no_metadata(name, "has no OME metadata")
        zarr_format, version, ome = 3, str(ome.get("version")), dict(ome)
        inner, attributes = ome, {**attributes, "ome": ome}
    elif (path / ".zattrs").is_file():
        inner = attributes = dict(_load(path / ".zattrs", name))
        several = inner.get("multiscales")
        first = several[0] if isinstance(several, list) and several else {}
        zarr_format, version = 2, str(first.get("version", "0.4")) if isinstance(first, dict) else "0.4"
    else:
        raise _no_metadata(name, "has no OME metadata")
    for key, words in (
        ("plate", "a plate"),
        ("well", "a well"),
        ("bioformats2raw.layout", "several pictures"),
    ):
        if key in inner and "multiscales" not in inner:
            raise NotSupported(f"{name}: holds {words}; give one of the pictures in it, such as {name}/0")
    if version != ("0.5" if zarr_format == 3 else "0.4"):
        raise CannotRead(
            f"{name}: expected OME-Zarr 0.4 (zarr 2) or 0.5 (zarr 3), got version {version} in "
            f"zarr {zarr_format}; convert it"
        )
    multiscales = inner.pop("multiscales", None)
    if not isinstance(multiscales, list) or not multiscales:
        raise _no_metadata(name, "has no multiscales in its metadata")
    if len(multiscales) > 1:
        raise NotSupported(f"{name}: holds {len(multiscales)} multiscales, expected one; save them apart")
    inner.pop("version", None)
    notes = []
    if (path / "labels").is_dir():
        notes.append("labels were left out")
    for stale in ("mdrn", "labels"):
        attributes.pop(stale, None)
    return _described(multiscales[0], zarr_format, version, attributes, name, notes)


def _described(
    one: Any, zarr_format: int, version: str, attributes: dict[str, Any], name: str, notes: list[str]
) -> _Found:
    one = one if isinstance(one, dict) else {}
    axes, units = [], []
    for axis in one.get("axes") if isinstance(one.get("axes"), list) else []:
        letter = str(axis.get("name", "")).upper() if isinstance(axis, dict) else ""
        if letter not in AXIS_TYPES or letter in axes:
            raise NotSupported(f"{name}: axis {str(axis)[:60]}, expected t, c, z, y, x once each; convert it")
        axes.append(letter)
        units.append(str(axis.get("unit") or ""))
    if not {"Y", "X"} <= set(axes):
        raise _no_metadata(name, "has no axes y and x in its metadata")
    datasets, transforms = [], []
    for dataset in one.get("datasets") if isinstance(one.get("datasets"), list) else []:
        if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
            raise CannotRead(f"{name}: a level without a path; mend its metadata")
        datasets.append(dataset["path"])
        if len(datasets) == 1:
            transforms = list(dataset.get("coordinateTransformations") or [])
    if not datasets:
        raise _no_metadata(name, "names no level in its metadata")
    transforms += list(one.get("coordinateTransformations") or [])
    return _Found(
        zarr_format,
        version,
        "".join(axes),
        tuple(units),
        tuple(datasets),
        tuple(transforms),
        str(one.get("name") or ""),
        attributes,
        tuple(notes),
    )


def _no_metadata(name: str, what: str) -> CannotRead:
    return CannotRead(
        f"{name}: {what}, expected OME-Zarr 0.4 or 0.5; give the folder that holds its metadata"
    )


def _load(file: Path, name: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON:
            raise ValueError(f"{file.name} has more than {_MAX_JSON} bytes")
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"{file.name} is no object")
    except RecursionError as error:
        raise CannotRead(f"{name}: its metadata are damaged ({file.name}); get an intact copy") from error
    except (OSError, ValueError) as error:
        raise CannotRead(f"{name}: its metadata are damaged ({error}); get an intact copy") from error
    return found


def _inside(path: Path, dataset: str, name: str) -> Path:
    """Return the folder of a level, which must lie in the store."""
    pure = PurePosixPath(dataset)
    folder = path.joinpath(*pure.parts) if not pure.is_absolute() else path
    root = os.path.realpath(path)
    if pure.is_absolute() or ".." in pure.parts or not os.path.realpath(folder).startswith(root):
        raise CannotRead(
            f"{name}: points to {dataset!r}, expected levels inside the store; mend its metadata"
        )
    return folder


def _check_array(folder: Path, format: int, name: str) -> None:
    """Refuse what is no array of numbers with codecs known here, before the library decodes anything."""
    file = folder / ("zarr.json" if format == 3 else ".zarray")
    if not file.is_file():
        raise CannotRead(f"{name}: its level {folder.name!r} is missing; get a complete copy")
    node = _load(file, name)
    for codec in _codecs(node):
        if codec.removeprefix("numcodecs.").lower() not in _CODECS:
            raise NotSupported(f"{name}: is coded with {codec[:40]!r}, which is not read here; convert it")


def _codecs(node: dict[str, Any]) -> Iterator[str]:
    named = [node.get("compressor"), *(node.get("filters") or [])]
    named += list(node.get("codecs") or []) + list(node.get("index_codecs") or [])
    for codec in named:
        if isinstance(codec, dict):
            yield str(codec.get("id") or codec.get("name"))
            configuration = codec.get("configuration")
            if isinstance(configuration, dict):
                yield from _codecs(configuration)


def missing_files(path: Path) -> int:
    """Return how many files of all levels of a store are not there."""
    name = shown(path)
    found = _find(path, name)
    count = 0
    for dataset in found.datasets:
        folder = _inside(path, dataset, name)
        array = library().open_array(str(folder), mode="r", zarr_format=found.format)
        count += _missing(folder, array, tuple(array.shards or array.chunks))
    return count


def _missing(folder: Path, array: Any, shards: tuple[int, ...]) -> int:
    """Return how many of the files of a level are not there."""
    total = math.prod(-(-int(n) // c) for n, c in zip(array.shape, shards, strict=True))
    names = (name for _, _, several in os.walk(folder) for name in several)
    there = sum(1 for n in names if not n.startswith(".z") and n != "zarr.json" and n[-8:] != ".partial")
    return max(0, total - there)
