"""Recipes: small TOML files, all alike, one per model."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from mdrn_plugin.errors import BadOption

RECIPES = Path(__file__).parent / "recipes"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the data and the clock."""

    name: str  # of the model it makes: architecture-size-colour-level
    colours: int  # 1 gray, 3 RGB
    blocks: int  # MSABs per MSAG
    sigma_255: tuple[float, float]  # noise trained on, 0..255
    band_255: tuple[float, float]  # noise the plan picks the model for, 0..255
    steps: int
    tier: str = "balanced"  # "fast", "balanced" or "best": the quality that the model serves
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
    validation: str = "DIV2K_valid_crops"  # folder of the data that is kept for validation
    validate_sigma_255: tuple[float, ...] = ()
    validate_every: int = 250  # steps
    validate_pictures: int = 24
    seed: int = 1


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
