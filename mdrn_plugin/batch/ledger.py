"""``OUT/.mdrn/ledger.jsonl``: what was begun and what was done, one line each, never rewritten.

A line is on the disk before the program goes on. A torn last line (the machine lost power) is
ignored. Two runs may append at once: a line is written by a single call in append mode, and each
run looks at what the other has added before it begins a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from mdrn_plugin.batch.jobs import LEDGER_FOLDER, Job
from mdrn_plugin.errors import OutputUnusable

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes a finished file still right: its input, the settings, the models."""

    source: str  # absolute path
    size: int  # bytes
    mtime_ns: int
    inode: int
    settings: str  # digest of options, program version and weights


class Ledger:
    """The ledger of one output folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._file = out / LEDGER_FOLDER / "ledger.jsonl"
        self._done: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, dict[str, Any]] = {}  # target: run that began it, and with which key
        self._run = secrets.token_hex(8)
        self._read = 0  # bytes of the file that have been taken in
        try:
            self._file.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputUnusable(
                f"{self._file}: cannot be opened ({error.strerror}); choose another output folder with -o"
            ) from error
        self.refresh()
        end = os.fstat(self._descriptor).st_size
        if end and os.pread(self._descriptor, 1, end - 1) != b"\n":
            self._write(b"\n")  # close the torn line

    def refresh(self) -> None:
        """Take in what was written since the last look, by this run or by another."""
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size - self._read, self._read)
        whole = data.rfind(b"\n") + 1  # a line that another run is writing is left for later
        self._read += whole
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
                if record["v"] == VERSION:
                    self._take_in(record)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a power cut, or of another version

    def _take_in(self, record: dict[str, Any]) -> None:
        name, run = record["target"], record["run"]
        if record["event"] == "begin":
            self._begun.setdefault(name, {})[run] = record["key"]
        elif record["event"] == "done":
            self._done[name] = record
            self._begun.pop(name, None)
        else:
            self._begun.get(name, {}).pop(run, None)

    def begin(self, job: Job, key: Fingerprint) -> None:
        """Note that a file is about to be written."""
        self._append(job, key, {"event": "begin"})

    def done(self, job: Job, key: Fingerprint, **facts: Any) -> None:
        """Note that a file is in place."""
        state = os.stat(job.target)
        self._append(
            job, key, {"event": "done", "out_size": state.st_size, "out_mtime_ns": state.st_mtime_ns, **facts}
        )

    def failed(self, job: Job, key: Fingerprint | None, reason: str) -> None:
        """Note that a file could not be done."""
        self._append(job, key, {"event": "failed", "reason": reason})

    def is_done(self, job: Job, key: Fingerprint) -> bool:
        """Whether the output is there, as we left it, of this very input with these settings."""
        record = self._done.get(self._name(job.target))
        if record is None or record["key"] != dataclasses.asdict(key):
            return False
        try:
            state = os.stat(job.target)
        except OSError:
            return False
        return bool(state.st_size == record["out_size"] and state.st_mtime_ns == record["out_mtime_ns"])

    def may_replace(self, job: Job, key: Fingerprint) -> bool:
        """Whether an output that is there is another run's, of this very input and settings.

        That run was killed between writing and noting it, or is about to note it; either way the
        bytes are those that we would write.
        """
        begun = self._begun.get(self._name(job.target), {})
        wanted = dataclasses.asdict(key)
        return any(run != self._run and other == wanted for run, other in begun.items())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, job: Job, key: Fingerprint | None, facts: dict[str, Any]) -> None:
        name = self._name(job.target)
        record = {
            "v": VERSION,
            "run": self._run,
            "target": name,
            "key": dataclasses.asdict(key) if key else None,
            **facts,
        }
        self._write(json.dumps(record).encode() + b"\n")
        self.refresh()

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(28, "the disk is full")
            os.fsync(self._descriptor)
        except OSError as error:
            raise OutputUnusable(
                f"{self._file}: cannot be written ({error.strerror}); "
                "free some space or choose another folder"
            ) from error

    def _name(self, target: Path) -> str:
        # Non-UTF-8 names survive as lone surrogates, which JSON escapes.
        return os.path.relpath(target, self._out)


def fingerprint(source: Path, settings: str) -> Fingerprint:
    """Return the fast key of an input file."""
    state = os.stat(source)
    return Fingerprint(os.path.abspath(source), state.st_size, state.st_mtime_ns, state.st_ino, settings)


def settings_digest(settings: dict[str, Any]) -> str:
    """Return a short digest of everything that decides a result besides the input."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
