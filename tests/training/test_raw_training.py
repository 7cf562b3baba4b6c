"""Networks for RAW and photographs through the same loop, and out of it into a zoo."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mdrn_plugin.training.command import main
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.loop import RunOptions, build_network, train
from mdrn_plugin.zoo import open_zoo

from .conftest import TINY, read_log, to_toml

if TYPE_CHECKING:
    from mdrn_plugin.training.recipe import Recipe

FAN = dataclasses.replace(
    TINY,
    name="fan-raw-8-12",
    architecture="fan",
    degrade="raw",
    colours=4,
    blocks=0,
    sigma_255=(8, 12),
    band_255=(8, 12),
    validate_sigma_255=(10,),
    patch=32,
    ema=0.5,
)
SMALL = dataclasses.replace(
    FAN, name="mwrcanet-raw", architecture="mwrcanet", colours=1, blocks=1, widths=(8, 8, 8)
)
PHOTO = dataclasses.replace(TINY, name="mdrn-photo", colours=3, degrade="camera-jpeg")


@pytest.mark.parametrize("recipe", [FAN, SMALL, PHOTO], ids=lambda r: r.name)
def test_train_ships_and_loads(recipe: Recipe, pictures: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = tmp_path / "run"
    train(recipe, open_pack(pictures, tmp_path / "cache"), RunOptions(run))
    losses = [line["loss"] for line in read_log(run) if "loss" in line]
    assert losses[-1] < 1.2 * losses[0]
    entry = json.loads((run / "entry.json").read_text())
    assert entry["architecture"] == recipe.architecture
    file = to_toml(recipe, tmp_path / f"{recipe.name}.toml")
    weights = tmp_path / "weights"
    weights.mkdir()
    assert main(["ship", str(run), "--weights", str(weights), "--recipes", str(file.parent)]) == 0
    zoo = open_zoo(weights)
    descriptor, network = zoo.get(recipe.name), zoo.load(recipe.name)
    assert descriptor.architecture == recipe.architecture
    assert descriptor.colours == recipe.colours
    assert descriptor.halo % descriptor.stride == 0
    x = torch.rand(1, recipe.colours, 16, 16)
    with torch.no_grad():
        out = network(*((x, x) if recipe.degrade == "raw" else (x,)))
    assert out.shape == x.shape


@pytest.mark.parametrize("recipe", [FAN, SMALL], ids=lambda r: r.name)
def test_raw_networks_begin_as_the_identity(recipe: Recipe) -> None:
    network, x = build_network(recipe), torch.rand(1, recipe.colours, 16, 16)
    assert torch.equal(network(x, 0.1 * x), x)
