"""Draw docs/images/before-after.png: the examples before and after, by the program itself.

python scripts/before_after.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import mdrn_plugin

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
SIDE = 240  # px of every crop
# File, and where the crop begins: row, column.
CROPS = (("photo.jpg", 190, 250), ("cells.tif", 0, 0), ("gray.png", 90, 130))


def _crop(pixels: NDArray[np.generic], top: int, left: int) -> NDArray[np.uint8]:
    plane = pixels if pixels.ndim == 2 or pixels.shape[-1] == 3 else pixels[len(pixels) // 2]
    part = np.asarray(plane[top : top + SIDE, left : left + SIDE], dtype=float)
    if plane.dtype != np.uint8:
        low, high = np.percentile(plane, (0.1, 99.9))
        part = (part - low) / (high - low) * 255
    rgb = part if part.ndim == 3 else np.repeat(part[..., None], 3, -1)
    return np.asarray(np.clip(rgb, 0, 255), dtype=np.uint8)


def main() -> None:
    """Denoise the examples and write the picture."""
    rows = []
    for name, top, left in CROPS:
        picture = mdrn_plugin.read(ROOT / "examples" / name)
        clean = mdrn_plugin.denoise(picture.pixels, axes=picture.axes)
        pair = [_crop(np.asarray(p), top, left) for p in (picture.pixels, clean)]
        rows.append(np.concatenate(pair, 0))
    gap = np.full((2 * SIDE, 6, 3), 255, np.uint8)
    sheet = np.concatenate([part for row in rows for part in (row, gap)][:-1], 1)
    target = ROOT / "docs" / "images" / "before-after.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
