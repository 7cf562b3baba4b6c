"""Giving back to the system what the C library keeps of the memory that tiles were computed in."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

# What the heap may grow by before it is trimmed. Tiles of other sizes leave holes that the next ones do
# not fit into: without trimming a run over 16 megapixels held 830 MB of which 460 were in use.
_GROWTH = 32 << 20  # bytes
_STATM = "/proc/self/statm"


class Heap:
    """Watches the memory that this process has, and trims the heap when it has grown."""

    def __init__(self) -> None:
        self._trim = _find_trim()
        self._least: int | None = None

    def after_tile(self) -> None:
        """Trim the heap if the process has grown by much since it was smallest."""
        if self._trim is None:
            return
        now = resident()
        if self._least is not None and now > self._least + _GROWTH:
            self._trim(0)
            self._least = resident()
        elif self._least is None or now < self._least:
            self._least = now


def resident() -> int:
    """Return the bytes of memory that this process has now; 0 where the system does not say."""
    try:
        with open(_STATM, "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _find_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None on other systems, whose libraries give memory back themselves."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


HEAP = Heap()
