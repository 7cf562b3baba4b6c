"""The search for MWRCANet's block: what is drawn, what it costs, and the same end after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.mwrcanet import KINDS
from mdrn_plugin.training.command import main
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.loop import RunOptions, build_network
from mdrn_plugin.training.search import Search, multiplications, search

from .conftest import TINY, to_toml
from .test_raw_training import SMALL

BASE = dataclasses.replace(SMALL, name="base", steps=2, validate_pictures=1)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]


def _genome(name: str) -> dict[str, Any]:
    block, blocks, *widths = name.split("-")
    return {"block": block, "blocks": int(blocks), "widths": [int(w) for w in widths]}


def test_multiplications_are_torchs_own_count_but_for_the_wavelets() -> None:
    recipe = dataclasses.replace(BASE, blocks=2, widths=(32, 48, 64))
    network, x = build_network(recipe), torch.rand(1, 1, 64, 64)
    with FlopCounterMode(display=False) as counter:
        network(x, x)
    kmac, parameters = multiplications(recipe)
    assert kmac == pytest.approx(counter.get_total_flops() / 2 / 64**2 / 1000, rel=0.003)
    assert parameters == sum(p.numel() for p in network.parameters())


def test_search_keeps_to_the_budget_and_lets_the_best_have_children(pictures: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pack = open_pack(pictures, tmp_path / "cache")
    extent = Search(trials=7, population=4, budget_kmac=12.0, steps=2)
    found = search(BASE, pack, extent, RunOptions(tmp_path))
    assert [c.psnr for c in found] == sorted((c.psnr or 0 for c in found), reverse=True)
    lines = _lines(tmp_path)
    assert len({json.dumps(line["genome"]) for line in lines}) == 7
    assert lines[0]["genome"] == {"block": "attention", "blocks": 1, "widths": [8, 8, 8]}
    assert {line["genome"]["block"] for line in lines[:4]} == set(KINDS)
    assert all(line["kmac"] <= 12.0 for line in lines)
    assert [bool(line["parent"]) for line in lines] == [False] * 4 + [True] * 3
    for k, line in enumerate(lines[4:], 4):
        changed = [
            line["genome"][gene] != _genome(line["parent"])[gene] for gene in ("block", "blocks", "widths")
        ]
        assert sum(changed) == 1
        assert _genome(line["parent"]) in [earlier["genome"] for earlier in lines[k - 4 : k]]
    again = search(BASE, pack, extent, RunOptions(tmp_path))
    assert [c.genome for c in again] == [c.genome for c in found]
    minutes = [[line["minutes"] for line in log] for log in (lines, _lines(tmp_path))]
    assert minutes[0] == minutes[1]  # not trained anew


def test_search_killed_goes_on_to_the_same_end(pictures: Path, tmp_path: Path) -> None:
    recipe = to_toml(BASE, tmp_path / "base.toml")
    command = [sys.executable, "-m", "mdrn_plugin.training", "search", str(recipe), "--data", str(pictures)]
    command += ["--trials", "4", "--population", "2", "--steps", "6", "--budget", "12", "--threads", "1"]
    broken = subprocess.Popen([*command, "--out", str(tmp_path / "broken")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "broken/search.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    for name in ("broken", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    logs = [_lines(tmp_path / name) for name in ("broken", "whole")]
    found = [[(line["genome"], line["psnr"]) for line in log] for log in logs]
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_search_refuses_what_it_cannot_do(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdrn_plugin.training.search._DRAWS", 20)
    pack = open_pack(pictures, tmp_path / "cache")
    with pytest.raises(BadOption, match="only the blocks of mwrcanet"):
        search(TINY, pack, Search(), RunOptions(tmp_path))
    with pytest.raises(BadOption, match="at least 1"):
        search(BASE, pack, Search(trials=0), RunOptions(tmp_path))
    with pytest.raises(BadOption, match=r"within 0\.1 thousand"):
        search(BASE, pack, Search(trials=2, budget_kmac=0.1, steps=2), RunOptions(tmp_path))
    recipe = to_toml(TINY, tmp_path / "t.toml")
    assert main(["search", str(recipe), "--data", str(pictures), "--out", str(tmp_path)]) == 2
    assert "choose another recipe" in capsys.readouterr().err
