"""Targets that other networks make: what two trained denoisers take for the picture behind the noise.

After MWRCANet (NTIRE 2020): two networks are trained; the mean of their outputs on noisy pictures
makes new pairs, on which both are fine-tuned; then one is fine-tuned on the outputs of both. The
clean picture is not looked at, so this also works on noisy pictures that nobody has a clean one of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mdrn_plugin.networks.registry import Network

    from .degrade import Pair
    from .recipe import Recipe

MEAN, EACH = "outputs-mean", "outputs-each"
KINDS = (MEAN, EACH)


class OutputTargets:
    """Frozen networks whose outputs are learnt from.

    Parameters
    ----------
    recipe : Recipe
        Of the student: "outputs-mean" takes the mean of the outputs as the target, "outputs-each"
        the mean of the losses to each.
    teachers : sequence of Network
        Of the recipe's kind of picture, trained.
    device : torch.device
        Where they run.

    Raises
    ------
    BadOption
        No teachers, or one that takes other pictures or another noise map than the student.
    """

    def __init__(self, recipe: Recipe, teachers: Sequence[Network], device: torch.device) -> None:
        if not teachers:
            raise BadOption(f"{recipe.name}: {recipe.distillation} needs teachers; name them in the recipe")
        if any(t.colours != recipe.colours for t in teachers):
            raise BadOption(
                f"{recipe.name}: a teacher takes pictures of other colours than {recipe.colours}; "
                "choose another"
            )
        self._each = recipe.distillation == EACH
        self._teachers = [
            t.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for t in teachers
        ]

    def loss(
        self, measure: Callable[[Tensor, Tensor, Tensor], Tensor], out_NCHW: Tensor, pair: Pair
    ) -> Tensor:
        """Return the loss of a batch against the teachers' outputs.

        Parameters
        ----------
        measure : callable
            Loss of (result, target, noise level).
        out_NCHW : Tensor
            The student's results.
        pair : Pair
            What it was shown; the clean pictures are not used.
        """
        shown = (pair.noisy,) if pair.std is None else (pair.noisy, pair.std)
        with torch.no_grad():
            outputs = [teacher(*shown) for teacher in self._teachers]
        if not self._each:
            outputs = [torch.stack(outputs).mean(0)]
        return torch.stack([measure(out_NCHW, target, pair.sigma) for target in outputs]).mean()
