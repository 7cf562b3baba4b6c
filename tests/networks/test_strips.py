"""Strips of rows give what the whole picture gives; fused operators give what plain ones give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from mdrn_plugin.networks import strips
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN
from mdrn_plugin.networks.strips import Convolution, Pairs, Queue, Stage, fused_operators


@pytest.mark.parametrize("strip", [1, 3, 8, 13, 24, 55, 56])
@pytest.mark.parametrize("blocks", [1, 3])
def test_residual_does_not_depend_on_the_height_of_strips(strip: int, blocks: int) -> None:
    torch.manual_seed(0)
    plain = MDRN(1, blocks, channels=8).double()
    x = torch.rand(1, 1, 56, 24, dtype=torch.float64)
    with torch.no_grad():
        noise = FoldedMDRN(plain).residual(x, strip=strip)
        torch.testing.assert_close(noise, plain.residual(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_in_strips_of_the_precisions_in_use(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = FoldedMDRN(MDRN(3)).set_precision(dtype)
    x = torch.rand(1, 3, 96, 40)
    with torch.inference_mode():
        whole, cut = network.residual(x, strip=96), network.residual(x, strip=16)
    scale = float(whole.float().std())
    limit = 1e-6 if dtype == torch.float32 else 0.02 * scale
    assert float((whole - cut).abs().max()) <= limit


def test_residual_asks_before_every_strip() -> None:
    network, asked = FoldedMDRN(MDRN(1, 1, channels=8)), list[int]()
    with torch.no_grad():
        network.residual(torch.rand(1, 1, 40, 16), strip=16, between=lambda: asked.append(1))
    assert len(asked) == 3


def _convolution(dtype: torch.dtype) -> tuple[Convolution, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = Convolution(torch.randn(16, 32, 3, 3), torch.randn(16), dilation=2).to(dtype)
    x = torch.randn(1, 20, 12, 32).to(dtype).permute(0, 3, 1, 2)
    target = torch.randn(1, 20, 12, 16).to(dtype).permute(0, 3, 1, 2)[:, :, 2:18]
    return layer, x, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_operators_equal_plain_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, target = _convolution(dtype)
    if not fused_operators(x):
        pytest.skip("this torch has no fused convolutions here")
    fused_sum, plain_sum = target.clone(), target.clone()
    with torch.inference_mode():
        fused = layer(x, relu=True)
        layer.add_to(fused_sum, x)
        monkeypatch.setattr(strips, "_work", lambda dtype: False)
        assert not fused_operators(x)
        plain = layer(x, relu=True)
        layer.add_to(plain_sum, x)
    assert fused.shape == plain.shape == (1, 16, 16, 12)
    tolerance = {"rtol": 0, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 0.25}
    torch.testing.assert_close(fused, plain, **tolerance)
    torch.testing.assert_close(fused_sum, plain_sum, **tolerance)
    assert float(fused.float().std()) > 1


@pytest.mark.parametrize("fault", ["gone", "other arguments", "other values"])
def test_operators_of_another_torch_are_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not public: one that is gone, called otherwise or means something else is left alone."""

    def other(*args: object, relu: bool) -> torch.Tensor:
        if fault == "gone":
            raise AttributeError("no such operator")
        if fault == "other arguments":
            raise RuntimeError("_convolution_pointwise() is missing value for argument")
        return torch.zeros(1, 4, 6, 5)

    layer, x, _ = _convolution(torch.float32)
    expected = layer(x, relu=True)
    strips._work.cache_clear()
    monkeypatch.setattr(strips, "_fused", other)
    try:
        assert not fused_operators(x)
        torch.testing.assert_close(layer(x, relu=True), expected, rtol=0, atol=1e-4)
    finally:
        strips._work.cache_clear()


def test_sum_is_written_into_the_rows_it_is_given() -> None:
    """In place even where the rows are a piece of a larger strip."""
    layer, x, _ = _convolution(torch.float32)
    large = torch.zeros(1, 20, 12, 16).permute(0, 3, 1, 2)
    with torch.inference_mode():
        layer.add_to(large[:, :, 2:18], x)
        torch.testing.assert_close(large[:, :, 2:18], layer(x), rtol=0, atol=1e-4)
    assert not large[:, :, :2].any()
    assert not large[:, :, 18:].any()


def test_convolution_survives_a_copy_and_a_change_of_type_after_use() -> None:
    layer, x, _ = _convolution(torch.float32)
    with torch.inference_mode():
        before = layer(x)
        twin = copy.deepcopy(layer)
        torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
        twin.double()
        torch.testing.assert_close(twin(x.double()).float(), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cuts", [[20], [1] * 20, [7, 1, 12], [3, 17]])
def test_stage_equals_padded_convolution(cuts: list[int]) -> None:
    torch.manual_seed(0)
    layer = Convolution(torch.randn(4, 4, 3, 3), None, dilation=2).double()
    x = torch.randn(1, 4, 20, 9, dtype=torch.float64)
    stage, out = Stage(layer, 2), []
    for k, rows in enumerate(x.split(cuts, 2)):
        out += stage.push(rows, last=k == len(cuts) - 1)
    expected = functional.conv2d(x, layer.weight, padding=2, dilation=2)
    torch.testing.assert_close(torch.cat(out, 2), expected, rtol=0, atol=1e-12)


def test_queue_gives_rows_back_in_order() -> None:
    rows, queue = torch.arange(12.0).reshape(1, 1, 12, 1), Queue()
    queue.push(list(rows.split([5, 4, 3], 2)))
    taken = [torch.cat(queue.take(n), 2) for n in (2, 6, 4)]
    torch.testing.assert_close(torch.cat(taken, 2), rows)


def test_pairs_gives_even_numbers_of_rows() -> None:
    rows, pairs = torch.arange(12.0).reshape(1, 1, 12, 1), Pairs()
    given = [pair for part in rows.split([1, 3, 2, 1, 5], 2) for pair in pairs.push(part)]
    assert all(g.shape[2] % 2 == 0 for g in given)
    torch.testing.assert_close(torch.cat(given, 2), rows)
