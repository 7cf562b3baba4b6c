"""Starting is quick: neither the package nor the command loads what only work needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import ROOT

HEAVY = (
    "torch",
    "napari",
    "qtpy",
    "PySide6",
    "tifffile",
    "imagecodecs",
    "imageio",
    "rawpy",
    "scipy",
    "zarr",
    "dask",
)


@pytest.mark.parametrize("module", ["mdrn_plugin", "mdrn_plugin.cli", "mdrn_plugin.training.command"])
def test_import_loads_nothing_heavy(module: str) -> None:
    if module == "mdrn_plugin.cli" and not (ROOT / "mdrn_plugin" / "cli.py").exists():
        pytest.skip("there is no command yet")
    code = f"import json, sys, {module}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
