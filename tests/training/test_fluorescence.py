"""Drawn scenes look as a microscope's pictures do: dark, smooth, with structures, and the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.smoothness import is_smooth
from training.data import CropRules, Crops, open_pack
from training.fluorescence import draw_scene


def scene(k: int, side: int = 64) -> np.ndarray:
    return draw_scene(np.random.default_rng((5, k)), side)


def test_draw_scene_is_finite_in_range_and_decided_by_the_generator() -> None:
    for k in range(30):
        drawn = scene(k)
        assert drawn.shape == (64, 64)
        assert np.isfinite(drawn).all()
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert np.array_equal(drawn, scene(k))
    assert not np.array_equal(scene(0), scene(1))


def test_draw_scene_is_dark_with_bright_structures() -> None:
    drawn = np.stack([scene(k) for k in range(60)])
    assert np.median(drawn) < 0.35
    assert np.mean(drawn.max((1, 2)) - np.median(drawn, (1, 2))) > 0.2


def test_draw_scene_passes_for_microscopy() -> None:
    """The test by which the plan takes a picture for microscopy says so of nearly all of them."""
    rng = np.random.default_rng(0)
    flat = NoiseCurve("constant", gain=0.0, offset=0.02**2, mean=0.02**2)
    found = [
        is_smooth([(scene(k, 256) + rng.normal(0, 0.02, (256, 256)))[..., None]], flat) for k in range(30)
    ]
    assert sum(found) >= 24


def test_opposite_sides_of_a_scene_are_strangers() -> None:
    """It is cut out of a periodic one: its ends must not fit together as neighbours do."""
    drawn = [scene(k) for k in range(60)]
    next_to = np.mean([np.abs(s[:, 1] - s[:, 0]).mean() for s in drawn])
    around = np.mean([np.abs(s[:, -1] - s[:, 0]).mean() for s in drawn])
    assert around > 3 * next_to


def test_crops_take_their_share_of_scenes_and_leave_the_others_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    Image.fromarray(rng.integers(0, 256, (200, 220), np.uint8)).save(tmp_path / "in" / "0.png")
    pack = open_pack(tmp_path / "in", tmp_path / "cache")

    def batch(smooth: float, fluorescence: float) -> torch.Tensor:
        rules = CropRules(patch=64, smooth=smooth, fluorescence=fluorescence)
        return Crops(pack, [0], rules, 1).batch(3, 32)

    def detail(x_NCHW: torch.Tensor) -> torch.Tensor:
        return (x_NCHW[..., 1:] - x_NCHW[..., :-1]).square().mean((1, 2, 3))

    assert torch.equal(batch(0.5, 0.0), Crops(pack, [0], CropRules(patch=64, smooth=0.5), 1).batch(3, 32))
    assert (detail(batch(0.0, 1.0)) < detail(batch(0.0, 0.0)).min()).all()
    mixed = batch(0.0, 0.5)
    drawn = int((detail(mixed) < detail(batch(0.0, 0.0)).min()).sum())
    assert 8 <= drawn <= 24


def test_shares_beyond_all_patches_are_refused() -> None:
    with pytest.raises(BadOption, match="fluorescence"):
        CropRules(smooth=0.6, fluorescence=0.5)
