"""Whether pixels have been through a JPEG encoder.

JPEG rounds every coefficient of the cosine transform of 8 x 8 blocks of luma to a multiple of its
step. What the decoder makes of that, rounded to 8 bit, still has its coefficients near those
multiples; a picture that was never compressed, or was resized, turned or cropped off the grid since,
has them anywhere. (Z. Fan, R. de Queiroz, "Identification of bitmap compression history: JPEG
detection and quantizer estimation", IEEE Transactions on Image Processing, 2003.)
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# RGB to luma and the two differences of colour, blue and red (JFIF 1.02, 1992; without its offset).
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)

_SIDE = 8
_LUMA = TO_YCC[0]
_BLOCKS = 4096  # looked at, spread over the picture
_LOOKED = 1024  # px a side, to find the grid in
# Low ones, that every picture has; and some whose steps are larger, for qualities above 90.
_FREQUENCIES = (
    *((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)),
    *((2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4)),
)
_STEPS = range(2, 41)  # quality about 98 to 25
_FEWEST = 48  # coefficients that are not zero, to say anything of a frequency
_MULTIPLES = 4  # different ones: flat drawings have few values, near multiples of much
_NEAR = 0.5  # mean cosine of the places between multiples: 1 on them, 0 anywhere
_AGREE = 4  # of the frequencies


def was_jpeg(pixels_YXS: Any) -> bool:
    """Return whether a colour picture of 8 bit was decoded from JPEG and not resampled since.

    Parameters
    ----------
    pixels_YXS : ndarray or StreamedPlane, uint8
        Red, green and blue. Where they were cropped, the grid of blocks is looked for by its edges,
        which weak compression hardly shows.
    """
    if pixels_YXS.dtype != np.uint8 or pixels_YXS.ndim != 3 or pixels_YXS.shape[2] != 3:
        return False
    if min(pixels_YXS.shape[:2]) < 2 * _SIDE:
        return False
    return any(_on_grid(pixels_YXS, y, x) for y, x in dict.fromkeys([(0, 0), _grid(pixels_YXS)]))


def _on_grid(pixels_YXS: Any, top: int, left: int) -> bool:
    coefficients = _coefficients(pixels_YXS, top, left)
    return sum(_is_quantised(coefficients[:, y, x]) for y, x in _FREQUENCIES) >= _AGREE


def _grid(pixels_YXS: Any) -> tuple[int, int]:
    """Return the row and the column where blocks begin, by the steps between neighbours in green."""
    down, across = (max(0, (n - _LOOKED) // 2) // _SIDE * _SIDE for n in pixels_YXS.shape[:2])
    green = pixels_YXS[down : down + _LOOKED, across : across + _LOOKED][..., 1].astype(np.int16)
    found = []
    for lines in (green, green.T):
        # Third differences: of what is smooth inside blocks, the step between them stays.
        steps = np.abs(lines[:-3] - 3 * lines[1:-2] + 3 * lines[2:-1] - lines[3:]).mean(1, dtype=np.float64)
        of_phase = [float(np.median(steps[k::_SIDE])) for k in range(_SIDE)]
        found.append((int(np.argmax(of_phase)) + 2) % _SIDE)
    return found[0], found[1]


def _coefficients(pixels_YXS: Any, top: int, left: int) -> NDArray[np.float32]:
    """Return the cosine transforms of luma blocks on a grid that begins at `top`, `left`; (blocks, 8, 8)."""
    down, across = ((n - first) // _SIDE for n, first in zip(pixels_YXS.shape, (top, left), strict=False))
    every = max(1, -(-down * across // _BLOCKS))
    places = np.arange(0, down * across, every)
    # A step that shares a factor with the width would take a few columns only.
    places = (places + np.arange(len(places)) % every) % max(1, down * across)
    rows, columns = top + places // max(1, across) * _SIDE, left + places % max(1, across) * _SIDE
    blocks = np.empty((len(places), _SIDE, _SIDE, 3), np.uint8)
    for block, y, x in zip(blocks, rows, columns, strict=True):
        block[...] = pixels_YXS[y : y + _SIDE, x : x + _SIDE]
    luma = blocks.astype(np.float32) @ np.array(_LUMA, np.float32)
    return np.asarray(_cosines() @ luma @ _cosines().T)


@functools.cache
def _cosines() -> NDArray[np.float32]:
    k, n = np.mgrid[:_SIDE, :_SIDE]
    table = np.sqrt(2 / _SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * _SIDE))
    table[0] /= np.sqrt(2)
    return np.asarray(table, np.float32)


def _is_quantised(values: NDArray[np.float32]) -> bool:
    for step in _STEPS:
        far = values[np.abs(values) > step / 2]
        if len(far) < _FEWEST:
            return False
        multiples = far / step
        if float(np.cos(2 * np.pi * multiples).mean()) > _NEAR:
            return len(np.unique(np.abs(np.round(multiples)))) >= _MULTIPLES
    return False
