"""Targets that other networks make: what two trained denoisers take for the picture behind the noise.

After MWRCANet (NTIRE 2020): two networks are trained; the mean of their outputs on noisy pictures
makes new pairs, on which both are fine-tuned; then one is fine-tuned on the outputs of both. The
clean picture is not looked at, so this also works on noisy pictures that nobody has a clean one of.

A small network learns from a larger one likewise. The clean picture is one of many that the noisy one
could have been of, and what of it cannot be known is noise in the gradients; the output of a good
denoiser is near the mean of them all, which is what a network is to return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mdrn_plugin.errors import BadOption

from . import kernel
from .data import dihedral, inverse_dihedral
from .recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mdrn_plugin.networks.registry import Network

    from .degrade import Pair
    from .recipe import Recipe

MEAN, EACH, BAND = "outputs-mean", "outputs-each", "outputs-band"
KINDS = (MEAN, EACH, BAND)


def ready(network: Network, device: torch.device) -> Network | kernel.Compiled:
    """Return a network frozen, on a device, in its fastest form."""
    frozen = network.requires_grad_(False).eval().to(device)
    frozen = frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return kernel.Compiled(frozen) if kernel.fits(frozen, device) else frozen


def nearest(bands_255: Tensor, sigma_255: Tensor) -> Tensor:
    """Return for each level the index of the band that it lies in, or is nearest to.

    Parameters
    ----------
    bands_255 : Tensor
        (bands, 2), lowest and highest level.
    sigma_255 : Tensor
        One level for each picture, any shape.
    """
    levels = sigma_255.flatten()[:, None]
    outside = (bands_255[:, 0] - levels).clamp_min(0) + (levels - bands_255[:, 1]).clamp_min(0)
    return outside.argmin(1)


class OutputTargets:
    """Frozen networks whose outputs are learnt from.

    Parameters
    ----------
    recipe : Recipe
        Of the student: "outputs-mean" takes the mean of the outputs as the target, "outputs-each"
        the mean of the losses to each, "outputs-band" the output of the one in whose recipe's band the
        level of the picture lies (the nearest if there is none). `clean_weight` mixes the clean picture
        into the target. With `teacher_symmetries` the teachers see each batch turned or mirrored, in
        one of eight ways at random: their mean over all of them is better than one output, and is what a
        squared error is least at.
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
        self._recipe = recipe
        self._bands = []
        if recipe.distillation == BAND:
            self._bands = [load_recipe(name).band_255 for name in recipe.teachers]
        self._teachers = [ready(teacher, device) for teacher in teachers]

    def loss(
        self,
        measure: Callable[[Tensor, Tensor, Tensor], Tensor],
        out_NCHW: Tensor,
        pair: Pair,
        step: int = 0,
    ) -> Tensor:
        """Return the loss of a batch against the teachers' outputs.

        Parameters
        ----------
        measure : callable
            Loss of (result, target, noise level).
        out_NCHW : Tensor
            The student's results.
        pair : Pair
            What it was shown; the clean pictures are used only if the recipe has a `clean_weight`.
        step : int
            What the symmetry is drawn by.
        """
        with torch.no_grad():
            outputs = self._outputs(pair, step)
            if self._recipe.distillation == MEAN:
                outputs = [torch.stack(outputs).mean(0)]
            if share := self._recipe.clean_weight:
                outputs = [torch.lerp(output, pair.clean.to(output.dtype), share) for output in outputs]
        return torch.stack([measure(out_NCHW, target, pair.sigma) for target in outputs]).mean()

    def _outputs(self, pair: Pair, step: int) -> list[Tensor]:
        """Return what the teachers make of the noisy pictures; each of its own for "outputs-band"."""
        if not self._bands:
            return [self._run(teacher, pair.noisy, pair.std, step) for teacher in self._teachers]
        bands = torch.tensor(self._bands, device=pair.sigma.device)
        taught_by = nearest(bands, pair.sigma)
        out = torch.empty_like(pair.noisy)
        for k, teacher in enumerate(self._teachers):
            mine = taught_by == k
            if mine.any():
                noisy = pair.noisy[mine].contiguous(memory_format=torch.channels_last)
                std = None if pair.std is None else pair.std[mine]
                out[mine] = self._run(teacher, noisy, std, step).to(out.dtype)
        return [out]

    def _run(
        self, teacher: Network | kernel.Compiled, noisy_NCHW: Tensor, std_NCHW: Tensor | None, step: int
    ) -> Tensor:
        """Return one teacher's output, of the pictures as they are or turned, back as they were."""
        shown = [noisy_NCHW] if std_NCHW is None else [noisy_NCHW, std_NCHW]
        if not self._recipe.teacher_symmetries:
            return teacher(*shown)
        turn = int(np.random.default_rng((self._recipe.seed, 3, step)).integers(8))
        turned = [dihedral(x, turn).contiguous(memory_format=torch.channels_last) for x in shown]
        return inverse_dihedral(teacher(*turned), turn)
