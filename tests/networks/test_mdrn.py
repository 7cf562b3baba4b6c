"""The network against the paper's counts, torch's own layers and its own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrn_plugin.networks.mdrn import FEATURE_NODES, MDRN, MSAB, STRIDE, FoldedMDRN, Up, exact_halo


@pytest.mark.parametrize(
    ("colours", "blocks", "parameters"),
    [(1, 2, 768_129), (3, 2, 770_435), (1, 8, 2_377_089), (3, 8, 2_379_395)],
)
def test_mdrn_parameters_equal_the_papers(colours: int, blocks: int, parameters: int) -> None:
    assert sum(p.numel() for p in MDRN(colours, blocks).parameters()) == parameters


def _shuffled_msab(block: MSAB, x: Tensor) -> Tensor:
    """The block as the paper draws it, with an explicit channel shuffle in two groups."""
    near, wide = functional.relu(block.expand(x)).chunk(2, 1)
    joined = torch.cat([functional.relu(block.near(near)), functional.relu(block.wide(wide))], 1)
    shuffled: Tensor = nn.ChannelShuffle(2)(joined)
    out: Tensor = block.merge(shuffled) + x
    return out


def test_msab_equals_explicit_channel_shuffle() -> None:
    torch.manual_seed(0)
    block, x = MSAB().double(), torch.randn(2, 64, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), _shuffled_msab(block, x), rtol=0, atol=1e-12)


def test_up_equals_transposed_convolution() -> None:
    torch.manual_seed(0)
    up, x = Up().double(), torch.randn(2, 64, 5, 7, dtype=torch.float64)
    expected = functional.conv_transpose2d(x, up.weight, up.bias, stride=2)
    torch.testing.assert_close(up(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("colours", "channels", "unshuffle"), [(1, 64, 1), (3, 64, 1), (3, 24, 2)])
def test_folded_network_equals_plain_network(colours: int, channels: int, unshuffle: int) -> None:
    torch.manual_seed(0)
    plain = MDRN(colours, channels=channels, unshuffle=unshuffle).double().eval()
    x = torch.rand(2, colours, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(FoldedMDRN(plain)(x), plain(x), rtol=0, atol=1e-12)


def test_default_settings_draw_the_same_network_as_ever() -> None:
    """Runs that were begun with an older version go on from the same initial values."""
    torch.manual_seed(0)
    network = MDRN()
    assert network.stride == STRIDE
    # The last parameter drawn, so all before it were drawn in the same order.
    assert float(network.tail.weight.detach().double().sum()) == pytest.approx(-0.873298215905379, abs=1e-9)


def test_unshuffle_is_the_plain_network_on_blocks_of_pixels() -> None:
    torch.manual_seed(0)
    network = MDRN(1, 1, channels=16, unshuffle=2)
    inner = MDRN(4, 1, channels=16)
    inner.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, 32, 48)
    with torch.no_grad():
        blocks = functional.pixel_unshuffle(x, 2)
        expected = functional.pixel_shuffle(inner.residual(blocks), 2)
        torch.testing.assert_close(network.residual(x), expected, rtol=0, atol=0)
    assert network.stride == 2 * STRIDE


@pytest.mark.parametrize("settings", [{"channels": 33}, {"channels": 0}, {"unshuffle": 0}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        MDRN(**settings)


def test_residual_is_subtracted_in_the_inputs_precision() -> None:
    torch.manual_seed(0)
    network = FoldedMDRN(MDRN()).set_precision(torch.bfloat16)
    network.kernel = None  # which answers in float32
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        out, noise = network(x), network.residual(x)
    assert out.dtype == torch.float32
    assert noise.dtype == torch.bfloat16
    torch.testing.assert_close(out + noise.float(), x, rtol=0, atol=1e-6)


def test_feature_nodes_are_full_resolution_outputs() -> None:
    torch.manual_seed(0)
    nodes = MDRN().nodes(torch.rand(1, 1, 16, 24))
    assert len(nodes) == 10
    assert all(nodes[node].shape == (1, 64, 16, 24) for node in FEATURE_NODES)
    assert nodes[3, 0].shape == (1, 64, 2, 3)


def _reach(network: MDRN, side: int, first: int, last: int) -> tuple[int, int]:
    """How far, along a row, the output in first..last depends on the input: (before, behind)."""
    torch.manual_seed(0)
    network.double()
    for p in network.parameters():  # all positive: no path cancels, no ReLU closes
        p.data.uniform_(0.5, 1).div_(p[0].numel() if p.ndim > 1 else 1)
    x = torch.ones(1, 1, network.stride, side, dtype=torch.float64, requires_grad=True)
    network.residual(x)[..., first : last + 1].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return first - int(touched[0]), int(touched[-1]) - last


@pytest.mark.parametrize(("blocks", "unshuffle"), [(1, 1), (2, 1), (1, 2)])
def test_exact_halo_covers_what_a_tile_depends_on(blocks: int, unshuffle: int) -> None:
    network = MDRN(1, blocks, channels=16, unshuffle=unshuffle)
    halo, stride = exact_halo(blocks, unshuffle), network.stride
    first = 16 * stride
    before, behind = _reach(network, 33 * stride, first, first + stride - 1)
    assert before == behind  # the network is symmetric about its grid
    assert halo - stride < before <= halo


def test_exact_halo_of_the_shipped_sizes() -> None:
    assert (exact_halo(2), exact_halo(8), exact_halo(2, 2)) == (96, 368, 192)
