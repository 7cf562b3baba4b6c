"""The example pictures are what their script makes, and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from .conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, EXAMPLES / "make_examples.py", "--clean", folder], check=True)
    return folder


def _error_std(noisy: np.ndarray, clean: np.ndarray) -> float:
    assert noisy.shape == clean.shape
    assert noisy.dtype == clean.dtype
    return float(np.std(noisy.astype(float) - clean.astype(float)))


def _linear(picture_sRGB: np.ndarray) -> np.ndarray:
    value = picture_sRGB / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def test_gray_example_is_its_scene_with_sigma_25(clean: Path) -> None:
    noisy, scene = (np.asarray(Image.open(folder / "gray.png")) for folder in (EXAMPLES, clean))
    assert _error_std(noisy, scene) == pytest.approx(25, abs=0.5)


def test_photo_example_is_its_scene_with_noise(clean: Path) -> None:
    noisy, scene = np.asarray(Image.open(EXAMPLES / "photo.jpg")), np.asarray(Image.open(clean / "photo.png"))
    assert 8 < _error_std(noisy, scene) < 20
    # Photons keep the mean in linear light; on the bent sRGB scale they cannot.
    assert _linear(noisy).mean() == pytest.approx(_linear(scene).mean(), rel=0.01)


def test_cells_example_is_its_scene_with_photon_noise(clean: Path) -> None:
    noisy, scene = (tifffile.imread(folder / "cells.tif") for folder in (EXAMPLES, clean))
    expected = np.sqrt(2.2 * (scene.astype(float) - 100) + (2.2 * 2.5) ** 2)
    error = (noisy.astype(float) - scene.astype(float)) / expected
    assert np.std(error) == pytest.approx(1, abs=0.02)


def test_cells_example_has_imagej_scale_and_colour() -> None:
    with tifffile.TiffFile(EXAMPLES / "cells.tif") as file:
        metadata = file.imagej_metadata
        assert file.series[0].axes == "ZYX"
        assert metadata is not None
        assert (metadata["spacing"], metadata["unit"]) == (0.5, "um")
        assert np.shape(metadata["LUTs"]) == (3, 256)


def test_examples_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir() if path.is_file()) < 2_500_000
