"""The one record that travels through the pipeline: pixels, what their axes mean, their range.

Axes are letters of ``T Z C Y X S``: time, depth, channel, row, column, and the samples of one RGB
pixel. Channels (C) are independent pictures with their own noise; samples (S) are one colour
picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import BadOption, NotSupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.mosaic import Mosaic

AXES = "TZCYXS"

# Float pictures whose bulk lies in this interval have white = 1: "0..1, and a little beyond".
_UNIT_INTERVAL = (-0.5, 1.5)
NOISY_UNIT_INTERVAL = (-1.5, 2.5)  # the same under noise of 0.3: its 0.1 % quantile is 0.9 away
_MEAN_PX = 4  # a side, of squares that noise of 0.3 moves by 0.08 in the mean
_BULK = (0.1, 99.9)  # percent
_SAMPLE_PX = 4_000_000  # pixels looked at to decide a range; quantiles need no more
_PIECE_VALUES = 16_000_000  # read at a time


@dataclasses.dataclass(frozen=True, slots=True)
class Metadata:
    """What every format can carry over; a format adds what it needs to write itself back."""

    format: str = ""  # "tiff", "png", "jpeg", "webp", "bmp"; empty for arrays
    icc: bytes | None = None  # ICC profile
    exif: bytes | None = None  # EXIF block as in JPEG's APP1, without the "Exif\0\0" prefix
    xmp: bytes | None = None  # XMP packet
    dpi: tuple[float, float] | None = None  # horizontal, vertical, dots per inch
    note: str = ""  # what reading changed or left out, in words; empty if nothing


@dataclasses.dataclass(frozen=True, slots=True)
class ValueRange:
    """The pixel values that mean 0.0 and 1.0, in the units of the file."""

    black: float
    white: float
    reason: str  # in words, for `info`
    given: bool = False  # by the user, not found in the file


class Streamed:
    """Pixels that stay in a file, sliced like numpy by integers and slices of step 1.

    Rows and columns (YX) are the last axes, or the last but samples (S). Whoever takes a plane of them with
    `Picture.plane` reads a box at a time; to take it by its index reads it whole.
    """

    shape: tuple[int, ...]
    ndim: int
    dtype: np.dtype[Any]

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read a box."""
        raise NotImplementedError

    def __setitem__(self, place: Any, values: Any) -> None:
        """Write a box."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything."""
        return self[...].astype(dtype or self.dtype, copy=False)


class StreamedPlane:
    """Rows, columns and samples of one plane of streamed pixels; read and written where it is sliced.

    Parameters
    ----------
    pixels : Streamed
    index : tuple
        As `Picture.planes` yields it.
    samples : slice
        Which of them, with start and stop.
    """

    ndim = 3

    def __init__(self, pixels: Streamed, index: tuple[slice | int, ...], samples: slice) -> None:
        self._pixels, self._index, self._samples = pixels, index, samples
        self._lead = tuple(k for k in index if not isinstance(k, slice))
        self._gray = pixels.ndim == len(self._lead) + 2
        height, width = pixels.shape[len(self._lead) :][:2]
        self.shape = (height, width, samples.stop - samples.start)
        self.dtype = pixels.dtype

    def samples(self, chosen: slice) -> StreamedPlane:
        """Return the same plane with some of the samples."""
        start, stop, _ = chosen.indices(self.shape[2])
        first = self._samples.start
        return StreamedPlane(self._pixels, self._index, slice(first + start, first + stop))

    def __getitem__(self, place: slice | tuple[slice | int, ...]) -> NDArray[Any]:
        """Read some rows, or rows and columns, of any steps; the row may be an integer."""
        rows, columns = (*place, slice(None))[:2] if isinstance(place, tuple) else (place, slice(None))
        assert isinstance(columns, slice)
        if isinstance(rows, int):
            return np.asarray(self[rows : rows + 1, columns][0])
        top, bottom, step = rows.indices(self.shape[0])
        if step != 1 and top < bottom:
            return np.concatenate([self[y : y + 1, columns] for y in range(top, bottom, step)])
        left, right, every = columns.indices(self.shape[1])
        box = self._pixels[self._place(slice(top, bottom), slice(left, right))]
        found: NDArray[Any] = (box[..., None] if self._gray else box)[:, ::every]
        return found

    def __setitem__(self, place: tuple[slice, slice], values: NDArray[Any]) -> None:
        """Write some rows and columns."""
        self._pixels[self._place(*place)] = values[..., 0] if self._gray else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def _place(self, rows: slice, columns: slice) -> tuple[int | slice, ...]:
        return (*self._lead, rows, columns, *(() if self._gray else (self._samples,)))


def samples_of(plane: Any, chosen: slice) -> Any:
    """Return a plane of rows, columns and samples with some of the samples; a view."""
    return plane.samples(chosen) if isinstance(plane, StreamedPlane) else plane[..., chosen]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Pixels with axes, value range and metadata.

    Attributes
    ----------
    pixels : array
        numpy, or anything with numpy slicing, ``shape``, ``dtype`` and ``ndim``.
    axes : str
        One letter per dimension, see `AXES`; Y and X are always there.
    range : ValueRange
        Decided once for the whole file, never per plane.
    alpha : bool
        The last sample of S is opacity: carried along untouched, never denoised.
    metadata : Metadata
    mosaic : Mosaic, optional
        The pixels (YX) are those of a sensor behind a colour filter array.
    """

    pixels: Any
    axes: str
    range: ValueRange
    alpha: bool = False
    metadata: Metadata = dataclasses.field(default_factory=Metadata)
    mosaic: Mosaic | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes, tuple(self.pixels.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(self.pixels.shape)

    def length(self, axis: str) -> int:
        """Return the length of an axis, 1 if the picture does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def colours(self) -> int:
        """Samples of one pixel without alpha: 1, 3 or 4 (CMYK)."""
        return self.length("S") - (1 if self.alpha else 0)

    def planes(self) -> Iterator[tuple[slice | int, ...]]:
        """Yield the index of each plane: all but Y, X and S are integers.

        ``pixels[index]`` has the axes `plane_axes`.
        """
        stacked = [n for a, n in zip(self.axes, self.shape, strict=True) if a not in "YXS"]
        for place in np.ndindex(*stacked):
            rest = iter(place)
            yield tuple(slice(None) if a in "YXS" else next(rest) for a in self.axes)

    def bands(self) -> Iterator[tuple[slice | int, ...]]:
        """Yield the planes in pieces of some rows each, as indices: about 16 million values at a time."""
        y, row = self.axes.index("Y"), self.length("X") * self.length("S")
        rows = max(1, _PIECE_VALUES // max(1, row))
        for index in self.planes():
            for top in range(0, self.length("Y"), rows):
                yield (*index[:y], slice(top, top + rows), *index[y + 1 :])

    def plane(self, index: tuple[slice | int, ...]) -> Any:
        """Return one plane as rows, columns, samples, without alpha.

        A view; of streamed pixels a `StreamedPlane`, which reads and writes where it is sliced.
        """
        if isinstance(self.pixels, Streamed):
            return StreamedPlane(self.pixels, index, slice(0, self.colours))
        return as_rows_columns_samples(np.asarray(self.pixels[index]), self.plane_axes, self.alpha)

    @property
    def plane_axes(self) -> str:
        """The axes that remain inside one plane: some order of Y, X and perhaps S."""
        return "".join(a for a in self.axes if a in "YXS")

    def channel_of(self, index: tuple[slice | int, ...]) -> int:
        """Return the position on C of a plane index, 0 if there is no such axis."""
        if "C" not in self.axes:
            return 0
        place = index[self.axes.index("C")]
        assert isinstance(place, int)
        return place


def check_axes(axes: str, shape: tuple[int, ...]) -> None:
    """Raise `BadOption` unless `axes` names every dimension of `shape` once, with Y and X."""
    if len(axes) != len(shape):
        raise BadOption(
            f"axes {axes!r}: expected one letter per dimension, got {len(axes)} for shape {shape}; "
            f"use letters of {AXES}"
        )
    if len(set(axes)) != len(axes) or not set(axes) <= set(AXES) or not set("YX") <= set(axes):
        raise BadOption(f"axes {axes!r}: expected different letters of {AXES} with Y and X among them")


def decide_range(pixels: Any, *, bits: int | None = None) -> ValueRange:
    """Decide black and white of a whole file.

    Floats have white = 1 when the 0.1 to 99.9 % quantiles lie in [-0.5, 1.5], or those of the means of
    small squares where noise may be what lies outside, else the range of these quantiles. Integers go
    by their type, or by fewer bits where the file says so and no value contradicts it. A silent file
    of type uint16 is taken for 10, 12 or 14 bit only on evidence of saturation, see `_sensor_bits`.

    Parameters
    ----------
    pixels : array
        The whole file, any real dtype.
    bits : int, optional
        Significant bits per value that the file states.

    Raises
    ------
    NotSupported
        Complex or other non-real values.
    """
    dtype = np.dtype(pixels.dtype)
    if dtype.kind == "b":
        return ValueRange(0.0, 1.0, "boolean")
    if dtype.kind in "ui":
        return _integer_range(pixels, dtype, bits)
    if dtype.kind == "f":
        return _float_range(pixels)
    raise NotSupported(f"values of type {dtype}: expected integers or floats; convert the picture first")


def _integer_range(pixels: Any, dtype: np.dtype[Any], bits: int | None) -> ValueRange:
    if dtype.kind == "i":
        return ValueRange(0.0, float(np.iinfo(dtype).max), f"{dtype.name}: black 0, white the largest value")
    width = dtype.itemsize * 8
    stated = bits is not None and 0 < bits < width
    if stated or dtype == np.uint16:
        top = max((int(np.max(piece)) for _, piece in _pieces(pixels)), default=0)
        if stated and bits is not None and top < 2**bits:
            return ValueRange(0.0, float(2**bits - 1), f"{bits} bit, as the file says")
        narrow = _sensor_bits(pixels, top) if dtype == np.uint16 else None
        if narrow is not None:
            return ValueRange(0.0, float(2**narrow - 1), f"{narrow} bit in 16: largest value {top}")
    return ValueRange(0.0, float(2**width - 1), f"{dtype.name}: black 0, white {2**width - 1}")


def _sensor_bits(pixels: Any, top: int) -> int | None:
    """Return the depth of the sensor if the values of a uint16 file prove one, else None.

    Notes
    -----
    The range decides saturation only: a white that is too high costs nothing, one that is too low
    clips. So it takes evidence. Either the largest value lies within 16 of full scale of 12 or 14
    bit; a picture of any other origin, its largest value spread evenly over the octaves, ends
    there once in a thousand times. Or it lies in the last 3 % (cameras that subtract a pedestal
    saturate a little early) and values pile up on it: at least four, and more than in the band
    just below, which only saturation does. For 10 bit, where dim microscopy lives, the pile is
    demanded always.
    """
    for narrow in (10, 12, 14):
        full = 2**narrow - 1
        if not 0.97 * full <= top <= full:
            continue
        if narrow > 10 and top >= full - 16:
            return narrow
        band = max(1, full // 256)
        clipped = near = 0
        for _, piece in _pieces(pixels):
            clipped += int(np.count_nonzero(piece == top))
            near += int(np.count_nonzero((piece >= top - band) & (piece < top)))
        if clipped >= 4 and clipped > near:
            return narrow
    return None


def _float_range(pixels: Any) -> ValueRange:
    values = sample(pixels)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return ValueRange(0.0, 1.0, "no finite value")
    low, high = (float(v) for v in np.percentile(values.astype(np.float64), _BULK))
    if _UNIT_INTERVAL[0] <= low and high <= _UNIT_INTERVAL[1]:
        return ValueRange(0.0, 1.0, "floats of about 0..1: white 1")
    if NOISY_UNIT_INTERVAL[0] <= low and high <= NOISY_UNIT_INTERVAL[1]:
        quiet_low, quiet_high = _mean_spread(pixels)
        if _UNIT_INTERVAL[0] <= quiet_low and quiet_high <= _UNIT_INTERVAL[1]:
            return ValueRange(0.0, 1.0, "floats of about 0..1 under noise: white 1")
    if high <= low:
        return ValueRange(min(low, 0.0), max(abs(high), 1.0), "constant floats")
    return ValueRange(low, high, f"floats: 0.1 to 99.9 % quantiles {low:.6g} to {high:.6g}")


def _mean_spread(pixels: Any) -> tuple[float, float]:
    """Return the 0.1 and 99.9 % quantiles of the means of small squares, where noise is mostly gone.

    Squares on the last two axes that are longer than four of them, so not over colours or channels.
    """
    long = [axis for axis, length in enumerate(pixels.shape) if length > _MEAN_PX**2][-2:]
    # Of a volume larger than memory no more is kept than `sample` keeps.
    step = max(1, int(np.prod(pixels.shape)) // _MEAN_PX ** len(long) // _SAMPLE_PX)
    means = []
    for _, slab in _slabs(pixels):
        gone = len(pixels.shape) - slab.ndim  # leading axes that the slab lies at one place of
        count, total = np.isfinite(slab), np.nan_to_num(slab, posinf=0.0, neginf=0.0)
        for axis in long:
            if axis >= gone:
                count, total = _sum_by(count, axis - gone), _sum_by(total, axis - gone)
        means.append((total[count > 0] / count[count > 0])[::step])
    values = np.concatenate(means)
    low, high = np.percentile(values, _BULK) if values.size else (-math.inf, math.inf)
    return float(low), float(high)


def _sum_by(x: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return the sums of `_MEAN_PX` neighbours each along an axis; what is left over at its end stays out."""
    x = np.moveaxis(x, axis, -1)
    groups = x.shape[-1] // _MEAN_PX
    sums = x[..., : groups * _MEAN_PX].reshape(*x.shape[:-1], groups, _MEAN_PX).sum(-1, dtype=np.float64)
    return np.moveaxis(sums, -1, axis)


def sample(pixels: Any, limit: int = _SAMPLE_PX) -> NDArray[Any]:
    """Return about `limit` values spread over all of `pixels`, one dimension."""
    size = int(np.prod(pixels.shape))
    if size <= limit:
        return np.asarray(pixels).ravel()
    step = max(1, size // limit)
    row = max(1, int(np.prod(pixels.shape[1:])))
    part = max(1, _PIECE_VALUES // row) * row
    found = []
    for begin, piece in _pieces(pixels):
        number = begin // part  # parts begin a little later each: columns are not met again and again
        ahead = number * part + number % step - begin
        # A copy: a view would keep its whole piece in memory.
        found.append(piece[ahead if ahead >= 0 else ahead % step :: step].copy())
    return np.concatenate(found)


def _pieces(pixels: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the array in order, at most `_PIECE_VALUES` at a time: (values before these, values)."""
    for begin, slab in _slabs(pixels):
        yield begin, slab.ravel()


def _slabs(pixels: Any, lead: tuple[int, ...] = (), begin: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the array likewise in its own shape, without the leading axes that are too large for one."""
    shape = tuple(pixels.shape)[len(lead) :]
    if not shape or 0 in shape:
        return
    row = int(np.prod(shape[1:]))
    if row > _PIECE_VALUES and len(shape) > 1:
        for k in range(shape[0]):
            yield from _slabs(pixels, (*lead, k), begin + k * row)
        return
    rows = max(1, _PIECE_VALUES // row)
    for start in range(0, shape[0], rows):
        yield begin + start * row, np.asarray(pixels[(*lead, slice(start, start + rows))])


def channel_spread(picture: Picture) -> tuple[tuple[float, float], ...]:
    """Return the 0.1 and 99.9 % quantiles of each channel (C), in file units.

    Over all samples of a colour picture together, without alpha; one pair for a picture without
    channels. A channel without a finite value gives (0, 0).
    """
    spreads = []
    for channel in range(picture.length("C")):
        planes = [p for p in picture.planes() if picture.channel_of(p) == channel]
        step = max(1, len(planes) // 16)
        chosen = planes[step // 2 :: step][:16]
        parts = []
        for index in chosen:
            streamed = isinstance(picture.pixels, Streamed)
            plane = picture.plane(index) if streamed else np.asarray(picture.pixels[index])
            if picture.alpha and not streamed:
                plane = np.moveaxis(plane, picture.plane_axes.index("S"), -1)[..., :-1]
            parts.append(sample(plane, _SAMPLE_PX // len(chosen)).astype(np.float64))
        values = np.concatenate(parts) if parts else np.zeros(0)
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, _BULK) if values.size else (0.0, 0.0)
        spreads.append((float(low), float(high)))
    return tuple(spreads)


def as_rows_columns_samples(plane: NDArray[Any], axes: str, alpha: bool) -> NDArray[Any]:
    """Return a view of a plane as rows, columns, samples, without alpha.

    Parameters
    ----------
    plane : ndarray
        Axes as in `axes`: Y, X and perhaps S in any order.
    axes : str
        Letters of its dimensions.
    alpha : bool
        The last sample is opacity.
    """
    if "S" not in axes:
        view = plane.transpose([axes.index(a) for a in "YX"])[..., None]
    else:
        view = plane.transpose([axes.index(a) for a in "YXS"])
    return view[..., :-1] if alpha else view
