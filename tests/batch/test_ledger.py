"""The ledger remembers what is done, and only while it is still true."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdrn_plugin.batch.jobs import Job
from mdrn_plugin.batch.ledger import Ledger, fingerprint, settings_digest


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.tif").write_bytes(b"noisy")
    (tmp_path / "out/a.tif").write_bytes(b"clean")
    return Job(tmp_path / "a.tif", tmp_path / "out/a.tif")


def _done(job: Job) -> None:
    ledger = Ledger(job.target.parent)
    key = fingerprint(job.source, "s")
    ledger.begin(job, key)
    ledger.done(job, key)
    ledger.close()


def _asked_again(job: Job, settings: str = "s") -> bool:
    ledger = Ledger(job.target.parent)
    try:
        return ledger.is_done(job, fingerprint(job.source, settings))
    finally:
        ledger.close()


def test_is_done_after_done_in_another_run(job: Job) -> None:
    assert not _asked_again(job)
    _done(job)
    assert _asked_again(job)


def test_is_done_no_longer_when_anything_changed(job: Job) -> None:
    _done(job)
    assert not _asked_again(job, "other settings")
    os.utime(job.target, (1, 1))
    assert not _asked_again(job)


def test_is_done_no_longer_when_the_input_changed(job: Job) -> None:
    _done(job)
    os.utime(job.source, (1, 1))
    assert not _asked_again(job)


def test_is_done_no_longer_when_the_output_is_gone(job: Job) -> None:
    _done(job)
    job.target.unlink()
    assert not _asked_again(job)


def test_is_done_another_file_of_the_same_time_is_another_input(job: Job) -> None:
    _done(job)
    twin = job.source.with_name("twin")
    twin.write_bytes(b"other")
    state = os.stat(job.source)
    os.utime(twin, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(twin, job.source)
    assert not _asked_again(job)


def test_torn_last_line_is_ignored_and_mended(job: Job) -> None:
    _done(job)
    file = job.target.parent / ".mdrn/ledger.jsonl"
    with open(file, "ab") as ledger:
        ledger.write(b'{"v": 1, "target": "a.tif", "ev')
    assert _asked_again(job)
    _done(job)
    assert _asked_again(job)
    assert file.read_bytes().endswith(b"\n")


def test_may_replace_what_another_run_began_with_the_same_settings(job: Job) -> None:
    ours, theirs = Ledger(job.target.parent), Ledger(job.target.parent)
    key = fingerprint(job.source, "s")
    ours.begin(job, key)
    assert not ours.may_replace(job, key)  # our own begin says nothing of who made the file
    theirs.begin(job, key)
    ours.refresh()
    assert ours.may_replace(job, key)
    assert not ours.may_replace(job, fingerprint(job.source, "other settings"))
    theirs.done(job, key)
    ours.refresh()
    assert not ours.may_replace(job, key)
    assert ours.is_done(job, key)
    ours.close()
    theirs.close()


def test_begin_does_not_hide_that_it_was_done(job: Job) -> None:
    _done(job)
    ledger = Ledger(job.target.parent)
    ledger.begin(job, fingerprint(job.source, "s"))
    assert ledger.is_done(job, fingerprint(job.source, "s"))
    ledger.close()


def test_claim_holds_until_it_is_released_or_its_holder_ends(job: Job) -> None:
    ours, theirs = Ledger(job.target.parent), Ledger(job.target.parent)
    assert ours.claim(job)
    assert ours.claim(job)  # ours already
    if sys.platform == "linux":  # elsewhere two ledgers of one process are one
        assert not theirs.claim(job)
    twin = Job(job.source, job.target.with_name("twin.tif"))
    assert theirs.claim(twin)
    ours.release(job)
    assert theirs.claim(job)
    theirs.close()
    assert ours.claim(job)
    assert ours.claim(twin)
    ours.close()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_claim_of_a_killed_process_is_lifted(job: Job) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mdrn_plugin.batch.jobs import Job; "
        "from mdrn_plugin.batch.ledger import Ledger; a, b = map(Path, sys.argv[1:]); "
        "print(Ledger(b.parent).claim(Job(a, b)), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(job.source), str(job.target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    ledger = Ledger(job.target.parent)
    assert not ledger.claim(job)
    process.kill()
    process.communicate()
    assert ledger.claim(job)
    ledger.close()


def test_ledger_of_twenty_thousand_lines_is_read_in_time(job: Job) -> None:
    _done(job)
    file = job.target.parent / ".mdrn/ledger.jsonl"
    begin, done = file.read_text().splitlines()
    plan = json.dumps({"steps": [{"model": "m" * 20, "sha256": "0" * 64, "reason": "r" * 60}] * 3})
    with open(file, "w") as lines:
        for k in range(10_000):
            name = f"{k:05}.tif"
            lines.write(begin.replace("a.tif", name) + "\n")
            lines.write(done.replace("a.tif", name)[:-1] + f', "plan": {plan}}}\n')
    began = time.process_time()
    ledger = Ledger(job.target.parent)
    seconds = time.process_time() - began
    ledger.close()
    assert seconds < 2


def test_series_first_choice_holds(job: Job) -> None:
    ours, theirs = Ledger(job.target.parent), Ledger(job.target.parent)
    assert ours.series("x") is None
    assert ours.set_series("x", Path("/a")) == os.path.abspath("/a")
    assert theirs.set_series("x", Path("/b")) == os.path.abspath("/a")
    assert theirs.series("x") == os.path.abspath("/a")
    ours.close()
    theirs.close()


def test_settings_digest_depends_on_every_value() -> None:
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    name = os.fsdecode(b"\xff.tif")
    job = Job(tmp_path / name, out / name)
    job.source.write_bytes(b"x")
    job.target.write_bytes(b"y")
    _done(job)
    assert _asked_again(job)
    assert dataclasses.asdict(fingerprint(job.source, "s"))["size"] == 1
