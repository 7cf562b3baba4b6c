"""What a result must be like, whatever the network: rows of pixels of the list of what must not go wrong."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mdrn_plugin
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, decide_range
from mdrn_plugin.pipeline import denoise_picture

if TYPE_CHECKING:
    from mdrn_plugin.result import Result

SIGMA = 25 / 255


@functools.cache
def _scene(side: int = 192) -> Any:
    """Edges, a gradient, texture; floats of 0..1."""
    y, x = np.mgrid[:side, :side] / side
    scene = 0.25 + 0.4 * x + 0.15 * (y > x) + 0.1 * np.sin(40 * x * y)
    scene[side // 3 + 9 : side // 2 + 5, side // 4 - 7 : side // 2 + 5] = 0.8  # off the borders of tiles
    return scene.astype(np.float32)


@functools.cache
def _result(side: int = 192, tile: int | None = None) -> tuple[Any, Result]:
    noisy = _scene(side) + np.random.default_rng(5).normal(0, SIGMA, (side, side)).astype(np.float32)
    picture = Picture(noisy, "YX", decide_range(noisy))
    return noisy, denoise_picture(picture, Options(noise="25", threads=1, precision="fp32", tile=tile))


@pytest.mark.parametrize(
    "turn",
    [np.flipud, np.fliplr, np.rot90, lambda a: np.rot90(a, 2), np.transpose],
    ids=["up", "side", "quarter", "half", "transposed"],
)
def test_turned_input_gives_turned_result(turn: Any) -> None:
    noisy, result = _result()
    turned = mdrn_plugin.denoise(np.ascontiguousarray(turn(noisy)), axes="YX", noise="25", threads=1)
    difference = turned - turn(result.picture.pixels)
    residual = noisy - result.picture.pixels
    assert difference.std() <= 0.15 * residual.std()


@pytest.mark.parametrize("shape", [(37, 41), (1, 53), (53, 1), (2, 2), (97, 3), (101, 103)])
def test_prime_and_thin_sizes_come_back_in_size(shape: tuple[int, int]) -> None:
    noisy = np.random.default_rng(1).normal(0.5, 0.1, shape).astype(np.float32)
    clean = mdrn_plugin.denoise(noisy, axes="YX", noise="25", threads=1)
    assert clean.shape == shape
    assert np.isfinite(clean).all()
    # Pure noise around a level: most of it is gone, the level stays.
    assert abs(float(clean.mean() - noisy.mean())) < 0.06
    assert clean.std() <= noisy.std() * 1.05


def test_no_seam_at_the_borders_of_tiles() -> None:
    tile = 64
    _noisy, result = _result(192, tile)
    smooth = result.picture.pixels - _scene()
    for axis in (0, 1):
        steps = np.abs(np.diff(smooth, axis=axis)).mean(axis=1 - axis)
        at_borders = np.zeros(len(steps), bool)
        at_borders[tile - 1 :: tile] = True
        inside = steps[~at_borders]
        # As one of the others: within four standard deviations of their spread.
        assert steps[at_borders].max() < inside.mean() + 4 * inside.std()


def test_residual_is_noise_of_the_right_strength() -> None:
    noisy, result = _result()
    residual = noisy - result.picture.pixels
    assert residual.std() <= 1.1 * SIGMA
    assert residual.std() >= 0.85 * SIGMA
    z = residual - residual.mean()
    for one, other in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1])):
        assert abs(float((one * other).mean() / z.var())) <= 0.05
    assert result.verdict == "good"


def test_mean_is_kept_in_every_tone() -> None:
    noisy, result = _result()
    truth = _scene()
    residual = noisy - result.picture.pixels
    edges = np.quantile(truth, np.linspace(0, 1, 11))
    for low, high in itertools.pairwise(edges):
        tone = (truth >= low) & (truth <= high)
        error = SIGMA / np.sqrt(tone.sum())  # of the mean of the noise itself
        assert abs(float(residual[tone].mean())) < 0.005 + 3 * error


def test_pure_noise_is_flattened() -> None:
    noisy = np.random.default_rng(2).normal(0.5, SIGMA, (128, 128)).astype(np.float32)
    clean = mdrn_plugin.denoise(noisy, axes="YX", noise="25", threads=1)
    assert clean.std() < 0.25 * SIGMA


def test_rendered_picture_without_noise_is_left_alone() -> None:
    clean = (_scene() * 255).round().astype(np.uint8)
    result = mdrn_plugin.denoise(clean, axes="YX", threads=1)
    error = np.mean((result.astype(float) - clean) ** 2)
    assert error == 0 or 10 * np.log10(255**2 / error) >= 45
