"""A run: every good file done, every bad one named, nothing lost, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mdrn_plugin import pipeline
from mdrn_plugin.batch import run as batch_run
from mdrn_plugin.batch.jobs import Job, Jobs, collect, prepare_output
from mdrn_plugin.batch.ledger import Ledger
from mdrn_plugin.batch.run import Outcome, Settings, exit_code, run
from mdrn_plugin.errors import Cancelled, CannotRead, OutputUnusable
from mdrn_plugin.formats import READABLE_SUFFIXES
from mdrn_plugin.options import Options

# Nothing is computed: the machinery around the network is what is tested here.
PLAIN = Settings(Options(noise="20", strength=0, threads=1), isolate=False)


def _pixels(seed: int = 0, side: int = 24) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(12):
        Image.fromarray(_pixels(k)).save(folder / f"{k:02}.png")
    return folder


def _jobs(folder: Path, out: Path, **wishes: Any) -> Jobs:
    jobs = collect([str(folder)], out, suffixes=READABLE_SUFFIXES, recursive=True, **wishes)
    prepare_output(out, jobs.jobs)
    return jobs


def _run(folder: Path, out: Path, settings: Settings = PLAIN, **hooks: Any) -> list[Outcome]:
    told: list[Outcome] = []
    tally = run(_jobs(folder, out), out, settings, told=told.append, **hooks)
    assert tally.count == len(told)
    return told


def _states(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.source.name: o.state for o in outcomes}


def _contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


@pytest.mark.parametrize("in_work", [1, 2, 3, 8])
def test_run_any_number_in_work_gives_the_same_in_order(folder: Path, tmp_path: Path, in_work: int) -> None:
    (folder / "05.png").write_bytes(b"")
    told = _run(folder, tmp_path / "out", dataclasses.replace(PLAIN, jobs=in_work))
    assert [o.source.name for o in told] == [f"{k:02}.png" for k in range(12)]
    assert [o.state for o in told] == ["done"] * 5 + ["failed"] + ["done"] * 6
    assert exit_code(told) == 3
    for k in (0, 4, 11):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/{k:02}.png")), _pixels(k))


@pytest.mark.parametrize("in_work", [1, 3, 5])
def test_run_has_no_more_files_in_work_than_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_work: int
) -> None:
    held, most, lock = 0, 0, threading.Lock()

    def count(step: int) -> None:
        nonlocal held, most
        with lock:
            held += step
            most = max(most, held)

    prepare, save = pipeline.prepare, pipeline.save

    def slow_prepare(*args: Any, **rest: Any) -> Any:
        count(1)
        return prepare(*args, **rest)

    def slow_save(*args: Any, **rest: Any) -> None:
        time.sleep(0.02)
        save(*args, **rest)
        count(-1)

    monkeypatch.setattr(pipeline, "prepare", slow_prepare)
    monkeypatch.setattr(pipeline, "save", slow_save)
    _run(folder, tmp_path / "out", dataclasses.replace(PLAIN, jobs=in_work))
    assert most <= in_work
    assert most > 1 or in_work == 1


def test_run_reads_and_writes_while_it_computes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, reading = pipeline.denoise_picture, threading.Event()
    prepare = pipeline.prepare

    def watched_prepare(source: Any, *args: Any, **rest: Any) -> Any:
        if Path(source).name == "01.png":
            reading.set()
        return prepare(source, *args, **rest)

    def waits_for_the_next(*args: Any, **rest: Any) -> Any:
        assert reading.wait(10), "the next file is not read meanwhile"
        return compute(*args, **rest)

    monkeypatch.setattr(pipeline, "prepare", watched_prepare)
    monkeypatch.setattr(pipeline, "denoise_picture", waits_for_the_next)
    assert set(_states(_run(folder, tmp_path / "out")).values()) == {"done"}


def test_run_large_files_are_not_read_ahead(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "_AHEAD_BYTES", 1)
    compute, prepare, read = pipeline.denoise_picture, pipeline.prepare, []

    def watched(source: Any, *args: Any, **rest: Any) -> Any:
        read.append(source)
        return prepare(source, *args, **rest)

    def checked(*args: Any, **rest: Any) -> Any:
        known = len(read)
        time.sleep(0.02)
        assert len(read) == known
        return compute(*args, **rest)

    monkeypatch.setattr(pipeline, "prepare", watched)
    monkeypatch.setattr(pipeline, "denoise_picture", checked)
    assert set(_states(_run(folder, tmp_path / "out")).values()) == {"done"}


def test_run_second_time_changes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(folder, out)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    again = _run(folder, out)
    assert {o.state for o in again} == {"skipped"}
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()} == before


def test_run_input_deleted_meanwhile_fails_alone(folder: Path, tmp_path: Path) -> None:
    def delete(outcome: Outcome) -> None:
        (folder / "10.png").unlink(missing_ok=True)

    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        delete(outcome)

    out = tmp_path / "out"
    run(_jobs(folder, out), out, PLAIN, told=tell)
    assert _states(told)["10.png"] == "failed"
    assert sum(o.state == "done" for o in told) == 11
    assert "10.png" in next(o.reason for o in told if o.state == "failed")
    assert not (out / "10.png").exists()


def test_run_input_changed_while_computing_fails_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, changed = pipeline.denoise_picture, []

    def change(*args: Any, **rest: Any) -> Any:
        if not changed:
            changed.append(1)
            Image.fromarray(_pixels(99)).save(folder / "00.png")
        return compute(*args, **rest)

    monkeypatch.setattr(pipeline, "denoise_picture", change)
    told = _run(folder, tmp_path / "out")
    assert _states(told)["00.png"] == "failed"
    assert "changed while it was read" in told[0].reason
    assert not (tmp_path / "out/00.png").exists()
    assert exit_code(told) == 3
    assert exit_code(_run(folder, tmp_path / "out")) == 0


def test_run_retry_failed_does_only_those(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sound = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(sound[:100])
    (folder / "07.png").write_bytes(b"")
    _run(folder, out)
    (folder / "03.png").write_bytes(sound)
    (out / "00.png").unlink()
    retry = dataclasses.replace(PLAIN, retry_failed=True)
    assert _states(_run(folder, out, retry)) == {"03.png": "done", "07.png": "failed"}
    assert not (out / "00.png").exists()
    assert _states(_run(folder, out, retry)) == {"07.png": "failed"}
    assert _states(_run(folder, out))["00.png"] == "done"


@pytest.mark.parametrize("in_work", [1, 3])
def test_run_fail_fast_stops_at_the_first_failure(folder: Path, tmp_path: Path, in_work: int) -> None:
    (folder / "04.png").write_bytes(b"")
    (folder / "08.png").write_bytes(b"")
    told = _run(folder, tmp_path / "out", dataclasses.replace(PLAIN, fail_fast=True, jobs=in_work))
    states = _states(told)
    assert states["04.png"] == "failed"
    assert "08.png" not in states
    assert len(told) < 8
    assert exit_code(told) == 3
    done = {n for n, s in states.items() if s == "done"}
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == done


def test_run_max_pixels_refuses_larger_files(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(_pixels(0, 40)).save(folder / "large.png")
    for isolate in (False, True):
        settings = dataclasses.replace(PLAIN, max_pixels=24 * 24, isolate=isolate, overwrite=True)
        told = _run(folder, tmp_path / "out", settings)
        assert _states(told)["large.png"] == "failed"
        assert "--max-pixels" in told[-1].reason
        assert sum(o.state == "done" for o in told) == 12


def test_run_stopped_keeps_what_is_done_and_tells_the_truth(folder: Path, tmp_path: Path) -> None:
    told: list[Outcome] = []
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        run(_jobs(folder, out), out, PLAIN, told=told.append, stop=lambda: len(told) >= 3)
    names = {p.name for p in out.glob("*.png")}
    assert names == set(_states(told))
    assert 3 <= len(names) < 12
    lines = [json.loads(x) for x in (out / ".mdrn/ledger.jsonl").read_text().splitlines()]
    assert {r["target"] for r in lines if r["event"] == "done"} == names
    assert not any(r["event"] == "failed" for r in lines)
    assert {p.name for p in out.iterdir()} == names | {".mdrn"}


def test_run_output_that_fills_up_stops_and_finishes_what_it_wrote(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pipeline.save

    def full(target: Path, *args: Any, **rest: Any) -> None:
        if target.name >= "04":
            raise OutputUnusable(f"{target}: cannot be written (No space left on device); free some")
        save(target, *args, **rest)

    monkeypatch.setattr(pipeline, "save", full)
    told: list[Outcome] = []
    out = tmp_path / "out"
    with pytest.raises(OutputUnusable, match="No space"):
        run(_jobs(folder, out), out, PLAIN, told=told.append)
    assert {p.name for p in out.glob("*.png")} == {f"{k:02}.png" for k in range(4)}
    assert {n for n, s in _states(told).items() if s == "done"} == {f"{k:02}.png" for k in range(4)}


def test_run_bug_in_one_file_is_listed_and_the_others_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = pipeline.denoise_picture, []

    def explode(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("oops")
        return compute(*args, **rest)

    monkeypatch.setattr(pipeline, "denoise_picture", explode)
    told = _run(folder, tmp_path / "out")
    assert [o.state for o in told].count("failed") == 1
    assert "please report" in told[1].reason
    assert exit_code(told) == 1


def test_run_trouble_of_the_listener_is_not_a_trouble_of_the_file(folder: Path, tmp_path: Path) -> None:
    def gone(outcome: Outcome) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(_jobs(folder, tmp_path / "out"), tmp_path / "out", PLAIN, told=gone)


# --- content ------------------------------------------------------------------------------------


def test_run_moved_and_touched_folders_are_recognised_by_content(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(folder, out)
    before = _contents(out)
    for path in (*folder.iterdir(), *out.glob("*.png")):
        os.utime(path, (1, 1))
    assert {o.state for o in _run(folder, out)} == {"skipped"}
    moved = folder.rename(tmp_path / "elsewhere")
    shutil.copytree(out, tmp_path / "copy")
    assert {o.state for o in _run(moved, tmp_path / "copy")} == {"skipped"}
    assert _contents(tmp_path / "copy") == before


def test_run_touched_input_of_other_content_is_not_taken_for_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(folder, out)
    data = bytearray((folder / "00.png").read_bytes())
    data[50] ^= 1
    (folder / "00.png").write_bytes(data)
    assert _states(_run(folder, out))["00.png"] == "failed"


@pytest.mark.parametrize("side", ["in", "out"])
def test_run_verify_finds_a_flipped_bit_behind_an_unchanged_date(
    folder: Path, tmp_path: Path, side: str
) -> None:
    out = tmp_path / "out"
    _run(folder, out)
    path = (folder if side == "in" else out) / "03.png"
    state, data = path.stat(), bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert {o.state for o in _run(folder, out)} == {"skipped"}  # the fast key cannot see it
    told = _run(folder, out, dataclasses.replace(PLAIN, verify=True))
    assert [o.source.name for o in told if o.state == "failed"] == ["03.png"]
    assert "--overwrite" in told[3].reason
    assert path.read_bytes() == bytes(data)


def test_run_verify_decodes_what_was_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin.formats import png

    write = png.write

    def spoil(file: Any, pixels: Any, *rest: Any) -> None:
        write(file, pixels ^ np.uint8(1), *rest)

    monkeypatch.setattr(png, "write", spoil)
    with pytest.raises(OutputUnusable, match="other pixel values"):
        _run(folder, tmp_path / "out", dataclasses.replace(PLAIN, verify=True))
    assert list((tmp_path / "out").glob("*.png")) == []


# --- two runs -----------------------------------------------------------------------------------


def _computed(monkeypatch: pytest.MonkeyPatch, pause: float = 0.0) -> list[str]:
    compute, seen, lock = pipeline.denoise_picture, [], threading.Lock()

    def note(picture: Any, *args: Any, **rest: Any) -> Any:
        with lock:
            seen.append(picture.pixels.tobytes())
        time.sleep(pause)
        return compute(picture, *args, **rest)

    monkeypatch.setattr(pipeline, "denoise_picture", note)
    return seen  # type: ignore[return-value]


@pytest.mark.skipif(sys.platform == "darwin", reason="locks belong to the process there")
def test_run_two_at_once_share_the_work_and_no_file_is_computed_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _computed(monkeypatch, 0.02)
    out = tmp_path / "out"
    told: list[list[Outcome]] = [[], []]
    jobs = _jobs(folder, out)
    threads = [threading.Thread(target=run, args=(jobs, out, PLAIN), kwargs={"told": t.append}) for t in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == 12
    states = [[o.state for o in t] for t in told]
    assert [len(s) for s in states] == [12, 12]
    assert sum(s.count("done") for s in states) == 12
    assert sum(s.count("skipped") for s in states) == 12
    assert min(s.count("done") for s in states) >= 1


@pytest.mark.skipif(sys.platform == "darwin", reason="locks belong to the process there")
def test_run_waits_for_a_file_that_another_run_is_at_work_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs = _jobs(folder, out)
    other = Ledger(out)
    assert other.claim(jobs.jobs[0])
    notes: list[str] = []
    told: list[Outcome] = []

    def free(text: str) -> None:
        notes.append(text)
        assert len(told) == 11
        other.close()  # as the system does when that run is killed

    run(jobs, out, PLAIN, told=told.append, note=free)
    assert "another run" in notes[0]
    assert [o.source.name for o in told][-1] == "00.png"
    assert {o.state for o in told} == {"done"}


# --- one noise for a series ---------------------------------------------------------------------


def _series(folder: Path, sigmas: list[float], dtype: str = "u1", prefix: str = "s") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, sigma in enumerate(sigmas):
        rng = np.random.default_rng(k)
        pixels = np.clip(rng.normal(120, sigma, (64, 64)), 0, 255)
        if dtype == "f4":
            tifffile.imwrite(folder / f"{prefix}{k}.tif", pixels.astype(np.float32) * (1 + k / 10))
        else:
            tifffile.imwrite(folder / f"{prefix}{k}.tif", pixels.astype(np.uint8))


SERIES = Settings(Options(strength=0, threads=1), isolate=False, same_noise=True)


def _noises(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[tuple[float, ...]], Callable[[], None]]:
    compute, seen = pipeline.denoise_picture, []

    def note(picture: Any, *args: Any, profiles: Any = None, **rest: Any) -> Any:
        unit = picture.range.white - picture.range.black
        seen.append(tuple(round(float(s * unit), 6) for p in profiles for s in p.sigma))
        return compute(picture, *args, profiles=profiles, **rest)

    monkeypatch.setattr(pipeline, "denoise_picture", note)
    return seen, seen.clear


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_run_same_noise_takes_the_median_picture_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    _series(tmp_path / "in", [5, 10, 20, 30, 40], dtype)
    seen, _ = _noises(monkeypatch)
    told = _run(tmp_path / "in", tmp_path / "out", SERIES)
    assert {o.state for o in told} == {"done"}
    assert len(seen) == 5
    assert len(set(seen)) == 1
    assert 17 < seen[0][0] / (1.2 if dtype == "f4" else 1) < 23


def test_run_same_noise_holds_when_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _series(tmp_path / "in", [5, 10, 20, 30, 40])
    seen, clear = _noises(monkeypatch)
    told: list[Outcome] = []
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        run(_jobs(tmp_path / "in", out), out, SERIES, told=told.append, stop=lambda: len(told) >= 2)
    first = seen[0]
    clear()
    _series(tmp_path / "in", [5, 10, 20, 30, 40, 60, 60, 60, 60, 60, 60])  # more have come meanwhile
    _run(tmp_path / "in", out, SERIES)
    assert set(seen) == {first}


def test_run_same_noise_is_one_per_folder_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _series(tmp_path / "in/a", [10, 10, 10])
    _series(tmp_path / "in/b", [40, 40, 40])
    _series(tmp_path / "in/b", [20, 20], "f4", "f")
    seen, _ = _noises(monkeypatch)
    _run(tmp_path / "in", tmp_path / "out", SERIES)
    assert len(seen) == 8
    assert len(set(seen)) == 3


# --- the helper process -------------------------------------------------------------------------


def test_run_isolated_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    _run(folder, tmp_path / "plain")
    told = _run(folder, tmp_path / "isolated", dataclasses.replace(PLAIN, isolate=True))
    assert {o.state for o in told} == {"done"}
    assert _contents(tmp_path / "plain") == _contents(tmp_path / "isolated")


def test_run_helper_is_used_from_some_files_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin.formats import isolated

    started = []
    start = isolated.Decoder.start
    monkeypatch.setattr(isolated.Decoder, "start", lambda self: (started.append(1), start(self)))
    auto = dataclasses.replace(PLAIN, isolate=None)
    monkeypatch.setattr(batch_run, "ISOLATE_FROM", 13)
    _run(folder, tmp_path / "a", auto)
    assert started == []
    monkeypatch.setattr(batch_run, "ISOLATE_FROM", 12)
    _run(folder, tmp_path / "b", auto)
    assert started == [1]


def test_run_jobs_of_a_vanished_folder_fail_cleanly(tmp_path: Path) -> None:
    jobs = Jobs((Job(tmp_path / "gone/a.png", tmp_path / "out/a.png"),), ())
    prepare_output(tmp_path / "out")
    told: list[Outcome] = []
    run(jobs, tmp_path / "out", PLAIN, told=told.append)
    assert [o.state for o in told] == ["failed"]
    assert "cannot be read" in told[0].reason
    (tmp_path / "gone").mkdir()  # the drive is back
    Image.fromarray(_pixels()).save(tmp_path / "gone/a.png")
    told.clear()
    run(jobs, tmp_path / "out", dataclasses.replace(PLAIN, retry_failed=True), told=told.append)
    assert [o.state for o in told] == ["done"]
    with pytest.raises(CannotRead):
        batch_run._fingerprint(tmp_path / "gone/b.png", "")


def test_run_folder_is_gone_on_with_by_the_backend_it_was_begun_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin import tuning
    from mdrn_plugin.engine import backends

    settings = Settings(Options(noise="20", quality="fast", device="cpu"), isolate=False)
    asked: list[str] = []

    def load(zoo: Any, name: str, backend: str, count: int) -> Any:
        asked.append(backend)
        return zoo.load(name)

    monkeypatch.setattr("mdrn_plugin.engine.planes.load_network", load)
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    for file in sorted(folder.iterdir())[3:]:
        file.unlink()
    out, other = tmp_path / "out", tmp_path / "other"

    def tuned(yes: bool) -> None:
        monkeypatch.setenv("MDRN_CACHE", str(tmp_path / ("tuned" if yes else "plain")))

    tuned(True)
    tuning.save(
        tuning.Tuning("onnxruntime", (tuning.Timing("m", {"torch": 2.0, "onnxruntime": 1.0}),)),
        torch.get_num_threads(),
    )
    for first, second, where in ((False, True, out), (True, False, other)):
        tuned(first)
        _run(folder, where, settings)
        (where / "01.png").unlink()
        tuned(second)
        notes: list[str] = []
        ends = _run(folder, where, settings, note=notes.append)
        assert _states(ends) == {"00.png": "skipped", "01.png": "done", "02.png": "skipped"}
        assert any("begun with" in text for text in notes)
    assert asked == ["torch"] * 4 + ["onnxruntime"] * 4
