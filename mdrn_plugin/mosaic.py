"""What a sensor behind a colour filter array is: which pixel sees which colour, black, white.

A mosaic is one plane (YX) of a `Picture`; this record beside it says what its pixels mean.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = "RGB"
# Fujifilm's filter, as on the X-Pro1 and since; cameras start it at different places.
X_TRANS = "GGRGGB/GGBGGR/BRGRBG/GGBGGR/GGRGGB/RBGBRG"


@dataclasses.dataclass(frozen=True, slots=True)
class Mosaic:
    """A colour filter array and the levels of its sensor.

    Attributes
    ----------
    pattern : tuple of tuple of int
        Rows of one repeat, from the upper left pixel: 0 red, 1 green, 2 blue. 2 x 2 (Bayer) or 6 x 6
        (X-Trans).
    black : tuple of tuple of float
        Value of no light at each place of the pattern, units of the file.
    white : float
        Value at which pixels are taken for clipped, units of the file.
    balance : triple of float, optional
        Multipliers of red, green, blue that make the light of the scene neutral, green 1. None: not known.
    noise : tuple of pairs of float, optional
        What the file says of its noise, colour by colour (DNG's NoiseProfile): variance = a * x + b
        for a signal x of 0 at black and 1 at white. None: it says nothing.
    """

    pattern: tuple[tuple[int, ...], ...]
    black: tuple[tuple[float, ...], ...]
    white: float
    balance: tuple[float, float, float] | None = None
    noise: tuple[tuple[float, float], ...] | None = None

    @property
    def period(self) -> int:
        """Rows and columns after which the pattern repeats."""
        return len(self.pattern)

    @property
    def cell(self) -> int:
        """Side of the smallest square that holds every colour wherever the grid of squares puts it, px.

        2 for Bayer. 3 for X-Trans: each quarter of its repeat has five green pixels and two of each
        other colour.
        """
        return 2 if self.period == 2 else 3

    @property
    def name(self) -> str:
        """The pattern in words: RGGB, or X-Trans."""
        if self.period == 2:
            return "".join(COLOURS[k] for row in self.pattern for k in row)
        return "X-Trans"

    @property
    def floor(self) -> float:
        """Mean of the black levels, units of the file."""
        return sum(map(sum, self.black)) / self.period**2

    def colours_at(self, top: int, left: int, height: int, width: int) -> NDArray[np.intp]:
        """Return the colour of each pixel of a window, (height, width)."""
        return _repeat(np.array(self.pattern), top, left, height, width)

    def blacks_at(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """Return the black level of each pixel of a window, (height, width), units of the file."""
        return _repeat(np.array(self.black, np.float32), top, left, height, width)


def _repeat(table: NDArray[Any], top: int, left: int, height: int, width: int) -> NDArray[Any]:
    period = len(table)
    turned = np.roll(table, (-(top % period), -(left % period)), (0, 1))
    return np.tile(turned, (math.ceil(height / period), math.ceil(width / period)))[:height, :width]


def make_mosaic(
    pattern: str,
    *,
    black: float | tuple[float, ...] = 0.0,
    white: float,
    balance: tuple[float, float, float] | None = None,
    noise: tuple[tuple[float, float], ...] | None = None,
) -> Mosaic:
    """Describe a mosaic in a few words.

    Parameters
    ----------
    pattern : str
        "RGGB", "BGGR", "GRBG", "GBRG", "X-Trans", or the rows of a repeat with slashes between them.
    black : float or tuple of float
        One for all pixels, or one for each place of the pattern, row by row. Units of the pixels.
    white : float
        Value of clipped pixels.
    balance, noise
        As of `Mosaic`.

    Raises
    ------
    BadOption
        No such pattern, or levels that contradict it.
    """
    text = pattern.upper().replace("-", "")
    text = X_TRANS if text == "XTRANS" else text
    rows = text.split("/") if "/" in text else [text[:2], text[2:]]
    period = len(rows)
    square = period in (2, 6) and all(len(row) == period for row in rows)
    if not square or not set("".join(rows)) == set(COLOURS):
        raise BadOption(
            f"pattern {pattern!r}: expected RGGB, BGGR, GRBG, GBRG, X-Trans, or 2 or 6 rows of R, G, B "
            "such as RG/GB"
        )
    cells = tuple(tuple(COLOURS.index(letter) for letter in row) for row in rows)
    levels = (float(black),) * period**2 if isinstance(black, int | float) else tuple(map(float, black))
    if len(levels) != period**2:
        raise BadOption(f"black: expected one value or {period**2}, got {len(levels)}")
    if not all(map(math.isfinite, (*levels, white))) or not max(levels) < white:
        raise BadOption(f"black {black}, white {white}: expected finite values, black below white")
    found = Mosaic(
        cells,
        tuple(levels[k : k + period] for k in range(0, period**2, period)),
        float(white),
        balance,
        noise,
    )
    check_pattern(found)
    return found


def check_pattern(mosaic: Mosaic) -> None:
    """Raise `BadOption` unless every cell of the pattern holds every colour."""
    side = mosaic.cell
    for top in range(0, mosaic.period, side):
        for left in range(0, mosaic.period, side):
            rows = [row[left : left + side] for row in mosaic.pattern[top : top + side]]
            if {k for row in rows for k in row} != {0, 1, 2}:
                raise BadOption(
                    f"pattern {mosaic.name}: expected red, green and blue in every {side} x {side} pixels; "
                    "this filter is not supported"
                )
