"""Muon for the inner convolutions, Adam for the rest.

Muon (Jordan 2024; scaling after Liu 2025): momentum, then the update of each weight matrix is
replaced by the nearest orthogonal matrix, found by five Newton-Schulz steps. Convolutions count
as matrices of (first dimension) x (the rest). Equal shapes are stacked and orthogonalised in one
batched product; a loop over 150 small matrices costs a tenth of a step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients of Jordan 2024.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonAdam:
    """Both optimizers behind one `step`.

    Parameters
    ----------
    named : iterable of (name, parameter)
        All parameters of a network.
    outer : tuple of str
        First or last names of modules whose weights see or make pixels (head, tail) or are no
        matrices: these and all biases go to Adam.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        outer: tuple[str, ...] = ("head", "tail"),
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        self._momentum = momentum
        self._betas = betas
        self._decay = weight_decay
        self._groups: dict[tuple[int, int], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        self._adam: list[tuple[str, nn.Parameter]] = []
        for name, p in named:
            if p.ndim < 2 or name.split(".")[0] in outer or name.split(".")[-2] in outer:
                self._adam.append((name, p))
            else:
                self._groups[p.shape[0], p.numel() // p.shape[0]].append((name, p))
        self._buffers: dict[str, Tensor] = {}
        for group in self._groups.values():
            for name, p in group:
                self._buffers[f"muon/{name}"] = torch.zeros_like(p)
        for name, p in self._adam:
            self._buffers[f"adam1/{name}"] = torch.zeros_like(p)
            self._buffers[f"adam2/{name}"] = torch.zeros_like(p)
        self._steps = 0

    @torch.no_grad()
    def step(self, muon_rate: float, adam_rate: float) -> None:
        """Update all parameters from their gradients, which are cleared."""
        self._steps += 1
        for (rows, columns), group in self._groups.items():
            updates = []
            for name, p in group:
                assert p.grad is not None, name
                buffer = self._buffers[f"muon/{name}"]
                buffer.lerp_(p.grad, 1 - self._momentum)
                updates.append(p.grad.lerp(buffer, self._momentum).reshape(rows, columns))
            scale = muon_rate * max(1.0, rows / columns) ** 0.5
            for (_, p), update in zip(group, orthogonalise(torch.stack(updates)), strict=True):
                if self._decay:
                    p.mul_(1 - muon_rate * self._decay)
                p.sub_(update.reshape(p.shape), alpha=scale)
                p.grad = None
        b1, b2 = self._betas
        for name, p in self._adam:
            assert p.grad is not None, name
            first, second = self._buffers[f"adam1/{name}"], self._buffers[f"adam2/{name}"]
            first.lerp_(p.grad, 1 - b1)
            second.lerp_(p.grad.square(), 1 - b2)
            root = (second / (1 - b2**self._steps)).sqrt_().add_(1e-8)
            p.addcdiv_(first, root, value=-adam_rate / (1 - b1**self._steps))
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return all buffers by name, and the number of steps taken."""
        return {**self._buffers, "steps": torch.tensor([self._steps])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self._steps = int(state["steps"][0])
        for name, buffer in self._buffers.items():
            buffer.copy_(state[name])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return about U V' of each matrix U S V', shape (batch, rows, columns)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if tall else x
    return out
