"""Slicing like numpy for pixels that are not in memory: integers, slices of step 1, an ellipsis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def boxes(place: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the start and stop along each axis; an integer is a slice of one.

    Raises
    ------
    IndexError
        An integer lies outside, or there are too many.
    """
    found = []
    for item, length in zip(_full(place, len(shape)), shape, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(length)
            if step != 1:
                raise IndexError(f"{item}: expected a step of 1; slice what comes out")
            found.append(slice(start, max(start, stop)))
        else:
            at = int(item)
            if not -length <= at < length:
                raise IndexError(f"{at}: there are {length}")
            found.append(slice(at % length, at % length + 1))
    return tuple(found)


def without_integers(values: NDArray[Any], place: Any) -> NDArray[Any]:
    """Drop the axes that `place` names by an integer, from what `boxes` cut out."""
    kept = tuple(slice(None) if isinstance(item, slice) else 0 for item in _full(place, values.ndim))
    return np.asarray(values[kept])


def _full(place: Any, count: int) -> tuple[Any, ...]:
    items = place if isinstance(place, tuple) else (place,)
    if not any(item is Ellipsis for item in items):
        items = (*items, Ellipsis)
    at = next(k for k, item in enumerate(items) if item is Ellipsis)
    rest = count - (len(items) - 1)
    if rest < 0:
        raise IndexError(f"{len(items) - 1} indices for {count} axes")
    return (*items[:at], *(slice(None),) * rest, *items[at + 1 :])
