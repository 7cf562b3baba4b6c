"""Knowledge distillation by feature matching, after MDRN (CVPRW 2022).

A frozen teacher shows its features at three nodes; the student is drawn to them while it learns
from the clean pictures: loss = reconstruction + weight * KDL.

- HADS: a big teacher, a small student, the same noisy picture.
- HMDS: the teacher knows a lower level of noise, and sees the same clean picture under the same
  noise field scaled down to that level.

The paper gives neither the distance nor its weight. Here KDL is the mean absolute difference of
the features, each node divided by the teacher's own mean magnitude there, so that one weight
serves every node and every teacher. The weight has not been swept yet.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.mdrn import FEATURE_NODES, MDRN

from . import kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .recipe import Recipe

KINDS = ("hads", "hmds")


class Distiller:
    """A frozen teacher and what it asks of a student.

    Parameters
    ----------
    recipe : Recipe
        With `distillation`, `teacher` and `kdl_weight`; for HMDS also `teacher_sigma_255`.
    teacher : dict of Tensor
        The teacher's weights, float32.
    device : torch.device
        Where both run.

    Raises
    ------
    BadOption
        An unknown kind of distillation, a missing noise range, or a teacher of other colours.
    """

    def __init__(self, recipe: Recipe, teacher: dict[str, Tensor], device: torch.device) -> None:
        if recipe.distillation not in KINDS:
            raise BadOption(
                f"{recipe.name}: distillation: expected one of {', '.join(KINDS)}, "
                f"got {recipe.distillation!r}; mend the recipe"
            )
        self._lower = recipe.distillation == "hmds"
        if self._lower and len(recipe.teacher_sigma_255) != 2:
            raise BadOption(
                f"{recipe.name}: HMDS needs teacher_sigma_255 = [low, high], the noise that the teacher "
                "is shown; mend the recipe"
            )
        self._from = recipe.sigma_255
        self._to = recipe.teacher_sigma_255
        network = network_of(teacher)
        for what in ("colours", "channels", "unshuffle"):
            theirs, ours = getattr(network, what), getattr(recipe, what)
            if theirs != ours:
                raise BadOption(
                    f"{recipe.name}: the teacher has {what} {theirs}, the student {ours}, and their "
                    "features cannot be compared; choose another teacher"
                )
        network.load_state_dict(teacher)
        network.requires_grad_(False).eval()
        self._teacher: MDRN | kernel.Compiled = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if kernel.fits(network, device):
            self._teacher = kernel.Compiled(network)

    @torch.no_grad()
    def features(self, clean_NCHW: Tensor, noisy_NCHW: Tensor, sigma: Tensor) -> list[kernel.Features]:
        """Return the teacher's features for a batch, at the nodes of `FEATURE_NODES`.

        Parameters
        ----------
        clean_NCHW, noisy_NCHW : Tensor
            White = 1.
        sigma : Tensor
            Noise level of each picture, shape (N, 1, 1, 1), 0..255 scale.
        """
        if self._lower:
            noisy_NCHW = scale_noise(clean_NCHW, noisy_NCHW, sigma, self._from, self._to)
            noisy_NCHW = noisy_NCHW.contiguous(memory_format=torch.channels_last)
        nodes = self._teacher.nodes(noisy_NCHW)
        return [nodes[node] for node in FEATURE_NODES]

    def loss(
        self, student: Mapping[tuple[int, int], kernel.Features], teacher: Sequence[kernel.Features]
    ) -> Tensor:
        """Return the KDL of one batch; see `kdl`."""
        return kdl([student[node] for node in FEATURE_NODES], teacher)


def kdl(student: Sequence[kernel.Features], teacher: Sequence[kernel.Features]) -> Tensor:
    """Return the mean over nodes of |student - teacher| / mean |teacher|, a scalar, 0 if equal."""
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        wanted = theirs.float()
        parts.append((ours.float() - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-6))
    return torch.stack(parts).mean()


def scale_noise(
    clean_NCHW: Tensor,
    noisy_NCHW: Tensor,
    sigma: Tensor,
    source_255: tuple[float, float],
    target_255: tuple[float, ...],
) -> Tensor:
    """Return the clean pictures under the same noise field at a lower level.

    The level moves linearly from the student's range to the teacher's: its lowest level becomes
    the teacher's lowest, its highest the teacher's highest.
    """
    low, high = source_255
    place = (sigma - low) / (high - low) if high > low else torch.zeros_like(sigma)
    wanted = target_255[0] + (target_255[1] - target_255[0]) * place
    return clean_NCHW + (noisy_NCHW - clean_NCHW) * (wanted / sigma.clamp_min(1e-6))


# Samples that the head sees, to colours and side of the pixel blocks.
_HEADS = {1: (1, 1), 3: (3, 1), 4: (1, 2), 12: (3, 2)}


def network_of(weights: dict[str, Tensor]) -> MDRN:
    """Return an MDRN of the size that `weights` have (not loaded)."""
    places = [re.match(r"msag\.0_0\.blocks\.(\d+)\.", name) for name in weights]
    blocks = 1 + max((int(m[1]) for m in places if m), default=-1)
    head = weights.get("head.weight")
    if blocks == 0 or head is None or head.shape[1] not in _HEADS:
        raise BadOption("teacher: not the weights of an MDRN; choose another teacher")
    colours, unshuffle = _HEADS[head.shape[1]]
    return MDRN(colours, blocks, channels=head.shape[0], unshuffle=unshuffle)
