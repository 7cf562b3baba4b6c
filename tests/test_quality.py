"""Quality on the standard sets: the shipped models keep their promises. Skipped without the sets."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mdrn_plugin
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def quality(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quality", root / "benchmarks" / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality"] = module
    spec.loader.exec_module(module)
    return module


def test_blind_set12_at_25_is_near_the_told_model(quality: ModuleType, data_folder: Path) -> None:
    pictures = quality.load_set(data_folder / "bench" / "Set12")
    blind, _ = quality.measure(pictures, 25, True)
    told, _ = quality.measure(pictures, 25, False)
    assert abs(blind - told) <= 0.1
    assert blind >= 29.8


def test_colour_at_50_reaches_its_floor(quality: ModuleType, data_folder: Path) -> None:
    pictures = quality.load_set(data_folder / "bench" / "CBSD68", 12)
    noisy = [quality.add_noise(clean, 50, name) for name, clean in pictures]
    gains = [
        quality.psnr(mdrn_plugin.denoise(y, axes="YXS", noise=50, range=(0, 1)), clean)
        - quality.psnr(y, clean)
        for y, (_, clean) in zip(noisy, pictures, strict=True)
    ]
    assert np.mean(gains) > 12.5


def test_clean_photographs_are_left_nearly_alone(quality: ModuleType, data_folder: Path) -> None:
    for name, clean in quality.load_set(data_folder / "bench" / "Kodak24", 6):
        pixels = np.rint(clean * 255).astype(np.uint8)
        assert quality.psnr(mdrn_plugin.denoise(pixels) / 255, clean) >= 40, name


@pytest.mark.parametrize("name", ["mdrn-2b-gray-20-35", "mdrn-2b-gray-10-20"])
def test_manifest_numbers_are_reproduced(quality: ModuleType, data_folder: Path, name: str) -> None:
    known = shipped().get(name).psnr
    pictures = quality.load_set(data_folder / "bench" / "Set12")
    for key in (k for k in known if k.startswith("Set12/")):
        value, _ = quality.measure(pictures, float(key.split("/")[1]), False, model=name)
        assert abs(value - known[key]) <= 0.01, key
    assert any(k.startswith("Set12/") for k in known)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [d.name for d in shipped().descriptors if d.tier in ("fast", "balanced", "best")]
)
def test_all_manifest_numbers_are_reproduced(quality: ModuleType, data_folder: Path, name: str) -> None:
    known = shipped().get(name).psnr
    scores = quality.model_scores(data_folder / "bench", name, list(known))
    assert known
    assert max(abs(scores[k] - known[k]) for k in known) <= 0.01
