"""The command ``mdrn-train``. argparse rather than click, so that it runs from a bare tree."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mdrn_plugin.errors import EXIT_INTERRUPTED, MdrnError

if TYPE_CHECKING:
    from torch import Tensor


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except MdrnError as error:
        print(f"mdrn-train: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdrn-train", description="Rebuild the weights that ship with MDRN."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train one model by its recipe")
    run.add_argument("recipe", help="name of a shipped recipe, or a .toml file")
    run.add_argument("--data", required=True, type=Path, help="folder of clean pictures, or a pack")
    run.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="choose the steps so that it takes about this long")
    length.add_argument("--steps", type=int, help="number of steps, instead of the recipe's")
    run.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the run's last checkpoint if it has one (default)",
    )
    run.add_argument("--init", help="weights to start from: a model name or a .safetensors file")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    run.add_argument("--threads", type=int, help="CPU threads")
    run.add_argument("--checkpoint-minutes", type=float, default=3.0)
    run.add_argument("--stop-after-step", type=int, help=argparse.SUPPRESS)
    run.set_defaults(run=_run)

    data = commands.add_parser("data", help="decode a folder of pictures into one memory-mapped pack")
    data.add_argument("folder", type=Path)
    data.add_argument("--cache", type=Path, default=Path("runs/data"))
    data.set_defaults(run=_data)

    ship = commands.add_parser("ship", help="put finished runs among the weights that ship")
    ship.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    ship.add_argument("--weights", type=Path, default=Path("weights"))
    ship.add_argument(
        "--recipes", type=Path, help="folder of the runs' recipes, if they are not the shipped ones"
    )
    ship.set_defaults(run=_ship)

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.set_defaults(run=_recipes)
    return parser


def _run(options: argparse.Namespace) -> int:
    import torch

    from .data import open_pack
    from .loop import RunOptions, Stopped, train
    from .recipe import load_recipe

    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    folder = options.out or Path("runs") / recipe.name
    init = _find_init(options.init or recipe.init, folder.parent)
    pack = open_pack(options.data, folder.parent / "data")
    run = RunOptions(
        folder=folder,
        steps=options.steps,
        minutes=options.minutes,
        resume=options.resume,
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
        stop_after_step=options.stop_after_step,
    )
    try:
        print(train(recipe, pack, run, init))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _find_init(name: str, runs: Path) -> dict[str, Tensor] | None:
    """Return the weights called `name`: of a run beside this one, shipped, or a file."""
    if not name:
        return None
    from safetensors.torch import load_file

    from mdrn_plugin.errors import BadOption

    shipped = Path(__file__).resolve().parent.parent / "weights"
    choices = [Path(name), runs / name / f"{name}.safetensors", shipped / f"{name}.safetensors"]
    for path in choices:
        if path.suffix == ".safetensors" and path.is_file():
            return {k: v.float() for k, v in load_file(path).items()}
    places = ", ".join(os.fspath(p) for p in choices[1:])
    raise BadOption(f"init {name!r}: no weights found at {places}; train that model first, or give --init")


def _data(options: argparse.Namespace) -> int:
    from .data import open_pack

    pack = open_pack(options.folder, options.cache)
    print(f"{options.cache / pack.digest[:16]}: {len(pack.entries)} pictures, {pack.pixels.size:,} bytes")
    return 0


def _ship(options: argparse.Namespace) -> int:
    from .ship import ship

    for name in ship(options.runs, options.weights, options.recipes):
        print(name)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from .recipe import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        low, high = recipe.band_255
        print(f"{name:28} σ {low:g}-{high:g}  {recipe.steps} steps  from {recipe.init or 'scratch'}")
    return 0
