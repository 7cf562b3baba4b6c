"""Training what corrects the results of other networks by what a picture repeats.

The networks whose results are corrected are frozen; each picture goes through the one in whose recipe's
band its noise lies, as it would when it is denoised. Their results cost most of a step, and pictures that
repeat themselves are rare: so results are kept and learnt from again, each time from other cuts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks import non_local

from .data import dihedral
from .outputs import nearest, ready
from .precision import autocast
from .recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mdrn_plugin.networks.registry import Network

    from .degrade import Pair
    from .recipe import Recipe

ARCHITECTURE = "non-local"
_POOL = 64  # batches whose results are kept
_FIRST = 15  # batches besides the one that the first step makes
_CUTS, _PATCH = 16, 64  # patches of a step, and their side, px

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Corrected:
    """The recipe's `teachers` and a network that corrects them.

    Parameters
    ----------
    recipe : Recipe
        Of a `NonLocal`; of its teachers those are corrected in whose bands the levels lie.
    networks : sequence of Network
        The teachers, trained.
    device : torch.device
        Where they run.

    Raises
    ------
    BadOption
        None, or one for other pictures.
    """

    def __init__(self, recipe: Recipe, networks: Sequence[Network], device: torch.device) -> None:
        if not networks or any(n.colours != recipe.colours for n in networks):
            raise BadOption(
                f"{recipe.name}: corrects the results of others; name some for {recipe.colours} colours as "
                "teachers in the recipe"
            )
        self._networks = [ready(n, device) for n in networks]
        self._bands = torch.tensor([load_recipe(name).band_255 for name in recipe.teachers], device=device)
        self._kernel = device.type == "cpu" and non_local.library() is not None
        self._device = device
        self._recipe = recipe
        self._means = non_local.count_means(recipe.wide)
        self._pool: dict[int, tuple[Tensor, Tensor, NDArray[np.float64]]] = {}

    def __call__(self, gates: Any, noisy_NCHW: Tensor, sigma_255: Tensor) -> Tensor:
        """Return the corrected results, float32.

        Parameters
        ----------
        gates : NonLocal
            What learns.
        noisy_NCHW : Tensor
            White = 1.
        sigma_255 : Tensor
            Noise of each, 0..255.
        """
        base, means, unsure = self._results(noisy_NCHW, sigma_255)
        added: Tensor = gates(base, noisy_NCHW - base, means, unsure, sigma_255.flatten() / 255)
        return base + added

    def loss(
        self,
        gates: Any,
        measure: Callable[[Tensor, Tensor, Tensor], Tensor],
        step: int,
        make: Callable[[int], Pair],
    ) -> Tensor:
        """Return the loss of a step: of every patch by `measure`, weighed as often as the like is met.

        Parameters
        ----------
        gates : NonLocal
            What learns.
        measure : callable
            Loss of (result, clean picture, noise level).
        step, make
            As of `batch`.
        """
        clean, sigma_255, weights, inputs = self.batch(step, make)
        out = inputs[0] + gates(*inputs)
        each = [slice(k, k + 1) for k in range(len(weights))]
        return torch.stack([weights[k] * measure(out[k], clean[k], sigma_255[k]) for k in each]).mean()

    def batch(self, step: int, make: Callable[[int], Pair]) -> tuple[Tensor, Tensor, Tensor, Inputs]:
        """Return what a step learns from: clean patches, their noise (0..255), weights, inputs of the gates.

        Few pictures repeat themselves, and most of what is learnt is learnt from these. So they are taken
        up to four times as often as others (`_taken`), and count as much less: taken more often and not
        weighed, they taught that everything repeats itself.

        They are cut from the results of the last `_POOL` batches of pictures, of which a new one is made
        every `reuse` steps; that and the cuts are functions of seed and step alone, so a run that is resumed
        makes the pool anew and goes on as if it had not been broken.

        Parameters
        ----------
        step : int
            Of the training.
        make : callable
            Returns a batch of pictures by its number.
        """
        newest = _FIRST + step // self._recipe.reuse
        numbers = range(max(0, newest - _POOL + 1), newest + 1)
        self._pool = {k: v for k, v in self._pool.items() if k in numbers}
        for number in numbers:
            if number not in self._pool:
                self._pool[number] = self._made(make(number))
        rng = np.random.default_rng((self._recipe.seed, 5, step))
        places = [(number, k) for number in numbers for k in range(len(self._pool[number][0]))]
        shares = np.concatenate([self._pool[number][2] for number in numbers])
        cuts = []
        chosen = rng.choice(len(places), _CUTS, p=shares / shares.sum())
        for number, k in (places[at] for at in chosen):
            pictures, levels, _ = self._pool[number]
            y, x = (2 * int(rng.integers((n - _PATCH) // 2 + 1)) for n in pictures.shape[-2:])
            cut = dihedral(pictures[k, :, y : y + _PATCH, x : x + _PATCH][None].float(), int(rng.integers(8)))
            cuts.append((cut, levels[k]))
        stacked = torch.cat([cut for cut, _ in cuts])
        sigma_255 = torch.stack([level for _, level in cuts])
        colours = self._recipe.colours
        clean, base, noise, means, unsure = torch.tensor_split(
            stacked, (colours, 2 * colours, 3 * colours, (3 + self._means) * colours), 1
        )
        sigma = sigma_255.flatten() / 255
        # Half precision is for what is small: kept in standard deviations of the noise, and off the base.
        clean = base + clean * sigma[:, None, None, None]
        inputs = (
            base,
            noise * sigma[:, None, None, None],
            means.reshape(_CUTS, self._means, colours, _PATCH, _PATCH),
            unsure,
            sigma,
        )
        weights = torch.from_numpy(shares.mean() / shares[chosen]).to(sigma)
        return clean, sigma_255, weights, inputs

    def _made(self, pair: Pair) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        base, means, unsure = self._results(pair.noisy, pair.sigma)
        sigma = pair.sigma / 255
        missing = (pair.clean - base) / sigma
        parts = [missing, base, (pair.noisy - base) / sigma, means.flatten(1, 2), unsure]
        return torch.cat(parts, 1).half(), pair.sigma, _taken(missing, means)

    @torch.no_grad()
    def _results(self, noisy_NCHW: Tensor, sigma_255: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the results of the frozen networks, and what is repeated around each pixel."""
        base = torch.empty_like(noisy_NCHW)
        by = nearest(self._bands, sigma_255)
        with autocast(self._device.type):
            for k, network in enumerate(self._networks):
                if (mine := by == k).any():
                    shown = noisy_NCHW[mine].contiguous(memory_format=torch.channels_last)
                    base[mine] = network(shown).to(base.dtype)
        means, unsure = non_local.similar_means(
            base, noisy_NCHW, sigma_255.flatten() / 255, wide=self._recipe.wide, kernel=self._kernel
        )
        return base, means, unsure


def _taken(missing_NCHW: Tensor, means_NKCHW: Tensor) -> NDArray[np.float64]:
    """Return how often pictures are learnt from, a quarter to 1: by what the means could gain at best.

    That is, by the mean over similar patches times the factor that is best in each window of 25 px.

    Parameters
    ----------
    missing_NCHW : Tensor
        What the result lacks, in standard deviations of the noise.
    means_NKCHW : Tensor
        As of `similar_means`.
    """
    mean = means_NKCHW[:, 2] + means_NKCHW[:, 3]
    products = torch.stack(
        [(a * b).mean(1) for a, b in ((missing_NCHW,) * 2, (missing_NCHW, mean), (mean, mean))], 1
    )
    power, both, square = functional.avg_pool2d(products, 25, 12).unbind(1)
    factor = (both / (square + 0.003)).clamp(0, 1.5)
    left = power - 2 * factor * both + factor**2 * square
    gain_db = 10 * torch.log10(power.mean((1, 2)) / left.mean((1, 2)).clamp_min(1e-6))
    share: NDArray[np.float64] = (0.25 + 0.75 * ((gain_db - 0.02) / 0.15).clamp(0, 1)).double().cpu().numpy()
    return share
