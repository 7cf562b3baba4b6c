"""Doing the jobs: each ends as done, skipped or failed, whatever happens to the others.

Three steps overlap: files are read ahead and written behind by threads of their own, while the
caller's thread computes one after the other with the one loaded model. At most ``Settings.jobs``
files are in work at once, and they are told in the order of the jobs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdrn_plugin import __version__
from mdrn_plugin.batch.ledger import Fingerprint, Ledger, fingerprint, settings_digest
from mdrn_plugin.batch.report import Tally
from mdrn_plugin.errors import (
    EXIT_BUG,
    EXIT_NOTHING_MATCHED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    Cancelled,
    CannotRead,
    MdrnError,
    OutOfMemory,
    OutputExists,
    OutputUnusable,
)
from mdrn_plugin.files import content_hash, remove_stale_parts

if TYPE_CHECKING:
    from mdrn_plugin.batch.jobs import Job, Jobs
    from mdrn_plugin.batch.preview import Preview
    from mdrn_plugin.formats.isolated import Decoder
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, ValueRange
    from mdrn_plugin.result import Result

# Files are read ahead while those in work are not larger than this together: pictures in memory
# are bounded by their number for small ones, and by one at a time for huge ones.
_AHEAD_BYTES = 256 * 2**20
# From this many files on, decoding is confined to a helper unless told otherwise. Processor seconds
# without and with it, "balanced": 8 files of 256 x 256 7.05 and 6.98, of 512 x 512 13.02 and 13.06.
ISOLATE_FROM = 8
_POLL_S = 0.1  # how often a request to stop is looked at while waiting
_OTHERS_S = 0.2  # how often it is looked whether another run has finished a file


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How one file ended.

    Attributes
    ----------
    source, target : Path
    state : str
        "done", "skipped" or "failed".
    reason : str
        Why it failed or was skipped; empty when done.
    seconds : float
        Time that reading, computing and writing took, without waiting for other files.
    result : Result, optional
        Noise, plan and verdict, without pixels; of files that were done.
    bug : bool
        The failure is a fault of this program.
    preview : Preview, optional
        Small pictures of before and after, if ``Settings.preview`` asked for them.
    facts : dict, optional
        Of files done before, if ``Settings.preview``: what the ledger says of them.
    """

    source: Path
    target: Path | None
    state: str
    reason: str = ""
    seconds: float = 0.0
    result: Result | None = None
    bug: bool = False
    preview: Preview | None = None
    facts: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a batch is run with.

    Attributes
    ----------
    options : Options
    value_range : ValueRange, optional
        Black and white of all files.
    overwrite : bool
        Do everything anew and replace what is there.
    jobs : int
        Files in work at once: one is computed, the others are read and written meanwhile.
    max_pixels : int, optional
        As of `formats.read`.
    same_noise : bool
        One noise for all like pictures of a folder, see `batch.series`.
    verify : bool
        Decode what was written and compare; of files done before, compare the content.
    isolate : bool, optional
        Decode in a helper process. None: where that costs next to nothing.
    fail_fast : bool
        Stop at the first failure.
    retry_failed : bool
        Only what failed last time.
    preview : bool
        Make the small pictures of a report.
    """

    options: Options
    value_range: ValueRange | None = None
    overwrite: bool = False
    jobs: int = 3
    max_pixels: int | None = None
    same_noise: bool = False
    verify: bool = False
    isolate: bool | None = None
    fail_fast: bool = False
    retry_failed: bool = False
    preview: bool = False

    def digest(self) -> str:
        """Return what the ledger compares: options, program version, weights."""
        from mdrn_plugin.zoo import available, shipped

        # All that the plan may choose from, and the user's own only if it is the one asked for: that
        # they trained another must not make every finished file count as undone.
        weights = [d.sha256 for d in shipped().descriptors]
        if self.options.model is not None:
            weights.append(available().get(self.options.model).sha256)
        return settings_digest(
            {
                "options": dataclasses.asdict(self.options),
                "range": dataclasses.asdict(self.value_range) if self.value_range else None,
                "same_noise": self.same_noise,
                "version": __version__,
                "weights": weights,
            }
        )


@dataclasses.dataclass(slots=True)
class _Task:
    """One file in work."""

    job: Job
    seconds: float = 0.0
    key: Fingerprint | None = None
    sha256: str = ""
    overwrite: bool = False
    postponed: bool = False  # another run is at work on it
    picture: Picture | None = None
    volume: Path | None = None  # the plan, if it is done block by block
    result: Result | None = None
    outcome: Outcome | None = None
    stage: Future[None] | None = None  # reading, later writing


def run(
    jobs: Jobs,
    out: Path,
    settings: Settings,
    *,
    told: Callable[[Outcome], None],
    progress: Callable[[Job, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
) -> Tally:
    """Do all jobs.

    Parameters
    ----------
    jobs : Jobs
        What `jobs.collect` found.
    out : Path
        Existing output folder.
    settings : Settings
        Options, value range, overwriting.
    told : callable
        Called with the outcome of each file as it ends, in the caller's thread.
    progress : callable, optional
        Called with (job, tiles done, tiles in all).
    stop : callable, optional
        Asked between tiles and files.
    note : callable, optional
        Called with a line about the run as a whole.

    Returns
    -------
    Tally
        How many ended how.

    Raises
    ------
    OutputUnusable
        The output folder is full or cannot be written: going on would fail for every file.
    Cancelled
        `stop` said so; what was done is in the ledger.
    """
    with Session(out, settings, told=told, progress=progress, stop=stop, note=note) as session:
        session.work(jobs)
    return session.tally


class Session:
    """A run over one output folder: ledger, threads, helper process; see `run` for the parameters."""

    def __init__(
        self,
        out: Path,
        settings: Settings,
        *,
        told: Callable[[Outcome], None],
        progress: Callable[[Job, int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.tally = Tally()
        self._out, self._settings = out, settings
        self._told, self._progress, self._stop, self._note = told, progress, stop, note
        self._ledger: Ledger | None = None
        self._decoder: Decoder | None = None
        self._digest = ""
        self._cleaned: set[Path] = set()
        self._waiting: deque[Job] = deque()
        self._postponed: list[Job] = []
        self._reading: deque[_Task] = deque()
        self._writing: deque[_Task] = deque()
        self._computing = False
        self._fatal: BaseException | None = None
        self._ending = False
        side = max(1, (settings.jobs - 1) // 2)
        self._readers = ThreadPoolExecutor(side, "mdrn-read")
        self._writers = ThreadPoolExecutor(side, "mdrn-write")
        self._series: Any = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        at_once = kind is KeyboardInterrupt
        self._ending = True
        if self._decoder is not None:
            self._decoder.close()
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=not at_once, cancel_futures=True)
        if self._ledger is not None and not at_once:
            self._ledger.close()

    def work(self, jobs: Jobs) -> None:
        """Do all jobs; may be called again with more. Raises what `run` raises."""
        for failure in jobs.failures:
            self._tell(Outcome(failure.source, None, "failed", failure.reason))
        if not jobs.jobs:
            return
        self._open(jobs)
        assert self._ledger is not None
        chosen = jobs.jobs
        if self._settings.retry_failed:
            chosen = tuple(job for job in chosen if self._ledger.failed_before(job))
        self._waiting.extend(chosen)
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._waiting.clear()
            self._postponed.clear()
            if not isinstance(error, KeyboardInterrupt):
                self._wind_up()
            raise

    def _open(self, jobs: Jobs) -> None:
        folders = {job.target.parent for job in jobs.jobs} - self._cleaned
        for folder in sorted(folders):
            remove_stale_parts(folder)
        self._cleaned |= folders
        if self._ledger is None:
            self._start_decoder(len(jobs.jobs))
            self._ledger = Ledger(self._out)
            self._digest = self._settings.digest()
            options = self._agree_on_backend(self._ledger)
            self._settings = dataclasses.replace(self._settings, options=options)
        if self._settings.same_noise:
            from mdrn_plugin.batch.series import SeriesNoise

            if self._series is None:
                self._series = SeriesNoise(
                    self._ledger, self._digest, self._settings.options, self._read_picture
                )
            self._series.add(job.source for job in jobs.jobs)

    def _agree_on_backend(self, ledger: Ledger) -> Options:
        """Return the options with the backend that the first run with these settings in this folder had.

        Computers may be tuned differently; runs that share a folder, or go on with it, give the same bytes.
        """
        from mdrn_plugin import tuning

        options = self._settings.options
        if options.backend != "auto":
            return options
        own = "torch"
        if tuning.file().exists():  # else torch need not be imported to know
            from mdrn_plugin.pipeline import find_machine

            own = find_machine(options).backend
        agreed = ledger.backend(self._digest) or ledger.set_backend(self._digest, own)
        if agreed != own and self._note is not None:
            self._note(f"this folder was begun with {agreed}: going on with it")
        return dataclasses.replace(options, backend=agreed)

    def _start_decoder(self, count: int) -> None:
        from mdrn_plugin.formats import isolated

        wished = self._settings.isolate
        if (count >= ISOLATE_FROM if wished is None else wished) and isolated.is_possible():
            self._decoder = isolated.Decoder(max_pixels=self._settings.max_pixels)
            self._decoder.start()

    # --- the caller's thread --------------------------------------------------------------------

    def _turn(self) -> bool:
        """Go one step on; false when all is done."""
        self._ask_whether_to_stop()
        self._begin_more()
        self._tell_finished()
        if self._reading:
            task = self._reading.popleft()
            self._wait_for(task)
            if task.postponed:
                self._postponed.append(task.job)
                return True
            if task.outcome is None and self._fatal is None:
                self._computing = True
                self._guarded(task, self._compute)
                self._computing = False
            if task.outcome is None and self._fatal is None:
                task.stage = self._writers.submit(self._guarded, task, self._write)
            self._writing.append(task)
        elif self._writing:
            self._wait_for(self._writing[0])
        elif self._postponed:
            if self._note is not None:
                self._note(f"another run is at work on {len(self._postponed)} more file(s): waiting for it")
                self._note = None
            self._sleep(_OTHERS_S)
            self._waiting.extend(self._postponed)
            self._postponed.clear()
        elif not self._waiting:
            return False
        return True

    def _ask_whether_to_stop(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self._stop is not None and self._stop():
            raise Cancelled("stopped on request")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._ask_whether_to_stop()
            time.sleep(min(left, _POLL_S))

    def _wait_for(self, task: _Task) -> None:
        while task.stage is not None:
            try:
                task.stage.result(timeout=_POLL_S)
            except NotYet:
                self._ask_whether_to_stop()
                self._tell_finished()
            else:
                return

    def _begin_more(self) -> None:
        while self._waiting:
            in_work = [*self._reading, *self._writing]
            count = len(in_work) + self._computing
            if count >= self._settings.jobs:
                return
            if count and sum(t.key.size for t in in_work if t.key) + _size(self._waiting[0]) > _AHEAD_BYTES:
                return
            task = _Task(self._waiting.popleft())
            task.stage = self._readers.submit(self._guarded, task, self._read)
            self._reading.append(task)

    def _tell_finished(self) -> None:
        while self._writing:
            task = self._writing[0]
            if task.stage is not None and not task.stage.done():
                return
            self._writing.popleft()
            assert self._ledger is not None
            self._ledger.release(task.job)
            if task.outcome is not None:
                self._tell(dataclasses.replace(task.outcome, seconds=task.seconds))
                if task.outcome.state == "failed" and self._settings.fail_fast:
                    self._waiting.clear()
                    self._postponed.clear()
                    self._reading.clear()

    def _tell(self, outcome: Outcome) -> None:
        self.tally.add(outcome)
        self._told(outcome)

    def _between_tiles(self, task: _Task, done: int, total: int) -> None:
        try:
            if self._progress is not None:
                self._progress(task.job, done, total)
            self._tell_finished()
            self._begin_more()
        except Exception as error:  # noqa: BLE001 - not a fault of the picture that is computed
            self._fatal = error

    def _stops(self) -> bool:
        return self._fatal is not None or (self._stop is not None and self._stop())

    def _wind_up(self) -> None:
        """After a stop: what is being read is dropped, what is being written is finished and told."""
        self._ending = True
        if self._decoder is not None:
            self._decoder.close()
        self._reading.clear()
        for task in self._writing:
            if task.stage is not None:
                task.stage.result()
        self._tell_finished()

    # --- the steps, each with one file ----------------------------------------------------------

    def _guarded(self, task: _Task, step: Callable[[_Task], None]) -> None:
        """Take a step; whatever it raises becomes the outcome of the file, or ends the run."""
        job, began = task.job, time.perf_counter()
        try:
            try:
                step(task)
            except (Cancelled, OutputUnusable) as error:
                self._fatal = self._fatal or error
            except MdrnError as error:
                self._fail(task, _named(job, error))
            except MemoryError as error:
                text = f"{job.source}: not enough memory ({error}); close other programs"
                self._fail(task, _named(job, OutOfMemory(text)))
            except Exception as error:
                import logging

                logging.getLogger("mdrn_plugin").debug("while denoising %s", job.source, exc_info=True)
                what = f"unexpected {type(error).__name__}: {error}"
                self._fail(task, f"{job.source}: {what}; please report this as a bug", bug=True)
        except OutputUnusable as error:  # the ledger cannot be written
            self._fatal = self._fatal or error
        task.seconds += time.perf_counter() - began
        if task.outcome is not None or self._fatal is not None:
            task.picture = task.result = None

    def _fail(self, task: _Task, reason: str, *, bug: bool = False) -> None:
        if self._ending and task.result is None:
            return  # its reading was broken off: that says nothing of the file
        assert self._ledger is not None
        self._ledger.failed(task.job, task.key, reason)
        task.outcome = Outcome(task.job.source, task.job.target, "failed", reason, bug=bug)

    def _read(self, task: _Task) -> None:
        from mdrn_plugin.pipeline import prepare

        ledger, job, settings = self._ledger, task.job, self._settings
        assert ledger is not None
        if not ledger.claim(job):
            task.postponed = True
            return
        key = task.key = _fingerprint(job.source, self._digest)
        ledger.refresh()
        reason = "" if settings.overwrite else self._reason_to_skip(job, key)
        if reason:
            facts = ledger.facts(job) if settings.preview else None
            task.outcome = Outcome(job.source, job.target, "skipped", reason, facts=facts)
            return
        task.overwrite = settings.overwrite or ledger.may_replace(job, key)
        if not task.overwrite and os.path.lexists(job.target):
            raise OutputExists(
                f"{job.target}: exists already and was not made from this input with these settings; "
                "use --overwrite or another folder"
            )
        task.picture = self._open_volume(task)
        if task.picture is None:
            read = functools.partial(self._read_picture, target=job.target)
            task.picture = prepare(job.source, job.target, settings.value_range, read=read)
        # After reading, which refuses pipes: those would be waited for here.
        task.sha256 = _hashed(job.source)

    def _open_volume(self, task: _Task) -> Picture | None:
        """Plan a picture that is too large for memory; none if it is not."""
        from mdrn_plugin.batch import blocks

        job, settings = task.job, self._settings
        picture = blocks.open_if_large(job.source, job.target, max_pixels=settings.max_pixels)
        if picture is None:
            return None
        _make_folder(job.target.parent)
        task.volume = blocks.prepare(
            job.source,
            job.target,
            self._out,
            settings.options,
            settings=self._digest,
            value_range=settings.value_range,
            picture=picture,
        )
        return picture

    def _reason_to_skip(self, job: Job, key: Fingerprint) -> str:
        """Return why there is nothing to do, empty if there is."""
        ledger = self._ledger
        assert ledger is not None
        if not ledger.is_done(job, key):
            if not ledger.is_done_by_content(job, key):
                return ""
            ledger.renew(job, key)  # only its date, place or number on the disk is another
        elif self._settings.verify and ledger.is_done_by_content(job, key) is False:
            raise OutputExists(
                f"{job.target}: input or output is not what it was when this was written, though size and "
                "date are the same; use --overwrite to make it anew"
            )
        return "done before"

    def _read_picture(self, source: str | os.PathLike[str], target: Path | None = None) -> Picture:
        from mdrn_plugin import formats

        # What stays in its file is decoded here, by the few decoders of lossless TIFF.
        if target is None or formats.format_of_suffix(target) == "tiff":
            streamed = formats.open_streamed(source, max_pixels=self._settings.max_pixels)
            if streamed is not None:
                return streamed
        # Stores of zarr are read here: their decoders are few, and checked before they are called.
        if self._decoder is not None and not os.path.isdir(source):
            return self._decoder.read(source)
        return formats.read(source, max_pixels=self._settings.max_pixels)

    def _compute(self, task: _Task) -> None:
        from mdrn_plugin.pipeline import denoise_picture

        profiles: tuple[NoiseProfile, ...] | None = None
        assert task.picture is not None
        if task.volume is not None:
            self._compute_volume(task)
            return
        if self._series is not None:
            task.picture, profiles = self._series.of(task.job.source, task.picture)
        task.result = denoise_picture(
            task.picture,
            self._settings.options,
            profiles=profiles,
            out=self._room_for(task),
            progress=lambda done, total: self._between_tiles(task, done, total),
            stop=self._stops,
        )
        if task.picture.metadata.format == "zarr" and task.picture.metadata.note:
            noted = (*task.result.plan.notes, task.picture.metadata.note)
            plan = dataclasses.replace(task.result.plan, notes=noted)
            task.result = dataclasses.replace(task.result, plan=plan)
        if not self._settings.preview:
            task.picture = None
        if _fingerprint(task.job.source, self._digest) != task.key:
            raise CannotRead(f"{task.job.source}: changed while it was read; run again when it is complete")

    def _room_for(self, task: _Task) -> Any:
        """Return where the result of a picture that stays in its file goes; None: into memory."""
        from mdrn_plugin import formats
        from mdrn_plugin.picture import Streamed

        assert task.picture is not None
        if not isinstance(task.picture.pixels, Streamed):
            return None
        _make_folder(task.job.target.parent)
        return formats.scratch_like(task.picture, task.job.target)

    def _compute_volume(self, task: _Task) -> None:
        """Do all blocks here; they keep their place on the disk if the run ends before they are all done."""
        from mdrn_plugin.batch import blocks

        assert task.volume is not None
        volume = blocks.open_volume(task.volume)
        blocks.run(
            volume,
            progress=lambda done, total: self._between_tiles(task, done, total),
            stop=self._stops,
        )
        ledger = self._ledger
        assert ledger is not None
        assert task.key is not None
        if _fingerprint(task.job.source, self._digest) != task.key:
            raise CannotRead(f"{task.job.source}: changed while it was read; run again when it is complete")
        ledger.begin(task.job, task.key)
        task.result = blocks.merge(volume, overwrite=task.overwrite, stop=self._stops)
        task.picture = None

    def _write(self, task: _Task) -> None:
        ledger, job, result, key = self._ledger, task.job, task.result, task.key
        assert ledger is not None
        assert result is not None
        assert key is not None
        preview = None
        if self._settings.preview and task.volume is None:
            from mdrn_plugin.batch.preview import make

            assert task.picture is not None
            preview = make(task.picture, result.picture)
        if task.volume is None and not self._save(task):
            task.outcome = Outcome(job.source, job.target, "skipped", "done by another run meanwhile")
            return
        if result.picture.metadata.format in ("raw", "dng"):
            from mdrn_plugin.batch.sidecars import copy_sidecars

            copy_sidecars(job.source, job.target, overwrite=task.overwrite)
        ledger.done(
            job,
            key,
            sha256=task.sha256,
            out_sha256=_hashed(job.target),
            verdict=result.verdict,
            reasons=result.reasons,
            residual=dataclasses.asdict(result.check) if result.check else None,
            plan=result.plan.as_dict(),
        )
        if task.volume is not None:
            from mdrn_plugin.batch import blocks

            blocks.tidy(task.volume.parent)
        slim = dataclasses.replace(result, picture=None)  # type: ignore[arg-type]  # pixels would pile up
        task.outcome = Outcome(job.source, job.target, "done", result=slim, preview=preview)

    def _save(self, task: _Task) -> bool:
        """Write a result; false if another run on the same folder was quicker."""
        from mdrn_plugin.pipeline import save

        ledger, job, result, key = self._ledger, task.job, task.result, task.key
        assert ledger is not None
        assert result is not None
        assert key is not None
        _make_folder(job.target.parent)
        ledger.begin(job, key)
        if not self._settings.overwrite and ledger.is_done(job, key):
            return False
        verify = self._settings.verify
        try:
            save(job.target, result, overwrite=task.overwrite or ledger.may_replace(job, key), verify=verify)
        except OutputExists:
            ledger.refresh()  # it appeared this moment
            if ledger.is_done(job, key):
                return False
            if not ledger.may_replace(job, key):
                raise
            save(job.target, result, overwrite=True, verify=verify)
        return True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnusable(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


def _size(job: Job) -> int:
    try:
        return os.stat(job.source).st_size
    except OSError:
        return 0


def _fingerprint(source: Path, digest: str) -> Fingerprint:
    try:
        return fingerprint(source, digest)
    except OSError as error:
        raise CannotRead(f"{source}: cannot be read ({error.strerror})") from error


def _hashed(path: Path) -> str:
    try:
        return content_hash(path)
    except OSError as error:
        raise CannotRead(f"{path}: cannot be read ({error.strerror})") from error


def _named(job: Job, error: MdrnError) -> str:
    """Return the message, with the file's name in front if it lacks it."""
    text = str(error)
    return text if os.fspath(job.source) in text else f"{job.source}: {text}"


def exit_code(outcomes: Tally | Iterable[Outcome]) -> int:
    """Return the exit code of a run that went through to the end."""
    tally = outcomes if isinstance(outcomes, Tally) else Tally.of(outcomes)
    if tally.count == 0:
        return EXIT_NOTHING_MATCHED
    if tally.bug:
        return EXIT_BUG
    return EXIT_SOME_FAILED if tally.failed else EXIT_OK
