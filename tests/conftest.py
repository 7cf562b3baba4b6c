"""What every test may count on: the markers `data` and `viewer` skip where their needs are not met."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # napari reads and writes its settings at import; tests leave the user's alone.
    folder = Path(config.rootpath) / ".pytest_cache" / "napari"
    os.environ.setdefault("NAPARI_CONFIG", str(folder / "settings.yaml"))
    # Nor does it matter what this computer was tuned to.
    os.environ["MDRN_CACHE"] = str(Path(config.rootpath) / ".pytest_cache" / "no-cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    data = os.environ.get("MDRN_DATA", "")
    if not data or not Path(data).is_dir():
        skip = pytest.mark.skip(reason="MDRN_DATA is not set to the folder of picture sets")
        _mark(items, "data", skip)
    screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))
    if sys.platform == "linux" and not screen:
        _mark(items, "viewer", pytest.mark.skip(reason="no display: install xvfb"))


def _mark(items: list[pytest.Item], name: str, mark: pytest.MarkDecorator) -> None:
    for item in items:
        if item.get_closest_marker(name):
            item.add_marker(mark)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the tree."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of picture sets; use together with `pytest.mark.data`."""
    return Path(os.environ["MDRN_DATA"])
