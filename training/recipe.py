"""Recipes: small TOML files, all alike, one per model."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from mdrn_plugin.errors import BadOption

RECIPES = Path(__file__).parent / "recipes"
STAGE = "stage"  # tier of a model that only another one begins from: it does not ship


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the data and the clock."""

    name: str  # of the model it makes: architecture-size-colour-level
    colours: int  # 1 gray, 3 RGB
    blocks: int  # MSABs per MSAG
    sigma_255: tuple[float, float]  # noise trained on, 0..255
    band_255: tuple[float, float]  # noise the plan picks the model for, 0..255
    steps: int
    channels: int = 64  # of the inner features
    unshuffle: int = 1  # side of the blocks of pixels that become channels in front
    tier: str = "balanced"  # "fast", "balanced" or "best": the quality that the model serves; or `STAGE`
    init: str = ""  # name of the model to start from; empty: from scratch
    patch: int = 64  # px
    batch: int = 16
    loss: str = "squared-per-sigma"
    muon_rate: float = 0.02
    adam_rate: float = 0.001
    warm_up: int = 100  # steps
    ema: float = 0.998
    rescale: tuple[float, float] = (0.6, 1.0)
    shuffle_colours: bool = False
    smooth: float = 0.0  # share of the patches that are smooth and dark; see `data.Crops`
    fluorescence: float = 0.0  # share of drawn scenes; see `training.fluorescence`
    textures: float = 0.0  # share of photographs with a drawn texture in them; see `training.textures`
    validation: str = "DIV2K_valid_crops"  # folder of the data that is kept for validation
    validate_sigma_255: tuple[float, ...] = ()
    validate_every: int = 250  # steps
    validate_pictures: int = 24
    clip_norm: float = 0.0  # longest gradient of a step, 0: any length
    seed: int = 1
    distillation: str = ""  # see docs/training.md; empty: from the clean pictures alone
    teacher: str = ""  # name of the model that teaches
    teachers: tuple[str, ...] = ()  # models whose outputs are the targets; "non-local": that are corrected
    teacher_symmetries: bool = False  # the teachers see each batch turned or mirrored at random
    clean_weight: float = 0.0  # of the clean picture in targets that are outputs
    teacher_sigma_255: tuple[float, ...] = ()  # HMDS: noise that the teacher is shown, 0..255
    kdl_weight: float = 0.0  # of the feature distance beside the loss
    architecture: str = "mdrn"  # key of the networks' registry
    widths: tuple[int, ...] = ()  # channels of each level, for networks that have several
    reuse: int = 1  # "non-local": steps for each new batch of results
    wide: bool = False  # "non-local": with the means over wide patches of the noisy picture alone
    block: str = "attention"  # MWRCANet: "attention", "residual" (MWResNet) or "dense"
    degrade: str = "awgn"  # kind of noise, one of `degrade.KINDS`


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the run, as JSON has it, without what stands at its default."""
    return without_defaults(json.loads(json.dumps(dataclasses.asdict(recipe))))


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields that stand at their defaults.

    Two runs are the same when this is: fields that later versions add do not part an old run
    from its recipe.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Recipe)}
    return {
        k: v
        for k, v in values.items()
        if k not in defaults or v != (list(d) if isinstance(d := defaults[k], tuple) else d)
    }


def load_recipe(name_or_path: str) -> Recipe:
    """Return a shipped recipe by name, or one from a TOML file.

    Raises
    ------
    BadOption
        No such recipe (the message lists those there are), or a wrong key or value in it.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = ", ".join(recipe_names())
        raise BadOption(
            f"recipe {name_or_path!r}: not found; there are {known}, or give a .toml file"
        ) from error
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadOption(f"{path}: not valid TOML ({error})") from error
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    for key, value in values.items():
        if key not in fields:
            raise BadOption(f"{path}: unknown key {key!r}; expected {', '.join(fields)}")
        if isinstance(value, list):
            values[key] = tuple(value)
    values.setdefault("name", path.stem)
    try:
        return Recipe(**values)
    except TypeError as error:
        raise BadOption(f"{path}: {error}") from error


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))
