"""Opening the libraries that are compiled along where there is a C compiler."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SWITCH = "MDRN_KERNEL"


class OptionalLibrary:
    """A library that may be missing or of no use on this machine; looked for once, when first asked for.

    Parameters
    ----------
    look : callable
        Returns the library and "", or None and why not, in a few words.
    """

    def __init__(self, look: Callable[[], tuple[ctypes.CDLL | None, str]]) -> None:
        self._look = look
        self._found: tuple[ctypes.CDLL | None, str] | None = None

    def _find(self) -> tuple[ctypes.CDLL | None, str]:
        if self._found is None:
            self._found = self._look()
        return self._found

    def library(self) -> ctypes.CDLL | None:
        """Return the library; None where it is missing or this machine cannot run it."""
        return self._find()[0]

    def why_not(self) -> str:
        """Return why `library` is None, in a few words; empty if it is not."""
        return self._find()[1]

    def forget(self) -> None:
        """Look anew when next asked."""
        self._found = None


def open_library(place: Path, interface: str, version: int) -> tuple[ctypes.CDLL | None, str]:
    """Return a library, or None and why not, in a few words.

    Parameters
    ----------
    place : Path
        Its file.
    interface : str
        The function that says which version of the interface it has.
    version : int
        The one that the caller knows.
    """
    if os.environ.get(_SWITCH, "").lower() == "off":
        return None, f"switched off by {_SWITCH}"
    if not place.exists():
        return None, "not compiled"
    try:
        found = ctypes.CDLL(os.fspath(place))
        if getattr(found, interface)() != version:
            return None, "compiled from another version"
    except (OSError, AttributeError):
        return None, "does not load"
    return found, ""
