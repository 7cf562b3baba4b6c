"""Two networks as one: what the coarser one says of coarse detail, and nothing of the fine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mdrn_plugin
from mdrn_plugin.engine.run import Job, count_tiles, placed, run_plane
from mdrn_plugin.networks.scales import SHARE, TwoScales, at_scales

from .conftest import small_network


class _Says(nn.Module):
    """Stands for a network: says that the noise is what `noise` makes of its input."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.noise = noise
        self.seen: list[tuple[int, ...]] = []

    def strips(self, height: int, width: int) -> int:
        return 1

    def residual(self, x_NCHW: Tensor, *, between: Callable[[], None] | None = None) -> Tensor:
        if between is not None:
            between()
        self.seen.append(tuple(x_NCHW.shape[2:]))
        return self.noise(x_NCHW)


def _waves(period_px: float, side: int = 64) -> Tensor:
    rows = torch.arange(side, dtype=torch.float32)
    return torch.cos(2 * torch.pi * rows / period_px)[None, None, None].expand(1, 1, side, side)


def test_residual_networks_that_agree_change_nothing() -> None:
    x = torch.randn(1, 3, 32, 48, generator=torch.manual_seed(0))
    nothing, mean = _Says(torch.zeros_like), _Says(lambda x: x - x.mean())
    assert torch.equal(TwoScales(nothing, nothing).residual(x), torch.zeros_like(x))
    torch.testing.assert_close(TwoScales(mean, mean).residual(x), x - x.mean())
    assert mean.seen == [(32, 48), (16, 24)]


@pytest.mark.parametrize(("period_px", "share"), [(64, 0.97), (16, 0.66), (8, 0.2)])
def test_residual_coarse_detail_is_taken_from_the_coarser_network(period_px: float, share: float) -> None:
    # The finer one takes all for noise, the coarser one nothing: what comes back of a wave is its share.
    both = TwoScales(_Says(lambda x: x), _Says(torch.zeros_like))
    x = _waves(period_px)
    kept = (x - both.residual(x))[0, 0, :, 12:-12]
    expected = SHARE * share * x[0, 0, :, 12:-12]
    torch.testing.assert_close(kept, expected, atol=0.03, rtol=0)


def test_residual_fine_detail_is_the_finer_networks() -> None:
    both = TwoScales(_Says(lambda x: x), _Says(torch.zeros_like))
    for period_px in (2, 3, 4):
        x = _waves(period_px)
        kept = (x - both.residual(x))[..., 12:-12]
        assert float(kept.abs().max()) < 0.04, period_px


def test_at_scales_each_network_sees_half_the_size_of_the_one_before() -> None:
    parts = [_Says(torch.zeros_like) for _ in range(3)]
    at_scales(list(parts)).residual(torch.zeros(1, 1, 64, 32))  # type: ignore[operator]
    assert [part.seen for part in parts] == [[(64, 32)], [(32, 16)], [(16, 8)]]


def test_residual_follows_flips_and_rotations_of_picture_and_networks() -> None:
    noise = _Says(lambda x: x - functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    both = TwoScales(noise, noise)
    x = torch.randn(1, 1, 32, 32, generator=torch.manual_seed(0))
    expected = torch.rot90(both.residual(x), 1, (-2, -1)).flip(-1)
    torch.testing.assert_close(both.residual(torch.rot90(x, 1, (-2, -1)).flip(-1)), expected)


def test_run_plane_at_scales_tiled_with_its_halo_equals_whole_and_counts_its_strips() -> None:
    network = at_scales([small_network(0), small_network(1), small_network(2)])
    x = np.random.default_rng(0).random((448, 416, 1), np.float32)
    job = Job(network, 0.0, 1.0, tile=1024, halo=0, stride=32)
    whole, tiled = np.empty_like(x), np.empty_like(x)
    run_plane(x, whole, job)
    # Exact for blocks = 1: 48 px, 2 x 48 + 12 -> 108, 2 x 108 + 12 -> 228, in steps of 32.
    small = Job(network, 0.0, 1.0, tile=128, halo=256, stride=32)
    steps = []
    run_plane(x, tiled, small, tile_done=lambda: steps.append(1))
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    assert len(steps) == count_tiles(448, 416, small)


def test_placed_at_scales_is_placed_part_by_part() -> None:
    parts = [small_network(0), small_network(1)]
    twin = placed(at_scales(list(parts)), "cpu", "bf16")
    assert isinstance(twin, TwoScales)
    assert twin.fine is placed(parts[0], "cpu", "bf16")
    assert twin.coarse is placed(parts[1], "cpu", "bf16")


@pytest.mark.data
def test_denoise_strong_noise_gains_by_the_second_scale(data_folder) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    gains = []
    for path in sorted((data_folder / "train" / "DIV2K_valid_crops").iterdir())[2::25]:
        clean = np.asarray(Image.open(path).convert("L")).astype(np.float32) / 255
        noisy = clean + np.random.default_rng(0).normal(0, 50 / 255, clean.shape).astype(np.float32)
        told = mdrn_plugin.denoise(noisy, noise=50, range=(0, 1), return_result=True)
        step = told.plan.steps[0]
        assert step.coarse
        one = mdrn_plugin.denoise(noisy, noise=50, range=(0, 1), model=step.model)
        error = [float(((x - clean) ** 2).mean()) for x in (told.picture.pixels, one)]
        gains.append(10 * np.log10(error[1] / error[0]))
    assert np.mean(gains) > 0.03
    assert min(gains) > -0.05
