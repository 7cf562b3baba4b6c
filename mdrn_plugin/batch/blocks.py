"""Volumes: larger than memory, done block by block, by one process or by many.

What decides the result is settled once and written to ``plan.json``: noise and range from a sample
of the volume, model, tiles, and how the output is cut into blocks. A block is a whole number of the
output's shards; the grid of blocks counts in shards and knows no other coordinates, so two blocks
never share a file. A block reads what it needs around itself and nothing that another block wrote.
So the bytes are the same whoever computes them, in whatever order, however often.

A finished block is noted in a journal beside the plan, after its files are on the disk. When all
levels are there the store is looked through and takes its final name. ::

    OUT/.mdrn/volumes/NAME.zarr/
        plan.json                what is done; never changed
        store/                   the output, until it is complete
        done-HOST-PID-….jsonl    one journal per process
        report.json              at the end, see `merge`
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin import __version__, formats
from mdrn_plugin.batch.volume_plan import Place, VolumePlan, check_size, decide, sample_of
from mdrn_plugin.errors import BadOption, Cancelled, CannotRead, NotSupported, OutputUnusable
from mdrn_plugin.files import content_hash, files_of, swap_in, sync_tree, write_bytes
from mdrn_plugin.formats import zarr_write
from mdrn_plugin.formats.slicing import boxes, without_integers
from mdrn_plugin.picture import as_rows_columns_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.batch.jobs import Job
    from mdrn_plugin.engine.run import Stop
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, ValueRange
    from mdrn_plugin.result import Result
    from mdrn_plugin.zoo import Zoo

FOLDER = "volumes"
# Pictures of more bytes than this are done block by block when the output is OME-Zarr.
VOLUME_BYTES = 256 * 2**20


def prepare(
    source: Path,
    target: Path,
    out: Path,
    options: Options,
    *,
    settings: str = "",
    value_range: ValueRange | None = None,
    picture: Picture | None = None,
    zoo: Zoo | None = None,
) -> Path:
    """Decide how a volume is done, and make the store that its blocks go into.

    If that was decided before, for this very source with these settings, that plan holds, and so do
    the blocks that are done; another plan for the same target is thrown away.

    Parameters
    ----------
    source : Path
        OME-Zarr, or a TIFF that can be read in parts.
    target : Path
        The final name, ending in ``.zarr``.
    out : Path
        Existing output folder, `target` lies in it.
    options : Options
        What the user wishes.
    settings : str
        Digest of the settings, for the ledger.
    value_range : ValueRange, optional
        Black and white, instead of those found.
    picture : Picture, optional
        `source`, opened lazily, if the caller has it.
    zoo : Zoo, optional
        Models to choose from; default: those there are.

    Returns
    -------
    Path
        Of ``plan.json``.
    """
    if options.along is not None:  # a block knows no planes of other blocks
        raise BadOption(f"{source}: is done block by block, without its neighbours; leave out --along")
    formats.check_can_hold(target, shape=(1, 1), axes="YX", dtype=np.uint8)
    folder = _work_folder(out, target)
    file = folder / "plan.json"
    key = _source_key(source)
    if file.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            before = VolumePlan.from_json(file.read_text(encoding="utf-8"))
            same = (before.version, before.source_key, before.settings) == (__version__, key, settings)
            if same and before.source == os.path.abspath(source) and settings:
                _make_store(folder, before)
                return file
        shutil.rmtree(folder)
    decided = decide(
        source,
        target,
        options,
        source_key=key,
        settings=settings,
        value_range=value_range,
        picture=picture,
        zoo=zoo,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnusable(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    write_bytes(file, decided.as_json().encode())
    _make_store(folder, decided)
    return file


def _work_folder(out: Path, target: Path) -> Path:
    from mdrn_plugin.batch.jobs import LEDGER_FOLDER

    return out / LEDGER_FOLDER / FOLDER / os.path.relpath(target, out)


def _make_store(folder: Path, plan: VolumePlan) -> None:
    """Make the empty store, unless it is there or was given its final name already."""
    if (folder / "store").exists() or _was_placed(folder, plan):
        return
    from mdrn_plugin.pipeline import provenance

    # Aside first: a store is never seen without its metadata.
    part = folder / f"making-{os.getpid()}-{secrets.token_hex(4)}"
    part.mkdir()
    zarr_write.create(part, plan.layout, provenance(plan.plan))
    with contextlib.suppress(OSError):  # another process was quicker, with the same
        os.rename(part, folder / "store")
    shutil.rmtree(part, ignore_errors=True)


def _source_key(source: Path) -> str:
    """Return what changes when the source is replaced: size and date of what describes it."""
    if source.is_dir():
        names = ("zarr.json", ".zattrs", ".zgroup")
        files = (
            [source / n for n in names]
            + sorted(source.glob("*/zarr.json"))
            + sorted(source.glob("*/.zarray"))
        )
        states = [os.stat(f) for f in files if f.is_file()]
    else:
        try:
            states = [os.stat(source)]
        except OSError as error:
            raise CannotRead(f"{source}: cannot be opened ({error.strerror})") from error
    return " ".join(f"{s.st_size}:{s.st_mtime_ns}" for s in states)


# --- the work ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A plan, and what it is done with in this process.

    Attributes
    ----------
    folder : Path
        Of the plan, the journals, and the store while it is not complete.
    plan : VolumePlan
    picture : Picture
        The source, opened lazily.
    zoo : Zoo
    """

    folder: Path
    plan: VolumePlan
    picture: Picture
    zoo: Zoo

    @property
    def store(self) -> Path:
        """The output, until it takes its final name."""
        return self.folder / "store"

    @property
    def levels(self) -> int:
        """Of the pyramid."""
        return len(self.plan.layout.levels)

    def missing(self, level: int) -> list[int]:
        """Return the numbers of the blocks of a level that are not done, or whose files are not there."""
        if _was_placed(self.folder, self.plan):
            return []
        done = {number: size for (at, number), size in _journals(self.folder).items() if at == level}
        grid = self.plan.grid(level)
        return [n for n in range(len(grid)) if n not in done or self._size(level, n) != done[n]]

    def do(self, level: int, number: int, *, stop: Stop | None = None) -> dict[str, Any]:
        """Compute and write one block, and note it.

        Returns
        -------
        dict
            The line of the journal.
        """
        began = time.perf_counter()
        region = self.plan.grid(level).region(number)
        if level == 0:
            self._denoise(region, stop)
        else:
            zarr_write.build_region(self.store, level, self.plan.layout, region)
        for file in self._files(level, number):
            _sync(file)
        seconds = round(time.perf_counter() - began, 3)
        line = {"level": level, "block": number, "bytes": self._size(level, number), "seconds": seconds}
        _note(self.folder, line)
        return line

    def _files(self, level: int, number: int) -> list[Path]:
        region = self.plan.grid(level).region(number)
        return zarr_write.files_of_region(self.store, level, self.plan.layout, region)

    def _size(self, level: int, number: int) -> int:
        """Return the bytes of a block's files, -1 if one is missing."""
        try:
            return sum(os.stat(file).st_size for file in self._files(level, number))
        except OSError:
            return -1

    def _denoise(self, region: Place, stop: Stop | None) -> None:
        from mdrn_plugin.engine.tiles import Window
        from mdrn_plugin.engine.windows import Part, around, margin_of_plan, run_window

        picture, plan = self.picture, self.plan.plan
        order = zarr_write.order_of_axes(picture.axes)
        place = dict(zip(picture.axes, (region[k] for k in np.argsort(order)), strict=True))
        height, width = picture.length("Y"), picture.length("X")
        window = Window(place["Y"].start, place["Y"].stop, place["X"].start, place["X"].stop)
        read = around(window, margin_of_plan(plan), height, width)
        wide = {**place, "Y": slice(read.top, read.bottom), "X": slice(read.left, read.right)}
        before = np.asarray(picture.pixels[tuple(wide[a] for a in picture.axes)])
        after = np.empty([place[a].stop - place[a].start for a in picture.axes], before.dtype)
        box = dataclasses.replace(picture, pixels=after)
        for index in box.planes():
            channel = (place["C"].start if "C" in place else 0) + box.channel_of(index)
            parts = [
                Part(as_rows_columns_samples(pixels[index], box.plane_axes, False), top, left, height, width)
                for pixels, top, left in ((before, read.top, read.left), (after, window.top, window.left))
            ]
            run_window(parts[0], parts[1], window, plan, channel, self.zoo, stop=stop)
        zarr_write.write_region(self.store, 0, self.plan.layout, region, after.transpose(order))


def open_volume(plan_file: str | os.PathLike[str], *, zoo: Zoo | None = None) -> Volume:
    """Open a volume by its plan, to do some of its blocks.

    Raises
    ------
    CannotRead
        The plan is damaged or gone, or the source is not what it was.
    BadOption
        The plan is of another version of this program, or its models are not here.
    """
    from mdrn_plugin.zoo import available

    file = Path(plan_file)
    try:
        plan = VolumePlan.from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotRead(
            f"{file}: cannot be read ({error.strerror}); make it with mdrn-batch plan"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotRead(f"{file}: is no plan ({error!r}); make it with mdrn-batch plan") from error
    if plan.version != __version__:
        raise BadOption(
            f"{file}: was made by version {plan.version}, this is {__version__}; "
            "all blocks need one version, plan again"
        )
    zoo = zoo or available()
    used = [(step.model, step.sha256) for step in plan.plan.steps if step.model is not None]
    used += [(scale.model, scale.sha256) for step in plan.plan.steps for scale in step.coarse]
    used += [(r.model, r.sha256) for step in plan.plan.steps if (r := step.refinement) is not None]
    for model, sha256 in used:
        if zoo.get(model).sha256 != sha256:
            raise BadOption(f"{file}: the weights of {model} are not those of the plan; plan again")
    source = Path(plan.source)
    if _source_key(source) != plan.source_key:
        raise CannotRead(f"{source}: changed since it was planned; plan again")
    picture = dataclasses.replace(formats.open_lazily(source), range=plan.range)
    if (picture.axes, picture.shape) != (plan.axes, plan.shape):
        raise CannotRead(f"{source}: expected shape {plan.shape}, got {picture.shape}; plan again")
    return Volume(file.parent, plan, picture, zoo)


def shard_of(numbers: list[int], shard: tuple[int, int]) -> list[int]:
    """Return the part of a list that worker i of N does, i from 1.

    Raises
    ------
    BadOption
        Not 1 <= i <= N.
    """
    i, count = shard
    if not 1 <= i <= count:
        raise BadOption(f"shard {i}/{count}: expected 1/{count} to {count}/{count}")
    return numbers[len(numbers) * (i - 1) // count : len(numbers) * i // count]


def run(
    volume: Volume,
    *,
    shard: tuple[int, int] = (1, 1),
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> int:
    """Do the blocks of the full resolution that are not done, in this process.

    Parameters
    ----------
    volume : Volume
        From `open_volume`.
    shard : pair of int
        Only the i-th of N parts of all blocks, i from 1.
    progress : callable, optional
        Called with (blocks done, blocks in all) of the shard.
    stop : callable, optional
        Asked between tiles.

    Returns
    -------
    int
        Blocks done by this call.

    Raises
    ------
    Cancelled, OutOfMemory, CannotRead, OutputUnusable
    """
    mine = set(shard_of(list(range(len(volume.plan.grid()))), shard))
    todo = [number for number in volume.missing(0) if number in mine]
    _work(volume, 0, todo, len(mine), progress, stop)
    return len(todo)


def _work(
    volume: Volume,
    level: int,
    todo: list[int],
    count: int,
    progress: Callable[[int, int], None] | None,
    stop: Stop | None,
) -> None:
    for k, number in enumerate(todo):
        if stop is not None and stop():
            raise Cancelled("stopped on request; what is done is kept")
        with _telling_of(volume.folder):
            volume.do(level, number, stop=stop)
        if progress is not None:
            progress(count - len(todo) + k + 1, count)


@contextlib.contextmanager
def _telling_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputUnusable(
            f"{folder}: cannot be written ({error.strerror or error}); free some space, then run again"
        ) from error


def merge(
    volume: Volume,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
    levels: Callable[[int, list[int]], None] | None = None,
) -> Result:
    """Finish a volume whose blocks are all done: pyramid, check, final name.

    Parameters
    ----------
    volume : Volume
        From `open_volume`.
    overwrite : bool
        Replace what has the final name.
    progress, stop : callable, optional
        As of `run`, over the blocks of the pyramid.
    levels : callable, optional
        Does some blocks of a level elsewhere: called with the level and the numbers.

    Returns
    -------
    Result
        The picture is the finished store, opened lazily; what was removed was looked at in the windows
        that the noise was measured on.

    Raises
    ------
    NotSupported
        Blocks are missing.
    OutputExists, OutputUnusable, Cancelled
    """
    from mdrn_plugin.result import Result, check_residual, judge

    began = time.perf_counter()
    plan, folder = volume.plan, volume.folder
    target = Path(plan.target)
    if not _was_placed(folder, plan):
        left = volume.missing(0)
        if left:
            raise NotSupported(
                f"{target}: {len(left)} of {len(plan.grid())} blocks are not done, the first is {left[0]}; "
                "run the shards that are missing, then merge again"
            )
        for level in range(1, volume.levels):
            todo = volume.missing(level)
            if levels is not None and todo:
                levels(level, todo)
                todo = volume.missing(level)
            _work(volume, level, todo, len(plan.grid(level)), progress, stop)
        with _telling_of(folder):
            _place(volume, target, overwrite)
    done = _as_source(formats.open_lazily(target), plan)
    noisy = sample_of(volume.picture, plan.windows)
    noisy = dataclasses.replace(noisy, range=plan.range)
    clean = dataclasses.replace(sample_of(volume.picture, plan.windows, of=done), range=plan.range)
    works = any(step.model for step in plan.plan.steps)
    check = (
        check_residual(noisy, clean, plan.profiles, plan.plan.strength, blind=plan.plan.blind)
        if works
        else None
    )
    verdict, reasons = judge(check, plan.plan.doubts, blind=plan.plan.blind)
    resolved = plan.plan
    if plan.note:
        resolved = dataclasses.replace(resolved, notes=(*resolved.notes, plan.note))
    seconds = time.perf_counter() - began
    return Result(done, plan.profiles, resolved, check, verdict, reasons, seconds)


def finish(
    volume: Volume,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
    levels: Callable[[int, list[int]], None] | None = None,
) -> dict[str, Any]:
    """Do `merge`, note the volume in the ledger of its output folder, and return a report.

    Parameters
    ----------
    volume, overwrite, progress, stop, levels
        As of `merge`.

    Returns
    -------
    dict
        What ``mdrn-batch merge-report`` prints; described in docs/volumes.md.
    """
    from mdrn_plugin.batch.jobs import LEDGER_FOLDER, Job
    from mdrn_plugin.batch.ledger import Ledger, fingerprint

    plan = volume.plan
    with contextlib.suppress(OSError, ValueError):
        if _was_placed(volume.folder, plan):  # asked again
            before: dict[str, Any] = json.loads((volume.folder / "report.json").read_bytes())
            return before
    job = Job(Path(plan.source), Path(plan.target))
    out = next(p.parent for p in volume.folder.absolute().parents if p.name == LEDGER_FOLDER)
    ledger = Ledger(out)
    try:
        key = fingerprint(job.source, plan.settings)
        ours = overwrite or ledger.is_done(job, key) or ledger.may_replace(job, key)
        ledger.begin(job, key)
        result = merge(volume, overwrite=ours, progress=progress, stop=stop, levels=levels)
        facts = done_facts(job, result)
        ledger.done(job, key, **facts)
    finally:
        ledger.close()
    report = {
        "target": plan.target,
        "shape": list(plan.shape),
        "axes": plan.axes,
        **summary_of(volume),
        **{name: facts[name] for name in ("out_sha256", "verdict", "reasons", "residual")},
        "notes": list(result.plan.notes),
    }
    tidy(volume.folder, report)
    return report


def done_facts(job: Job, result: Result) -> dict[str, Any]:
    """Return what the ledger keeps of a finished file."""
    return {
        "sha256": content_hash(job.source),
        "out_sha256": content_hash(job.target),
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "residual": dataclasses.asdict(result.check) if result.check else None,
        "plan": result.plan.as_dict(),
    }


def _as_source(done: Picture, plan: VolumePlan) -> Picture:
    """Return a finished store with the axes of its source."""
    order = zarr_write.order_of_axes(plan.axes)
    return dataclasses.replace(done, pixels=_Turned(done.pixels, order), axes=plan.axes, range=plan.range)


class _Turned:
    """An array whose axes are in another order, sliced lazily."""

    def __init__(self, pixels: Any, order: tuple[int, ...]) -> None:
        self._pixels, self._order = pixels, order
        self._back = tuple(int(k) for k in np.argsort(order))
        self.shape = tuple(pixels.shape[k] for k in self._back)
        self.dtype, self.ndim = pixels.dtype, len(self.shape)

    def __getitem__(self, place: Any) -> NDArray[Any]:
        asked = boxes(place, self.shape)
        found = np.asarray(self._pixels[tuple(asked[k] for k in self._order)]).transpose(self._back)
        return without_integers(found, place)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(dtype or self.dtype, copy=False)


def _place(volume: Volume, target: Path, overwrite: bool) -> None:
    store, plan = volume.store, volume.plan
    for file in files_of(store):  # of processes that were killed while they wrote
        if file.endswith(".partial"):
            os.unlink(file)
    try:
        zarr_write.verify(store, plan.shape, plan.axes)
    except (CannotRead, ValueError) as error:
        raise OutputUnusable(
            f"{target}: was not written completely ({error}); check the disk, then run again"
        ) from error
    sync_tree(store)
    # If the process ends between the next two steps, the next one knows the store by its inode.
    write_bytes(volume.folder / "placing", str(os.stat(store).st_ino).encode())
    swap_in(store, target, overwrite=overwrite)
    shutil.rmtree(store, ignore_errors=True)  # what had the name before


def _was_placed(folder: Path, plan: VolumePlan) -> bool:
    try:
        return os.stat(plan.target).st_ino == int((folder / "placing").read_text())
    except (OSError, ValueError):
        return False


def tidy(folder: Path, report: dict[str, Any] | None = None) -> None:
    """Remove what a finished volume leaves: all, or all but the plan and a report.

    Parameters
    ----------
    folder : Path
        Of the plan.
    report : dict, optional
        Written to ``report.json``.
    """
    if report is None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are at work there
            os.removedirs(folder.parent)
        return
    write_bytes(folder / "report.json", json.dumps(report, indent=1).encode())
    for journal in folder.glob("done-*.jsonl"):
        journal.unlink()


def summary_of(volume: Volume) -> dict[str, Any]:
    """Return what the journals say: blocks, processes, seconds, bytes."""
    lines = list(_lines(volume.folder))
    return {
        "blocks": len({(line["level"], line["block"]) for line in lines}),
        "done_more_than_once": len(lines) - len({(line["level"], line["block"]) for line in lines}),
        "processes": len(list(volume.folder.glob("done-*.jsonl"))),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "slowest_block_seconds": max((line["seconds"] for line in lines), default=0.0),
    }


# --- journals ---------------------------------------------------------------------------------------


@functools.cache
def _journal(folder: Path, process: int) -> Path:
    """Return the journal of this process: nobody else writes to it."""
    host = "".join(c for c in os.uname().nodename if c.isalnum())[:32] if hasattr(os, "uname") else "host"
    return folder / f"done-{host}-{process}-{secrets.token_hex(4)}.jsonl"


def _note(folder: Path, line: dict[str, Any]) -> None:
    descriptor = os.open(_journal(folder, os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for journal in sorted(folder.glob("done-*.jsonl")):
        for text in journal.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # torn when its process was killed
                line = json.loads(text)
                if isinstance(line, dict) and {"level", "block", "bytes", "seconds"} <= line.keys():
                    yield line


def _journals(folder: Path) -> dict[tuple[int, int], int]:
    return {(line["level"], line["block"]): line["bytes"] for line in _lines(folder)}


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- from the ordinary batch ------------------------------------------------------------------------


def open_if_large(
    source: Path, target: Path, max_bytes: int = VOLUME_BYTES, *, max_pixels: int | None = None
) -> Picture | None:
    """Open a picture lazily if it is to be done by blocks: large, and OME-Zarr comes out.

    Parameters
    ----------
    source, target : Path
        Only the suffix of `target` is looked at.
    max_bytes : int
        Of pixels; smaller ones are done as a whole.
    max_pixels : int, optional
        The limit that the user set.
    """
    if formats.format_of_suffix(target) != "zarr":
        return None
    if source.is_file() and os.stat(source).st_size < max_bytes // 64:
        return None  # not even well compressed
    try:
        picture = formats.open_lazily(source)
    except NotSupported:
        if source.is_dir():
            raise
        return None  # as a whole, then
    large = math.prod(picture.shape) * np.dtype(picture.pixels.dtype).itemsize > max_bytes
    if large:
        check_size(os.fspath(source), picture, max_pixels)
    return picture if large else None
