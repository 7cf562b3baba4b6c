"""The compiled kernel gives what the plain network gives, whoever computes which part of it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mdrn_plugin.networks import native
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN, exact_halo

needs_kernel = pytest.mark.skipif(
    native.library() is None, reason=f"no compiled kernel here: {native.why_not()}"
)
FAST: dict[str, Any] = {"blocks": 1, "channels": 32, "unshuffle": 2}


def _networks(colours: int = 1, **settings: Any) -> tuple[MDRN, FoldedMDRN]:
    """Return a network with biases that matter, and its form for inference in bfloat16."""
    torch.manual_seed(0)
    plain = MDRN(colours, **settings).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1)
            else:
                parameter *= 1.3
    return plain, FoldedMDRN(plain).set_precision(torch.bfloat16)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).std() / expected.std())


@needs_kernel
@pytest.mark.parametrize(
    ("colours", "settings", "height", "width"),
    [
        (1, {"blocks": 2}, 8, 8),
        (1, {"blocks": 2}, 48, 56),
        (3, {"blocks": 2}, 40, 312),
        (3, {"blocks": 8}, 24, 264),
        (1, {"blocks": 1}, 8, 520),
        (1, {"blocks": 1, "channels": 32}, 72, 24),
        (1, FAST, 16, 16),
        (1, FAST, 96, 560),
        (3, FAST, 64, 48),
    ],
)
def test_residual_of_the_kernel_is_closer_to_float_than_that_of_the_operators(
    colours: int, settings: dict[str, Any], height: int, width: int
) -> None:
    plain, folded = _networks(colours, **settings)
    x = torch.rand(1, colours, height, width)
    with torch.inference_mode():
        expected = plain.residual(x)
        assert folded.kernel is not None
        found = folded.residual(x)
        folded.kernel = None
        operators = folded.residual(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert _error(found, expected) < min(0.01, _error(operators, expected))
    # Borders are no worse than the rest.
    assert float((found - expected).abs().max()) < 0.05 * float(expected.std())


@needs_kernel
@pytest.mark.parametrize("settings", [{"blocks": 2}, {"blocks": 5}, FAST])
def test_residual_has_the_same_bits_for_all_sweeps_threads_and_bands(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folded = _networks(**settings)
    x = torch.rand(1, 1, 104 * folded.unshuffle, 328 * folded.unshuffle)
    with torch.inference_mode():
        expected = folded.residual(x)
        for rows in (8, 24, 104):
            assert torch.equal(folded.residual(x, strip=rows), expected)
        before = torch.get_num_threads()
        try:
            for threads in (2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(folded.residual(x), expected)
        finally:
            torch.set_num_threads(before)
        monkeypatch.setattr(native, "_BAND", 84)
        assert torch.equal(folded.residual(x), expected)


@needs_kernel
def test_tile_with_its_halo_has_the_bits_of_the_whole() -> None:
    _, folded = _networks(blocks=1)
    halo = exact_halo(1)
    x = torch.rand(1, 1, 24 + 2 * halo, 40 + 2 * halo)
    with torch.inference_mode():
        whole = folded.residual(x)
        # Cut where the tile ends inside the picture; at its own border it sees zeros.
        tile = folded.residual(x[:, :, 8:, 16 : 40 + 2 * halo])
    inside = tile[:, :, halo:, halo : 24 + halo]
    assert torch.equal(inside, whole[:, :, 8 + halo :, 16 + halo : 40 + halo])


@needs_kernel
def test_pictures_of_a_batch_do_not_mix() -> None:
    _, folded = _networks(blocks=1)
    x = torch.rand(2, 1, 24, 40)
    with torch.inference_mode():
        both = folded.residual(x)
        assert torch.equal(both[1:], folded.residual(x[1:]))
        assert not torch.equal(both[0], both[1])


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_spread_no_further_than_the_network_sees(value: float) -> None:
    _, folded = _networks(blocks=1)
    halo = exact_halo(1)
    x = torch.rand(1, 1, 16, 2 * halo + 80)
    with torch.inference_mode():
        expected = folded.residual(x)
        x[0, 0, 5, 3] = value
        found = folded.residual(x)
    assert not found[..., 5, 3].isfinite().any()
    assert torch.equal(found[..., halo + 8 :], expected[..., halo + 8 :])
    # None is left over in memory for the next picture.
    with torch.inference_mode():
        assert torch.equal(folded.residual(x.nan_to_num(0, 0)), folded.residual(x.nan_to_num(0, 0)))


@needs_kernel
def test_threads_of_the_caller_share_a_network() -> None:
    _, folded = _networks(blocks=1)
    pictures = torch.rand(6, 1, 1, 64, 72)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return folded.residual(x)

    expected = [run(x) for x in pictures]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, pictures))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernel
def test_operators_of_torch_still_work_between_runs_of_the_kernel() -> None:
    """Both use the tile registers of the same thread."""
    _, folded = _networks(blocks=1)
    operators = copy.deepcopy(folded)
    operators.kernel = None
    x = torch.rand(1, 1, 40, 48)
    with torch.inference_mode():
        first = operators.residual(x), folded.residual(x)
        again = operators.residual(x), folded.residual(x)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@needs_kernel
def test_between_is_called_as_often_as_strips_says() -> None:
    _, folded = _networks(**FAST)
    asked: list[int] = []
    with torch.inference_mode():
        folded.residual(torch.rand(1, 1, 208, 48), between=lambda: asked.append(1))
    assert len(asked) == folded.strips(208, 48)


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 1, 20, 16), (1, 1, 16, 12), (1, 3, 16, 16), (1, 1, 0, 8)])
def test_sizes_that_do_not_fit_never_reach_the_kernel(shape: tuple[int, ...]) -> None:
    _, folded = _networks(blocks=1)
    assert folded.kernel is not None
    with pytest.raises(AssertionError):
        folded.kernel.residual(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings", [{"channels": 16}, {"channels": 48}, {"blocks": 1, "unshuffle": 5}], ids=str
)
def test_other_sizes_of_networks_run_on_operators(settings: dict[str, Any]) -> None:
    assert _networks(**settings)[1].kernel is None


def test_without_the_kernel_bf16_runs_on_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    plain, folded = _networks(blocks=1)
    assert folded.kernel is None
    x = torch.rand(1, 1, 24, 32)
    with torch.inference_mode():
        assert _error(folded.residual(x), plain.double().residual(x.double())) < 0.05


def test_in_float32_the_operators_run() -> None:
    network = FoldedMDRN(MDRN(1, 1)).set_precision(torch.float32)
    assert network.kernel is None


def test_kernel_can_be_switched_off_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_KERNEL", "off")
    native.find.cache_clear()
    try:
        assert native.library() is None
        assert "MDRN_KERNEL" in native.why_not()
    finally:
        monkeypatch.undo()
        native.find.cache_clear()


@pytest.mark.parametrize("blocks", [1, 2, 8])
@pytest.mark.parametrize("height", [8, 40, 1120])
def test_schedule_takes_every_row_once_and_only_rows_that_are_ready(blocks: int, height: int) -> None:
    schedule = native.schedule_of(height, blocks, 32)
    taken = dict.fromkeys([*schedule.capacity, (-1, 0)], 0)
    for sweep in schedule.sweeps:
        assert sweep
        for node, first, end in sweep:
            assert first == taken[node] < end
            taken[node] = end
    assert all(rows == height >> max(0, level) for (level, _), rows in taken.items())
    # A picture of any height needs the same memory.
    assert max(schedule.capacity.values()) <= exact_halo(blocks) + 2 * 32


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("width", [2, 8, 250, 1121, 5000])
def test_bands_cover_all_columns_once(width: int, threads: int) -> None:
    bands = native.bands_of(width, 2, threads)
    assert [left for left, _ in bands] == [0, *(right for _, right in bands[:-1])]
    assert bands[-1][1] == width
    assert all(left % 2 == 0 and right > left for left, right in bands)
