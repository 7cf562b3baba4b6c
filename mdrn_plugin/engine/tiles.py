"""Cutting a plane into tiles that, put together, equal the whole."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """One tile: what is read, and what of the result is kept. All in px, half open."""

    top: int  # kept rows
    bottom: int
    left: int  # kept columns
    right: int
    read_top: int  # kept rows plus halo, cut at the picture's border
    read_bottom: int
    read_left: int
    read_right: int


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The part of a plane that is wanted. All in px, half open."""

    top: int
    bottom: int
    left: int
    right: int


def cut(
    height: int, width: int, tile: int, halo: int, stride: int, window: Window | None = None
) -> list[Tile]:
    """Cut a plane into tiles of at most `tile` kept pixels a side.

    Origins are multiples of `stride`, so that the grid of a network that halves its resolution
    lies where it lies for the whole plane; the halo is cut at the picture's border, where the
    network pads tile and whole alike. The tiles of a row (and of a column) are as equal as the
    stride allows: no slivers at the right and lower border.

    Parameters
    ----------
    height, width : int
        Of the plane.
    tile, halo : int
        Multiples of `stride`.
    stride : int
        Of the network: how many pixels its coarsest level merges along a side.
    window : Window, optional
        Only this part is kept, of the halo all that the plane has. Its upper left corner lies on the grid
        of `stride`, so that what is computed for it is aligned as it is for the whole plane.
    """
    window = window or Window(0, height, 0, width)
    if window.top % stride or window.left % stride:
        raise AssertionError(f"{window} must begin at multiples of {stride}")
    if tile % stride or halo % stride or tile <= 0 or halo < 0:
        raise AssertionError(f"tile {tile} and halo {halo} must be multiples of {stride}")
    tiles = []
    for top, bottom in _spans(window.top, window.bottom, tile, stride):
        for left, right in _spans(window.left, window.right, tile, stride):
            tiles.append(
                Tile(
                    top,
                    bottom,
                    left,
                    right,
                    max(0, top - halo),
                    min(height, bottom + halo),
                    max(0, left - halo),
                    min(width, right + halo),
                )
            )
    return tiles


def _spans(start: int, end: int, tile: int, stride: int) -> list[tuple[int, int]]:
    length = end - start
    count = -(-length // tile)
    units = -(-length // stride)
    edges = [start + min(length, stride * (units * k // count)) for k in range(count)] + [end]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]
