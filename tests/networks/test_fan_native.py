"""The compiled FAN gives what the plain network gives, whoever computes which part of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.networks import fan_native
from mdrn_plugin.networks.fan import FAN
from mdrn_plugin.networks.fan_native import NativeFAN, fits
from mdrn_plugin.zoo import shipped

needs_kernel = pytest.mark.skipif(
    fan_native.library() is None, reason=f"no compiled kernel here: {fan_native.why_not()}"
)
SHIPPED = [d.name for d in shipped().descriptors if d.architecture == "fan"]


def _network(**settings: Any) -> FAN:
    """Return a network with biases that matter."""
    torch.manual_seed(0)
    network = FAN(**settings).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.normal_(0, 0.1)
    return network


def _mosaics(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.rand(rows, columns, generator=generator), 0.3 * torch.rand(
        rows, columns, generator=generator
    )


def _plain(network: FAN, x_HW: Tensor, sigma_HW: Tensor | None) -> Tensor:
    seen = [x_HW] if sigma_HW is None else [x_HW, sigma_HW]
    with torch.inference_mode():
        return functional.pixel_shuffle(
            network(*(functional.pixel_unshuffle(t[None, None], 2) for t in seen)), 2
        )[0, 0]


def _check(network: FAN, x_HW: Tensor, sigma_HW: Tensor | None) -> None:
    found = NativeFAN(network).denoised(x_HW, sigma_HW)
    operators = _plain(network, x_HW, sigma_HW)
    exact = _plain(network.double(), x_HW.double(), None if sigma_HW is None else sigma_HW.double())
    network.float()
    error, theirs = (float((v - exact).abs().max() / (exact - x_HW).std()) for v in (found, operators))
    assert error < max(2 * theirs, 5e-6)


@needs_kernel
@pytest.mark.parametrize("noise_map", [True, False])
@pytest.mark.parametrize("widths", [(16, 24, 64, 80), (8, 16, 24, 128)])
@pytest.mark.parametrize("size", [(16, 16), (32, 176), (400, 48), (16, 208)])
def test_kernel_is_as_near_to_double_as_the_operators(
    noise_map: bool, widths: tuple[int, ...], size: tuple[int, int]
) -> None:
    x, sigma = _mosaics(*size)
    _check(_network(noise_map=noise_map, widths=widths), x, sigma if noise_map else None)


@needs_kernel
@pytest.mark.parametrize("name", SHIPPED)
def test_kernel_is_as_near_to_double_as_the_operators_with_shipped_weights(name: str) -> None:
    network: Any = shipped().load_plain(name)
    y, x = torch.meshgrid(torch.arange(208.0), torch.arange(336.0), indexing="ij")
    light = 0.3 + 0.2 * torch.sin(x * y / 900) * (x > 50)
    sigma = (1e-3 * light + 1e-5).sqrt()
    noisy = light + sigma * torch.randn(light.shape, generator=torch.Generator().manual_seed(0))
    assert fits(network)
    _check(network, noisy, sigma)


@needs_kernel
@pytest.mark.parametrize("size", [(32, 16), (160, 208), (48, 400)])
def test_short_vectors_give_the_bits_of_long_ones(size: tuple[int, int]) -> None:
    found = fan_native.library()
    assert found is not None
    if found.mdrn_fan_lanes() != 16:
        pytest.skip("this processor has short vectors only")
    native, (x, sigma) = NativeFAN(_network()), _mosaics(*size)
    assert torch.equal(native.denoised(x, sigma, lanes=8), native.denoised(x, sigma, lanes=16))


@needs_kernel
def test_tile_with_its_halo_has_the_bits_of_the_whole() -> None:
    network = _network()
    native, halo = NativeFAN(network), 2 * network.halo
    x, sigma = _mosaics(2 * halo + 48, 2 * halo + 96)
    whole = native.denoised(x, sigma)
    cut = slice(32, None), slice(16, 2 * halo + 80)
    tile = native.denoised(x[cut], sigma[cut])
    assert torch.equal(tile[halo:, halo:-halo], whole[32 + halo :, 16 + halo : halo + 80])
    # One stride less is not enough: the test would see a halo that is too short.
    short = halo - 32
    assert not torch.equal(tile[short:, short : 64 + halo], whole[32 + short :, 16 + short : halo + 80])


@needs_kernel
def test_threads_of_the_caller_share_a_network() -> None:
    native = NativeFAN(_network())
    pictures = [_mosaics(48 + 16 * (k % 3), 64 + 32 * (k % 2)) for k in range(8)]
    expected = [native.denoised(*p) for p in pictures]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda p: native.denoised(*p), pictures))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_show_and_spread_no_further_than_the_network_sees(value: float) -> None:
    network = _network()
    native, halo = NativeFAN(network), 2 * network.halo
    x, sigma = _mosaics(32, 2 * halo + 80)
    expected = native.denoised(x, sigma)
    x[5, 3] = value
    found = native.denoised(x, sigma)
    assert not found[5, 3].isfinite()
    assert torch.equal(found[:, halo + 16 :], expected[:, halo + 16 :])
    x[5, 3] = 0.5
    again = native.denoised(x, sigma)
    assert bool(again.isfinite().all())  # none is left over in memory for the next picture


@needs_kernel
@pytest.mark.parametrize("size", [(24, 16), (16, 40), (0, 16)])
def test_sizes_that_do_not_fit_never_reach_the_kernel(size: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        NativeFAN(_network()).denoised(torch.zeros(size), torch.zeros(size))


@needs_kernel
def test_a_wrong_map_never_reaches_the_kernel() -> None:
    x, sigma = _mosaics(16, 16)
    for wrong in (None, sigma[:8], sigma.double()):
        with pytest.raises(AssertionError):
            NativeFAN(_network()).denoised(x, wrong)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"noise_map": False}, True),
        ({"widths": (8, 8, 8, 128)}, True),
        ({"widths": (12, 24, 64, 80)}, False),
        ({"widths": (16, 24, 64, 136)}, False),
        ({"colours": 1}, False),
    ],
    ids=str,
)
def test_fits_says_which_sizes_the_kernel_has(settings: dict[str, Any], expected: bool) -> None:
    assert fits(FAN(**settings)) is expected


def test_all_shipped_models_fit() -> None:
    assert len(SHIPPED) == 4
    assert all(fits(shipped().load_plain(name)) for name in SHIPPED)
    assert not fits(torch.nn.Identity())


def test_kernel_can_be_switched_off_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_KERNEL", "off")
    fan_native.optional.forget()
    try:
        assert fan_native.library() is None
        assert "MDRN_KERNEL" in fan_native.why_not()
    finally:
        monkeypatch.undo()
        fan_native.optional.forget()
