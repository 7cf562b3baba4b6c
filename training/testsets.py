"""Pictures that nobody may train on: the test sets behind every figure of this project.

A picture is known by a fingerprint of 256 bits, so that a copy is found in whatever folder it lies,
and also as gray, as JPEG, smaller, turned or mirrored. ``testsets.json`` holds those of Set12,
Kodak24, BSD68/CBSD68 and W2S (both frames of each pair); `benchmarks/fingerprints.py` writes it.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

SIDE = 16  # cells of the thumbnail along either axis

# Of 256. Measured on the 222 pictures of the test sets: JPEG of quality 50 differs by up to 25 bits, half the
# size by 13, a rotation by 14. Of 747 training pictures the nearest to a test picture differs by 42.
ALIKE_BITS = 30


def fingerprint(image: Image.Image) -> NDArray[np.bool_]:
    """Return where brightness rises to the right in a thumbnail of a picture: shape (256,).

    The thumbnail has 16 × 16 cells, each the mean of its part of the picture; the first cell of a
    row is compared with the last one. The idea is that of the difference hash (N. Krawetz, 2013).
    """
    return _rises(_thumbnail(image))


def find_test_set(image: Image.Image) -> str | None:
    """Return the test set that a picture belongs to, turned or mirrored too; None: to none."""
    names, known = _known()
    for cells in _symmetries(_thumbnail(image)):
        differ = (known != _rises(cells)).sum(axis=1)
        nearest = int(differ.argmin())
        if differ[nearest] <= ALIKE_BITS:
            return names[nearest]
    return None


def _thumbnail(image: Image.Image) -> NDArray[np.int16]:
    from PIL.Image import Resampling

    return np.asarray(image.convert("L").resize((SIDE, SIDE), Resampling.BOX)).astype(np.int16)


def _rises(cells: NDArray[np.int16]) -> NDArray[np.bool_]:
    return (cells > np.roll(cells, 1, axis=1)).ravel()


def _symmetries(cells: NDArray[np.int16]) -> Iterator[NDArray[np.int16]]:
    for turns in range(4):
        turned = np.rot90(cells, turns)
        yield turned
        yield turned[:, ::-1]


@functools.cache
def _known() -> tuple[list[str], NDArray[np.bool_]]:
    text = resources.files(__package__).joinpath("testsets.json").read_text()
    sets: dict[str, list[str]] = json.loads(text)
    names = [name for name, prints in sets.items() for _ in prints]
    rows = [np.frombuffer(bytes.fromhex(row), np.uint8) for prints in sets.values() for row in prints]
    return names, np.unpackbits(np.stack(rows), axis=1).astype(bool)
