"""What decides the output of a volume: its plan, the grid of blocks, the sample that was looked at."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin import __version__, formats
from mdrn_plugin.errors import NotSupported
from mdrn_plugin.formats import zarr_write
from mdrn_plugin.formats.zarr_write import Layout, Level
from mdrn_plugin.noise.blocks import spread
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.picture import Picture, ValueRange, decide_range
from mdrn_plugin.plan import Plan, Refinement, Scale, Step

if TYPE_CHECKING:
    from mdrn_plugin.options import Options
    from mdrn_plugin.zoo import Zoo

PLAN_FORMAT = 1
# Windows that the noise is measured on: as many planes as the estimate looks at, and a megapixel each.
_WINDOWS = 8
_WINDOW_PX = 1024
_CANDIDATES = 4  # per plane and side, of a plane that is larger than a window

# A petapixel, or these planes: more than that is no volume but a made-up header.
_MAX_PIXELS = 10**15
_MAX_PLANES = 10_000_000

Place = tuple[slice, ...]


# --- the grid ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one level: each a box of whole shards.

    Attributes
    ----------
    level : Level
        Shape and shards, values along each axis of the store.
    factors : tuple of int
        Shards of a block along each axis.
    """

    level: Level
    factors: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        sides = zip(self.level.shape, self.level.shards, self.factors, strict=True)
        return tuple(-(-n // (shard * factor)) for n, shard, factor in sides)

    def __len__(self) -> int:
        """All blocks."""
        return math.prod(self.counts)

    def region(self, number: int) -> Place:
        """Return the place of a block in the array, from its number in row-major order."""
        if not 0 <= number < len(self):
            raise AssertionError(f"block {number}: there are {len(self)}")
        place = np.unravel_index(number, self.counts)
        sides = zip(place, self.level.shape, self.level.shards, self.factors, strict=True)
        return tuple(
            slice(int(i) * shard * factor, min(n, (int(i) + 1) * shard * factor))
            for i, n, shard, factor in sides
        )


def grid_for(level: Level, axes: str, multiple: int, side: int) -> Grid:
    """Choose the blocks of a level: about `side` px in Y and X, beginning at multiples of `multiple`.

    Parameters
    ----------
    level : Level
        What is cut.
    axes : str
        Of the store.
    multiple : int
        The networks' grid, px; see `engine.windows.grid_of_plan`.
    side : int
        Wished for, px; more where a shard has more.
    """
    factors = []
    for axis, length, shard in zip(axes, level.shape, level.shards, strict=True):
        if axis not in "YX" or shard >= length:
            factors.append(1)
            continue
        least = math.lcm(shard, multiple) // shard
        factors.append(max(1, side // (shard * least)) * least)
    return Grid(level, tuple(factors))


# --- the plan ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class VolumePlan:
    """All that decides the output of a volume; what ``plan.json`` holds.

    Attributes
    ----------
    version : str
        Of this program.
    source, target : str
        Absolute paths.
    source_key : str
        Says whether the source is what it was: sizes and dates of its metadata.
    settings : str
        Digest of what the user wished, for the ledger.
    axes : str
        Of the source.
    shape : tuple of int
        Of the source.
    range : ValueRange
    profiles : tuple of NoiseProfile
        One per channel.
    plan : Plan
        Its threads, precision and tiles hold for every worker.
    layout : Layout
        Of the output.
    factors : tuple of int
        Shards of a block of the full resolution along each axis of the output.
    windows : tuple
        Where noise and range were measured: start and end along each axis of the source.
    note : str
        What reading left out.
    """

    version: str
    source: str
    target: str
    source_key: str
    settings: str
    axes: str
    shape: tuple[int, ...]
    range: ValueRange
    profiles: tuple[NoiseProfile, ...]
    plan: Plan
    layout: Layout
    factors: tuple[int, ...]
    windows: tuple[tuple[tuple[int, int], ...], ...]
    note: str = ""

    def grid(self, level: int = 0) -> Grid:
        """Return the blocks of a level: as many shards along each axis as at the full resolution."""
        return Grid(self.layout.levels[level], self.factors)

    def as_json(self) -> str:
        """Return the text of ``plan.json``."""
        return json.dumps({"format": PLAN_FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> VolumePlan:
        """Read what `as_json` wrote; `ValueError`, `KeyError` or `TypeError` if it is something else."""
        data = json.loads(text)
        if data.pop("format") != PLAN_FORMAT:
            raise ValueError("another format of plans")
        layout, plan = data["layout"], data["plan"]
        steps = tuple(_step(step) for step in plan["steps"])
        limits = plan["saturate"]
        levels = tuple(Level(**{k: tuple(v) for k, v in level.items()}) for level in layout["levels"])
        named = {k: tuple(layout[k]) for k in ("scale", "translation", "units")}
        whole = {
            **plan,
            "steps": steps,
            "saturate": tuple(limits) if limits is not None else None,
            "notes": tuple(plan["notes"]),
            "doubts": tuple(plan["doubts"]),
        }
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "factors": tuple(data["factors"]),
                "range": ValueRange(**data["range"]),
                "profiles": tuple(_profile(p) for p in data["profiles"]),
                "plan": Plan(**whole),
                "layout": Layout(**{**layout, "levels": levels, **named}),
                "windows": tuple(tuple((a, b) for a, b in w) for w in data["windows"]),
            }
        )


def _curves(records: list[dict[str, Any]]) -> tuple[NoiseCurve, ...]:
    found = []
    for record in records:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        found.append(NoiseCurve(**fields))
    return tuple(found)


def _spectra(records: list[list[list[float]]]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return tuple(tuple(tuple(row) for row in one) for one in records)


def _step(record: dict[str, Any]) -> Step:
    curves, spectra = _curves(record["curves"]), _spectra(record["spectra"])
    coarse = tuple(Scale(**scale) for scale in record["coarse"])
    refinement = record.get("refinement") and Refinement(**record["refinement"])
    parts = {"curves": curves, "spectra": spectra, "coarse": coarse, "refinement": refinement}
    return Step(**{**record, **parts})


def _profile(record: dict[str, Any]) -> NoiseProfile:
    curves, spectra = _curves(record["curves"]), _spectra(record["spectra"])
    across, down = record["correlation"]
    sigma = tuple(record["sigma"])
    whole = {**record, "sigma": sigma, "correlation": (across, down), "curves": curves, "spectra": spectra}
    return NoiseProfile(**whole)


def decide(
    source: Path,
    target: Path,
    options: Options,
    *,
    source_key: str,
    settings: str = "",
    value_range: ValueRange | None = None,
    picture: Picture | None = None,
    zoo: Zoo | None = None,
) -> VolumePlan:
    """Look at a sample of a volume and plan all of it; see `batch.blocks.prepare` for the parameters."""
    from mdrn_plugin.engine.windows import grid_of_plan
    from mdrn_plugin.pipeline import make_plan, measure

    picture = formats.open_lazily(source) if picture is None else picture
    formats.check_can_hold(
        target, shape=picture.shape, axes=picture.axes, dtype=picture.pixels.dtype, alpha=picture.alpha
    )
    check_size(os.fspath(source), picture)
    if value_range is not None:
        picture = dataclasses.replace(picture, range=value_range)
    windows = choose_windows(picture)
    sample = sample_of(picture, windows)
    profiles = measure(sample, options)
    plan = make_plan(sample, profiles, options, zoo)
    layout = zarr_write.lay_out(picture)
    side = max(step.tile for step in plan.steps)
    grid = grid_for(layout.levels[0], layout.axes, grid_of_plan(plan), side)
    return VolumePlan(
        version=__version__,
        source=os.path.abspath(source),
        target=os.path.abspath(target),
        source_key=source_key,
        settings=settings,
        axes=picture.axes,
        shape=picture.shape,
        range=sample.range,
        profiles=profiles,
        plan=plan,
        layout=layout,
        factors=grid.factors,
        windows=windows,
        note=picture.metadata.note,
    )


def check_size(name: str, picture: Picture, max_pixels: int | None = None) -> None:
    """Refuse what only says that it is enormous; without a limit by the user, a petapixel is the end.

    Raises
    ------
    NotSupported
        More planes or pixels than that.
    """
    planes = math.prod(n for a, n in zip(picture.axes, picture.shape, strict=True) if a not in "YXS")
    pixels = planes * picture.length("Y") * picture.length("X")
    limit = _MAX_PIXELS if max_pixels is None else max_pixels
    if planes > _MAX_PLANES or pixels > limit:
        raise NotSupported(
            f"{name}: {pixels} pixels in {planes} plane(s): expected at most {limit} in {_MAX_PLANES}; "
            "raise the limit (--max-pixels) if the volume is genuine, or split it"
        )


def looked_at(picture: Picture, value_range: ValueRange | None = None) -> Picture:
    """Return the sample that noise and range of a volume are found on; see `sample_of`."""
    if value_range is not None:
        picture = dataclasses.replace(picture, range=value_range)
    return sample_of(picture, choose_windows(picture))


def choose_windows(picture: Picture) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Choose where to look at a volume: a few windows spread over it, none of them empty.

    Returns
    -------
    tuple
        Of each window the start and end along each axis of the picture; all channels (C) and samples
        (S), one time and depth, at most `_WINDOW_PX` rows and columns.
    """
    stacked = [(a, n) for a, n in zip(picture.axes, picture.shape, strict=True) if a in "TZ"]
    planes = list(np.ndindex(*[n for _, n in stacked]))
    candidates = []
    for place in spread(planes, _WINDOWS):
        at = dict(zip((a for a, _ in stacked), place, strict=True))
        for top in _starts(picture.length("Y")):
            for left in _starts(picture.length("X")):
                start = {**at, "Y": top, "X": left}
                side = {"Y": _WINDOW_PX, "X": _WINDOW_PX, "T": 1, "Z": 1}
                candidates.append(
                    tuple(
                        (start.get(a, 0), min(n, start.get(a, 0) + side.get(a, n)))
                        for a, n in zip(picture.axes, picture.shape, strict=True)
                    )
                )
    # A coarse look first, in an order that is spread over the volume whenever it stops.
    chosen = []
    for window in _scattered(candidates):
        values = np.asarray(picture.pixels[tuple(slice(a, b) for a, b in window)])
        if values.size and not np.all(values == values.flat[0]):
            chosen.append(window)
            if len(chosen) == _WINDOWS:
                break
    return tuple(sorted(chosen or candidates[:1]))


def _starts(length: int) -> list[int]:
    if length <= _WINDOW_PX:
        return [0]
    return sorted({int(p) for p in np.linspace(0, length - _WINDOW_PX, _CANDIDATES)})


def _scattered(items: list[Any]) -> Iterator[Any]:
    """Yield all items, the first few of them spread over the whole list."""
    count = len(items)
    step = next((s for s in range(int(count * 0.618) or 1, count) if math.gcd(s, count) == 1), 1)
    for k in range(count):
        yield items[(count // 2 + k * step) % count]


def sample_of(
    picture: Picture, windows: tuple[tuple[tuple[int, int], ...], ...], *, of: Picture | None = None
) -> Picture:
    """Return windows of a volume as one picture in memory, stacked along Z.

    Parameters
    ----------
    picture : Picture
        The volume.
    windows : tuple
        As `choose_windows` returns them.
    of : Picture, optional
        The denoised volume: its pixels are taken, of the same axes and shape.
    """
    axes = ("C" if "C" in picture.axes else "") + "YX" + ("S" if "S" in picture.axes else "")
    parts = []
    for window in windows:
        pixels = np.asarray((of or picture).pixels[tuple(slice(a, b) for a, b in window)])
        drop = tuple(k for k, a in enumerate(picture.axes) if a in "TZ")
        kept = [a for a in picture.axes if a not in "TZ"]
        parts.append(np.squeeze(pixels, drop).transpose([kept.index(a) for a in axes]))
    rows = min(p.shape[axes.index("Y")] for p in parts)
    columns = min(p.shape[axes.index("X")] for p in parts)
    cut = tuple(slice(rows) if a == "Y" else slice(columns) if a == "X" else slice(None) for a in axes)
    where = 1 if "C" in axes else 0
    stack = np.stack([p[cut] for p in parts], axis=where)
    value_range = picture.range
    if stack.dtype.kind == "f" and not value_range.given and of is None:
        value_range = decide_range(stack)
    return Picture(stack, axes[:where] + "Z" + axes[where:], value_range, alpha=picture.alpha)
