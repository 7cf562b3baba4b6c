from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdrn_plugin.training.recipe import Recipe

TINY = Recipe(
    name="mdrn-1b-gray-20-30",
    colours=1,
    blocks=1,
    sigma_255=(20, 30),
    band_255=(20, 30),
    steps=30,
    patch=16,
    batch=2,
    warm_up=5,
    validate_sigma_255=(25,),
    validate_every=20,
    validate_pictures=1,
)


def to_toml(recipe: Recipe, path: Path) -> Path:
    values = dataclasses.asdict(recipe)
    lines = [f"{k} = {json.dumps(list(v) if isinstance(v, tuple) else v)}" for k, v in values.items()]
    path.write_text("\n".join(lines))
    return path


def read_log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


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
