"""plan, run and merge-report from outside: what they print, say and return."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mdrn_plugin import cli
from mdrn_plugin.batch import blocks

pytest.importorskip("zarr")
from tiny_zoo import make_models
from zarr_samples import make_store, noisy

Run = Callable[..., tuple[int, str, str]]
WISHES = ("--model", "tiny", "--threads", "1", "--tile", "64", "--noise", "20")


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("MDRN_MODELS", str(make_models(tmp_path / "models")))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mdrn-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "v.zarr", noisy((2, 70, 60), np.uint8), "zyx")


def test_plan_run_and_merge_do_a_volume(batch: Run, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, said = batch("plan", store, out, *WISHES)
    plan = Path(text.strip())
    assert code == 0
    assert plan.is_file()
    assert "2 Z x 70 Y x 60 X, 4 blocks, 1 levels" in said
    assert batch("plan", store, out, *WISHES, "--blocks", "-q")[1:] == ("4\n", "")
    code, _, said = batch("merge-report", plan)
    assert code == 3
    assert "4 of 4 blocks are not done" in said
    for i in (2, 1):
        code, text, said = batch("run", plan, "--shard", f"{i}/2")
        assert (code, text) == (0, "")
        assert "2 blocks done" in said
    code, text, _ = batch("merge-report", plan)
    report = json.loads(text)
    assert code == 0
    assert (report["blocks"], report["axes"], report["shape"]) == (4, "ZYX", [2, 70, 60])
    assert batch("merge-report", plan)[:2] == (0, text)
    code, _, said = batch("denoise", store, "-o", out, *WISHES)
    assert code == 0
    assert "1 done before" in said


def test_wrong_use_is_said(batch: Run, store: Path, tmp_path: Path) -> None:
    plan = batch("plan", store, tmp_path / "out", *WISHES)[1].strip()
    for arguments, words in (
        (("run", plan, "--shard", "2"), "expected I/N"),
        (("run", plan, "--shard", "0/4"), "expected 1/4"),
        (("run", plan, "--shard", "1/4", "--cluster", "local:2"), "contradict"),
        (("plan", tmp_path / "none.zarr", tmp_path / "out"), "no such file"),
        (("plan", store, store / "out"), "lies in it"),
        (("plan", tmp_path, tmp_path / "out"), "expected one volume"),
    ):
        make_store(tmp_path / "w.zarr", noisy((70, 60), np.uint8), "yx")
        code, _, said = batch(*arguments)
        assert code == 2, arguments
        assert words in said
    assert batch("run", tmp_path / "none.json")[0] == 3


def test_info_and_dry_run_of_a_large_store_look_at_windows_only(
    batch: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks.open_if_large, "__defaults__", (1000,))
    from mdrn_plugin import formats

    monkeypatch.setattr(formats, "read", None)
    code, text, _ = batch("info", store, *WISHES)
    assert code == 0
    assert "zarr, 2 Z x 70 Y x 60 X, uint8" in text
    assert json.loads(batch("info", store, *WISHES, "--json")[1])["shape"] == [2, 70, 60]
    code, text, _ = batch("denoise", store, "-o", tmp_path / "out", "--dry-run", *WISHES)
    assert code == 0
    assert "model tiny" in text
