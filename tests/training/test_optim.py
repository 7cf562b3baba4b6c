from __future__ import annotations

import pytest
import torch
from torch import nn

from mdrn_plugin.training.optim import MuonAdam, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    y = orthogonalise(x)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.3  # the quintic trades exactness for speed: 0.7 to 1.2 for most
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    exact = u @ v
    cosine = (y * exact).sum((1, 2)) / (y.norm(dim=(1, 2)) * exact.norm(dim=(1, 2)))
    assert cosine.min() > 0.95


def test_orthogonalise_is_blind_to_scale() -> None:
    x = torch.randn(2, 8, 8)
    torch.testing.assert_close(orthogonalise(x), orthogonalise(1000 * x), rtol=1e-3, atol=1e-4)


def _parameters() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [
        ("head.weight", nn.Parameter(torch.randn(4, 2, 3, 3))),
        ("body.weight", nn.Parameter(torch.randn(4, 4, 3, 3))),
        ("body.bias", nn.Parameter(torch.randn(4))),
    ]


def test_muon_adam_outer_layers_and_biases_follow_adam() -> None:
    ours, theirs = dict(_parameters()), dict(_parameters())
    optimizer = MuonAdam(ours.items(), betas=(0.9, 0.99))
    outer = ("head.weight", "body.bias")
    adam = torch.optim.Adam([theirs[n] for n in outer], lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        torch.manual_seed(step)
        for name in ours:
            gradient = torch.randn(ours[name].shape)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        optimizer.step(0.02, 1e-2)
        adam.step()
    for name in outer:
        torch.testing.assert_close(ours[name], theirs[name])


def test_muon_adam_inner_weights_move_by_the_rate() -> None:
    """The update of a 4 x 36 matrix is orthogonal: four singular values of about the rate."""
    named = dict(_parameters())
    before = named["body.weight"].detach().clone()
    optimizer = MuonAdam(named.items())
    for p in named.values():
        p.grad = torch.randn(p.shape)
    optimizer.step(0.02, 1e-3)
    values = torch.linalg.svdvals((named["body.weight"].detach() - before).reshape(4, -1))
    assert values.min() > 0.3 * 0.02
    assert values.max() < 1.3 * 0.02
    assert all(p.grad is None for p in named.values())


def test_muon_adam_state_goes_round() -> None:
    def run(split: int | None) -> torch.Tensor:
        named = dict(_parameters())
        optimizer = MuonAdam(named.items())
        for step in range(6):
            if step == split:
                fresh = MuonAdam(named.items())
                fresh.load_state({k: v.clone() for k, v in optimizer.state().items()})
                optimizer = fresh
            torch.manual_seed(step)
            for p in named.values():
                p.grad = torch.randn(p.shape)
            optimizer.step(0.02, 1e-3)
        return torch.cat([p.detach().flatten() for p in named.values()])

    assert torch.equal(run(None), run(3))
