"""One noise for a whole series: pictures that belong together are denoised alike.

Pictures are like each other if they lie in one folder and agree in type, channels, colours and,
for integers, in range; of RAW files, in filters and ISO. The noise of a series is that of one of
its pictures, the median of a few spread over the folder. Which one is noted in the ledger, so that a
run that goes on, or another run on the same folder, takes the same.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.errors import Cancelled, MdrnError

if TYPE_CHECKING:
    from mdrn_plugin.batch.ledger import Ledger
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, ValueRange

_LOOKED_AT = 5  # pictures of a folder that are measured


class SeriesNoise:
    """The noise of every series of a run.

    Parameters
    ----------
    ledger : Ledger
        Where the choice is noted.
    digest : str
        Of the settings.
    options : Options
    read : callable
        Returns the picture of a path.
    """

    def __init__(
        self,
        ledger: Ledger,
        digest: str,
        options: Options,
        read: Callable[[str | os.PathLike[str]], Picture],
    ) -> None:
        self._ledger, self._digest, self._options, self._read = ledger, digest, options, read
        self._files: dict[Path, list[Path]] = {}
        self._known: dict[str, tuple[ValueRange, tuple[NoiseProfile, ...]]] = {}

    def add(self, sources: Iterable[Path]) -> None:
        """Make files known before any of them is asked for."""
        for source in sources:
            self._files.setdefault(source.parent, []).append(source)

    def of(self, source: Path, picture: Picture) -> tuple[Picture, tuple[NoiseProfile, ...]]:
        """Return the picture with the range of its series, and the noise of it, one per channel (C)."""
        name = self._name(source, picture)
        if name not in self._known:
            self._known[name] = self._decide(name, source, picture)
        value_range, profiles = self._known[name]
        return dataclasses.replace(picture, range=value_range), profiles

    def _name(self, source: Path, picture: Picture) -> str:
        dtype = np.dtype(picture.pixels.dtype)
        kind = f"{dtype.name} {picture.length('C')} {picture.colours}"
        if dtype.kind != "f":  # floats come in a range of their own each: the series has one
            kind += f" {picture.range.black:g} {picture.range.white:g}"
        if picture.mosaic is not None:
            kind += f" {picture.mosaic.name}"
        if iso := getattr(picture.metadata, "iso", None):  # another amplification is another noise
            kind += f" ISO {iso:g}"
        folder = os.path.abspath(source.parent)
        return f"{folder} ({kind}) {self._digest}"

    def _decide(
        self, name: str, source: Path, picture: Picture
    ) -> tuple[ValueRange, tuple[NoiseProfile, ...]]:
        noted = self._ledger.series(name)
        if noted is None:
            found = self._measure_some(name, source)
            noted = self._ledger.set_series(name, found[len(found) // 2] if found else source)
        reference = self._like(name, Path(noted))
        return self._measured(picture if reference is None else reference)

    def _measure_some(self, name: str, source: Path) -> list[Path]:
        """Return some files of the series, by their noise."""
        files = sorted(self._files.get(source.parent, [source]))
        chosen = [files[round(k)] for k in np.linspace(0, len(files) - 1, min(_LOOKED_AT, len(files)))]
        levels = []
        for file in chosen:
            picture = self._like(name, file)
            if picture is not None:
                value_range, profiles = self._measured(picture)
                unit = value_range.white - value_range.black
                sigmas = [unit * s for p in profiles for s in p.sigma]
                levels.append((math.sqrt(sum(s * s for s in sigmas) / len(sigmas)), file))
        return [file for _, file in sorted(levels)]

    def _like(self, name: str, file: Path) -> Picture | None:
        """Read a file if it is one of the series."""
        try:
            picture = self._read(file)
        except Cancelled:
            raise
        except MdrnError:
            return None
        return picture if self._name(file, picture) == name else None

    def _measured(self, picture: Picture) -> tuple[ValueRange, tuple[NoiseProfile, ...]]:
        from mdrn_plugin.pipeline import measure

        return picture.range, measure(picture, self._options)
