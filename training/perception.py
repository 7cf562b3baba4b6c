"""A loss on features of RAW: what a frozen RAW denoiser makes of the result and of the truth.

After FAN (arXiv 2103.01524), which distils a large denoiser into a small one by matching features in
the RAW domain, as perceptual losses do for photographs (Johnson 2016). Layers, weight and teacher of
the original are not known. Here: every stage that the teacher's `features` return, each mean
absolute difference divided by the mean magnitude of the truth's features, so that one weight serves
every teacher. The teacher is shown the noise map of the noisy picture in both cases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.fan import FAN
from mdrn_plugin.networks.mwrcanet import MWRCANet

from .distil import kdl
from .mosaic import unpack

if TYPE_CHECKING:
    from torch import Tensor

    from mdrn_plugin.networks.registry import Network

    from .recipe import Recipe

KIND = "raw-features"


class FeatureLoss:
    """A frozen teacher of RAW features.

    Parameters
    ----------
    recipe : Recipe
        Of the student, a FAN; `teacher` names the teacher's recipe.
    teacher : Network
        FAN or MWRCANet for mosaics, trained.
    device : torch.device
        Where it runs.

    Raises
    ------
    BadOption
        Student or teacher are of other kinds.
    """

    def __init__(self, recipe: Recipe, teacher: Network, device: torch.device) -> None:
        if recipe.architecture != "fan" or (isinstance(teacher, MWRCANet) and teacher.colours != 1):
            raise BadOption(f"{recipe.name}: {KIND} is for FAN, with a teacher for mosaics; mend the recipe")
        if not isinstance(teacher, FAN | MWRCANet):
            raise BadOption(f"{recipe.name}: {KIND} needs a RAW teacher; choose another")
        self._packed = isinstance(teacher, FAN)
        self._teacher = teacher.requires_grad_(False).eval().to(device)

    def loss(self, out_N4HW: Tensor, clean_N4HW: Tensor, std_N4HW: Tensor) -> Tensor:
        """Return the distance of a batch's features, a scalar, 0 if the result is the truth.

        Parameters
        ----------
        out_N4HW, clean_N4HW : Tensor
            Packed mosaics.
        std_N4HW : Tensor
            The noise map that the student was shown.
        """
        with torch.no_grad():
            wanted = self._features(clean_N4HW, std_N4HW)
        return kdl(self._features(out_N4HW, std_N4HW), wanted)

    def _features(self, x_N4HW: Tensor, std_N4HW: Tensor) -> list[Tensor]:
        shown = (x_N4HW, std_N4HW) if self._packed else (unpack(x_N4HW), unpack(std_N4HW))
        given = shown if self._teacher.noise_map else shown[:1]
        return self._teacher.features(*given)
