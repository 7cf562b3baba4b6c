"""The command ``mdrn-train``. argparse rather than click, so that it runs from a bare tree."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdrn_plugin.errors import EXIT_INTERRUPTED, EXIT_SOME_FAILED, BadOption, MdrnError

if TYPE_CHECKING:
    from .data import Pack
    from .loop import RunOptions
    from .parallel import Ranks


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    from .memory import keep_memory

    keep_memory()
    try:
        return int(options.run(options))
    except MdrnError as error:
        print(f"mdrn-train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # outside the loop, which saves its state first
        print("mdrn-train: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdrn-train", description="Rebuild the weights that ship with MDRN."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train one model by its recipe")
    run.add_argument("recipe", help="name of a shipped recipe, or a .toml file")
    run.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="choose the steps so that it takes about this long")
    length.add_argument("--steps", type=int, help="number of steps, instead of the recipe's")
    run.add_argument("--init", help="weights to start from: a model name or a .safetensors file")
    run.add_argument("--teacher", help="weights that teach, likewise, instead of the recipe's teacher")
    run.add_argument("--stop-after-step", type=int, help=argparse.SUPPRESS)
    _add_how(run)
    run.set_defaults(run=_run)

    zoo = commands.add_parser(
        "zoo", help="train every model that ships, or some: in order of need, skipping what is done"
    )
    zoo.add_argument("--only", default="*", metavar="PATTERN", help="model names, such as 'mdrn-2b-gray-*'")
    zoo.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    zoo.add_argument("--minutes-per-model", type=float, metavar="M", help="instead of the recipes' steps")
    zoo.add_argument("--ship", type=Path, metavar="WEIGHTS", help="enter what is finished into this folder")
    zoo.add_argument("--recipes", type=Path, metavar="DIR", help="folder of .toml recipes, instead of ours")
    zoo.add_argument("--dry-run", action="store_true", help="say what would be trained, in which order")
    _add_how(zoo)
    zoo.set_defaults(run=_zoo)

    search = commands.add_parser("search", help="search for MWRCANet's basic block by evolution")
    search.add_argument("recipe", help="of an MWRCANet: name of a shipped recipe, or a .toml file")
    search.add_argument("--out", type=Path, default=Path("runs/search"), help="(default: runs/search)")
    search.add_argument("--trials", type=int, default=20, help="networks to train (default: 20)")
    search.add_argument("--population", type=int, default=6, help="of which parents come (default: 6)")
    search.add_argument("--steps", type=int, default=150, help="of each training (default: 150)")
    search.add_argument(
        "--budget",
        type=float,
        metavar="KMAC",
        help="thousand multiplications per pixel that a network may cost (default: what the recipe's costs)",
    )
    search.add_argument("--seed", type=int, default=1)
    _add_how(search)
    search.set_defaults(run=_search)

    own = commands.add_parser(
        "self", help="learn a model from noisy pictures alone, for pictures of the same kind (D-BSN)"
    )
    own.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="noisy pictures, or folders of them"
    )
    own.add_argument("--name", required=True, help="of the new model, for 'mdrn-batch denoise --model NAME'")
    own.add_argument("--minutes", type=float, default=30.0, help="for all of it (default: 30)")
    own.add_argument("--clean", nargs="+", type=Path, default=[], help="clean pictures of the same kind")
    own.add_argument(
        "--models", type=Path, help="folder of your models (default: MDRN_MODELS or the usual one)"
    )
    own.add_argument("--reference", action="store_true", help="the paper's size, for a GPU")
    own.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    own.add_argument("--threads", type=int, help="CPU threads")
    own.set_defaults(run=_self)

    data = commands.add_parser("data", help="decode a folder of pictures into one memory-mapped pack")
    data.add_argument("folder", type=Path)
    data.add_argument("--cache", type=Path, default=Path("runs/data"))
    data.add_argument(
        "--download",
        choices=["div2k"],
        help="fetch this set into FOLDER first (some 4 GB; for academic research only)",
    )
    data.add_argument("--url", help="where to fetch it from, instead of its home")
    data.set_defaults(run=_data)

    raw = commands.add_parser("make-raw", help="write a paired RAW set with the noise of real sensors")
    raw.add_argument("out", type=Path, help="folder of the set")
    raw.add_argument("--data", required=True, type=Path, help="folder of clean sRGB pictures, or a pack")
    raw.add_argument("--cache", type=Path, default=Path("runs/data"), help="where pictures are decoded to")
    raw.add_argument("--count", type=int, default=0, help="pairs (default: one of every picture)")
    raw.add_argument("--size", type=int, default=0, help="px, crop from the middle (default: whole)")
    raw.add_argument("--pattern", default="bayer", help="RGGB, BGGR, GRBG, GBRG, XTRANS, or bayer: all four")
    raw.add_argument("--line", default="all", help="noise line: dnd, sidd, or all")
    raw.add_argument(
        "--sigma",
        nargs=2,
        type=float,
        default=(0.5, 25.0),
        metavar=("LOW", "HIGH"),
        help="noise at mid grey, 0..255 (default: 0.5 25)",
    )
    raw.add_argument("--bits", type=int, default=14, help="of the converter, 0: none (default: 14)")
    raw.add_argument("--row-share", type=float, default=0.0, help="of the read noise that rows share, 0..1")
    raw.add_argument("--licences", type=Path, help="text for SOURCES.txt (default: what lies with the data)")
    raw.add_argument("--seed", type=int, default=1)
    raw.set_defaults(run=_make_raw)

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


def _add_how(parser: argparse.ArgumentParser) -> None:
    """Add what `run` and `zoo` share."""
    parser.add_argument("--data", required=True, type=Path, help="folder of clean pictures, or a pack")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last checkpoint if there is one (default)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)


def _run_options(options: argparse.Namespace, minutes: float | None = None) -> RunOptions:
    """Return how `zoo` and `search` train each network."""
    from .loop import RunOptions

    return RunOptions(
        folder=options.out,
        minutes=minutes,
        resume=options.resume,
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
    )


def _run(options: argparse.Namespace) -> int:
    import dataclasses

    import torch

    from .loop import RunOptions, Stopped, train
    from .parallel import join, leave
    from .recipe import load_recipe
    from .zoo import find_network, find_weights

    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    if options.teacher:
        if not recipe.distillation:
            raise BadOption(f"--teacher: the recipe {recipe.name} has no distillation; leave it out")
        recipe = dataclasses.replace(recipe, teacher=options.teacher)
    folder = options.out or Path("runs") / recipe.name
    named = options.init or recipe.init
    init = find_weights(named, folder.parent) if named else None
    teacher = find_weights(recipe.teacher, folder.parent, "teacher") if recipe.teacher else None
    teachers = [find_network(name, folder.parent) for name in recipe.teachers]
    ranks, device = join(options.device)
    try:
        pack = _open_pack_once(options.data, folder.parent / "data", ranks)
        run = RunOptions(
            folder=folder,
            steps=options.steps,
            minutes=options.minutes,
            resume=options.resume,
            device=device,
            checkpoint_minutes=options.checkpoint_minutes,
            stop_after_step=options.stop_after_step,
            ranks=ranks,
        )
        path = train(recipe, pack, run, init, teacher, teachers)
        if ranks.leads:
            print(path)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        leave()
    return 0


def _open_pack_once(folder: Path, cache: Path, ranks: Ranks) -> Pack:
    """Open the pack; if it must be made, only rank 0 makes it."""
    from .data import open_pack

    if not ranks.leads:
        ranks.wait()
        return open_pack(folder, cache)
    try:
        return _open_pack(folder, cache)
    finally:
        ranks.wait()


def _open_pack(folder: Path, cache: Path) -> Pack:
    """Open the pack and say which pictures of the test sets are not in it."""
    from .data import open_pack

    pack = open_pack(folder, cache)
    if pack.left_out:
        print(
            f"{folder}: {len(pack.left_out)} pictures of the test sets are left out, since nothing may be "
            f"trained on them: {', '.join(pack.left_out[:3])}{', …' if pack.left_out[3:] else ''}",
            file=sys.stderr,
        )
    return pack


def _zoo(options: argparse.Namespace) -> int:
    import torch

    from .loop import Stopped
    from .recipe import STAGE
    from .ship import ship
    from .zoo import order, table, train_zoo

    if options.threads:
        torch.set_num_threads(options.threads)
    own = [str(path) for path in sorted(options.recipes.glob("*.toml"))] if options.recipes else None
    recipes = order(options.only, options.out, own)
    if options.dry_run:
        print("\n".join(recipe.name for recipe in recipes))
        return 0
    pack = _open_pack(options.data, options.out / "data")
    run = _run_options(options, minutes=options.minutes_per_model)
    try:
        rows = train_zoo(recipes, pack, options.out, run)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    print(table(rows))
    good = [row.name for row in rows if row.outcome in ("trained", "done before")]
    stages = {recipe.name for recipe in recipes if recipe.tier == STAGE}
    complete = [options.out / name for name in good if name not in stages]
    if options.ship and complete:
        options.ship.mkdir(parents=True, exist_ok=True)
        ship(complete, options.ship, options.recipes)
    return 0 if len(good) == len(rows) else EXIT_SOME_FAILED


def _search(options: argparse.Namespace) -> int:
    import torch

    from .loop import Stopped
    from .recipe import load_recipe
    from .search import Search, search, table

    if options.threads:
        torch.set_num_threads(options.threads)
    run = _run_options(options)
    extent = Search(
        trials=options.trials,
        population=options.population,
        budget_kmac=options.budget,
        steps=options.steps,
        seed=options.seed,
    )
    try:
        pack = _open_pack(options.data, options.out / "data")
        found = search(load_recipe(options.recipe), pack, extent, run)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    print(table(found))
    return 0


def _self(options: argparse.Namespace) -> int:
    import torch

    from .own import train_on

    if options.threads:
        torch.set_num_threads(options.threads)
    size: dict[str, Any] = {"channels": 96, "blocks": 8} if options.reference else {}
    learnt = train_on(
        _pictures(options.inputs),
        options.name,
        minutes=options.minutes,
        clean=_pictures(options.clean),
        folder=options.models,
        device=options.device,
        **size,
    )
    gain = learnt.sure_after - learnt.sure_before
    print(f"{options.name}: noise {learnt.sigma_255:.1f}/255; estimated PSNR {learnt.sure_after:.2f} dB")
    if learnt.kept:
        print(f"{gain:+.2f} dB against the shipped model; use it with --model {options.name}")
    else:
        print("no better than the shipped model on these pictures: it equals that model")
    return 0


def _pictures(inputs: list[Path]) -> list[Path]:
    """Return the files named, and those in the folders named."""
    from mdrn_plugin.formats import READABLE_SUFFIXES

    files = []
    for path in inputs:
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.suffix.lower() in READABLE_SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise BadOption(f"{path}: no such file or folder; check the inputs")
    return files


def _data(options: argparse.Namespace) -> int:
    if options.download:
        from .download import DIV2K, fetch

        print(DIV2K.licence, file=sys.stderr)
        fetch(DIV2K, options.folder, options.url)
    pack = _open_pack(options.folder, options.cache)
    print(f"{pack.folder}: {len(pack.entries)} pictures, {pack.pixels.size:,} bytes")
    return 0


def _make_raw(options: argparse.Namespace) -> int:
    from .camera import LINES
    from .mosaic import BAYER
    from .rawset import RawSet, find_licences, make_set

    pack = _open_pack(options.data, options.cache)
    kind = RawSet(
        sigma_255=(options.sigma[0], options.sigma[1]),
        patterns=BAYER if options.pattern == "bayer" else (options.pattern.upper(),),
        lines=tuple(LINES) if options.line == "all" else (options.line,),
        size=options.size,
        bits=options.bits,
        row_share=options.row_share,
        seed=options.seed,
    )
    try:
        text = options.licences.read_text(encoding="utf-8") if options.licences else ""
    except OSError as error:
        raise BadOption(f"{options.licences}: cannot be read ({error.strerror}); check --licences") from error
    count = make_set(pack, options.out, kind, options.count, text or find_licences(options.data))
    print(f"{options.out}: {count} pairs")
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
