"""Make docs/images/napari-*.png from the real viewer: each panel 360 px wide, dark and light.

xvfb-run -s "-screen 0 1600x1200x24" python scripts/screenshots.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

WIDTH_PX = 360


def main() -> None:
    """Write the pictures."""
    default = Path(__file__).resolve().parent.parent / "docs" / "images"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)

    import napari

    viewer: Any = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1240, 820)
    for theme in ("dark", "light"):
        viewer.theme = theme
        denoise(viewer, folder, theme)
        batch(viewer, folder, theme)
        train(viewer, folder, theme)
    viewer.close()


def denoise(viewer: Any, folder: Path, theme: str) -> None:
    """Show the panel with a preview, during a run, and after it."""
    from mdrn_plugin.viewer.denoise_widget import CHOSEN, DenoiseWidget

    viewer.open_sample("mdrn-plugin", "cells")
    widget = dock(viewer, DenoiseWidget(viewer), "Denoise (MDRN)")
    wait(lambda: widget._finding is not None)
    viewer.reset_view()
    widget.preview.value = True
    wait(lambda: widget._preview_layer is not None)
    wait(lambda: False, 1)
    if theme == "dark":
        save(viewer.window._qt_window, folder / "napari-viewer.png")
    save(widget.native, folder / f"napari-denoise-preview-{theme}.png")
    widget.preview.value = False
    widget.form.noise.value = "dn"
    widget.form.level.value = 9
    widget.apply.value = CHOSEN
    wait(lambda: "as given" in widget.finding.value)
    widget.residual.value = True
    widget.run.native.click()
    wait(lambda: widget._gauge.done >= 3)
    wait(lambda: False, 0.4)
    save(widget.native, folder / f"napari-denoise-run-{theme}.png")
    wait(lambda: not widget._runner.busy)
    wait(lambda: False, 0.3)
    save(widget.native, folder / f"napari-denoise-done-{theme}.png")
    clear(viewer)


def batch(viewer: Any, folder: Path, theme: str) -> None:
    """Show the panel after some of a folder is done, and at the end."""
    from mdrn_plugin.viewer.batch_widget import BatchWidget

    with tempfile.TemporaryDirectory() as place:
        here = Path.cwd()
        os.chdir(place)  # so that the pictures show a short path
        pictures = Path("microscope")
        pictures.mkdir()
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:256, :256]
        clean = 120 + 60 * np.sin(x / 19) * np.sin(y / 23)
        for k in range(5):
            noisy = (clean + rng.normal(0, 10 + 4 * k, clean.shape)).clip(0, 255).astype(np.uint8)
            Picture.fromarray(noisy).save(pictures / f"sample-{k:03d}.png")
        (pictures / "sample-005.png").write_bytes((pictures / "sample-004.png").read_bytes()[:5000])
        widget = dock(viewer, BatchWidget(viewer), "Denoise folders (MDRN)")
        widget.folder.line_edit.value = str(pictures)
        wait(lambda: len(widget.model.rows) == 6)
        widget.start.native.click()
        wait(lambda: len(widget._outcomes) >= 3)
        save(widget.native, folder / f"napari-batch-run-{theme}.png")
        wait(lambda: not widget._runner.busy)
        wait(lambda: False, 0.8)
        save(widget.native, folder / f"napari-batch-done-{theme}.png")
        clear(viewer)
        os.chdir(here)


def train(viewer: Any, folder: Path, theme: str) -> None:
    """Show the panel a few steps into a training."""
    from mdrn_plugin.viewer.train_widget import TrainWidget

    viewer.open_sample("mdrn-plugin", "cells")
    widget = dock(viewer, TrainWidget(viewer), "Train on my images (MDRN)")
    with tempfile.TemporaryDirectory() as place:
        os.environ["MDRN_MODELS"] = place
        widget.train.native.click()
        wait(lambda: "step" in widget._stage)
        wait(lambda: False, 1.5)
        save(widget.native, folder / f"napari-train-{theme}.png")
        widget.cancel.native.click()
        wait(lambda: not widget._runner.busy)
        print(widget.status.value)
        del os.environ["MDRN_MODELS"]
    clear(viewer)


def dock(viewer: Any, widget: Any, name: str) -> Any:
    """Dock a panel at the width that must suffice."""
    place = viewer.window.add_dock_widget(widget, name=name, area="right")
    place.setFixedWidth(WIDTH_PX)
    wait(lambda: False, 0.3)
    return widget


def clear(viewer: Any) -> None:
    """Make the viewer empty again."""
    viewer.window.remove_dock_widget("all")
    viewer.layers.clear()
    wait(lambda: False, 0.2)


def save(native: Any, path: Path) -> None:
    """Write what a Qt widget shows."""
    native.grab().save(str(path))
    print(path.name, native.width(), "x", native.height())


def wait(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Let Qt work until the condition holds."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.005)


if __name__ == "__main__":
    main()
