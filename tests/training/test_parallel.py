"""Two processes that train together compute what one does alone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mdrn_plugin.errors import BadOption
from mdrn_plugin.training.data import CropRules, Crops, open_pack
from mdrn_plugin.training.degrade import add_awgn
from mdrn_plugin.training.parallel import Ranks

from .conftest import TINY, read_log, to_toml


def test_shares_of_a_batch_are_the_batch(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    crops = Crops(pack, [0, 1, 2], CropRules(patch=16), seed=3)
    whole = crops.batch(7, 4)
    noisy, sigma = add_awgn(whole, (0, 50), 1, 7)
    for rank in range(2):
        share = Ranks(rank, 2).share(4)
        part = crops.batch(7, 4, share)
        assert torch.equal(part, whole[share])
        part_noisy, part_sigma = add_awgn(part, (0, 50), 1, 7, 4, share)
        assert torch.equal(part_noisy, noisy[share])
        assert torch.equal(part_sigma, sigma[share])


def test_share_refuses_unequal_parts() -> None:
    with pytest.raises(BadOption, match="cannot be shared equally by 3"):
        Ranks(0, 3).share(16)


# In bfloat16 the losses of halves of a batch may differ from those of the whole by more than a percent.
IN_FLOAT32 = """
from mdrn_plugin.engine import device

device.multiplies_bf16 = lambda kind: False

from mdrn_plugin.training import kernel
from mdrn_plugin.training.command import main

kernel.fits = lambda network, device: False

raise SystemExit(main())
"""


def test_two_processes_compute_what_one_does(pictures: Path, tmp_path: Path) -> None:
    recipe = to_toml(dataclasses.replace(TINY, batch=4, steps=20), tmp_path / "tiny.toml")
    script = tmp_path / "train.py"
    script.write_text(IN_FLOAT32)
    run = [str(script), "run", str(recipe), "--data", str(pictures), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = [sys.executable, *run, "--out", str(tmp_path / "one")]
    assert subprocess.run(one, env=environment).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [*torchrun, *run, "--out", str(tmp_path / "two")]
    done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    losses = [[x["loss"] for x in read_log(tmp_path / k) if "loss" in x] for k in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # sums in another order
    name = f"{TINY.name}.safetensors"
    a, b = (load_file(tmp_path / k / name) for k in ("one", "two"))
    distance = torch.cat([(a[k].float() - b[k].float()).flatten() for k in a]).norm()
    moved = torch.cat([a[k].float().flatten() for k in a]).norm()
    assert float(distance / moved) < 0.05
