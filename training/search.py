"""Search for MWRCANet's basic block: its kind, how many of them, and the width of each level.

A small evolutionary search, as the authors of MWRCANet made one at their scale (NTIRE 2020; theirs is
not published): aging evolution (Real et al., "Regularized evolution for image classifier architecture
search", AAAI 2019). Every candidate is trained from scratch by the same few steps of one recipe, and
judged by the validation PSNR; the first is the recipe's own. Candidates that cost more multiplications
than allowed are not drawn.
The log, ``search.jsonl``, has one line for every candidate, in the order of the search.
"""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes
from mdrn_plugin.networks.mwrcanet import KINDS, WIDTHS
from mdrn_plugin.networks.registry import build

from .loop import settings
from .zoo import train_zoo

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Pack
    from .loop import RunOptions
    from .recipe import Recipe

_BLOCKS = (1, 2, 3, 4)
_WIDTHS = tuple(range(16, 97, 8))  # channels of a level
_RIVALS = 3  # of the population that compete to be a parent
_SIDE = 64  # px, picture on which multiplications are counted
_DRAWS = 300  # after that many draws without a new candidate inside the budget there is none


@dataclasses.dataclass(frozen=True, slots=True)
class Genome:
    """What the search may change."""

    block: str
    blocks: int  # of each group
    widths: tuple[int, int, int]  # channels at a half, a quarter and an eighth of the size

    @property
    def name(self) -> str:
        """Name of the candidate's run."""
        return "-".join([self.block, str(self.blocks), *map(str, self.widths)])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A line of the log."""

    genome: Genome
    parent: str  # name of the genome it was changed from; empty: drawn at random
    kmac: float  # thousand multiplications per pixel of the mosaic
    parameters: int
    psnr: float | None  # dB, mean over the recipe's validation levels; None: it failed
    minutes: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched, and how long."""

    trials: int = 20
    population: int = 6
    budget_kmac: float | None = None  # thousand multiplications per pixel; None: what the recipe's costs
    steps: int = 150  # of each candidate
    seed: int = 1


def search(base: Recipe, pack: Pack, extent: Search, options: RunOptions) -> list[Candidate]:
    """Search, and return the candidates, the best first.

    Parameters
    ----------
    base : Recipe
        Of an MWRCANet; its block, blocks and widths are replaced.
    pack : Pack
        Clean pictures.
    extent : Search
        How much is tried.
    options : RunOptions
        Its folder gets a run for every candidate, and ``search.jsonl``. A search that was stopped goes
        on from there and comes to the same end.

    Raises
    ------
    BadOption
        Not an MWRCANet, numbers below 1, or a budget into which nothing more fits.
    Stopped
        A signal asked for the end.
    """
    if base.architecture != "mwrcanet":
        raise BadOption(f"{base.name}: only the blocks of mwrcanet are searched; choose another recipe")
    if min(extent.trials, extent.population, extent.steps) < 1:
        raise BadOption("search: trials, population and steps are at least 1; raise them")
    widths = base.widths or WIDTHS
    own = Genome(base.block, base.blocks, (widths[0], widths[1], widths[2]))
    budget = extent.budget_kmac or multiplications(base)[0]
    draw = random.Random(extent.seed)
    found: list[Candidate] = []
    while len(found) < extent.trials:
        alive = found[-extent.population :] if len(found) >= extent.population else []
        genome, parent = _next(draw, alive, found, base, budget) if found else (own, "")
        found.append(_tried(genome, parent, base, pack, extent, options))
        text = "".join(json.dumps(dataclasses.asdict(c)) + "\n" for c in found)
        write_bytes(options.folder / "search.jsonl", text.encode())
    return sorted(found, key=_fitness, reverse=True)


def table(found: list[Candidate]) -> str:
    """Return the candidates for people to read."""
    lines = [f"{'block':10} {'number':>6}  {'widths':12} {'kMAC/px':>8} {'parameters':>11} {'PSNR, dB':>9}"]
    for c in found:
        g, score = c.genome, "failed" if c.psnr is None else f"{c.psnr:.3f}"
        widths = "/".join(map(str, g.widths))
        lines.append(f"{g.block:10} {g.blocks:6}  {widths:12} {c.kmac:8.1f} {c.parameters:11,} {score:>9}")
    return "\n".join(lines)


def multiplications(recipe: Recipe) -> tuple[float, int]:
    """Return what a recipe's network costs: thousand multiplications per pixel, and parameters.

    Those of the convolutions are counted, bias and activations are not.
    """
    count = 0

    def add(layer: nn.Module, _inputs: Any, out: Tensor) -> None:
        nonlocal count
        assert isinstance(layer, nn.Conv2d)
        count += out[0, 0].numel() * layer.weight.numel()

    with torch.device("meta"):
        network = build(recipe.architecture, settings(recipe))
        x = torch.empty(1, recipe.colours, _SIDE, _SIDE)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(add)
    network(*((x, x) if network.noise_map else (x,)))
    return count / _SIDE**2 / 1000, sum(p.numel() for p in network.parameters())


def _next(
    draw: random.Random, alive: list[Candidate], found: list[Candidate], base: Recipe, budget: float
) -> tuple[Genome, str]:
    """Return a genome that was not tried yet and its parent's name."""
    tried = {c.genome for c in found}
    for _ in range(_DRAWS):
        parent = max(draw.sample(alive, min(_RIVALS, len(alive))), key=_fitness).genome if alive else None
        # The first ones take the kinds in turn, so that none is left out by chance.
        genome = _changed(parent, draw) if parent else _drawn(draw, KINDS[len(found) % len(KINDS)])
        if genome not in tried and multiplications(_recipe(base, genome, 1))[0] <= budget:
            return genome, parent.name if parent else ""
    raise BadOption(
        f"search: expected a further network within {budget:.1f} thousand multiplications per pixel, "
        "found none; raise --budget or lower --trials"
    )


def _drawn(draw: random.Random, block: str) -> Genome:
    widths = sorted(draw.choices(_WIDTHS, k=3))
    return Genome(block, draw.choice(_BLOCKS), (widths[0], widths[1], widths[2]))


def _changed(parent: Genome, draw: random.Random) -> Genome:
    """Return the parent with one gene moved: the kind, the number of blocks, or one level's width."""
    gene = draw.choice(("block", "blocks", "widths"))
    if gene == "block":
        return dataclasses.replace(parent, block=draw.choice([k for k in KINDS if k != parent.block]))
    if gene == "blocks":
        return dataclasses.replace(parent, blocks=_neighbour(draw, _BLOCKS, parent.blocks))
    widths, level = list(parent.widths), draw.randrange(3)
    widths[level] = _neighbour(draw, _WIDTHS, widths[level])
    return dataclasses.replace(parent, widths=(widths[0], widths[1], widths[2]))


def _neighbour(draw: random.Random, values: tuple[int, ...], value: int) -> int:
    place = values.index(value)
    return draw.choice([values[p] for p in (place - 1, place + 1) if 0 <= p < len(values)])


def _recipe(base: Recipe, genome: Genome, steps: int) -> Recipe:
    changes: dict[str, Any] = dataclasses.asdict(genome)
    changes |= {"name": genome.name, "steps": steps, "validate_every": steps}
    return dataclasses.replace(base, **changes, init="", distillation="", teachers=())


def _tried(
    genome: Genome, parent: str, base: Recipe, pack: Pack, extent: Search, options: RunOptions
) -> Candidate:
    recipe = _recipe(base, genome, extent.steps)
    kmac, parameters = multiplications(recipe)
    (row,) = train_zoo([recipe], pack, options.folder, options)
    psnr = sum(row.psnr.values()) / len(row.psnr) if row.psnr else None
    return Candidate(
        genome=genome, parent=parent, kmac=kmac, parameters=parameters, psnr=psnr, minutes=row.minutes
    )


def _fitness(candidate: Candidate) -> float:
    return float("-inf") if candidate.psnr is None else candidate.psnr
