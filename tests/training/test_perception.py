"""The loss on RAW features: zero at the truth, gradients to the student alone, through the loop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.fan import FAN
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.networks.mwrcanet import MWRCANet
from mdrn_plugin.training import loop
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.loop import RunOptions, train
from mdrn_plugin.training.perception import KIND, FeatureLoss

from .conftest import read_log
from .test_raw_training import FAN as RECIPE

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
STUDENT = dataclasses.replace(RECIPE, distillation=KIND, teacher="teacher", kdl_weight=0.1)


@pytest.mark.parametrize("teacher", [FAN(), FAN(noise_map=False), MWRCANet(1, 1, (8, 8, 8), noise_map=True)])
def test_feature_loss_is_zero_at_the_truth_and_moves_only_the_result(teacher: Any) -> None:
    torch.manual_seed(0)
    clean, std = torch.rand(2, 1, 4, 16, 16)
    loss = FeatureLoss(STUDENT, teacher, CPU)
    assert float(loss.loss(clean, clean, std)) == 0
    out = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
    loss.loss(out, clean, std).backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    assert float(out.grad.abs().max()) > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_feature_loss_refuses_other_networks() -> None:
    with pytest.raises(BadOption, match="RAW teacher"):
        FeatureLoss(STUDENT, MDRN(1, 1, 16), CPU)
    with pytest.raises(BadOption, match="for mosaics"):
        FeatureLoss(STUDENT, MWRCANet(3, 1, (8, 8, 8)), CPU)
    with pytest.raises(BadOption, match="is for FAN"):
        FeatureLoss(dataclasses.replace(STUDENT, architecture="mdrn"), FAN(), CPU)


def test_train_with_feature_loss(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = dataclasses.replace(
        RECIPE, name="teacher", architecture="mwrcanet", colours=1, blocks=1, widths=(8, 8, 8)
    )
    monkeypatch.setattr(loop, "load_recipe", lambda name: teacher)
    weights = dict(loop.build_network(teacher).state_dict())
    pack = open_pack(pictures, tmp_path / "cache")
    short = dataclasses.replace(STUDENT, steps=10, validate_every=100)
    train(short, pack, RunOptions(tmp_path / "with"), teacher=weights)
    train(dataclasses.replace(short, kdl_weight=0.0), pack, RunOptions(tmp_path / "without"), teacher=weights)
    first = [
        next(line["loss"] for line in read_log(tmp_path / run) if "loss" in line)
        for run in ("with", "without")
    ]
    assert first[0] > first[1]
    with pytest.raises(BadOption, match="needs a teacher"):
        train(short, pack, RunOptions(tmp_path / "none"))
