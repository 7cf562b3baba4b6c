"""Cutting a plane into tiles that, put together, equal the whole."""

from __future__ import annotations

import dataclasses


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
    height: int,
    width: int,
    tile: int,
    halo: int,
    stride: int,
    window: Window | None = None,
    *,
    rows: int | None = None,
) -> list[Tile]:
    """Cut a plane into tiles, all of which read the same number of rows and of columns.

    Origins are multiples of `stride`, so that the grid of a network that halves its resolution
    lies where it lies for the whole plane; the halo is cut at the picture's border, where the
    network pads tile and whole alike. One size for all (the last may lack less than a stride, which
    the caller pads): buffers and prepared operators fit every tile, there are no slivers at the
    right and lower border, and those along the border keep what others spend on halo.

    Parameters
    ----------
    height, width : int
        Of the plane.
    tile, halo : int
        Multiples of `stride`; no tile reads more than ``tile + 2 * halo`` px along a side.
    stride : int
        Of the network: how many pixels its coarsest level merges along a side.
    window : Window, optional
        Only this part is kept, of the halo all that the plane has. Its upper left corner lies on the grid
        of `stride`, so that what is computed for it is aligned as it is for the whole plane.
    rows : int, optional
        As `tile`, for the height alone.
    """
    rows = tile if rows is None else rows
    window = window or Window(0, height, 0, width)
    if window.top % stride or window.left % stride:
        raise AssertionError(f"{window} must begin at multiples of {stride}")
    if tile % stride or rows % stride or halo % stride or min(tile, rows) <= 0 or halo < 0:
        raise AssertionError(f"tile {rows} x {tile} and halo {halo} must be multiples of {stride}")
    tiles = []
    for top, bottom, read_top, read_bottom in _spans(window.top, window.bottom, height, rows, halo, stride):
        for left, right, read_left, read_right in _spans(
            window.left, window.right, width, tile, halo, stride
        ):
            tiles.append(Tile(top, bottom, left, right, read_top, read_bottom, read_left, read_right))
    return tiles


def _spans(
    start: int, end: int, length: int, tile: int, halo: int, stride: int
) -> list[tuple[int, int, int, int]]:
    """Return (kept from, kept to, read from, read to) along one side of the plane."""
    first, last = max(0, start - halo), min(length, end + halo)
    count = -(-(last - first - 2 * halo) // tile)  # the fewest that read tile + 2 halo at most
    if count <= 1:
        return [(start, end, first, last)]
    units = -(-(last - first) // stride)  # what is read in all, in strides
    rim = 2 * halo // stride
    read = -(-(units + rim * (count - 1)) // count)
    begins = [first + stride * ((units - read) * k // (count - 1)) for k in range(count)]
    edges = [start, *(begin + halo for begin in begins[1:]), end]
    return [(edges[k], edges[k + 1], begins[k], min(last, begins[k] + stride * read)) for k in range(count)]
