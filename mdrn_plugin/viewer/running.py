"""One function at a time away from the UI thread, its progress, and its errors in words."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from mdrn_plugin.errors import Cancelled, MdrnError

Stop = Callable[[], bool]


@dataclasses.dataclass(slots=True)
class _Outcome:
    value: Any = None
    error: Exception | None = None
    over: bool = False


class Runner:
    """Runs the newest request; an older one that still runs is told to stop first.

    A thread of napari's pool does the work, so that napari shows it as busy and stops it when the
    window closes. The function never raises into Qt: its error comes to `failed`.

    Parameters
    ----------
    done : callable
        Called on the UI thread with what the function returned.
    failed : callable
        Called on the UI thread with the exception; `Cancelled` if the function heard `stop`.
    """

    def __init__(self, done: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        self._done, self._failed = done, failed
        self._worker: Any = None
        self._waiting: Callable[[Stop], Any] | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return self._worker is not None

    def submit(self, function: Callable[[Stop], Any]) -> None:
        """Run ``function(stop)`` as soon as what runs now has stopped."""
        if self._closed:
            return
        if self._worker is not None:
            self._waiting = function
            self._worker.quit()
            return
        self._start(function)

    def stop(self) -> None:
        """Tell what runs to stop, and forget what waits."""
        self._waiting = None
        if self._worker is not None:
            self._worker.quit()

    def close(self) -> None:
        """Stop for good: nobody is there to be told."""
        self._closed = True
        self.stop()

    def _start(self, function: Callable[[Stop], Any]) -> None:
        from napari.qt.threading import create_worker

        outcome = _Outcome()

        def denoising() -> None:
            try:
                outcome.value = function(lambda: bool(worker.abort_requested))
            except Exception as error:  # noqa: BLE001  # reported on the UI thread
                outcome.error = error
            outcome.over = True

        worker: Any = create_worker(denoising)
        worker.finished.connect(lambda: self._ended(outcome))
        self._worker = worker
        worker.start()

    def _ended(self, outcome: _Outcome) -> None:
        quit_asked = bool(self._worker.abort_requested) if self._worker is not None else True
        self._worker = None
        if self._closed:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._start(waiting)
            return
        if not outcome.over:  # napari took it out of the queue
            self._failed(Cancelled("stopped on request"))
        elif outcome.error is not None:
            self._failed(outcome.error)
        elif quit_asked:
            self._failed(Cancelled("stopped on request"))
        else:
            self._done(outcome.value)


class Gauge:
    """How far a run is; written by one thread, read by another."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._began = self._first = 0.0
        self._first_done = 0

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` tiles are finished; to be given to the core."""
        if not self._first:
            # The first tile pays for loading and warming up: time is counted from its end.
            self._first, self._first_done = time.perf_counter(), done
        self.done, self.total = done, total

    def text(self) -> str:
        """Say how many tiles are done and how long the rest will take."""
        if not self.total:
            return "Starting …"
        told = f"{self.done} of {self.total} tiles"
        further = self.done - self._first_done
        if further < 1 or self.done >= self.total:
            return told
        left = (time.perf_counter() - self._first) / further * (self.total - self.done)
        return f"{told}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a time as people say it: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def in_words(error: Exception) -> str:
    """Return an error in words a user can act on."""
    if isinstance(error, MdrnError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory; close other programs, or denoise fewer planes"
    return f"unexpected {type(error).__name__}: {error}; please report this as a bug"


def tell(error: Exception) -> str:
    """Show an error as a napari notification, and return its text."""
    from napari.utils.notifications import show_error

    text = in_words(error)
    if text.startswith("unexpected "):
        logging.getLogger("mdrn_plugin").error("in the napari plugin", exc_info=error)
    show_error(f"MDRN: {text}")
    return text
