"""The rules that keep the rooms apart really bite: each forbidden import, once made, is caught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, copy_tree

SCRIPTS = Path(sys.executable).parent

FORBIDDEN = [
    ("mdrn_plugin/formats/__init__.py", "import mdrn_plugin.noise", "Arrows point down the house"),
    ("mdrn_plugin/files.py", "from mdrn_plugin import picture", "Arrows point down the house"),
    ("mdrn_plugin/picture.py", "def lazy():\n    import training.recipe", "Arrows point down the house"),
    ("training/recipe.py", "from mdrn_plugin.cli import main as cli", "Arrows point down the house"),
    (
        "mdrn_plugin/noise/__init__.py",
        "from mdrn_plugin.networks import mdrn",
        "Pixels, files and noise know no models",
    ),
    ("mdrn_plugin/networks/__init__.py", "import numpy", "Networks know tensors and nothing else"),
]


@pytest.mark.parametrize(
    ("file", "line", "contract"), FORBIDDEN, ids=[f"{f}: {x.split()[-1]}" for f, x, _ in FORBIDDEN]
)
def test_forbidden_import_made_is_caught(tmp_path: Path, file: str, line: str, contract: str) -> None:
    tree = copy_tree(tmp_path / "tree", "mdrn_plugin", "training", "pyproject.toml")
    (tree / "mdrn_plugin" / "cli.py").touch()
    with open(tree / file, "a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")

    done = _lint_imports(tree)

    assert done.returncode != 0
    assert f"{contract} BROKEN" in done.stdout


def test_unchanged_tree_keeps_every_contract(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree", "mdrn_plugin", "training", "pyproject.toml")

    done = _lint_imports(tree)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("file", ["training/recipe.py", "mdrn_plugin/files.py"])
def test_wrong_type_in_either_root_is_caught_by_mypy(tmp_path: Path, file: str) -> None:
    tree = copy_tree(tmp_path / "tree", "mdrn_plugin", "training", "pyproject.toml")
    with open(tree / file, "a", encoding="utf-8") as stream:
        stream.write('\nwrong_type: int = "text"\n')

    # Imports are not followed: which files are checked is the question, and torch takes half a minute.
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)

    found = [row for row in done.stdout.replace("\\", "/").splitlines() if row.startswith(f"{file}:")]
    assert any("Incompatible types in assignment" in row for row in found), done.stdout


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("mdrn_plugin/pipeline.py", "import torch", "TID253"),
        ("mdrn_plugin/cli.py", "import tifffile", "TID253"),
        ("mdrn_plugin/batch/run.py", "import click", "TID251"),
        ("mdrn_plugin/pipeline.py", "def lazy() -> None:\n    import napari", "TID251"),
        ("mdrn_plugin/engine/run.py", "from mdrn_plugin.training import loop", "TID251"),
    ],
)
def test_import_in_the_wrong_room_is_caught_by_ruff(file: str, line: str, rule: str) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format=concise",
        "--stdin-filename",
        file,
        "-",
    ]
    done = subprocess.run(command, cwd=ROOT, input=line + "\n", capture_output=True, text=True)

    assert f" {rule} " in done.stdout


def _lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    program = SCRIPTS / ("lint-imports.exe" if sys.platform == "win32" else "lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=tree, capture_output=True, text=True, encoding="utf-8")
