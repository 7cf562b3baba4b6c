"""Doing files as they appear in a folder, each once it is completely written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mdrn_plugin.batch.jobs import Failure, Job, Jobs
from mdrn_plugin.errors import BadOption, Cancelled

if TYPE_CHECKING:
    from mdrn_plugin.batch.run import Session

try:
    import fcntl
except ImportError:  # Windows: a file that is being written cannot be opened there, most often
    fcntl = None  # type: ignore[assignment]

LOOK_S = 1.0  # between looks at the folder, or ten times what a look takes
SETTLED_S = 2.0  # size and date have not changed for so long: written
EMPTY_S = 30.0  # the same for a file without a byte: most likely its writer has not begun
OLD_S = 10.0  # changed longer ago than this when first seen: was there before

_Signature = tuple[int, int, int]


class Watcher:
    """Finds what is new, and only when it is complete.

    Parameters
    ----------
    collect : callable
        Returns all jobs there are now.
    note : callable
        Called with a line about something that keeps files from being done.
    """

    def __init__(self, collect: Callable[[], Jobs], note: Callable[[str], None]) -> None:
        self._collect, self._note = collect, note
        self._handled: dict[Path, _Signature] = {}
        self._seen: dict[Path, tuple[_Signature, float]] = {}  # and since when it is like that
        self._said: set[str] = set()
        self.seconds = 0.0  # that the last look took

    def look(self) -> Jobs:
        """Return the jobs whose inputs are new or changed, and complete."""
        began = time.monotonic()
        try:
            jobs = self._collect()
        except BadOption as error:  # such as two inputs for one output: the user can rename one
            self._say(str(error))
            jobs = Jobs((), ())
        failures = tuple(f for f in jobs.failures if self._is_news(f))
        ready = tuple(job for job in jobs.jobs if self._is_ready(job))
        self.seconds = time.monotonic() - began
        return Jobs(ready, failures)

    def _is_news(self, failure: Failure) -> bool:
        known = failure.reason in self._said
        self._said.add(failure.reason)
        return not known

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._note(text)

    def _is_ready(self, job: Job) -> bool:
        try:
            state = os.stat(job.source)
        except OSError:
            return False  # gone again, or a link to nothing yet
        now = time.monotonic()
        signature = (state.st_size, state.st_mtime_ns, state.st_ino)
        if self._handled.get(job.source) == signature:
            return False
        known = self._seen.get(job.source)
        if known is None or known[0] != signature:
            old = time.time() - state.st_mtime > OLD_S and known is None
            self._seen[job.source] = known = (signature, now - OLD_S if old else now)
        wait = EMPTY_S if state.st_size == 0 else SETTLED_S
        if now - known[1] < wait or (stat.S_ISREG(state.st_mode) and is_being_written(job.source)):
            return False
        self._handled[job.source] = signature
        self._seen.pop(job.source)
        return True


def watch(
    session: Session,
    watcher: Watcher,
    *,
    stop: Callable[[], bool],
    rested: Callable[[], None],
) -> None:
    """Do files as they appear, until `stop` says so.

    Parameters
    ----------
    session : Session
        Does them.
    watcher : Watcher
        Finds them.
    stop : callable
        Asked several times a second.
    rested : callable
        Called when all that was found is done.

    Raises
    ------
    Cancelled
        Always, at the end: nothing else ends a watch.
    OutputUnusable
        From the session.
    """
    while not stop():
        jobs = watcher.look()
        if jobs.jobs or jobs.failures:
            session.work(jobs)
            rested()
        end = time.monotonic() + max(LOOK_S, 10 * watcher.seconds)
        while time.monotonic() < end and not stop():
            time.sleep(0.1)
    raise Cancelled("stopped watching on request")


def is_being_written(path: Path) -> bool:
    """Whether some process has the file open for writing; false where that cannot be found out.

    Notes
    -----
    Linux grants a read lease only on a file that nobody can write to (fcntl(2), F_SETLEASE).
    """
    if fcntl is None or not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False  # the reader will say why
    try:
        # A writer that comes this very moment breaks the lease by a signal. The usual one, SIGIO,
        # would end the program; this one is ignored unless someone asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False
