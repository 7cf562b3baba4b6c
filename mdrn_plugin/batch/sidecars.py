"""Settings that RAW developers keep beside a picture: copied beside its result."""

from __future__ import annotations

import os
from pathlib import Path

from mdrn_plugin.errors import CannotRead
from mdrn_plugin.files import write_bytes

_MOST_BYTES = 64 * 2**20  # larger ones are none
_SUFFIXES = (".xmp", ".XMP")


def copy_sidecars(source: Path, target: Path, *, overwrite: bool) -> list[Path]:
    """Copy ``name.xmp`` and ``name.NEF.xmp`` from beside `source` to beside `target`, under its name.

    Returns
    -------
    list of Path
        What was written. What is there already stays as it is unless `overwrite`.

    Raises
    ------
    CannotRead
        A sidecar cannot be read.
    OutputUnusable
        As of `files.write_atomic`.
    """
    written = []
    for suffix in _SUFFIXES:
        for found, wanted in (
            (source.with_suffix(suffix), target.with_suffix(".xmp")),
            (source.with_name(source.name + suffix), target.with_name(target.name + ".xmp")),
        ):
            if not found.is_file() or wanted in written or _same(found, wanted):
                continue
            if os.path.lexists(wanted) and not overwrite:
                continue
            try:
                data = found.read_bytes() if found.stat().st_size <= _MOST_BYTES else b""
            except OSError as error:
                raise CannotRead(f"{found}: cannot be read ({error.strerror}); check its rights") from error
            if data:
                write_bytes(wanted, data)
                written.append(wanted)
    return written


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
