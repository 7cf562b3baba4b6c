"""A real napari viewer, made once; every test gets it empty."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

Wait = Callable[..., bool]


def wait(condition: Callable[[], Any], seconds: float = 60) -> bool:
    """Let Qt work until the condition holds; false if it never did."""
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while True:
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        if condition():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.005)


@pytest.fixture(scope="session", name="wait")
def wait_fixture() -> Wait:
    return wait


def _qt_takes_none_apart() -> bool:
    """Whether this Qt loses a reference to None with every call, which kills Python below 3.12 in minutes.

    PySide6 6.12.0 does.
    """
    from qtpy.QtCore import QObject

    thing = QObject()
    before = sys.getrefcount(None)
    for _ in range(100):
        thing.setObjectName("a")
    return sys.getrefcount(None) < before - 50 and sys.version_info < (3, 12)


@pytest.fixture(scope="session")
def _viewer() -> Iterator[Any]:
    napari = pytest.importorskip("napari")
    pytest.importorskip("PySide6")
    if _qt_takes_none_apart():
        pytest.skip("this PySide6 crashes Python below 3.12: install another, such as 6.11.3")
    os.environ.setdefault("NAPARI_CATCH_ERRORS", "0")
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()
    wait(lambda: False, 0.1)


@pytest.fixture
def viewer(_viewer: Any) -> Iterator[Any]:
    yield _viewer
    from superqt.utils._qthreading import WorkerBase

    _viewer.window.remove_dock_widget("all")
    _viewer.layers.clear()
    wait(lambda: not WorkerBase._worker_set, 20)


@pytest.fixture
def notices() -> Iterator[list[str]]:
    """What napari showed to the user."""
    from napari.utils.notifications import notification_manager

    seen: list[str] = []

    def hear(notice: Any) -> None:
        seen.append(str(notice.message))

    notification_manager.notification_ready.connect(hear)
    yield seen
    notification_manager.notification_ready.disconnect(hear)


def noisy(*shape: int, seed: int = 0, sigma: float = 20, dtype: Any = np.uint8) -> Any:
    """A smooth scene of 0..255 with white noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    clean = 120 + 60 * np.sin(x / 9) * np.sin(y / 13)
    values = clean + rng.normal(0, sigma, shape)
    return np.clip(np.rint(values), 0, 255).astype(dtype)
