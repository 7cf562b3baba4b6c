"""Opening the libraries that are compiled along where there is a C compiler."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SWITCH = "MDRN_KERNEL"


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
