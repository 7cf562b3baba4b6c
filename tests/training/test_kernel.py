"""The compiled steps of training give the gradients of the plain network, and leave the rest to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdrn_plugin.networks.mdrn import FEATURE_NODES, MDRN
from mdrn_plugin.training import kernel
from mdrn_plugin.training.distil import kdl

needs_kernel = pytest.mark.skipif(
    kernel.library() is None, reason=f"no compiled steps here: {kernel.why_not()}"
)
CPU = torch.device("cpu")


def network_of(colours: int = 1, blocks: int = 2, unshuffle: int = 1) -> MDRN:
    """Return a network with weights and biases of ordinary size."""
    torch.manual_seed(colours + 10 * blocks)
    network = MDRN(colours, blocks, unshuffle=unshuffle)
    for p in network.parameters():
        if p.ndim < 2:
            torch.nn.init.normal_(p, 0, 0.05)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def gradients(
    network: MDRN, model: object, shape: tuple[int, ...], autocast: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and all gradients of a squared error, for pictures of a fixed seed."""
    random = torch.Generator().manual_seed(1)
    noisy, clean = torch.rand(shape, generator=random), torch.rand(shape, generator=random)
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(noisy)  # type: ignore[operator]
        loss = (out - clean).square().mean()
    loss.backward()
    return out.detach(), {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }


def far(a: Tensor, b: Tensor) -> float:
    """Return the norm of a - b over that of b."""
    return float((a - b).norm() / b.norm())


@needs_kernel
@pytest.mark.parametrize(
    ("colours", "blocks", "unshuffle", "size"),
    [
        (1, 1, 1, (2, 64, 64)),
        (1, 2, 1, (3, 40, 72)),  # three pictures, 5 x 9 on the lowest level
        (3, 2, 1, (16, 32, 32)),
        (1, 3, 1, (5, 128, 16)),
        (1, 1, 2, (2, 64, 80)),  # the head's taps in two planes
        (3, 1, 2, (2, 48, 64)),  # in four, the tail's in two
    ],
)
def test_gradients_are_as_near_to_float_as_those_of_autocast(
    colours: int, blocks: int, unshuffle: int, size: tuple[int, int, int]
) -> None:
    network = network_of(colours, blocks, unshuffle)
    shape = (size[0], colours, *size[1:])
    exact, wanted = gradients(network, network, shape, autocast=False)
    usual, by_torch = gradients(network, network, shape, autocast=True)
    out, ours = gradients(network, kernel.Compiled(network), shape, autocast=True)
    assert far(out, exact) < 1.1 * far(usual, exact)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert far(ours[name], gradient) < max(0.04, 2 * far(by_torch[name], gradient)), name

    def together(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in wanted])

    assert far(together(ours), together(wanted)) < 1.1 * far(together(by_torch), together(wanted))


@needs_kernel
def test_the_same_step_gives_the_same_bytes() -> None:
    network = network_of()
    first = gradients(network, kernel.Compiled(network), (4, 1, 48, 48), autocast=True)
    gradients(network, kernel.Compiled(network), (2, 1, 64, 64), autocast=True)  # buffers used by other sizes
    second = gradients(network, kernel.Compiled(network), (4, 1, 48, 48), autocast=True)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(second[1][name], value) for name, value in first[1].items())


@needs_kernel
def test_pictures_of_a_batch_do_not_touch_each_other() -> None:
    network = network_of()
    compiled = kernel.Compiled(network)
    x = torch.rand((3, 1, 32, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = compiled(x)
        alone = torch.cat([compiled(x[k : k + 1]) for k in range(3)])
    assert torch.equal(together, alone)


@needs_kernel
def test_distance_of_features_and_its_gradient_are_those_of_the_plain_network() -> None:
    network, teacher = network_of(), network_of(blocks=1)
    x = torch.rand((2, 1, 64, 64), generator=torch.Generator().manual_seed(3))
    results = []
    for ours, theirs in ((network, teacher), (kernel.Compiled(network), kernel.Compiled(teacher))):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = theirs.nodes(x)
            shown = ours.nodes(x)
            distance = kdl([shown[n] for n in FEATURE_NODES], [wanted[n] for n in FEATURE_NODES])
        distance.backward()  # type: ignore[no-untyped-call]
        results.append((float(distance.detach()), [p.grad for p in network.msag["0_0"].parameters()]))
    (plain, by_plain), (compiled, by_compiled) = results
    assert compiled == pytest.approx(plain, rel=0.01)
    for a, b in zip(by_compiled, by_plain, strict=True):
        assert a is not None and b is not None
        assert far(a, b) < 0.05


@needs_kernel
def test_a_number_that_is_none_is_not_hidden() -> None:
    network = network_of()
    x = torch.rand(1, 1, 32, 32)
    x[0, 0, 3, 5] = torch.nan
    assert torch.isnan(kernel.Compiled(network)(x)).any()


@needs_kernel
def test_fits_only_what_it_can_and_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert kernel.fits(MDRN(), CPU)
    assert not kernel.fits(MDRN(channels=32), CPU)
    assert not kernel.fits(MDRN(), torch.device("cuda"))
    assert not kernel.fits(torch.nn.Conv2d(1, 1, 1), CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert not kernel.fits(MDRN(), CPU)
