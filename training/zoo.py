"""Every model that ships, by one command: the recipes in the order in which they need each other."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mdrn_plugin.errors import BadOption, MdrnError
from mdrn_plugin.networks.registry import build
from mdrn_plugin.zoo import shipped

from .loop import RunOptions, Stopped, state_of, train
from .recipe import load_recipe, recipe_names

if TYPE_CHECKING:
    from torch import Tensor

    from mdrn_plugin.networks.registry import Network

    from .data import Pack
    from .recipe import Recipe


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What became of one model."""

    name: str
    outcome: str  # "trained", "done before", "failed" or "left out"
    steps: int = 0
    minutes: float = 0.0
    psnr: dict[str, float] = dataclasses.field(default_factory=dict)  # validation, level to dB
    reason: str = ""


def find_weights(name: str, runs: Path, what: str = "init") -> dict[str, Tensor]:
    """Return weights by name, float32: of a run in `runs`, shipped, or a .safetensors file.

    Raises
    ------
    BadOption
        None of them exists; the message names the places.
    """
    from safetensors.torch import load_file

    file = runs / name / f"{name}.safetensors"
    for path in (Path(name), file):
        if path.suffix == ".safetensors" and path.is_file():
            return {k: v.float() for k, v in load_file(path).items()}
    zoo = shipped()
    if any(d.name == name for d in zoo.descriptors):
        return dict(zoo.load_plain(name).state_dict())
    raise BadOption(
        f"{what} {name!r}: no weights found at {file} nor among those that ship; "
        "train that model first, or name a file"
    )


def find_network(name: str, runs: Path) -> Network:
    """Return a trained network by name, as it trains: of a run in `runs`, or shipped.

    Raises
    ------
    BadOption
        As of `find_weights`.
    """
    weights = find_weights(name, runs, "teacher")
    file = runs / name / "entry.json"
    if file.is_file():
        entry = json.loads(file.read_text(encoding="utf-8"))
        network = build(entry["architecture"], entry["settings"])
    else:
        descriptor = shipped().get(name)
        network = build(descriptor.architecture, descriptor.settings)
    network.load_state_dict(weights)
    return network


def needs(recipe: Recipe) -> list[str]:
    """Return the models that a recipe starts from or learns from."""
    return [name for name in (recipe.init, recipe.teacher, *recipe.teachers) if name]


def order(pattern: str, runs: Path, names: list[str] | None = None) -> list[Recipe]:
    """Return the recipes that match, each after those it needs.

    What a matching recipe needs and nobody has (no run, nothing shipped) is taken in as well.

    Parameters
    ----------
    pattern : str
        Shell pattern over model names, such as ``mdrn-2b-gray-*``.
    runs : Path
        Folder of the runs.
    names : list of str, optional
        Recipes to choose from; default: all that ship.

    Raises
    ------
    BadOption
        Nothing matches, or recipes need each other in a circle.
    """
    by_name = {r.name: r for r in map(load_recipe, names or recipe_names())}
    wanted = [name for name in by_name if fnmatch.fnmatchcase(name, pattern)]
    if not wanted:
        raise BadOption(f"--only {pattern!r}: no recipe matches; there are {', '.join(by_name)}")
    ordered: list[Recipe] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise BadOption(f"recipes need each other in a circle: {' -> '.join((*path, name))}")
        if any(r.name == name for r in ordered):
            return
        if name not in by_name:
            find_weights(name, runs, f"{path[-1]}: init or teacher")  # says where it looked
            return
        for other in needs(by_name[name]):
            if other in wanted or not _exists(other, runs):
                visit(other, (*path, name))
        ordered.append(by_name[name])

    for name in wanted:
        visit(name, ())
    return ordered


def train_zoo(recipes: list[Recipe], pack: Pack, runs: Path, options: RunOptions) -> list[Row]:
    """Train models one after the other; go on where a killed command stopped, skip what is done.

    Parameters
    ----------
    recipes : list of Recipe
        In an order that `order` gave.
    pack : Pack
        Clean pictures.
    runs : Path
        Every model has its folder in it.
    options : RunOptions
        `folder` is replaced for every model.

    Returns
    -------
    list of Row
        One per recipe. A model that fails does not stop those that do not need it.

    Raises
    ------
    Stopped
        A signal asked for the end.
    """
    rows: list[Row] = []
    lost: set[str] = set()
    for recipe in recipes:
        folder = runs / recipe.name
        missing = [name for name in needs(recipe) if name in lost]
        if missing:
            lost.add(recipe.name)
            rows.append(Row(recipe.name, "left out", reason=f"needs {', '.join(missing)}"))
        elif is_done(recipe, pack, folder):
            rows.append(_row(recipe, folder, "done before"))
        else:
            try:
                init = find_weights(recipe.init, runs) if recipe.init else None
                teacher = find_weights(recipe.teacher, runs, "teacher") if recipe.teacher else None
                teachers = [find_network(name, runs) for name in recipe.teachers]
                train(recipe, pack, dataclasses.replace(options, folder=folder), init, teacher, teachers)
            except Stopped:
                raise
            except MdrnError as error:
                lost.add(recipe.name)
                rows.append(Row(recipe.name, "failed", reason=str(error)))
                print(f"{recipe.name}: failed: {error}", file=sys.stderr, flush=True)
            else:
                rows.append(_row(recipe, folder, "trained"))
    return rows


def is_done(recipe: Recipe, pack: Pack, folder: Path) -> bool:
    """Whether `folder` holds the finished run of this very recipe on this very data."""
    if not (folder / "entry.json").is_file():
        return False
    state = state_of(folder)
    return state is not None and state.belongs_to(recipe, pack) and state.step == state.total


def table(rows: list[Row]) -> str:
    """Return the rows for people to read."""
    lines = [f"{'model':28} {'outcome':12} {'steps':>6} {'minutes':>8}  validation PSNR, dB at σ"]
    for row in rows:
        scores = "  ".join(f"{level}: {value:.2f}" for level, value in row.psnr.items())
        lines.append(
            f"{row.name:28} {row.outcome:12} {row.steps:6} {row.minutes:8.1f}  {scores or row.reason}"
        )
    return "\n".join(lines)


def _exists(name: str, runs: Path) -> bool:
    return (runs / name / f"{name}.safetensors").is_file() or any(
        d.name == name for d in shipped().descriptors
    )


def _row(recipe: Recipe, folder: Path, outcome: str) -> Row:
    entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    state = state_of(folder)
    assert state is not None
    scores = entry["training"]["validation"]
    return Row(recipe.name, outcome, entry["training"]["steps"], state.seconds / 60, scores)
