"""Doing the jobs: each ends as done, skipped or failed, whatever happens to the others."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mdrn_plugin import __version__
from mdrn_plugin.batch.ledger import Fingerprint, Ledger, fingerprint, settings_digest
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
from mdrn_plugin.files import remove_stale_parts

if TYPE_CHECKING:
    from mdrn_plugin.batch.jobs import Job, Jobs
    from mdrn_plugin.picture import ValueRange
    from mdrn_plugin.plan import Options
    from mdrn_plugin.result import Result


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
        Wall time.
    result : Result, optional
        Noise, plan and verdict, without pixels; of files that were done.
    bug : bool
        The failure is a fault of this program.
    """

    source: Path
    target: Path | None
    state: str
    reason: str = ""
    seconds: float = 0.0
    result: Result | None = None
    bug: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a batch is run with."""

    options: Options
    value_range: ValueRange | None = None
    overwrite: bool = False

    def digest(self) -> str:
        """Return what the ledger compares: options, program version, weights."""
        from mdrn_plugin.zoo import shipped

        return settings_digest(
            {
                "options": dataclasses.asdict(self.options),
                "range": dataclasses.asdict(self.value_range) if self.value_range else None,
                "version": __version__,
                "weights": [d.sha256 for d in shipped().descriptors],
            }
        )


def run(
    jobs: Jobs,
    out: Path,
    settings: Settings,
    *,
    told: Callable[[Outcome], None],
    progress: Callable[[Job, int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Outcome]:
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
        Called with the outcome of each file as it ends.
    progress : callable, optional
        Called with (job, tiles done, tiles in all).
    stop : callable, optional
        Asked between tiles and files.

    Returns
    -------
    list of Outcome

    Raises
    ------
    OutputUnusable
        The output folder is full or cannot be written: going on would fail for every file.
    Cancelled
        `stop` said so; what was done is in the ledger.
    """
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        told(outcome)

    for failure in jobs.failures:
        tell(Outcome(failure.source, None, "failed", failure.reason))
    if not jobs.jobs:
        return outcomes
    for folder in sorted({job.target.parent for job in jobs.jobs}):
        remove_stale_parts(folder)
    ledger = Ledger(out)
    try:
        digest = settings.digest()
        for job in jobs.jobs:
            if stop is not None and stop():
                raise Cancelled("stopped on request")
            tell(_one(job, ledger, digest, settings, progress, stop))
    finally:
        ledger.close()
    return outcomes


def _one(
    job: Job,
    ledger: Ledger,
    digest: str,
    settings: Settings,
    progress: Callable[[Job, int, int], None] | None,
    stop: Callable[[], bool] | None,
) -> Outcome:
    began = time.perf_counter()
    key: Fingerprint | None = None

    def failed(reason: str, *, bug: bool = False) -> Outcome:
        ledger.failed(job, key, reason)
        return Outcome(job.source, job.target, "failed", reason, time.perf_counter() - began, bug=bug)

    try:
        key = _fingerprint(job.source, digest)
        ledger.refresh()
        if not settings.overwrite and ledger.is_done(job, key):
            return Outcome(job.source, job.target, "skipped", "done before")
        overwrite = settings.overwrite or ledger.may_replace(job, key)
        if not overwrite and os.path.lexists(job.target):
            raise OutputExists(
                f"{job.target}: exists already and was not made from this input with these settings; "
                "use --overwrite or another folder"
            )
        result = _denoise(job, key, ledger, settings, overwrite, progress, stop)
        if result is None:
            return Outcome(job.source, job.target, "skipped", "done by another run meanwhile")
    except (Cancelled, OutputUnusable):
        raise
    except MdrnError as error:
        return failed(_named(job, error))
    except MemoryError as error:
        return failed(
            _named(job, OutOfMemory(f"{job.source}: not enough memory ({error}); close other programs"))
        )
    except Exception as error:
        import logging

        logging.getLogger("mdrn_plugin").debug("while denoising %s", job.source, exc_info=True)
        return failed(
            f"{job.source}: unexpected {type(error).__name__}: {error}; please report this as a bug", bug=True
        )
    slim = dataclasses.replace(result, picture=None)  # type: ignore[arg-type]  # pixels would pile up
    return Outcome(job.source, job.target, "done", "", time.perf_counter() - began, slim)


def _denoise(
    job: Job,
    key: Fingerprint,
    ledger: Ledger,
    settings: Settings,
    overwrite: bool,
    progress: Callable[[Job, int, int], None] | None,
    stop: Callable[[], bool] | None,
) -> Result | None:
    """Do one file; None if another run on the same folder was quicker."""
    from mdrn_plugin.pipeline import denoise_picture, prepare, save

    picture = prepare(job.source, job.target, settings.value_range)
    result = denoise_picture(
        picture,
        settings.options,
        progress=None if progress is None else lambda done, total: progress(job, done, total),
        stop=stop,
    )
    if _fingerprint(job.source, key.settings) != key:
        raise CannotRead(f"{job.source}: changed while it was read; run again when it is complete")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnusable(
            f"{job.target.parent}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    ledger.begin(job, key)
    if not settings.overwrite and ledger.is_done(job, key):
        return None
    try:
        save(job.target, result, overwrite=overwrite or ledger.may_replace(job, key))
    except OutputExists:
        ledger.refresh()  # it appeared this moment
        if ledger.is_done(job, key):
            return None
        if not ledger.may_replace(job, key):
            raise
        save(job.target, result, overwrite=True)
    ledger.done(job, key, verdict=result.verdict, plan=result.plan.as_dict())
    return result


def _fingerprint(source: Path, digest: str) -> Fingerprint:
    try:
        return fingerprint(source, digest)
    except OSError as error:
        raise CannotRead(f"{source}: cannot be read ({error.strerror})") from error


def _named(job: Job, error: MdrnError) -> str:
    """Return the message, with the file's name in front if it lacks it."""
    text = str(error)
    named = os.fspath(job.source) in text or os.fspath(job.target) in text
    return text if named else f"{job.source}: {text}"


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """Return the exit code of a run that went through to the end."""
    outcomes = list(outcomes)
    if not outcomes:
        return EXIT_NOTHING_MATCHED
    if any(o.bug for o in outcomes):
        return EXIT_BUG
    if any(o.state == "failed" for o in outcomes):
        return EXIT_SOME_FAILED
    return EXIT_OK
