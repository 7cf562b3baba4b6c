"""The compiled kernels give what the plain network gives, whoever computes which part of it."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mdrn_plugin.networks import fp32_native, native
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN, exact_halo

# Both forms go through the same tests; this says which of them run here.
FORMS = {torch.bfloat16: native, torch.float32: fp32_native}
every_form = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype,
            id=str(dtype).removeprefix("torch."),
            marks=pytest.mark.skipif(m.library() is None, reason=f"no compiled kernel here: {m.why_not()}"),
        )
        for dtype, m in FORMS.items()
    ],
)
# Error of the residual, as a share of its standard deviation: of all pixels, and of the worst.
MOST = {torch.bfloat16: (0.01, 0.05), torch.float32: (2e-6, 1e-5)}
FAST: dict[str, Any] = {"blocks": 1, "channels": 32, "unshuffle": 2}


def _networks(dtype: torch.dtype, colours: int = 1, **settings: Any) -> tuple[MDRN, FoldedMDRN]:
    """Return a network with biases that matter, and its compiled form for inference where there is one."""
    torch.manual_seed(0)
    plain = MDRN(colours, **settings).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1)
            else:
                parameter *= 1.3
    folded = FoldedMDRN(plain)
    if dtype == torch.float32:
        folded.use_fp32_kernel()
    return plain, folded.set_precision(dtype)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).std() / expected.std())


@every_form
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
        (3, {"blocks": 3, "unshuffle": 2}, 48, 272),
        (1, {"blocks": 1, "channels": 32, "unshuffle": 3}, 24, 72),
        (1, {"blocks": 1, "unshuffle": 4}, 32, 96),
    ],
)
def test_residual_of_the_kernel_is_as_exact_as_its_numbers_allow(
    colours: int, settings: dict[str, Any], height: int, width: int, dtype: torch.dtype
) -> None:
    plain, folded = _networks(dtype, colours, **settings)
    x = torch.rand(1, colours, height, width)
    with torch.inference_mode():
        expected = plain.double().residual(x.double())
        assert folded.kernel is not None
        found = folded.residual(x)
        folded.kernel = None
        operators = folded.residual(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    # In bf16 the kernel rounds less often than the operators.
    most, worst = MOST[dtype]
    assert _error(found, expected) < most
    assert _error(found, expected) < (1 if dtype == torch.bfloat16 else 1.5) * _error(operators, expected)
    # Borders are no worse than the rest.
    assert float((found - expected).abs().max()) < worst * float(expected.std())


@every_form
@pytest.mark.parametrize("settings", [{"blocks": 2}, {"blocks": 5}, FAST])
def test_residual_has_the_same_bits_for_all_sweeps_threads_and_bands(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    _, folded = _networks(dtype, **settings)
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
        assert folded.kernel is not None
        folded.kernel.form = dataclasses.replace(folded.kernel.form, band=84)
        assert torch.equal(folded.residual(x), expected)


@every_form
def test_tile_with_its_halo_has_the_bits_of_the_whole(dtype: torch.dtype) -> None:
    _, folded = _networks(dtype, blocks=1)
    halo = exact_halo(1)
    x = torch.rand(1, 1, 24 + 2 * halo, 40 + 2 * halo)
    with torch.inference_mode():
        whole = folded.residual(x)
        # Cut where the tile ends inside the picture; at its own border it sees zeros.
        tile = folded.residual(x[:, :, 8:, 16 : 40 + 2 * halo])
    inside = tile[:, :, halo:, halo : 24 + halo]
    assert torch.equal(inside, whole[:, :, 8 + halo :, 16 + halo : 40 + halo])


@every_form
def test_pictures_of_a_batch_do_not_mix(dtype: torch.dtype) -> None:
    _, folded = _networks(dtype, blocks=1)
    x = torch.rand(2, 1, 24, 40)
    with torch.inference_mode():
        both = folded.residual(x)
        assert torch.equal(both[1:], folded.residual(x[1:]))
        assert not torch.equal(both[0], both[1])


@every_form
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_spread_no_further_than_the_network_sees(
    value: float, dtype: torch.dtype
) -> None:
    _, folded = _networks(dtype, blocks=1)
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


@every_form
def test_threads_of_the_caller_share_a_network(dtype: torch.dtype) -> None:
    _, folded = _networks(dtype, blocks=1)
    pictures = torch.rand(6, 1, 1, 64, 72)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return folded.residual(x)

    expected = [run(x) for x in pictures]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, pictures))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_form
def test_operators_of_torch_still_work_between_runs_of_the_kernel(dtype: torch.dtype) -> None:
    """Both use the tile registers of the same thread."""
    _, folded = _networks(dtype, blocks=1)
    operators = copy.deepcopy(folded)
    operators.kernel = None
    x = torch.rand(1, 1, 40, 48)
    with torch.inference_mode():
        first = operators.residual(x), folded.residual(x)
        again = operators.residual(x), folded.residual(x)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@every_form
def test_between_is_called_as_often_as_strips_says(dtype: torch.dtype) -> None:
    _, folded = _networks(dtype, **FAST)
    asked: list[int] = []
    with torch.inference_mode():
        folded.residual(torch.rand(1, 1, 208, 48), between=lambda: asked.append(1))
    assert len(asked) == folded.strips(208, 48)


@every_form
@pytest.mark.parametrize("shape", [(1, 1, 20, 16), (1, 1, 16, 12), (1, 3, 16, 16), (1, 1, 0, 8)])
def test_sizes_that_do_not_fit_never_reach_the_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _, folded = _networks(dtype, blocks=1)
    assert folded.kernel is not None
    with pytest.raises(AssertionError):
        folded.kernel.residual(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings", [{"channels": 16}, {"channels": 48}, {"blocks": 1, "unshuffle": 5}], ids=str
)
@pytest.mark.parametrize("dtype", FORMS)
def test_other_sizes_of_networks_run_on_operators(settings: dict[str, Any], dtype: torch.dtype) -> None:
    assert _networks(dtype, **settings)[1].kernel is None


@pytest.mark.parametrize("dtype", FORMS)
def test_without_the_kernel_the_operators_run(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMS[dtype], "library", lambda: None)
    plain, folded = _networks(dtype, blocks=1)
    assert folded.kernel is None
    x = torch.rand(1, 1, 24, 32)
    with torch.inference_mode():
        assert _error(folded.residual(x), plain.double().residual(x.double())) < 0.05


def test_in_float32_the_operators_run_unless_the_kernel_is_asked_for() -> None:
    network = FoldedMDRN(MDRN(1, 1)).set_precision(torch.float32)
    assert network.kernel is None


@pytest.mark.skipif(fp32_native.library() is None, reason=fp32_native.why_not())
def test_kernel_runs_in_the_precision_that_it_is_for_only() -> None:
    plain, folded = _networks(torch.float32, blocks=1)
    x = torch.rand(1, 1, 24, 32, dtype=torch.float64)
    with torch.inference_mode():
        assert folded.residual(x.float()).dtype == torch.float32
        # Folded weights are rounded to float32, sums are not.
        assert _error(folded.double().residual(x), plain.double().residual(x)) < 2e-7


@pytest.mark.skipif(fp32_native.library() is None, reason=fp32_native.why_not())
def test_values_that_are_not_finite_spread_as_in_the_plain_network() -> None:
    plain, folded = _networks(torch.float32, blocks=1)
    x = torch.rand(1, 1, 16, 2 * exact_halo(1) + 80)
    x[0, 0, 5, 3] = float("nan")
    with torch.inference_mode():
        expected = plain.residual(x).isfinite()
        assert expected.any()
        assert torch.equal(folded.residual(x).isfinite(), expected)


@pytest.mark.skipif(fp32_native.library() is None, reason=fp32_native.why_not())
@pytest.mark.parametrize("settings", [{"blocks": 2}, FAST, {"blocks": 1, "unshuffle": 4}])
def test_vectors_of_both_lengths_give_the_same_bits(settings: dict[str, Any]) -> None:
    _, folded = _networks(torch.float32, **settings)
    assert folded.kernel is not None
    if folded.kernel.form.lanes < 16:
        pytest.skip("this processor has no AVX-512")
    x = torch.rand(1, 1, 64, 96)
    with torch.inference_mode():
        expected = folded.residual(x)
        folded.kernel.form = dataclasses.replace(folded.kernel.form, lanes=8)
        assert torch.equal(folded.residual(x), expected)


@pytest.mark.parametrize("dtype", FORMS)
def test_kernel_can_be_switched_off_and_says_so(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FORMS[dtype]
    monkeypatch.setenv("MDRN_KERNEL", "off")
    module.optional.forget()
    try:
        assert module.library() is None
        assert "MDRN_KERNEL" in module.why_not()
    finally:
        monkeypatch.undo()
        module.optional.forget()


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
    bands = native.bands_of(width, 2, threads, 256)
    assert [left for left, _ in bands] == [0, *(right for _, right in bands[:-1])]
    assert bands[-1][1] == width
    assert all(left % 2 == 0 and right > left for left, right in bands)
