"""FAN, MWRCANet and the wavelets: the counts of the papers, exact reconstruction, tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdrn_plugin.networks.fan import FAN, FeatureAlign
from mdrn_plugin.networks.mwrcanet import DenseBlock, MWRCANet, mwresnet
from mdrn_plugin.networks.registry import ARCHITECTURES, build
from mdrn_plugin.networks.wavelet import dwt, iwt


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _multiplications(network: nn.Module, *inputs: Tensor) -> float:
    """Multiplications per pixel of the input: convolutions, and the modulation of feature-align layers."""
    total = 0

    def add(module: nn.Module, args: Any, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * (module.weight[0].numel() if isinstance(module, nn.Conv2d) else 1)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | FeatureAlign):
            module.register_forward_hook(add)
    network(*inputs)
    return total / inputs[0][0, 0].numel()


# ---- wavelets --------------------------------------------------------------------------------


def test_wavelets_reconstruct_exactly_and_keep_the_energy() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    bands = dwt(x)
    assert bands.shape == (2, 12, 4, 6)
    torch.testing.assert_close(iwt(bands), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    torch.testing.assert_close(dwt(iwt(bands)), bands, rtol=0, atol=1e-14)


def test_wavelet_bands_are_mean_rows_columns_and_diagonal_of_each_channel() -> None:
    x = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[None, None]
    assert dwt(x).flatten().tolist() == [7.5, 4.5, 2.5, 1.5]
    two = dwt(torch.cat([x, 10 * x], 1)).flatten().tolist()
    assert two == [7.5, 4.5, 2.5, 1.5, 75, 45, 25, 15]


# ---- FAN -------------------------------------------------------------------------------------


def test_fan_has_the_size_and_cost_that_the_papers_ratios_give() -> None:
    network = FAN(noise_map=False)
    assert _count(network) == 163_028
    assert round(_multiplications(network, torch.rand(1, 4, 32, 32))) == 10_711
    assert _count(FAN()) == 165_620  # the noise map adds inputs to eight convolutions


def test_fan_predicts_noise_in_units_of_its_deviation() -> None:
    torch.manual_seed(0)
    network, x = FAN().double(), torch.rand(1, 4, 16, 24, dtype=torch.float64)
    std = torch.rand_like(x)
    with torch.no_grad():
        expected = x - std * network.tail(network.features(x, std)[-1])
        torch.testing.assert_close(network(x, std), expected)
        torch.testing.assert_close(x - network.residual(x, std), expected)
        torch.testing.assert_close(network(x, 0 * std), x)


def test_fan_features_are_the_seven_aligned_stages() -> None:
    stages = FAN().features(torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16))
    assert [s.shape[1] for s in stages] == [16, 24, 64, 80, 64, 24, 16]
    assert [s.shape[2] for s in stages] == [16, 8, 4, 2, 4, 8, 16]


@pytest.mark.parametrize("network", [FAN(), FAN(noise_map=False), MWRCANet(1, 1, (8, 8, 8))])
def test_noise_map_is_wanted_or_refused(network: Any) -> None:
    x = torch.rand(1, 1 if isinstance(network, MWRCANet) else 4, 16, 16)
    with pytest.raises(ValueError, match="noise map"):
        network(x, None if network.noise_map else x)


# ---- MWRCANet --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 27_215_965),
        ({"colours": 3}, 27_229_797),
        ({"blocks": 4}, 7_588_301),
        ({"blocks": 2, "widths": (32, 48, 64), "noise_map": True}, 823_839),
    ],
)
def test_mwrcanet_has_the_reference_sizes(settings: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        network = MWRCANet(**settings)
    assert _count(network) == parameters


def test_mwrcanet_cost_of_small_networks() -> None:
    x = torch.rand(1, 1, 64, 64)
    assert _multiplications(MWRCANet(1, 1), x) == pytest.approx(262_000, rel=0.01)


def test_mwresnet_has_no_attention_and_two_groups_in_the_middle() -> None:
    network = mwresnet(1, 1, (8, 8, 8))
    x = torch.rand(1, 1, 16, 16)
    assert network.pooled(x) == []
    assert len(network.centre) == 2
    assert network(x).shape == x.shape


def test_dense_blocks_have_the_size_that_their_layers_say() -> None:
    channels, growth = 16, 8
    layers = (channels * growth * 9 + growth) + ((channels + growth) * growth * 9 + growth)
    layers += (channels + 2 * growth) * channels + channels
    assert _count(DenseBlock(channels)) == layers + 2  # two PReLUs
    network = MWRCANet(1, 1, (8, 8, 8), "dense")
    assert network.pooled(torch.rand(1, 1, 16, 16)) == []  # no seams between tiles


def test_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match="attention, residual, dense"):
        MWRCANet(1, 1, (8, 8, 8), "transformer")


def _small() -> MWRCANet:
    torch.manual_seed(0)
    return MWRCANet(1, 1, (16, 16, 16), noise_map=True).double().eval()


def test_mwrcanet_given_its_own_statistics_is_unchanged() -> None:
    network, x = _small(), torch.rand(1, 1, 48, 40, dtype=torch.float64)
    with torch.no_grad():
        pooled = network.pooled(x, x)
        assert len(pooled) == 5
        torch.testing.assert_close(network(x, x, pooled), network(x, x), rtol=0, atol=0)


def test_mwrcanet_tiles_with_the_pictures_statistics_equal_the_whole() -> None:
    network = _small()
    halo, side = network.halo, 16
    x = torch.rand(1, 1, 2 * halo + 2 * side, 2 * halo + side, dtype=torch.float64)
    with torch.no_grad():
        pooled = network.pooled(x, x)
        whole = network(x, x, pooled)
        cut = x[..., side:, :]
        tile = network(cut, cut, pooled)[..., halo : halo + side, halo : halo + side]
        expected = whole[..., side + halo : 2 * side + halo, halo : halo + side]
        torch.testing.assert_close(tile, expected, rtol=0, atol=1e-12)
        own = network(cut, cut)[..., halo : halo + side, halo : halo + side]
    assert float((own - expected).abs().max()) > 1e-9  # what the statistics are given for


# ---- all -------------------------------------------------------------------------------------


def _reach(network: Any, side: int, first: int, last: int) -> tuple[int, int]:
    """How far, along a row, the output in first..last depends on the input: (before, behind)."""
    network.double()
    for name, p in network.named_parameters():  # all positive: no path cancels, no ReLU closes
        p.data.uniform_(0.5, 1).div_(p[0].numel() if p.ndim > 1 else 1)
        if ".attention." in name:
            p.data.zero_()  # means reach everywhere: they are given from outside
    channels = network.colours
    x = torch.ones(1, channels, network.stride, side, dtype=torch.float64, requires_grad=True)
    shown = (x, torch.ones_like(x)) if network.noise_map else (x,)
    network(*shown)[..., first : last + 1].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return first - int(touched[0]), int(touched[-1]) - last


@pytest.mark.parametrize(
    "make",
    [
        FAN,
        lambda: MWRCANet(1, 1, (8, 8, 8), noise_map=True),
        lambda: mwresnet(1, 1, (8, 8, 8)),
        lambda: MWRCANet(1, 2, (8, 8, 8), "dense"),
    ],
    ids=["fan", "mwrcanet", "mwresnet", "dense"],
)
def test_halo_covers_what_a_tile_depends_on(make: Any) -> None:
    torch.manual_seed(0)
    network = make()
    stride, halo = network.stride, network.halo
    first = halo + 4 * stride
    before, behind = _reach(network, 2 * first + stride, first, first + stride - 1)
    assert halo - 2 * stride < max(before, behind) <= halo


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registry_builds_every_architecture_from_json(architecture: str) -> None:
    settings: dict[str, Any] = {"colours": 4} if architecture == "fan" else {"colours": 1, "blocks": 1}
    if architecture == "mwrcanet":
        settings |= {"widths": [8, 8, 8], "noise_map": False}
    if architecture == "non-local":
        settings = {"colours": 1, "layers": 2}
    network = build(architecture, settings)
    assert network.colours == settings["colours"]
    x = torch.rand(1, network.colours, network.stride, 2 * network.stride)
    shown = {
        "fan": (x, x),
        "non-local": (x, x, torch.stack([x] * 4, 1), torch.cat([x, x], 1), torch.tensor([0.1])),
    }
    assert network(*shown.get(architecture, (x,))).shape == x.shape


def test_registry_unknown_architecture_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        build("unet", {})
