from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A data folder: six pictures of three kinds, two of them for validation."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for k in range(6):
        y, x = np.mgrid[:96, : 80 + 8 * k] / 16
        colour = np.stack([np.sin(x + k), np.cos(y * (k + 1) / 3), np.sin(x * y / 9)], -1)
        pixels = np.clip(127 + 80 * colour + rng.normal(0, 3, colour.shape), 0, 255).astype(np.uint8)
        part = folder / ("DIV2K_valid_crops" if k >= 4 else "photos")
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if k == 3 else pixels).save(part / f"{k}.png")
    return folder
