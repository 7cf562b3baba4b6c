"""What a picture repeats: sums over similar patches against their definition, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mdrn_plugin
from mdrn_plugin.engine import run
from mdrn_plugin.engine.device import resolve_non_local
from mdrn_plugin.engine.run import Job, count_tiles, placed, run_plane
from mdrn_plugin.errors import NotSupported
from mdrn_plugin.networks import non_local
from mdrn_plugin.networks.non_local import SEARCH, NonLocal, Refined, similar_means, similar_sums

from .conftest import small_network

SIGMA = torch.tensor([0.1])
needs_kernel = pytest.mark.skipif(non_local.library() is None, reason="not compiled")


def _pictures(colours: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a result and the noisy picture that it was made of."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, colours, rows, columns)
    base = 0.2 * torch.rand(shape, generator=generator)
    return base, base + 0.1 * torch.randn(shape, generator=generator)


def _by_definition(
    base: np.ndarray, noisy: np.ndarray, sigma: float, row: int, column: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of one pixel, gray, as the docstring of `similar_sums` has them, and those of v."""
    rows, columns = base.shape
    wide = [np.pad(x.astype(np.float64), 10, mode="reflect") for x in (base, noisy)]

    def patch(picture: np.ndarray, y: int, x: int, radius: int) -> np.ndarray:
        return picture[y + 10 - radius : y + 11 + radius, x + 10 - radius : x + 11 + radius]

    def apart(picture: np.ndarray, y: int, x: int, radius: int) -> float:
        difference = patch(picture, row, column, radius) - patch(picture, y, x, radius)
        return float((difference**2).mean()) / sigma**2

    sums, of_wide = np.zeros(7), np.zeros(4)
    for y in range(max(0, row - SEARCH), min(rows, row + SEARCH + 1)):
        for x in range(max(0, column - SEARCH), min(columns, column + SEARCH + 1)):
            if (y, x) == (row, column):
                continue
            w = math.exp(-(sum(apart(z, y, x, 4) for z in wide) - 2) / 0.6)
            v = math.exp(-(apart(wide[1], y, x, 10) - 2) / 0.2)
            noise, value = noisy[y, x] - base[y, x], base[y, x]
            sums += [w, w**2, w**4, w * noise, w * value, w**2 * noise, w**2 * value]
            of_wide += [v, v**2, v * noise, v * value]
    return sums, of_wide


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=needs_kernel)])
@pytest.mark.parametrize("wide", [False, True])
def test_similar_sums_are_those_of_their_definition(kernel: bool, wide: bool) -> None:
    base, noisy = _pictures(1, 40, 37)
    sums = similar_sums(base, noisy, SIGMA, wide=wide, kernel=kernel)
    assert sums.shape == (1, 11 if wide else 7, 40, 37)
    for row, column in ((0, 0), (3, 36), (20, 18), (39, 1)):
        expected, of_wide = _by_definition(base[0, 0].numpy(), noisy[0, 0].numpy(), 0.1, row, column)
        if wide:
            expected = np.concatenate([expected[:3], of_wide[:2], expected[3:], of_wide[2:]])
        np.testing.assert_allclose(sums[0, :, row, column].numpy(), expected, rtol=3e-4, atol=2e-5)


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=needs_kernel)])
def test_similar_sums_hold_no_denormal_numbers(kernel: bool) -> None:
    # They would cost ten times the time of everything else: patches are hardly ever alike.
    generator = torch.Generator().manual_seed(3)
    base, noisy = torch.rand(2, 1, 1, 40, 40, generator=generator).unbind(0)
    for apart in (0.1, 0.15, 0.2, 0.3):
        sums = similar_sums(base, noisy, torch.tensor([apart]), wide=True, kernel=kernel)[0, :5]
        assert not ((sums > 0) & (sums < torch.finfo(torch.float32).tiny)).any()


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 70, 300), (3, 33, 257), (3, 5, 7), (1, 1, 1)])
def test_similar_means_kernel_and_torch_agree(shape: tuple[int, int, int]) -> None:
    base, noisy = _pictures(*shape)
    compiled = similar_means(base, noisy, SIGMA, wide=True, kernel=True)
    operators = similar_means(base, noisy, SIGMA, wide=True)
    for found, expected in zip(compiled, operators, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@needs_kernel
def test_similar_sums_kernel_gives_the_same_bits_by_all_vectors_and_threads() -> None:
    base, noisy = _pictures(3, 80, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = similar_sums(base, noisy, SIGMA, wide=True, kernel=True)
        torch.set_num_threads(3)
        assert torch.equal(similar_sums(base, noisy, SIGMA, wide=True, kernel=True), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(similar_sums(base, noisy, SIGMA, wide=True, kernel=True, lanes=8), expected)


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=needs_kernel)])
def test_similar_means_a_pixels_own_value_is_in_none_of_them(kernel: bool) -> None:
    base = torch.full((1, 1, 48, 48), 0.5)
    noisy = base.clone()
    noisy[0, 0, 24, 24] = 0.55
    means, _ = similar_means(base, noisy, SIGMA, wide=True, kernel=kernel)
    assert float(means[0, :, 0, 24, 24].abs().max()) < 1e-6
    assert (means[0, ::2, 0, 24, 25] > 1e-4).all()  # but in those of its neighbours


def test_similar_means_show_a_grating_that_the_result_has_lost() -> None:
    generator = torch.Generator().manual_seed(1)
    grating = 0.06 * torch.cos(2 * torch.pi * torch.arange(64) / 5)[None, None, :, None].expand(1, 1, 64, 64)
    noisy = 0.5 + grating + 0.1 * torch.randn(1, 1, 64, 64, generator=generator)
    means, unsure = similar_means(torch.full_like(noisy, 0.5), noisy, SIGMA)
    found = 0.1 * means[0, 2, 0, 16:48, 16:48]  # of the noise, by the narrower weight
    lost = grating[0, 0, 16:48, 16:48]
    assert float(torch.corrcoef(torch.stack([found.flatten(), lost.flatten()]))[0, 1]) > 0.85
    assert float((found - lost).square().mean()) < 0.5 * float(lost.square().mean())
    assert float(unsure[0, 1].max()) < 0.5


def test_similar_means_wide_patches_find_a_fine_wall_that_the_result_has_lost() -> None:
    rows, columns = np.mgrid[:96, :96]
    joints = (rows % 8 == 0) | ((columns + 6 * (rows // 8 % 2)) % 12 == 0)
    wall = torch.from_numpy(0.4 + 0.2 * joints.astype(np.float32))[None, None]
    noisy = wall + 0.1 * torch.randn(wall.shape, generator=torch.Generator().manual_seed(2))
    lost = (wall - wall.mean())[0, 0, 16:80, 16:80]
    means, _ = similar_means(torch.full_like(noisy, float(wall.mean())), noisy, SIGMA, wide=True)
    found = 0.1 * means[0, ::2, 0, 16:80, 16:80]
    left = ((found - lost).square().mean((1, 2)) / lost.square().mean()).tolist()
    assert left[2] < 0.5 * min(left[:2]), left


def test_similar_means_where_nothing_is_alike_say_so() -> None:
    base = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))  # against noise of 0.002
    means, unsure = similar_means(base, base, torch.tensor([0.002]), wide=True)
    assert float(unsure.min()) > 0.99
    assert float(means.abs().max()) < 1e-3


def _gates(colours: int = 1, seed: int = 0, wide: bool = False) -> NonLocal:
    torch.manual_seed(seed)
    return NonLocal(colours, channels=16, wide=wide).eval()


def test_refined_gates_that_go_nowhere_change_nothing() -> None:
    gates = _gates()
    nn.init.zeros_(gates.tail.weight)
    nn.init.zeros_(gates.tail.bias)
    network = small_network(0)
    x = torch.rand(1, 1, 48, 48)
    with torch.inference_mode():
        assert torch.equal(Refined(network, gates, 0.1, kernel=False).residual(x), network.residual(x))


@pytest.mark.parametrize(("wide", "count"), [(False, 4), (True, 6)])
def test_gates_every_mean_has_its_own_step(wide: bool, count: int) -> None:
    gates = _gates(colours=3, wide=wide)
    nn.init.zeros_(gates.tail.weight)
    base, noisy = _pictures(3, 16, 16)
    means, unsure = similar_means(base, noisy, SIGMA, wide=wide)
    for k in range(count):
        for c in range(3):
            bias = torch.zeros(count, 3, 4)
            bias[k, c] = 0.5
            gates.tail.bias = nn.Parameter(bias.flatten())
            with torch.inference_mode():
                added = gates(base, noisy - base, means, unsure, SIGMA)
            expected = torch.zeros_like(base)
            expected[:, c] = 0.5 * means[:, k, c] * 0.1
            torch.testing.assert_close(added, expected, msg=f"{k} {c}")


@pytest.mark.parametrize("wide", [False, True])
def test_run_plane_refined_tiled_with_its_halo_equals_whole_and_counts_its_strips(wide: bool) -> None:
    gates = _gates(wide=wide)
    network = Refined(small_network(0), gates, 0.1, kernel=False)
    x = np.random.default_rng(0).normal(0.5, 0.1, (288, 256, 1)).astype(np.float32)
    whole, tiled = np.empty_like(x), np.empty_like(x)
    run_plane(x, whole, Job(network, 0.0, 1.0, tile=1024, halo=0, stride=8))
    halo = 48 + -(-gates.halo // 8) * 8  # exact for one block: 48 px
    small = Job(network, 0.0, 1.0, tile=96, halo=halo, stride=8)
    steps = []
    run_plane(x, tiled, small, tile_done=lambda: steps.append(1))
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    assert len(steps) == count_tiles(288, 256, small)


@pytest.mark.parametrize("wide", [False, True])
def test_gates_halo_is_all_that_a_correction_depends_on(wide: bool) -> None:
    gates = _gates(wide=wide)
    side = 2 * gates.halo + 25
    side += side % 2
    base, noisy = _pictures(1, side, side)
    changed = [x.clone() for x in (base, noisy)]
    middle = side // 2
    for x in changed:
        x[..., : middle - gates.halo - 2] += 0.05 * torch.rand(1, 1, side, middle - gates.halo - 2)
    added = []
    for b, y in ((base, noisy), tuple(changed)):
        with torch.inference_mode():
            means, unsure = similar_means(b, y, SIGMA, wide=wide)
            added.append(gates(b, y - b, means, unsure, SIGMA)[..., middle:])
    torch.testing.assert_close(added[0], added[1], atol=0, rtol=0)


def test_placed_refined_is_placed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    network, gates = small_network(0), _gates()
    twin = placed(Refined(network, gates, 0.1, kernel=True), "cpu", "bf16") if non_local.library() else None
    if twin is not None:
        assert isinstance(twin, Refined)
        assert twin.network is placed(network, "cpu", "bf16")
        assert (twin.sigma, twin.kernel) == (0.1, True)
        assert twin.gates.head.weight.dtype == torch.bfloat16
    monkeypatch.setattr(run.non_local, "library", lambda: None)
    with pytest.raises(NotSupported, match="plan again on this machine"):
        placed(Refined(network, gates, 0.1, kernel=True), "cpu", "bf16")


def test_library_missing_or_switched_off_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_KERNEL", "off")
    non_local.optional.forget()
    try:
        assert non_local.library() is None
        assert "MDRN_KERNEL" in non_local.why_not()
        assert resolve_non_local("cpu") == ""
        assert resolve_non_local("cuda:0") == "torch"
    finally:
        monkeypatch.undo()
        non_local.optional.forget()


def _cloth(side: int = 128) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    threads = np.sin(2 * np.pi * (rows + 0.4 * columns + 4 * np.sin(columns / 40)) / 5.2)
    return (0.5 + 0.12 * threads).astype(np.float32)


def _windows(side: int = 128) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    lit = (rows % 9 < 5) & (columns % 7 < 4)
    return (0.4 + 0.1 * np.sin(rows / 37) * np.cos(columns / 53) + 0.2 * lit).astype(np.float32)


@needs_kernel
@pytest.mark.parametrize(("scene", "gain_db"), [(_cloth, 2.5), (_windows, 1.5)])
@pytest.mark.parametrize("colours", [1, 3])
def test_denoise_best_gives_back_what_is_repeated(
    scene: Callable[[], np.ndarray], gain_db: float, colours: int
) -> None:
    clean = np.repeat(scene()[..., None], colours, -1).squeeze()
    level = 25 if colours == 1 else 35  # three samples of one value tell more
    noisy = clean + np.random.default_rng(0).normal(0, level / 255, clean.shape).astype(np.float32)
    wish: Any = {"noise": level, "range": (0, 1), "axes": "YX" if colours == 1 else "YXS"}
    error = [
        float(((mdrn_plugin.denoise(noisy, quality=quality, **wish) - clean) ** 2).mean())
        for quality in ("balanced", "best")
    ]
    assert 10 * math.log10(error[0] / error[1]) > gain_db


@needs_kernel
def test_denoise_best_where_nothing_is_repeated_loses_little() -> None:
    """Random shapes, each once: what was measured is 0.12 dB."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:128, :128]
    clean = np.full((128, 128), 0.5)
    for _ in range(60):
        y, x, a, b = *rng.uniform(0, 128, 2), *rng.uniform(3, 25, 2)
        turn = rng.uniform(0, np.pi)
        u = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
        v = (columns - x) * np.cos(turn) - (rows - y) * np.sin(turn)
        clean = np.where((u / a) ** 2 + (v / b) ** 2 < 1, rng.uniform(0, 1), clean)
    noisy = (clean + rng.normal(0, 25 / 255, clean.shape)).astype(np.float32)
    error = [
        float(((mdrn_plugin.denoise(noisy, quality=quality, noise=25, range=(0, 1)) - clean) ** 2).mean())
        for quality in ("balanced", "best")
    ]
    assert 10 * math.log10(error[0] / error[1]) > -0.2
