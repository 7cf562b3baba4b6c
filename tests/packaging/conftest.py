"""The four ways the package reaches a user, built once and installed into environments of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("wheel", "wheel from sdist", "editable")


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Run a command and return what it printed; a failure shows all of it."""
    done = subprocess.run(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_tree(target: Path, *names: str) -> Path:
    """Copy what belongs to the project (all of it, or the `names` at its top) and return the copy."""
    strays = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.mdrn-part", "*.pyc", "*.so")
    outside = {"build", "dist", "out", "runs"}
    target.mkdir()
    for source in sorted(ROOT.iterdir()):
        if names and source.name not in names:
            continue
        if source.name.startswith(".") or source.name in outside or source.name.endswith(".egg-info"):
            continue
        if source.is_dir():
            shutil.copytree(source, target / source.name, ignore=strays)
        else:
            shutil.copy2(source, target / source.name)
    return target


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: building writes into it, and tests may."""
    return copy_tree(tmp_path_factory.mktemp("packaging") / "tree")


@pytest.fixture(scope="session")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("build_sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheels(tree: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every way's wheel; an editable install is a wheel too, made by another hook of the build backend."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, unpacked)
    (source,) = unpacked.iterdir()
    built = {
        "wheel": _build("build_wheel", tree, tmp_path_factory.mktemp("wheel")),
        "wheel from sdist": _build("build_wheel", source, tmp_path_factory.mktemp("wheel-from-sdist")),
        "editable": _build("build_editable", tree, tmp_path_factory.mktemp("editable")),
    }
    assert tuple(built) == WAYS
    return built


@pytest.fixture(scope="session")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """Return `ask(way, code)`: run `code` where only that install exists; it prints JSON."""
    pythons: dict[str, Path] = {}

    def ask(way: str, code: str) -> Any:
        if way not in pythons:
            pythons[way] = _environment(tmp_path_factory.mktemp("environment"), wheels[way])
        # -I: neither the current folder nor PYTHONPATH may lend a hand. -B: the tree stays as it was copied.
        return json.loads(run([pythons[way], "-I", "-B", "-c", code], cwd=pythons[way].parent))

    return ask


def _build(hook: str, source: Path, target: Path) -> Path:
    """Call a hook of the build backend, as pip does; nothing is fetched."""
    code = f"import setuptools.build_meta as b; b.{hook}({os.fspath(target)!r})"
    run([sys.executable, "-c", code], cwd=source)
    (made,) = target.iterdir()
    return made


def _environment(folder: Path, wheel: Path) -> Path:
    """Make an environment that holds `wheel` and sees this one's third-party packages; return its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
    ]
    run([*pip, wheel], cwd=folder)
    where = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=folder)
    # A path line adds the folder only: the editable hook of this environment stays off.
    (Path(where.strip()) / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n", encoding="utf-8"
    )
    return python
