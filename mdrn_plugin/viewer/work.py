"""What the widgets have done away from the UI thread: look, preview, run. No Qt, no viewer.

Each function takes a `layers.Source` and the options, asks the core, and returns a record. One
plan is made for a whole layer; preview and parts use that plan, so that they look as the whole
run will.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import Cancelled, OutOfMemory
from mdrn_plugin.viewer import layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.plan import Plan
    from mdrn_plugin.result import Result
    from mdrn_plugin.viewer.layers import Part, Source

    Stop = Callable[[], bool]
    Progress = Callable[[int, int], None]

# px; a square of this side takes under a second on a CPU, see plan.py on the time per pixel.
PREVIEW_SIDE = 512
# px around the preview, and around its tiles, that the network sees too: enough for the eye, and with
# tiles of a quarter of a preview a fifth less to compute than as in a run.
_MARGIN = 16
_PREVIEW_TILE = PREVIEW_SIDE // 2 + _MARGIN
# Results of lazy layers above this many bytes go to a temporary file instead of memory.
_IN_MEMORY = 256 * 2**20
_CHANNELS_SHOWN = 4
# Standard deviations of the noise from gray to black in the display of a residual.
RESIDUAL_REACH = 4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What is known of a layer before anything is done."""

    source: Source
    wish: tuple[str, str]  # noise and noise model that `profiles` answer
    picture: Picture
    profiles: tuple[NoiseProfile, ...]
    plan: Plan
    text: str  # in words


def examine(source: Source, options: Options, known: Finding | None, stop: Stop) -> Finding:
    """Decide the range, measure the noise, make the plan; what `known` says already is kept.

    Raises
    ------
    MdrnError
        As the core.
    """
    from mdrn_plugin.pipeline import make_plan, measure

    same = known is not None and known.source.pixels is source.pixels and known.source.axes == source.axes
    picture = known.picture if known is not None and same else layers.as_picture(source)
    _leave_if(stop)
    wish = options.noise, options.noise_model
    if known is not None and same and known.wish == wish:
        profiles = known.profiles
    else:
        profiles = measure(picture, options)
    _leave_if(stop)
    plan = make_plan(picture, profiles, options)
    return Finding(source, wish, picture, profiles, plan, in_words(picture, profiles, plan))


def in_words(picture: Picture, profiles: tuple[NoiseProfile, ...], plan: Plan) -> str:
    """Say what the estimate found and which model will run."""
    from mdrn_plugin.noise import describe

    lines = []
    for k, (profile, step) in enumerate(zip(profiles, plan.steps, strict=True)):
        if k == _CHANNELS_SHOWN:
            lines.append(f"and {len(profiles) - k} more channels")
            break
        where = f"Channel {k}: " if len(profiles) > 1 else ""
        found = describe(profile, picture.range)
        lines.append(where + (found if where else found[:1].upper() + found[1:]))
        model = step.model if step.model else "no model"
        lines.append(f"{model}: {step.reason}")
        if step.route:
            lines.append(step.route[:1].upper() + step.route[1:])
    # A doubt of the estimate is part of its description already.
    doubts = {p.doubt for p in profiles}
    lines += [f"Note: {note}" for note in plan.notes if note not in doubts]
    return "\n".join(dict.fromkeys(lines))


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """The rectangle of one plane that is on the screen, in pixels of the finest level."""

    part: Part
    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


def limited(view: View, height: int, width: int, side: int = PREVIEW_SIDE) -> View:
    """Return the middle of a view, no larger than `side` squared, inside a plane."""
    top, bottom = _middle(view.top, view.bottom, height, side)
    left, right = _middle(view.left, view.right, width, side)
    return dataclasses.replace(view, top=top, left=left, bottom=bottom, right=right)


def _middle(low: int, high: int, length: int, side: int) -> tuple[int, int]:
    low, high = min(max(low, 0), length), min(max(high, 0), length)
    if high - low > side:
        low = low + (high - low - side) // 2
        high = low + side
    return low, high


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """A rectangle before and after; axes as the layer's, stacked ones of length 1."""

    view: View
    before: NDArray[Any]
    after: NDArray[Any]
    single_pass: bool  # the run will average eight symmetries, this does not


def preview(finding: Finding, view: View, stop: Stop) -> Preview:
    """Denoise what is on the screen, with the plan of the whole layer."""
    from mdrn_plugin.pipeline import carry_out

    picture = layers.cut(finding.picture, view.part)
    height, width = picture.length("Y"), picture.length("X")
    rows = slice(max(0, view.top - _MARGIN), min(height, view.bottom + _MARGIN))
    columns = slice(max(0, view.left - _MARGIN), min(width, view.right + _MARGIN))
    index = tuple({"Y": rows, "X": columns}.get(a, slice(None)) for a in picture.axes)
    before = _in_memory(picture, index)
    plan, profiles = layers.plan_for(finding.plan, finding.profiles, view.part)
    steps = tuple(
        dataclasses.replace(s, tile=min(s.tile, _PREVIEW_TILE), halo=min(s.halo, _MARGIN)) for s in plan.steps
    )
    plan = dataclasses.replace(plan, steps=steps, ensemble=1)
    result = carry_out(dataclasses.replace(picture, pixels=before), profiles, plan, stop=stop)
    inner = {
        "Y": slice(view.top - rows.start, view.bottom - rows.start),
        "X": slice(view.left - columns.start, view.right - columns.start),
    }
    shown = tuple(inner.get(a, slice(None)) for a in picture.axes)
    return Preview(view, before[shown], result.picture.pixels[shown], finding.plan.ensemble > 1)


def _in_memory(picture: Picture, index: tuple[slice, ...]) -> NDArray[Any]:
    if isinstance(picture.pixels, layers.Merged):
        return np.asarray(picture.pixels[index[0]])[(slice(None), *index[1:])]
    return np.asarray(picture.pixels[index])


def split(shown: Preview, share: float, axes: str, line_px: int, white: float) -> NDArray[Any]:
    """Return the preview with the left `share` of it as it was, and a line between the two."""
    column = round(share * shown.view.shape[1])
    out = shown.after.copy()
    left = tuple(slice(0, column) if a == "X" else slice(None) for a in axes)
    out[left] = shown.before[left]
    if 0 < column < shown.view.shape[1]:
        line = tuple(slice(max(0, column - line_px), column) if a == "X" else slice(None) for a in axes)
        out[line] = white
    return out


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a run made, ready to be shown.

    Attributes
    ----------
    levels : list of array
        Of the new layer, the finest first; one if the layer was not multiscale.
    residual : array, optional
        Input minus result, floats; of colours around 0.5, see `RESIDUAL_REACH`.
    spread : float
        Standard deviation of the noise in the units of the layer, for the residual's contrast.
    provenance : dict
        Plain data: program, version, models, noise, options, verdict.
    result : Result
        Without pixels.
    """

    levels: list[Any]
    residual: Any
    spread: float
    provenance: dict[str, Any]
    result: Result


def run(
    finding: Finding,
    options: Options,
    part: Part,
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    residual: bool = False,
    progress: Progress | None = None,
    stop: Stop,
) -> Made:
    """Denoise a layer or a part of it.

    Parameters
    ----------
    finding : Finding
        Of the layer, with these options.
    options : Options
        For the record.
    part : Part
        Which planes.
    shapes : sequence of shape, optional
        Of the levels to make; None for a layer that is not multiscale.
    residual : bool
        Make the residual too.
    progress, stop : callable
        As of the core.
    """
    from mdrn_plugin.pipeline import carry_out

    source = finding.source
    picture = layers.cut(finding.picture, part)
    plan, profiles = layers.plan_for(finding.plan, finding.profiles, part)
    out = _room(picture) if source.lazy else None
    result = carry_out(picture, profiles, plan, out=out, progress=progress, stop=stop)
    after = result.picture.pixels
    finest = layers.unmerged(after, source, part)
    levels = [finest]
    if shapes is not None:
        _leave_if(stop)
        own = [layers.part_shape(shape, source, part) for shape in shapes]
        levels = layers.pyramid(finest, layers.full_axes(source), own)
    left_over = None
    spread = _spread(picture, profiles)
    if residual:
        _leave_if(stop)
        left_over = layers.unmerged(_difference(picture, after, stop), source, part)
        if "S" in picture.axes:
            left_over = _as_colours(left_over, RESIDUAL_REACH * spread)
    record = provenance(result, options, part)
    return Made(levels, left_over, spread, record, dataclasses.replace(result, picture=None))  # type: ignore[arg-type]  # pixels would be kept twice


def provenance(result: Result, options: Options, part: Part) -> dict[str, Any]:
    """Return what the new layer's metadata says of how it was made."""
    from mdrn_plugin import pipeline

    record: dict[str, Any] = json.loads(pipeline.provenance(result.plan))
    record["options"] = dataclasses.asdict(options)
    record["noise"] = [dataclasses.asdict(p) for p in result.profiles]
    record["plan"] = result.plan.explain()
    record["planes"] = part.describe()
    record["verdict"] = result.verdict
    record["reasons"] = list(result.reasons)
    record["residual"] = dataclasses.asdict(result.check) if result.check else None
    return record


def verdict_in_words(result: Result) -> str:
    """Say whether the result should be trusted, and what the residual looks like."""
    words = {"good": "Looks right", "check": "Please check", "do not trust": "Do not trust this"}
    lines = [words[result.verdict] + (":" if result.reasons else ".")]
    lines += [f"– {reason}" for reason in result.reasons]
    if result.check is not None:
        strongest = max(result.check.correlation)  # as the verdict is found
        lines.append(
            f"Removed: {result.check.std:.2f} of the noise found; neighbours correlate by {strongest:.2f}"
        )
    return "\n".join(lines)


def _room(picture: Picture) -> NDArray[Any]:
    """Return where the result of a lazy layer goes: memory if small, else a file without a name."""
    dtype = np.dtype(picture.pixels.dtype)
    size = math.prod(picture.shape) * dtype.itemsize
    if size <= _IN_MEMORY:
        return np.empty(picture.shape, dtype)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < size + 2**30:
        raise OutOfMemory(
            f"the result needs {size / 1e9:.1f} GB: more than is free in {folder}; set TMPDIR to a larger "
            "disk, or denoise fewer planes"
        )
    # Removed by the system when the layer is gone; no other program is meant to see it.
    with tempfile.TemporaryFile(prefix="mdrn-") as file:
        return np.memmap(file, dtype, "w+", shape=picture.shape)


def _difference(picture: Picture, after: Any, stop: Stop) -> Any:
    """Return input minus result, float32; lazily where the result is a file."""
    if isinstance(after, np.memmap) and not isinstance(picture.pixels, layers.Merged):
        before = layers.lazy(picture.pixels)
        return before.astype(np.float32) - layers.lazy(after, chunks=before.chunks)
    out = np.empty(picture.shape, np.float32)
    for index in picture.planes():
        _leave_if(stop)
        out[index] = np.asarray(picture.pixels[index]).astype(np.float32) - after[index]
    return out


def _as_colours(residual: Any, reach: float) -> Any:
    """Return the residual of a colour layer around gray: RGB layers show 0..1 and nothing else."""
    colours = 0.5 + residual / (2 * reach or 1.0)
    if residual.shape[-1] == 4:
        colours[..., 3] = 1
    return colours.clip(0, 1)


def _spread(picture: Picture, profiles: tuple[NoiseProfile, ...]) -> float:
    sigmas = [s for p in profiles for s in p.sigma]
    unit = picture.range.white - picture.range.black
    return unit * math.sqrt(sum(s * s for s in sigmas) / max(1, len(sigmas)))


def _leave_if(stop: Stop) -> None:
    if stop():
        raise Cancelled("stopped on request")
