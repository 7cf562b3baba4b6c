"""Drawn textures are periodic, lie within a photograph, and are the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdrn_plugin.errors import BadOption
from training.data import CropRules, Crops, open_pack
from training.textures import draw_texture

GREY = np.full((1, 64, 64), 0.5, np.float32)


def texture(k: int, photograph: np.ndarray = GREY) -> np.ndarray:
    return draw_texture(np.random.default_rng((9, k)), photograph)


@pytest.mark.parametrize("channels", [1, 3])
def test_draw_texture_is_finite_in_range_and_decided_by_the_generator(channels: int) -> None:
    photograph = np.random.default_rng(0).random((channels, 64, 64), np.float32)
    before = photograph.copy()
    for k in range(30):
        drawn = texture(k, photograph)
        assert drawn.shape == (channels, 64, 64)
        assert drawn.dtype == np.float32
        assert np.isfinite(drawn).all()
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert np.array_equal(drawn, texture(k, photograph))
    assert np.array_equal(photograph, before)
    assert not np.array_equal(texture(0, photograph), texture(1, photograph))


def test_draw_texture_has_a_period() -> None:
    """A few frequencies hold most of what is not coarse; in a random plane they hold next to nothing."""
    window = np.outer(np.hanning(64), np.hanning(64))
    rows, columns = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]
    fine = np.hypot(rows, columns) > 1 / 25

    def share(plane: np.ndarray) -> float:
        power = np.abs(np.fft.fft2((plane - plane.mean()) * window))[fine] ** 2
        return float(np.sort(power)[-40:].sum() / power.sum())  # of 4,070

    drawn = [share(texture(k)[0]) for k in range(60)]
    random = [share(np.random.default_rng(k).random((64, 64))) for k in range(10)]
    assert np.median(drawn) > 0.6
    assert max(random) < 0.12


def test_draw_texture_keeps_the_photograph_beside_its_islands() -> None:
    photograph = np.random.default_rng(1).random((1, 64, 64), np.float32)
    kept = [np.mean(np.abs(texture(k, photograph) - photograph) < 0.01) for k in range(60)]
    assert sum(share > 0.3 for share in kept) >= 10
    assert sum(share < 0.2 for share in kept) >= 20


def test_crops_take_their_share_of_textures_and_leave_the_others_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((200, 220), 128, np.uint8)).save(tmp_path / "in" / "0.png")
    pack = open_pack(tmp_path / "in", tmp_path / "cache")

    def plain(textures: float) -> int:
        batch = Crops(pack, [0], CropRules(patch=64, textures=textures), 1).batch(3, 40)
        return int((batch.std((1, 2, 3)) == 0).sum())

    assert plain(0.0) == 40
    assert 10 <= plain(0.5) <= 30
    assert plain(1.0) == 0
    mixed = CropRules(patch=64, colours=3, smooth=0.3, fluorescence=0.3, textures=0.4)
    assert torch.isfinite(Crops(pack, [0], mixed, 1).batch(0, 16)).all()


def test_shares_beyond_all_patches_are_refused() -> None:
    with pytest.raises(BadOption, match=r"textures 0\.6"):
        CropRules(smooth=0.5, textures=0.6)
