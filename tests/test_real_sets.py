"""Loaders of the sets of real noise, on tiny files of the same layout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from types import ModuleType

scipy_io = pytest.importorskip("scipy.io")


@pytest.fixture(scope="module")
def sets(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_sets", root / "benchmarks" / "real_sets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_sets"] = module
    spec.loader.exec_module(module)
    return module


def _blocks(shape: tuple[int, ...], high: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, high, shape)
    return truth, truth + 1


@pytest.mark.parametrize("raw", [False, True])
def test_sidd_blocks_come_in_order(sets: ModuleType, tmp_path: Path, raw: bool) -> None:
    kind = "Raw" if raw else "Srgb"
    truth, noisy = _blocks((2, 3, 16, 12) if raw else (2, 3, 16, 12, 3), 200)
    for what, values in (("Gt", truth), ("Noisy", noisy)):
        name = f"Validation{what}Blocks{kind}"
        values = values.astype(np.float32 if raw else np.uint8)
        scipy_io.savemat(tmp_path / f"{name}.mat", {name: values})
    found = list(sets.sidd_blocks(tmp_path, raw=raw))
    assert [name for name, _, _ in found] == ["01_01", "01_02", "01_03", "02_01", "02_02", "02_03"]
    assert found[4][1].shape == ((16, 12) if raw else (16, 12, 3))
    assert np.array_equal(found[4][2], truth[1, 1].astype(np.float32 if raw else np.uint8))
    assert len(list(sets.sidd_blocks(tmp_path, raw=raw, limit=1))) == 2


def test_sidd_of_matlab_7_3_is_read_in_the_same_order(sets: ModuleType, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    truth, noisy = _blocks((2, 3, 16, 12), 1)
    for what, values in (("Gt", truth), ("Noisy", noisy)):
        name = f"Validation{what}BlocksRaw"
        with h5py.File(tmp_path / f"{name}.mat", "w", userblock_size=512) as file:
            file[name] = values.T
        _stamp(tmp_path / f"{name}.mat")
    found = list(sets.sidd_blocks(tmp_path, raw=True))
    assert np.array_equal(found[4][1], noisy[1, 1])


def test_files_that_are_missing_are_named(sets: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"ValidationNoisyBlocksSrgb\.mat"):
        next(sets.sidd_blocks(tmp_path))
    pytest.importorskip("h5py")
    with pytest.raises(BadOption, match="DND"):
        next(sets.dnd_crops(tmp_path))


@pytest.mark.parametrize(("pattern", "greens"), [("RGGB", (1, 2)), ("GRBG", (0, 3))])
def test_greens_are_found(sets: ModuleType, pattern: str, greens: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mosaic = rng.normal(0.3, 0.05, (64, 64))
    for k in greens:
        mosaic[k // 2 :: 2, k % 2 :: 2] += 0.2
    mosaic[1::2, greens[0] :: 2] += 0.05  # one of the others
    assert sets.green_pattern(mosaic) == pattern


@pytest.mark.parametrize("raw", [False, True])
def test_dnd_crops_and_submission(sets: ModuleType, tmp_path: Path, raw: bool) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(2)
    boxes = [np.array([[1, 3, 16, 20], [5, 1, 20, 18]]), np.array([[2, 2, 17, 19], [1, 1, 16, 18]])]
    pixels = [rng.uniform(0, 1, (24, 22) if raw else (24, 22, 3)).astype(np.float32) for _ in boxes]
    folder = tmp_path / ("images_raw" if raw else "images_srgb")
    folder.mkdir()
    with h5py.File(tmp_path / "info.mat", "w") as file:
        reference = h5py.special_dtype(ref=h5py.Reference)
        for name in ("boundingboxes", "nlf"):
            file.create_dataset(f"info/{name}", (1, 2), reference)
        for k, box in enumerate(boxes):
            file[f"#refs#/box{k}"] = box.T.astype(float)
            file["info/boundingboxes"][0, k] = file[f"#refs#/box{k}"].ref
            file[f"#refs#/nlf{k}/a"] = [[1e-3 * (k + 1)]]
            file[f"#refs#/nlf{k}/b"] = [[1e-5]]
            file["info/nlf"][0, k] = file[f"#refs#/nlf{k}"].ref
            with h5py.File(folder / f"{k + 1:04d}.mat", "w") as picture:
                picture["Inoisy" if raw else "InoisySRGB"] = pixels[k].T
    found = list(sets.dnd_crops(tmp_path, raw=raw, limit=2))
    assert [(k, noise) for k, _, noise in found] == [(1, (1e-3, 1e-5))] * 2 + [(2, (2e-3, 1e-5))] * 2
    assert np.array_equal(found[1][1], pixels[0][4:20, 0:18])
    crops = [crop for _, crop, _ in found[:2]]
    sets.write_submission(crops, tmp_path / "out/0001.mat", raw=raw, picture_crops=2)
    written = scipy_io.loadmat(tmp_path / "out/0001.mat")
    assert written["Idenoised"].shape == (1, 2)
    assert np.array_equal(written["Idenoised"][0, 1], crops[1])
    assert bool(written["israw"]) == raw
    with pytest.raises(BadOption, match="crops"):
        sets.write_submission(crops, tmp_path / "out/0001.mat", raw=raw)


def test_planes_are_denoised_where_they_lie(sets: ModuleType) -> None:
    rng = np.random.default_rng(3)
    clean = np.tile(np.array([[0.2, 0.6], [0.6, 0.4]], np.float32), (48, 48))
    noisy = (clean + rng.normal(0, np.sqrt(1e-2 * clean + 1e-4))).astype(np.float32)
    found = sets.denoise_planes(noisy, (1e-2, 1e-4), threads=1)
    assert np.mean((found - clean) ** 2) < 0.1 * np.mean((noisy - clean) ** 2)


def test_pictures_of_cameras_are_paired_with_their_truths(sets: ModuleType, tmp_path: Path) -> None:
    for name in ("b_real.png", "b_mean.png", "a_real.JPG", "a_mean.JPG", "a_ours.JPG"):
        (tmp_path / name).touch()
    found = [(noisy.name, truth.name) for noisy, truth in sets.camera_pairs(tmp_path)]
    assert found == [("a_real.JPG", "a_mean.JPG"), ("b_real.png", "b_mean.png")]
    (tmp_path / "b_mean.png").unlink()
    with pytest.raises(BadOption, match="b_mean"):
        sets.camera_pairs(tmp_path)


def test_fmd_frames_are_paired_and_limited_by_kind(sets: ModuleType, tmp_path: Path) -> None:
    import imageio.v3 as iio

    for k, name in enumerate(("Confocal_FISH_1", "Confocal_FISH_2", "WideField_BPAE_B_1")):
        for kind, value in (("raw", 10 + k), ("gt", 20 + k)):
            (tmp_path / kind).mkdir(exist_ok=True)
            iio.imwrite(tmp_path / kind / f"{name}.png", np.full((8, 8), value, np.uint8))
    found = list(sets.fmd_pairs(tmp_path))
    assert [(name, noisy[0, 0], truth[0, 0]) for name, noisy, truth in found] == [
        ("Confocal_FISH_1", 10, 20),
        ("Confocal_FISH_2", 11, 21),
        ("WideField_BPAE_B_1", 12, 22),
    ]
    assert [name for name, _, _ in sets.fmd_pairs(tmp_path, limit=1)] == [
        "Confocal_FISH_1",
        "WideField_BPAE_B_1",
    ]
    with pytest.raises(BadOption, match="test_mix"):
        list(sets.fmd_pairs(tmp_path / "gt"))


def _stamp(file: Path) -> None:
    """Give an HDF5 file the header by which MATLAB's version 7.3 is known."""
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with file.open("r+b") as f:
        f.write(header)
