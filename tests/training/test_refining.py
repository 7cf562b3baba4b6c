"""Training what corrects results by what a picture repeats: which results, which patches, the whole loop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.networks.non_local import NonLocal, similar_means
from mdrn_plugin.training import refining
from mdrn_plugin.training.command import main
from mdrn_plugin.training.data import dihedral, open_pack
from mdrn_plugin.training.degrade import Pair
from mdrn_plugin.training.loop import RunOptions, build_network, train
from mdrn_plugin.training.recipe import Recipe, load_recipe
from mdrn_plugin.training.refining import Corrected
from mdrn_plugin.training.zoo import needs
from mdrn_plugin.zoo import open_zoo

from .conftest import read_log, to_toml

CPU = torch.device("cpu")
RECIPE = Recipe(
    name="nonlocal-gray",
    architecture="non-local",
    colours=1,
    channels=8,
    blocks=2,
    tier="refiner",
    sigma_255=(20, 40),
    band_255=(20, 40),
    steps=10,
    reuse=3,
    patch=72,
    batch=2,
    muon_rate=0.01,
    validate_sigma_255=(25,),
    validate_every=100,
    validate_pictures=1,
    teachers=("mdrn-2b-gray-10-20", "mdrn-2b-gray-35-60"),
)


class _Times(nn.Module):
    """Stands for a network: returns its input times a number."""

    colours = 1

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _corrected(*factors: float) -> Corrected:
    networks: Any = [_Times(factor) for factor in factors]
    return Corrected(RECIPE, networks, CPU)


def _pair(number: int, sigma_255: float = 25) -> Pair:
    noisy = torch.rand(2, 1, 72, 80, generator=torch.Generator().manual_seed(number))
    return Pair(noisy, 0.25 * noisy, torch.full((2, 1, 1, 1), sigma_255))


def test_results_are_of_the_network_in_whose_band_the_noise_lies() -> None:
    def nowhere(base: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(base)

    noisy = _pair(0).noisy
    found = _corrected(0.5, 2.0)(nowhere, noisy, torch.tensor([26.0, 29.0]).reshape(2, 1, 1, 1))
    # 26 is nearer to the 20 of the one band, 29 to the 35 of the other.
    torch.testing.assert_close(found[:, 0, 0, 0], noisy[:, 0, 0, 0] * torch.tensor([0.5, 2.0]))


def test_networks_that_are_not_there_or_of_other_pictures_are_refused() -> None:
    with pytest.raises(BadOption, match="corrects the results of others"):
        Corrected(RECIPE, [], CPU)
    with pytest.raises(BadOption, match="for 1 colours"):
        Corrected(RECIPE, [MDRN(3, 1, 16)], CPU)


def test_batch_cuts_everything_at_the_same_place_and_in_the_same_symmetry() -> None:
    clean, sigma_255, weights, inputs = _corrected(0.5, 0.5).batch(0, _pair)
    base, noise, means, unsure, sigma = inputs
    assert weights.shape == (16,)
    assert clean.shape == base.shape == noise.shape == (16, 1, 64, 64)
    assert means.shape == (16, 4, 1, 64, 64)
    assert unsure.shape == (16, 2, 64, 64)
    # What was noisy x: result x / 2, so the noise is x / 2 too, and the clean picture is x / 4.
    torch.testing.assert_close(noise, base, atol=2e-3, rtol=0)
    torch.testing.assert_close(clean, base / 2, atol=2e-3, rtol=0)
    assert sigma_255.flatten().tolist() == [25.0] * 16
    torch.testing.assert_close(sigma, torch.full((16,), 25 / 255))
    # And the means are those of the picture and the place that the result is of, turned like it.
    for k in range(3):
        places = []
        for pair in map(_pair, range(16)):
            whole = 0.5 * pair.noisy
            for one in range(2):
                for symmetry in range(8):
                    at = _where(dihedral(whole[one, 0], symmetry), base[k, 0])
                    places += [(pair, one, symmetry, *place) for place in at]
        assert len(places) == 1
        pair, one, symmetry, y, x = places[0]
        means_there, unsure_there = similar_means(0.5 * pair.noisy, pair.noisy, pair.sigma.flatten() / 255)
        for found, there in ((means[k, :, 0], means_there[one, :, 0]), (unsure[k], unsure_there[one])):
            turned = dihedral(there, symmetry)[:, 2 * y : 2 * y + 64, 2 * x : 2 * x + 64]
            torch.testing.assert_close(found, turned, atol=5e-3, rtol=2e-3)


def _where(whole: Tensor, part: Tensor) -> list[tuple[int, int]]:
    """Return where a patch lies in a picture, in steps of two pixels."""
    places = whole.unfold(0, 64, 2).unfold(1, 64, 2)
    near = (places - part).abs().amax((-2, -1)) < 2e-3
    return [(y, x) for y, x in near.nonzero().tolist()]


def test_batch_is_a_function_of_seed_and_step() -> None:
    unbroken, made = _corrected(0.5, 0.5), []

    def make(number: int) -> Pair:
        made.append(number)
        return _pair(number)

    for step in range(8):
        expected = unbroken.batch(step, make)
    resumed = _corrected(0.5, 0.5).batch(7, _pair)
    for a, b in zip((*expected[:3], *expected[3]), (*resumed[:3], *resumed[3]), strict=True):
        assert torch.equal(a, b)
    assert made == list(range(18))  # 16 at the first step, one more every third
    other = _corrected(0.5, 0.5).batch(6, _pair)
    assert not torch.equal(other[0], resumed[0])


def _waves_and_nothing(number: int) -> Pair:
    """Return noisy pictures: of waves, which repeat themselves, and of nothing."""
    side = 96
    clean = torch.full((2, 1, side, side), 0.5)
    clean[0] += 0.12 * torch.cos(2 * torch.pi * torch.arange(side) / 5)[:, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
    return Pair(clean + 25 / 255 * noise, clean, torch.full((2, 1, 1, 1), 25.0))


def _flattened() -> Corrected:
    """Return what corrects networks that take everything for noise."""

    class Flat(_Times):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, 0.5)

    networks: Any = [Flat(0), Flat(0)]
    return Corrected(RECIPE, networks, CPU)


def test_pictures_that_repeat_are_taken_more_often_and_count_less() -> None:
    """The weighed loss is that of pictures taken as often as they are met."""
    corrected = _flattened()
    seen = {True: 0, False: 0}
    weight = {True: 0.0, False: 0.0}
    for step in range(12):
        clean, _, weights, _ = corrected.batch(step, _waves_and_nothing)
        for patch, w in zip(clean, weights.tolist(), strict=True):
            waved = float(patch.std()) > 0.05
            seen[waved] += 1
            weight[waved] += w
    assert seen[True] > 2.5 * seen[False]  # four to one
    assert weight[True] == pytest.approx(sum(weight.values()) / 2, rel=0.2)


def test_loss_is_weighed_patch_by_patch() -> None:
    def nowhere(base: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(base)

    def first_value(x: Tensor, target: Tensor, sigma_255: Tensor) -> Tensor:
        assert len(x) == len(target) == 1
        assert float(sigma_255) == 25
        return (x - target)[0, 0, 0, 0]

    corrected = _flattened()
    clean, _, weights, (base, *_) = corrected.batch(3, _waves_and_nothing)
    assert len(set(weights.tolist())) == 2
    expected = (weights * (base - clean)[:, 0, 0, 0]).mean()
    torch.testing.assert_close(corrected.loss(nowhere, first_value, 3, _waves_and_nothing), expected)


def test_batch_forgets_the_oldest_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refining, "_POOL", 4)
    corrected, made = _corrected(0.5, 0.5), []

    def make(number: int) -> Pair:
        made.append(number)
        return _pair(number)

    corrected.batch(0, make)
    corrected.batch(6, make)
    assert made == [12, 13, 14, 15, 16, 17]
    assert sorted(corrected._pool) == [14, 15, 16, 17]


def test_train_ships_and_loads(pictures: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pack = open_pack(pictures, tmp_path / "cache")
    run = tmp_path / "run"
    torch.manual_seed(0)
    networks: Any = [_Times(0.9), _Times(0.9)]
    train(RECIPE, pack, RunOptions(run), teachers=networks)
    log = read_log(run)
    assert all(line["loss"] > 0 for line in log if "loss" in line)
    assert any("psnr_25" in line for line in log)
    entry = json.loads((run / "entry.json").read_text())
    assert entry["architecture"] == "non-local"
    assert entry["settings"] == {"colours": 1, "channels": 8, "layers": 2}
    file = to_toml(RECIPE, tmp_path / f"{RECIPE.name}.toml")
    weights = tmp_path / "weights"
    weights.mkdir()
    assert main(["ship", str(run), "--weights", str(weights), "--recipes", str(file.parent)]) == 0
    zoo = open_zoo(weights)
    descriptor, gates = zoo.get(RECIPE.name), zoo.load(RECIPE.name)
    assert (descriptor.tier, descriptor.stride) == ("refiner", 2)
    assert isinstance(gates, NonLocal)
    assert descriptor.default_halo <= descriptor.halo == gates.halo


def test_gates_begin_by_going_nowhere_and_learn() -> None:
    gates = build_network(RECIPE)
    assert isinstance(gates, NonLocal)
    assert not gates.tail.weight.any()
    assert not gates.tail.bias.detach().any()  # type: ignore[union-attr]
    clean, _, _, inputs = _corrected(0.5, 0.5).batch(0, _pair)
    optimizer = torch.optim.Adam(gates.parameters(), 0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (inputs[0] + gates(*inputs) - clean).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["nonlocal-gray-7-90", "nonlocal-colour-7-90"])
def test_shipped_recipes_correct_every_band(name: str) -> None:
    recipe = load_recipe(name)
    bands = sorted(load_recipe(teacher).band_255 for teacher in needs(recipe))
    assert bands[0][0] <= recipe.band_255[0]
    assert bands[-1][1] >= recipe.band_255[1]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))
