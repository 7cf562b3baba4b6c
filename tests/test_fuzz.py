"""The small run of tests/fuzz.py that every change gets; `make nightly` runs thousands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("count", "seed"), [(95, 2), pytest.param(2000, 3, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_mutated_files_and_corpora_end_as_picture_or_clean_failure(
    fuzz: ModuleType, tmp_path: Path, count: int, seed: int
) -> None:
    (tmp_path / "in").mkdir()
    files = fuzz.mutations(tmp_path / "in", count, seed) + fuzz.corpora(tmp_path / "in")
    wrong, states, longest = fuzz.run_all(files, tmp_path)
    assert wrong == []
    assert sum(states.values()) == len(files)
    assert states["failed"] > count / 4
    assert states["done"] > count / 10
    assert longest < 20


def test_mutations_are_the_same_for_the_same_seed(fuzz: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = fuzz.mutations(tmp_path / "a", 40, 1)
    again = fuzz.mutations(tmp_path / "b", 40, 1)
    other = fuzz.mutations(tmp_path / "c", 40, 2)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert [p.read_bytes() for p in first] != [p.read_bytes() for p in other]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("", "was not reported"),
        ("sys.exit(1)", "exit code 1"),
        ("print('Traceback', file=sys.stderr)", "a bug came out"),
        ("import os; os.abort()", "exit code -6"),
        ("tell('failed', 'no idea')", "names no file or no remedy"),
        ("tell('failed', name + ': x; y', seconds=30)", "hangs (30 s)"),
        (
            "tell('failed', name + ': is damaged or made to do harm: signal 11; get another')",
            "took the helper",
        ),
        ("tell('failed', name + ': x; y'); write(name)", "yet there is an output"),
        ("write('.mdrn-1.mdrn-part')", "was left behind"),
    ],
)
def test_fuzz_finds_what_is_planted(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, found: str
) -> None:
    (tmp_path / "in").mkdir()
    (file,) = fuzz.mutations(tmp_path / "in", 1, 1)
    prelude = f"""
import json, os, sys
name = {file.name!r}
out = sys.argv[sys.argv.index("-o") + 1]
def tell(state, reason, seconds=1):
    print(json.dumps(dict(event="file", source=name, state=state, reason=reason, seconds=seconds)))
def write(name):
    os.makedirs(out, exist_ok=True)
    open(os.path.join(out, name), "w").close()
"""
    monkeypatch.setattr(fuzz, "COMMAND", [sys.executable, "-c", prelude + code])
    wrong, _, _ = fuzz.run_all([file], tmp_path)
    assert any(found in text for text in wrong), wrong
