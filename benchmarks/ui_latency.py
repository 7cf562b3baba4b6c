"""How long napari's window is kept waiting while the denoise panel works.

    python benchmarks/ui_latency.py [--planes 40] [--side 512] [--threads 1]

A timer of the Qt event loop asks for its turn every 5 ms; how much later it gets it is the latency,
that is how long the window could not answer. That is the sum of napari's drawing, of waiting for
the interpreter's lock and of a busy machine ("napari alone" shows how much there is without us), so
the longest stay in the panel's own code is printed too, and apart from it the time in which napari
takes in a new layer. Needs a display; xvfb will do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_TICK_MS = 5


class Meter:
    """Notes how late each turn of the event loop comes."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.late_ms: list[float] = []
        self.own: list[tuple[float, str]] = []  # ms that a method of the panel held the window
        self._last = time.perf_counter()
        self._napari_ms = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(_TICK_MS)
        self._timer.timeout.connect(self._tick)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.late_ms.append(max(0.0, 1000 * (now - self._last) - _TICK_MS))
        self._last = now

    def watch(self, widget: Any, names: tuple[str, ...]) -> None:
        """Time methods of a class each time that Qt calls them."""
        for name in names:
            setattr(widget, name, self._timed(name, getattr(widget, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began, napari_before = time.perf_counter(), self._napari_ms
            try:
                return method(*args, **options)
            finally:
                took = 1000 * (time.perf_counter() - began)
                if name == "_add":  # napari takes in a layer: its controls, its texture
                    self._napari_ms += took
                else:
                    self.own.append((took - (self._napari_ms - napari_before), name))

        return timed

    def measure(self, name: str, until: Callable[[], bool], seconds: float = 600) -> float:
        """Let Qt work until the condition holds, print what was seen, return the worst in ms."""
        from qtpy.QtWidgets import QApplication

        self.late_ms, self.own, self._napari_ms = [], [], 0.0
        self._last = began = time.perf_counter()
        self._timer.start()
        while not until() and time.perf_counter() - began < seconds:
            QApplication.processEvents()
            time.sleep(0.0005)
        self._timer.stop()
        late = np.array(self.late_ms or [0.0])
        print(
            f"{name:34} {time.perf_counter() - began:7.1f} s  median {np.median(late):6.1f} ms  "
            f"99 % {np.percentile(late, 99):6.1f} ms  worst {late.max():7.1f} ms  over 50 ms: "
            f"{int((late > 50).sum())} of {len(late)}",
            flush=True,
        )
        longest, method = max(self.own, default=(0.0, "none"))
        print(
            f"{'':34} in the panel's own code: worst {longest:.1f} ms ({method}); "
            f"adding layers to napari: {self._napari_ms:.0f} ms"
        )
        return longest


def main() -> int:
    """Print the table; 1 if the run kept the window waiting for more than 50 ms."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--planes", type=int, default=40)
    parser.add_argument("--side", type=int, default=512, help="px")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the run")
    wishes = parser.parse_args()

    import napari

    from mdrn_plugin.viewer import preferences
    from mdrn_plugin.viewer.denoise_widget import DenoiseWidget

    rng = np.random.default_rng(0)
    shape = (wishes.planes, wishes.side, wishes.side)
    pixels = rng.normal(120, 20, shape).clip(0, 255).astype(np.uint8)
    viewer: Any = napari.Viewer(show=True)
    viewer.add_image(pixels, name="noisy", contrast_limits=(0, 255))
    meter = Meter()
    chosen = preferences.Preferences(threads=wishes.threads)
    preferences.load = lambda: chosen

    def after(seconds: float) -> Callable[[], bool]:
        end = time.perf_counter() + seconds
        return lambda: time.perf_counter() > end

    meter.measure("settling", after(2))
    meter.measure("napari alone", after(3))
    meter.watch(
        DenoiseWidget,
        (
            "__init__",
            "_look",
            "_looked",
            "_preview",
            "_previewed",
            "_on_run",
            "_show_progress",
            "_ran",
            "_add",
        ),
    )
    widget = DenoiseWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Denoise")
    meter.measure("panel opened, torch loaded", lambda: widget._finding is not None)
    meter.measure("settling", after(1))
    widget.preview.value = True
    meter.measure("preview", lambda: widget._shown is not None)
    widget.preview.value = False
    meter.measure("settling", after(1))
    widget.run.native.click()
    worst = meter.measure("run", lambda: not widget._runner.busy)
    meter.measure("new layer drawn", after(1))
    print(f"{widget.status.value}; {viewer.layers[-1].name}")
    viewer.close()
    return int(worst > 50)


if __name__ == "__main__":
    sys.exit(main())
