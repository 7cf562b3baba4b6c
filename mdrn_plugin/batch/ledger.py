"""``OUT/.mdrn/ledger.jsonl``: what was begun and what was done, one line each, never rewritten.

A line is on the disk before the program goes on. A torn last line (the machine lost power) is
ignored. Two runs may append at once: a line is written by a single call in append mode, and each
run looks at what the other has added before it begins a file. A file that is being worked on is
claimed by a lock that the system lifts when the process ends, however that happens.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import secrets
import stat
import threading
from pathlib import Path
from typing import Any

from mdrn_plugin.batch.jobs import LEDGER_FOLDER, Job
from mdrn_plugin.errors import OutputUnusable
from mdrn_plugin.files import content_hash, files_of, lock_byte

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes a finished file still right: its input, the settings, the models."""

    source: str  # absolute path
    size: int  # bytes
    mtime_ns: int
    inode: int
    settings: str  # digest of options, program version and weights


@dataclasses.dataclass(frozen=True, slots=True)
class _Done:
    """What is kept in memory of a finished file; the rest stays in the file, at `place`."""

    key: tuple[Any, ...]  # as of a Fingerprint
    out_size: int
    out_mtime_ns: int
    sha256: str  # of the input; empty in lines of earlier versions
    out_sha256: str
    place: tuple[int, int]  # offset and length of the line


class Ledger:
    """The ledger of one output folder; its methods may be called from several threads."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._file = out / LEDGER_FOLDER / "ledger.jsonl"
        self._done: dict[str, _Done] = {}
        self._failed: set[str] = set()  # what failed last time
        self._begun: dict[str, dict[str, tuple[Any, ...]]] = {}  # target: run that began it, which key
        self._series: dict[str, dict[str, Any]] = {}
        self._backends: dict[str, str] = {}  # by digest of the settings
        self._run = secrets.token_hex(8)
        self._read = 0  # bytes of the file that have been taken in
        self._guard = threading.RLock()
        try:
            self._file.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(
                self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644
            )
        except OSError as error:
            raise OutputUnusable(
                f"{self._file}: cannot be opened ({error.strerror}); choose another output folder with -o"
            ) from error
        self.refresh()
        end = os.fstat(self._descriptor).st_size
        if end and _read_at(self._descriptor, 1, end - 1) != b"\n":
            self._write(b"\n")  # close the torn line

    def refresh(self) -> None:
        """Take in what was written since the last look, by this run or by another."""
        with self._guard:
            size = os.fstat(self._descriptor).st_size
            if size == self._read:
                return
            data = _read_at(self._descriptor, size - self._read, self._read)
            whole = data.rfind(b"\n") + 1  # a line that another run is writing is left for later
            at = self._read
            self._read += whole
            for line in data[:whole].splitlines(keepends=True):
                try:
                    record = json.loads(line)
                    if record["v"] == VERSION:
                        self._take_in(record, (at, len(line)))
                except (ValueError, KeyError, TypeError):
                    pass  # torn by a power cut, or of another version
                at += len(line)

    def _take_in(self, record: dict[str, Any], place: tuple[int, int]) -> None:
        name, run, event = record["target"], record["run"], record["event"]
        if event == "begin":
            self._begun.setdefault(name, {})[run] = _key(record)
        elif event == "done":
            self._done[name] = _Done(
                _key(record),
                record["out_size"],
                record["out_mtime_ns"],
                record.get("sha256", ""),
                record.get("out_sha256", ""),
                place,
            )
            self._begun.pop(name, None)
            self._failed.discard(name)
        elif event == "failed":
            self._begun.get(name, {}).pop(run, None)
            self._failed.add(name)
        elif event == "series":
            self._series.setdefault(name, record)  # the first holds, whoever wrote it
        elif event == "backend":
            self._backends.setdefault(name, record["backend"])  # likewise

    # --- what this run does ---------------------------------------------------------------------

    def begin(self, job: Job, key: Fingerprint) -> None:
        """Note that a file is about to be written."""
        self._append(job.target, key, {"event": "begin"})

    def done(self, job: Job, key: Fingerprint, **facts: Any) -> None:
        """Note that a file is in place."""
        state = os.stat(job.target)
        self._append(
            job.target,
            key,
            {"event": "done", "out_size": state.st_size, "out_mtime_ns": state.st_mtime_ns, **facts},
        )

    def failed(self, job: Job, key: Fingerprint | None, reason: str) -> None:
        """Note that a file could not be done."""
        self._append(job.target, key, {"event": "failed", "reason": reason})

    def claim(self, job: Job) -> bool:
        """Take a file for this run; false if another run that is alive is at work on it."""
        with self._guard:
            return lock_byte(self._descriptor, self._place_of_lock(job), take=True)

    def release(self, job: Job) -> None:
        """Let others have it."""
        with self._guard:
            lock_byte(self._descriptor, self._place_of_lock(job), take=False)

    # --- what is known --------------------------------------------------------------------------

    def is_done(self, job: Job, key: Fingerprint) -> bool:
        """Whether the output is there, as we left it, of this very input with these settings."""
        record = self._done.get(self._name(job.target))
        if record is None or record.key != _tuple(key):
            return False
        try:
            state = os.stat(job.target)
        except OSError:
            return False
        return state.st_size == record.out_size and state.st_mtime_ns == record.out_mtime_ns

    def is_done_by_content(self, job: Job, key: Fingerprint) -> bool | None:
        """Ask the same of the bytes of input and output, whatever dates, paths and inodes say.

        Returns
        -------
        bool or None
            None if nothing is known: never done with these settings, the output is gone, or sizes
            differ. False: both are there and the content of one is not what it was.
        """
        record = self._done.get(self._name(job.target))
        if record is None or not record.sha256 or record.key[-1] != key.settings:
            return None
        try:
            if os.stat(job.target).st_size != record.out_size or key.size != record.key[1]:
                return None
            return content_hash(job.source) == record.sha256 and content_hash(job.target) == record.out_sha256
        except OSError:
            return None

    def renew(self, job: Job, key: Fingerprint) -> None:
        """Note that a finished file was found unchanged under another date, path or inode."""
        facts = self.facts(job)
        for name in ("v", "run", "target", "key", "event", "out_size", "out_mtime_ns"):
            facts.pop(name, None)
        self.done(job, key, **facts)

    def facts(self, job: Job) -> dict[str, Any]:
        """Return what was noted when a file was done: verdict, plan, noise; empty if it was not."""
        record = self._done.get(self._name(job.target))
        if record is None:
            return {}
        try:
            with self._guard:
                line = _read_at(self._descriptor, record.place[1], record.place[0])
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            return {}
        return found

    def failed_before(self, job: Job) -> bool:
        """Whether the last attempt failed."""
        return self._name(job.target) in self._failed

    def may_replace(self, job: Job, key: Fingerprint) -> bool:
        """Whether an output that is there is another run's, of this very input and settings.

        That run was killed between writing and noting it, or is about to note it; either way the
        bytes are those that we would write.
        """
        begun = self._begun.get(self._name(job.target), {})
        wanted = _tuple(key)
        return any(run != self._run and other == wanted for run, other in begun.items())

    def series(self, name: str) -> str | None:
        """Return the file whose noise was taken for a series of pictures, if that was decided."""
        self.refresh()
        record = self._series.get(name)
        return None if record is None else str(record["source"])

    def set_series(self, name: str, source: Path) -> str:
        """Decide on it, unless another run was quicker; return what holds."""
        self._append(name, None, {"event": "series", "source": os.path.abspath(source)})
        return str(self._series[name]["source"])

    def backend(self, settings: str) -> str | None:
        """Return what all runs with these settings compute with, if that was decided."""
        self.refresh()
        return self._backends.get(settings)

    def set_backend(self, settings: str, backend: str) -> str:
        """Decide on it, unless another run was quicker; return what holds."""
        self._append(settings, None, {"event": "backend", "backend": backend})
        return self._backends[settings]

    def close(self) -> None:
        """Close the file; claims end with it."""
        os.close(self._descriptor)

    def _append(self, target: Path | str, key: Fingerprint | None, facts: dict[str, Any]) -> None:
        record = {
            "v": VERSION,
            "run": self._run,
            "target": target if isinstance(target, str) else self._name(target),
            "key": dataclasses.asdict(key) if key else None,
            **facts,
        }
        with self._guard:
            self._write(json.dumps(record).encode() + b"\n")
            self.refresh()

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputUnusable(
                f"{self._file}: cannot be written ({error.strerror}); "
                "free some space or choose another folder"
            ) from error

    def _name(self, target: Path) -> str:
        # Non-UTF-8 names survive as lone surrogates, which JSON escapes.
        return os.path.relpath(target, self._out)

    def _place_of_lock(self, job: Job) -> int:
        # A byte far beyond the end of the file, by name: no lock files that would stay behind.
        digest = hashlib.sha256(os.fsencode(self._name(job.target))).digest()
        number = int.from_bytes(digest[:7])
        # Two names on one byte wait for each other, no more. Windows has 31 bits for the place.
        return 2**30 + number % 2**29 if os.name == "nt" else 2**60 + number


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    key = record["key"]
    return tuple(key[field.name] for field in dataclasses.fields(Fingerprint))


def _tuple(key: Fingerprint) -> tuple[Any, ...]:
    return (key.source, key.size, key.mtime_ns, key.inode, key.settings)


def _read_at(descriptor: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows; appending does not mind the position
    return os.read(descriptor, count)


def fingerprint(source: Path, settings: str) -> Fingerprint:
    """Return the fast key of an input file."""
    state = os.stat(source)
    size, changed = state.st_size, state.st_mtime_ns
    if stat.S_ISDIR(state.st_mode):  # a zarr store: all that is in it
        states = [os.stat(file) for file in files_of(source)]
        size = sum(s.st_size for s in states)
        changed = max((s.st_mtime_ns for s in states), default=changed)
    return Fingerprint(os.path.abspath(source), size, changed, state.st_ino, settings)


def settings_digest(settings: dict[str, Any]) -> str:
    """Return a short digest of everything that decides a result besides the input."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
