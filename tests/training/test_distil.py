"""Feature distillation: what the teacher is shown, what the student is asked, that it is drawn there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.mdrn import FEATURE_NODES
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.degrade import add_awgn
from mdrn_plugin.training.distil import Distiller, kdl, network_of, scale_noise
from mdrn_plugin.training.loop import RunOptions, build_network, grow_blocks, train

from .conftest import TINY

CPU = torch.device("cpu")
HADS = dataclasses.replace(TINY, distillation="hads", teacher="big", kdl_weight=0.1)


def _teacher(blocks: int = 2, colours: int = 1) -> dict[str, torch.Tensor]:
    network = build_network(dataclasses.replace(TINY, blocks=blocks, colours=colours, seed=5))
    for name, p in network.named_parameters():
        if ".merge." in name or name == "tail.weight":
            torch.nn.init.normal_(p, std=0.01 if ".merge." in name else 1e-4)
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def test_kdl_is_zero_for_equals_and_relative_to_the_teacher() -> None:
    teacher = [torch.randn(1, 4, 8, 8) * scale for scale in (1, 10, 0.1)]
    assert kdl(teacher, teacher) == 0
    twice = kdl([2 * t for t in teacher], teacher)
    assert twice == pytest.approx(1)  # whatever the scale of a node


def test_scale_noise_keeps_the_field_and_changes_the_level() -> None:
    clean = torch.rand(64, 1, 16, 16)
    noisy, sigma = add_awgn(clean, (35, 60), 1, 1)
    lower = scale_noise(clean, noisy, sigma, (35, 60), (20, 35))
    field, scaled = (noisy - clean).flatten(1), (lower - clean).flatten(1)
    assert torch.nn.functional.cosine_similarity(field, scaled).min() > 0.9999
    level = scaled.std(1) * 255
    expected = 20 + (sigma.flatten() - 35) / 25 * 15
    assert (level / expected - 1).abs().max() < 0.2  # 256 samples each: 4.4 % standard error
    assert float((level / expected).mean()) == pytest.approx(1, abs=0.02)


def test_hads_shows_the_teacher_the_same_noise_and_hmds_less() -> None:
    weights = _teacher()
    network = network_of(weights)
    network.load_state_dict(weights)
    network.requires_grad_(False)
    clean = torch.rand(2, 1, 16, 16)
    noisy, sigma = add_awgn(clean, (40, 40), 1, 1)
    same = Distiller(HADS, weights, CPU).features(clean, noisy, sigma)
    expected = network.nodes(noisy)
    for feature, node in zip(same, FEATURE_NODES, strict=True):
        assert float(kdl([feature], [expected[node]])) < 0.01  # the compiled steps multiply in bfloat16
    hmds = dataclasses.replace(
        HADS, distillation="hmds", sigma_255=(40, 40), teacher_sigma_255=(20, 20), teacher="below"
    )
    less = Distiller(hmds, weights, CPU).features(clean, noisy, sigma)
    halved = network.nodes(clean + (noisy - clean) / 2)
    for feature, node in zip(less, FEATURE_NODES, strict=True):
        assert float(kdl([feature], [halved[node]])) < 0.01
        assert float(kdl([feature], [expected[node]])) > 0.03


def test_teacher_is_frozen_and_holds_the_student_at_its_features(pictures: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pack, weights = open_pack(pictures, tmp_path / "cache"), _teacher()
    clean = torch.rand(2, 1, 16, 16)
    noisy, sigma = add_awgn(clean, (25, 25), 1, 1)

    def distance(run: str) -> float:
        from safetensors.torch import load_file

        student = build_network(two)
        student.load_state_dict(
            {k: v.float() for k, v in load_file(tmp_path / run / f"{TINY.name}.safetensors").items()}
        )
        with torch.no_grad():
            teacher = Distiller(HADS, weights, CPU)
            nodes = student.nodes(noisy)
            return float(teacher.loss(nodes, teacher.features(clean, noisy, sigma)))

    # Both start as the teacher itself; the clean pictures alone draw the student away from it.
    before = {k: v.clone() for k, v in weights.items()}
    two = dataclasses.replace(TINY, blocks=2, steps=30, ema=0.9, muon_rate=0.003, adam_rate=0.0002)
    hads = dataclasses.replace(two, distillation="hads", teacher="big", kdl_weight=100.0)
    train(hads, pack, RunOptions(tmp_path / "hads"), weights, weights)
    train(two, pack, RunOptions(tmp_path / "plain"), weights)
    assert all(torch.equal(before[k], v) for k, v in weights.items())
    assert distance("hads") < 0.7 * distance("plain")
    entry = json.loads((tmp_path / "hads/entry.json").read_text())
    assert (entry["teacher"], entry["distillation"]) == ("big", "hads")
    assert entry["training"]["kdl_weight"] == 100.0


@pytest.mark.parametrize(
    ("change", "colours", "message"),
    [
        ({"distillation": "fitnet"}, 1, "expected one of hads, hmds"),
        ({"distillation": "hmds"}, 1, "teacher_sigma_255"),
        ({}, 3, "teacher has colours 3, the student 1"),
    ],
)
def test_distiller_refuses_what_cannot_teach(change: dict[str, str], colours: int, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        Distiller(dataclasses.replace(HADS, **change), _teacher(colours=colours), CPU)
    with pytest.raises(BadOption, match="not the weights of an MDRN"):
        Distiller(HADS, {"x": torch.zeros(1)}, CPU)


def test_teacher_of_another_form_is_refused() -> None:
    fast = dataclasses.replace(TINY, channels=8, unshuffle=2)
    weights = dict(build_network(fast).state_dict())
    network = network_of(weights)
    assert (network.colours, network.channels, network.unshuffle, network.n_blocks) == (1, 8, 2, 1)
    network.load_state_dict(weights)
    with pytest.raises(BadOption, match="has channels 8, the student 64"):
        Distiller(HADS, weights, CPU)


def test_distillation_without_a_teacher_says_so(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="needs a teacher"):
        train(HADS, open_pack(pictures, tmp_path / "cache"), RunOptions(tmp_path / "run"))


def test_grow_blocks_deeper_network_starts_as_the_shallower_one() -> None:
    small = _teacher(blocks=1)
    network = network_of(small)
    network.load_state_dict(small)
    deep = build_network(dataclasses.replace(TINY, blocks=3))
    deep.load_state_dict(grow_blocks(small, deep.state_dict()))
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(deep(x), network(x))
        assert not torch.equal(deep(x), x)
    with pytest.raises(BadOption, match="as many or more blocks"):
        grow_blocks(dict(deep.state_dict()), build_network(TINY).state_dict())
