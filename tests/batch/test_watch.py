"""New files are done once they are completely written, each once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from format_samples import SAMPLES

from mdrn_plugin.batch import watch
from mdrn_plugin.batch.jobs import Failure, Jobs, collect
from mdrn_plugin.batch.watch import Watcher, is_being_written
from mdrn_plugin.errors import BadOption
from mdrn_plugin.formats import READABLE_SUFFIXES


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that passes when it is told to."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return time.time() + self.now - 1000.0

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def _watcher(folder: Path, notes: list[str] | None = None, **wishes: Any) -> Watcher:
    said = notes if notes is not None else []
    return Watcher(
        lambda: collect([str(folder)], folder / "out", suffixes=READABLE_SUFFIXES, **wishes), said.append
    )


def _names(jobs: Jobs) -> list[str]:
    return [job.source.name for job in jobs.jobs]


def test_file_is_ready_when_it_has_not_changed_for_a_while(tmp_path: Path, clock: Any) -> None:
    watcher = _watcher(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"1")
    assert _names(watcher.look()) == []
    clock.now += 1.5
    (tmp_path / "a.tif").write_bytes(b"12")
    assert _names(watcher.look()) == []
    clock.now += 1.5
    assert _names(watcher.look()) == []
    clock.now += 1.0
    assert _names(watcher.look()) == ["a.tif"]
    clock.now += 100
    assert _names(watcher.look()) == []  # once
    (tmp_path / "a.tif").write_bytes(b"123")
    os.utime(tmp_path / "a.tif", (clock.time(), clock.time()))
    watcher.look()
    clock.now += 3
    assert _names(watcher.look()) == ["a.tif"]  # again, as it changed


def test_file_that_was_there_before_is_ready_at_once(tmp_path: Path, clock: Any) -> None:
    (tmp_path / "a.tif").write_bytes(b"1")
    os.utime(tmp_path / "a.tif", (time.time() - 60, time.time() - 60))
    assert _names(_watcher(tmp_path).look()) == ["a.tif"]


def test_empty_file_is_given_time(tmp_path: Path, clock: Any) -> None:
    watcher = _watcher(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"")
    watcher.look()
    clock.now += 5
    assert _names(watcher.look()) == []
    clock.now += 30
    assert _names(watcher.look()) == ["a.tif"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes")
def test_file_that_a_writer_holds_open_is_not_ready_however_long_it_pauses(
    tmp_path: Path, clock: Any
) -> None:
    watcher = _watcher(tmp_path)
    with open(tmp_path / "a.tif", "wb") as file:
        file.write(b"half")
        file.flush()
        watcher.look()
        clock.now += 60
        assert is_being_written(tmp_path / "a.tif")
        assert _names(watcher.look()) == []
    assert not is_being_written(tmp_path / "a.tif")
    assert _names(watcher.look()) == ["a.tif"]


@pytest.mark.skipif(sys.platform != "linux", reason="leases are of Linux")
def test_writer_that_comes_while_it_is_looked_does_no_harm(tmp_path: Path) -> None:
    import threading

    path, end = tmp_path / "a", time.monotonic() + 1
    path.write_bytes(b"1")

    def write() -> None:
        while time.monotonic() < end:
            with open(path, "ab") as file:
                file.write(b"1")

    writer = threading.Thread(target=write)
    writer.start()
    while time.monotonic() < end:
        is_being_written(path)
    writer.join()


def test_trouble_is_said_once_and_watching_goes_on(tmp_path: Path, clock: Any) -> None:
    notes: list[str] = []
    watcher = _watcher(tmp_path, notes, format="png")
    for name in ("a.tif", "a.png"):
        (tmp_path / name).write_bytes(b"1")
    for _ in range(3):
        assert _names(watcher.look()) == []
        clock.now += 3
    assert len(notes) == 1
    assert "both would be written" in notes[0]
    (tmp_path / "a.tif").unlink()
    watcher.look()
    clock.now += 3
    assert _names(watcher.look()) == ["a.png"]


def test_failure_is_told_once() -> None:
    failure = Failure(Path("x"), "x: cannot be listed")
    watcher = Watcher(lambda: Jobs((), (failure,)), lambda text: None)
    assert watcher.look().failures == (failure,)
    assert watcher.look().failures == ()


def test_other_errors_of_collecting_are_said(clock: Any) -> None:
    notes: list[str] = []

    def refuse() -> Jobs:
        raise BadOption("out: is the output folder itself")

    assert Watcher(refuse, notes.append).look() == Jobs((), ())
    assert notes == ["out: is the output folder itself"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_watch_does_what_appears_and_ends_by_signal(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "old.png").write_bytes(SAMPLES["gray.png"]())
    os.utime(folder / "old.png", (1e9, 1e9))
    command = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()", "denoise", str(folder)]
    command += ["-o", str(out), "--watch", "--strength", "0", "--noise", "20", "--json", "-q"]
    command += ["--report", str(tmp_path / "report.html")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(out / "old.png", process)
        data = SAMPLES["rgba.png"]()
        with open(folder / "new.png", "wb") as file:
            for at in range(0, len(data), len(data) // 5):
                file.write(data[at : at + len(data) // 5])
                file.flush()
                time.sleep(0.3)
                assert not (out / "new.png").exists()
        _wait_for(out / "new.png", process)
        (folder / "bad.png").write_bytes(data[:300])
        assert process.stdout is not None
        states = {}
        while "bad.png" not in states:
            import json

            line = json.loads(process.stdout.readline())
            states[Path(line["source"]).name] = line["state"]
        assert states == {"old.png": "done", "new.png": "done", "bad.png": "failed"}
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "new.png" in (tmp_path / "report.html").read_text()


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, path
        time.sleep(0.05)
