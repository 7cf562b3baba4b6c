"""From a napari layer to a picture, and from a result to a layer that behaves as the first.

Pure functions: no viewer, no Qt. `Source` is taken from a layer on the UI thread and costs nothing;
whatever reads pixels is for another thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.picture import Picture, ValueRange, decide_range, sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.plan import Plan

PROVENANCE = "mdrn"  # key of a result's layer.metadata
RANGE = "mdrn_range"  # key of layer.metadata: (black, white, reason) as a file stated them

_WORDS = {
    "T": ("t", "time", "frame", "frames", "timepoint"),
    "Z": ("z", "depth", "plane", "planes", "slice", "slices"),
    "C": ("c", "ch", "channel", "channels", "wavelength"),
    "Y": ("y", "row", "rows", "height"),
    "X": ("x", "column", "columns", "col", "width"),
}
_LETTERS = {word: letter for letter, words in _WORDS.items() for word in words}
# The same guess as mdrn_plugin.denoise makes for an array without names.
_LEADING = ("", "Z", "TZ", "TZC")

_RANGE_PLANES = 8  # planes read of a lazy float layer to decide its range


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What the core needs to know of an image layer.

    Attributes
    ----------
    pixels : array
        The finest level, all its dimensions in `axes`; never read here.
    axes : str
        Letters of the core, one per dimension of `pixels`.
    merged : tuple of int
        Lengths of the layer's first dimensions that T stands for; empty if it has four or fewer.
    alpha : bool
        The last sample is opacity.
    lazy : bool
        Backed by a file or a computation: never read as a whole.
    stated : ValueRange, optional
        Black and white as the reader found them in the file.
    """

    pixels: Any
    axes: str
    merged: tuple[int, ...] = ()
    alpha: bool = False
    lazy: bool = False
    stated: ValueRange | None = None

    @property
    def leading(self) -> str:
        """The axes that planes are stacked along, in the order of the pixels."""
        return "".join(a for a in self.axes if a not in "YXS")

    def length(self, axis: str) -> int:
        """Return the length of an axis."""
        return int(self.pixels.shape[self.axes.index(axis)])


def source_of(layer: Any) -> Source:
    """Return the source of a napari Image layer; reads no pixels."""
    level = layer.data[0] if layer.multiscale else layer.data
    rgb = bool(layer.rgb)
    ndim = int(layer.ndim)
    axes = axes_of(tuple(str(label) for label in layer.axis_labels), ndim, rgb)
    pixels, lazy = _sliceable(level)
    merged: tuple[int, ...] = ()
    surplus = pixels.ndim - len(axes)
    if surplus > 0:
        merged = tuple(int(n) for n in pixels.shape[: surplus + 1])
        pixels = Merged(pixels, surplus + 1)
    return Source(
        pixels=pixels,
        axes=axes,
        merged=merged,
        alpha=rgb and pixels.shape[-1] in (2, 4),
        lazy=lazy,
        stated=_stated(layer.metadata),
    )


def axes_of(labels: Sequence[str], ndim: int, rgb: bool) -> str:
    """Return the core's axis letters for the dimensions of a layer.

    Parameters
    ----------
    labels : sequence of str
        The layer's axis labels; names such as "z", "time" or "channel" are understood.
    ndim : int
        Dimensions without the samples of RGB.
    rgb : bool
        Adds S.

    Returns
    -------
    str
        From the names if they say it, else by number as `mdrn_plugin.denoise` guesses. More than
        five dimensions: the first letter stands for all that are too many.
    """
    named = [_LETTERS.get(label.strip().lower(), "") for label in labels]
    colour = "S" if rgb else ""
    if len(named) == ndim and ndim >= 2:
        if not any(named[-2:]):
            named[-2:] = ["Y", "X"]
        if all(named) and len(set(named)) == ndim and {"Y", "X"} <= set(named):
            return "".join(named) + colour
    return _LEADING[min(max(ndim - 2, 0), 3)] + "YX" + colour


def as_picture(source: Source) -> Picture:
    """Return the picture of a source with its range decided; of a lazy one little is read.

    A lazy layer of integers has the range of its type: the values that were not looked at are
    never clipped.
    """
    return Picture(source.pixels, source.axes, _range(source), source.alpha)


def _range(source: Source) -> ValueRange:
    if source.stated is not None:
        return source.stated
    dtype = np.dtype(source.pixels.dtype)
    if not source.lazy:
        return decide_range(source.pixels)
    if dtype.kind in "ui":
        white = int(np.iinfo(dtype).max)
        return ValueRange(0.0, float(white), f"{dtype.name}: black 0, white {white}, the layer is not loaded")
    planes = _spread_planes(Picture(source.pixels, source.axes, ValueRange(0, 1, ""), source.alpha))
    return decide_range(np.concatenate([sample(plane, 500_000) for plane in planes]))


def _spread_planes(picture: Picture) -> Iterator[NDArray[Any]]:
    stacked = [n for a, n in zip(picture.axes, picture.shape, strict=True) if a not in "YXS"]
    count = math.prod(stacked)
    for k in range(min(count, _RANGE_PLANES)):
        place = (
            iter(np.unravel_index(k * count // min(count, _RANGE_PLANES), stacked)) if stacked else iter(())
        )
        index = tuple(slice(None) if a in "YXS" else int(next(place)) for a in picture.axes)
        yield np.asarray(picture.pixels[index])


def _stated(metadata: Mapping[str, Any]) -> ValueRange | None:
    try:
        black, white, reason = metadata[RANGE]
        return ValueRange(float(black), float(white), str(reason)) if black < white else None
    except (KeyError, TypeError, ValueError):
        return None


def _sliceable(level: Any) -> tuple[Any, bool]:
    """Return the data as something that slices without reading, and whether it is lazy."""
    if isinstance(level, np.ndarray):
        return level, isinstance(level, np.memmap)
    inner = getattr(level, "data", None)
    if hasattr(level, "dims") and isinstance(inner, np.ndarray):  # xarray
        return inner, False
    if hasattr(level, "__dask_graph__"):
        return (inner if hasattr(level, "dims") else level), True
    if hasattr(level, "chunks") or hasattr(level, "dims"):
        return lazy(level), True
    return np.asarray(level), False


def lazy(pixels: Any, **options: Any) -> Any:
    """Return anything that slices as a dask array."""
    import dask.array

    from_array: Any = dask.array.from_array
    return pixels if hasattr(pixels, "__dask_graph__") else from_array(pixels, **options)


class Merged:
    """An array whose first dimensions are seen as one, without a copy."""

    def __init__(self, pixels: Any, count: int) -> None:
        self._pixels = pixels
        self._lengths = tuple(int(n) for n in pixels.shape[:count])
        self.shape = (math.prod(self._lengths), *(int(n) for n in pixels.shape[count:]))
        self.dtype = pixels.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        first, rest = index[0], index[1:]
        if isinstance(first, slice):
            places = range(*first.indices(self.shape[0]))
            parts = [np.asarray(self[(k, *rest)]) for k in places]
            return np.stack(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)
        place = np.unravel_index(int(first), self._lengths)
        return self._pixels[(*(int(k) for k in place), *rest)]


# --- parts of a layer ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Which planes are to be done: some axes at one place, the others along their whole length."""

    fixed: tuple[tuple[str, int], ...] = ()  # (axis, index)

    def describe(self) -> str:
        """Say in words which planes."""
        return ", ".join(f"{axis} = {index}" for axis, index in self.fixed) or "all planes"


def part_of(source: Source, position: Mapping[str, int], along: str) -> Part:
    """Return the part that runs along the axes `along` and keeps `position` on the others."""
    fixed = []
    for axis in source.leading:
        if axis not in along:
            top = source.length(axis) - 1
            fixed.append((axis, min(max(int(position.get(axis, 0)), 0), top)))
    return Part(tuple(fixed))


def cut(picture: Picture, part: Part) -> Picture:
    """Return the picture of a part; axes keep their letters, fixed ones have length 1."""
    if not part.fixed:
        return picture
    fixed = dict(part.fixed)
    index = tuple(slice(fixed[a], fixed[a] + 1) if a in fixed else slice(None) for a in picture.axes)
    return dataclasses.replace(picture, pixels=picture.pixels[index])


def plan_for(
    plan: Plan, profiles: tuple[NoiseProfile, ...], part: Part
) -> tuple[Plan, tuple[NoiseProfile, ...]]:
    """Return what of a plan concerns a part: the channel that is kept, or all."""
    channel = dict(part.fixed).get("C")
    if channel is None or len(plan.steps) == 1:
        return plan, profiles
    return dataclasses.replace(plan, steps=(plan.steps[channel],)), (profiles[channel],)


def position_in(layer: Any, source: Source, point: Sequence[float]) -> dict[str, int]:
    """Return where a point of the world lies on the leading axes of a layer."""
    data = np.asarray(layer.world_to_data(np.asarray(point, dtype=float)))
    # A viewer with fewer dimensions than the layer has not drawn it yet.
    data = np.concatenate([np.zeros(max(0, layer.ndim - len(data))), data])[-layer.ndim :]
    place = [round(float(v)) for v in data]
    if source.merged:
        many = len(source.merged)
        clipped = [min(max(p, 0), n - 1) for p, n in zip(place[:many], source.merged, strict=True)]
        place = [int(np.ravel_multi_index(clipped, source.merged)), *place[many:]]
    axes = source.axes.replace("S", "")
    return {a: p for a, p in zip(axes, place, strict=True) if a not in "YX"}


# --- results ------------------------------------------------------------------------------------


def attributes(layer: Any, source: Source, part: Part, *, name: str) -> dict[str, Any]:
    """Return the arguments of a layer that shows a result in the place and the look of `layer`.

    Everything that napari itself stores of a layer, but for its data and name; a part is moved to
    where it belongs.
    """
    _, state, _ = layer.as_layer_data_tuple()
    state = dict(state)
    state.update(name=name, visible=True, metadata=dict(layer.metadata))
    offset = offset_of(layer, source, part)
    if any(offset):
        state["translate"] = moved(layer, offset)
    return state


def offset_of(layer: Any, source: Source, part: Part) -> tuple[int, ...]:
    """Return the data coordinates, in `layer`, of the first pixel of a part."""
    fixed = dict(part.fixed)
    place: list[int] = []
    for axis in source.axes.replace("S", ""):
        at = fixed.get(axis, 0)
        if source.merged and axis == source.axes[0]:
            lengths = source.merged
            place += [int(k) for k in np.unravel_index(at, lengths)]
        else:
            place.append(at)
    return tuple(place)


def moved(layer: Any, offset: Sequence[float]) -> NDArray[np.float64]:
    """Return the translation of a layer whose pixel 0 lies where `layer` has the pixel `offset`."""
    start = np.asarray(layer.data_to_world(np.zeros(layer.ndim)), dtype=float)
    there = np.asarray(layer.data_to_world(np.asarray(offset, dtype=float)), dtype=float)
    # The affine matrix comes after the translation.
    linear = np.asarray(layer.affine.linear_matrix, dtype=float)
    step = np.linalg.solve(linear, there - start)
    return np.asarray(np.asarray(layer.translate, dtype=float) + step, dtype=float)


def full_axes(source: Source) -> str:
    """Return one letter per dimension of the layer; those that T stands for are "?"."""
    return "?" * len(source.merged) + source.axes[1:] if source.merged else source.axes


def part_shape(shape: Sequence[int], source: Source, part: Part) -> tuple[int, ...]:
    """Return the shape that a level of the layer has in a part."""
    fixed = {a for a, _ in part.fixed}
    letters = source.axes[0] * len(source.merged) + source.axes[1:] if source.merged else source.axes
    return tuple(1 if a in fixed else int(n) for a, n in zip(letters, shape, strict=True))


def unmerged(pixels: Any, source: Source, part: Part) -> Any:
    """Give a result the dimensions of its layer back."""
    if not source.merged:
        return pixels
    kept = len(part.fixed) and source.axes[0] in dict(part.fixed)
    lengths = (1,) * len(source.merged) if kept else source.merged
    return pixels.reshape(*lengths, *pixels.shape[1:])


def pyramid(pixels: NDArray[Any], axes: str, shapes: Sequence[Sequence[int]]) -> list[NDArray[Any]]:
    """Return all levels of a multiscale layer.

    Parameters
    ----------
    pixels : ndarray
        The finest level.
    axes : str
        One letter per dimension.
    shapes : sequence of shape
        Of all levels, the finest first, as the layer had them.

    Returns
    -------
    list of ndarray
        Each coarser pixel is the mean of those that it covers; integers are rounded.
    """
    levels = [pixels]
    for shape in shapes[1:]:
        levels.append(_reduced(levels[-1], axes, tuple(int(n) for n in shape)))
    return levels


def _reduced(fine: NDArray[Any], axes: str, shape: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(shape, fine.dtype)
    stacked = [k for k, a in enumerate(axes) if a not in "YXS"]
    spans = [_edges(fine.shape[k], shape[k]) for k in stacked]
    for place in np.ndindex(*(shape[k] for k in stacked)):
        sources = np.ndindex(*(int(s[i + 1] - s[i]) for s, i in zip(spans, place, strict=True)))
        total: Any = 0.0
        count = 0
        for step in sources:
            at = iter(int(s[i]) + d for s, i, d in zip(spans, place, step, strict=True))
            index = tuple(slice(None) if a in "YXS" else next(at) for a in axes)
            total = total + _reduced_plane(fine[index], [a for a in axes if a in "YXS"], axes, shape)
            count += 1
        target = iter(place)
        index = tuple(slice(None) if a in "YXS" else next(target) for a in axes)
        mean = total / count
        if fine.dtype.kind == "b":
            out[index] = mean >= 0.5
        else:
            out[index] = (mean if fine.dtype.kind == "f" else np.rint(mean)).astype(fine.dtype)
    return out


def _reduced_plane(plane: NDArray[Any], letters: list[str], axes: str, shape: tuple[int, ...]) -> Any:
    values: Any = plane.astype(np.float64)
    for axis, letter in enumerate(letters):
        if letter == "S":
            continue
        edges = _edges(values.shape[axis], shape[axes.index(letter)])
        counts = np.diff(edges).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        values = np.add.reduceat(values, edges[:-1], axis=axis) / counts
    return values


def _edges(fine: int, coarse: int) -> NDArray[np.intp]:
    """Return where each of `coarse` pixels begins among `fine` ones, and the end."""
    coarse = min(coarse, fine)
    return np.arange(coarse + 1) * fine // coarse
