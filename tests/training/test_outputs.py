"""Targets that other networks make: the mean, each, through the loop and by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.networks.mwrcanet import MWRCANet
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.degrade import Pair
from mdrn_plugin.training.loop import RunOptions, build_network, settings, train
from mdrn_plugin.training.losses import l1
from mdrn_plugin.training.outputs import BAND, EACH, MEAN, OutputTargets
from mdrn_plugin.training.recipe import load_recipe
from mdrn_plugin.training.zoo import find_network, needs

from .test_raw_training import SMALL

CPU = torch.device("cpu")
TEACHER = dataclasses.replace(SMALL, name="first", steps=10, validate_every=100)


def _pair() -> Pair:
    torch.manual_seed(0)
    noisy, clean, std = torch.rand(3, 2, 1, 32, 32)
    return Pair(noisy, clean, torch.ones(2, 1, 1, 1), std)


def _network(seed: int) -> MWRCANet:
    torch.manual_seed(seed)
    return MWRCANet(1, 1, (8, 8, 8), noise_map=True)


def test_targets_are_the_mean_or_each_of_the_outputs_and_never_the_truth() -> None:
    pair, teachers = _pair(), [_network(1), _network(2)]
    with torch.no_grad():
        outputs = [t(pair.noisy, pair.std) for t in teachers]
    student = dataclasses.replace(TEACHER, distillation=MEAN)
    found = OutputTargets(student, teachers, CPU).loss(l1, pair.clean, pair)
    assert torch.allclose(found, l1(pair.clean, (outputs[0] + outputs[1]) / 2, pair.sigma))
    student = dataclasses.replace(TEACHER, distillation=EACH)
    found = OutputTargets(student, teachers, CPU).loss(l1, pair.clean, pair)
    assert torch.allclose(
        found, (l1(pair.clean, outputs[0], pair.sigma) + l1(pair.clean, outputs[1], pair.sigma)) / 2
    )
    other = dataclasses.replace(pair, clean=torch.zeros_like(pair.clean))
    assert found == OutputTargets(student, teachers, CPU).loss(l1, pair.clean, other)


def test_clean_pictures_are_mixed_in_as_far_as_the_recipe_says() -> None:
    pair, teacher = _pair(), _network(1)
    student = dataclasses.replace(TEACHER, distillation=MEAN, clean_weight=0.25)
    with torch.no_grad():
        target = 0.75 * teacher(pair.noisy, pair.std) + 0.25 * pair.clean
    found = OutputTargets(student, [teacher], CPU).loss(l1, pair.noisy, pair)
    assert torch.allclose(found, l1(pair.noisy, target, pair.sigma))


def test_each_picture_is_taught_by_the_model_of_its_band() -> None:
    names = ("mdrn-2b-gray-10-20", "mdrn-2b-gray-35-60")
    assert [load_recipe(name).band_255 for name in names] == [(5.8, 18), (35, 65)]
    student = dataclasses.replace(TEACHER, distillation=BAND, teachers=names)
    pair = dataclasses.replace(_pair(), sigma=torch.tensor([26.0, 29.0]).reshape(2, 1, 1, 1))
    teachers = [_network(1), _network(2)]
    with torch.no_grad():
        outputs = [t(pair.noisy, pair.std) for t in teachers]
    found = OutputTargets(student, teachers, CPU).loss(l1, pair.noisy, pair)
    target = torch.stack([outputs[0][0], outputs[1][1]])  # 26 is nearer to 18, 29 to 35
    assert torch.allclose(found, l1(pair.noisy, target, pair.sigma), atol=1e-6)


def test_teachers_see_the_pictures_in_every_symmetry_and_their_outputs_are_turned_back() -> None:
    pair = _pair()

    class Weigher(torch.nn.Module):
        """Its output is the input times a ramp that does not turn with it."""

        colours = 1

        def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return x * torch.arange(32)[None, None, :, None] * (1 + torch.arange(32))

    ramp = torch.arange(32)[:, None] * (1 + torch.arange(32))
    wanted = []
    for k in range(8):
        turned = torch.rot90(pair.noisy, k % 4, (-2, -1))
        out = (turned.flip(-1) * ramp).flip(-1) if k >= 4 else turned * ramp
        wanted.append(torch.rot90(out, -(k % 4), (-2, -1)))
    student = dataclasses.replace(TEACHER, distillation=MEAN, teacher_symmetries=True)
    targets = OutputTargets(student, [Weigher()], CPU)  # type: ignore[list-item]
    seen: list[torch.Tensor] = []

    def measure(_: torch.Tensor, target: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        seen.append(target)
        return target.mean()

    for step in (*range(60), 7):
        targets.loss(measure, pair.noisy, pair, step)
    met = {k for target in seen for k in range(8) if torch.allclose(target, wanted[k])}
    assert met == set(range(8))
    assert all(any(torch.allclose(target, w) for w in wanted) for target in seen)
    assert torch.equal(seen[-1], seen[7])


def test_teachers_of_other_pictures_are_refused() -> None:
    student = dataclasses.replace(TEACHER, distillation=MEAN)
    with pytest.raises(BadOption, match="needs teachers"):
        OutputTargets(student, [], CPU)
    with pytest.raises(BadOption, match="other colours"):
        OutputTargets(student, [MDRN(3, 1, 16)], CPU)


def test_two_networks_teach_a_third_through_the_loop(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    plain = dataclasses.replace(TEACHER, name="second", block="residual")
    assert settings(plain)["block"] == "residual"
    assert not any("attention" in name for name, _ in build_network(plain).named_parameters())
    for recipe in (TEACHER, plain):
        train(recipe, pack, RunOptions(tmp_path / recipe.name))
    student = dataclasses.replace(TEACHER, name="third", distillation=MEAN, teachers=("first", "second"))
    assert needs(student)[-2:] == ["first", "second"]
    teachers = [find_network(name, tmp_path) for name in student.teachers]
    assert [len(list(t.centre)) for t in teachers] == [1, 2]  # type: ignore[union-attr, arg-type]
    weights = train(student, pack, RunOptions(tmp_path / "third"), teachers=teachers)
    assert weights.read_bytes() != (tmp_path / "first/first.safetensors").read_bytes()
    entry = json.loads((tmp_path / "third/entry.json").read_text())
    assert entry["teacher"] == "first and second"
    assert entry["training"]["clean_weight"] == 0
    assert "kdl_weight" not in entry["training"]
