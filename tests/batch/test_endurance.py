"""Long runs: memory, time and ledger over thousands of files, and kills at random moments."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from raw_samples import write_dng
from zarr_samples import make_store

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()", "denoise"]

# One run in a process of its own; prints what it took. What is ours is the processor's time: on a
# busy machine the clock also counts the neighbours, and the disk's time is not ours.
MEASURE = """
import json, os, sys, threading, time
from pathlib import Path
spent = [0.0]
lock, sync = threading.Lock(), os.fsync
def timed(descriptor):
    began = time.perf_counter()
    sync(descriptor)
    with lock:
        spent[0] += time.perf_counter() - began
os.fsync = timed
from mdrn_plugin.batch.jobs import collect, prepare_output
from mdrn_plugin.batch.run import Settings, Session
from mdrn_plugin.formats import READABLE_SUFFIXES
from mdrn_plugin.options import Options
import torch

def memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024

def descriptors():
    return len(os.listdir("/proc/self/fd"))

source, out = map(Path, sys.argv[1:3])
options = Options(noise="20", strength=0, threads=1)
settings = Settings(options, jobs=int(sys.argv[3]), isolate=sys.argv[4] == "yes")
seen = []
def told(outcome):
    told.count += 1
    if told.count in marks:
        seen.append((memory(), descriptors()))
told.count = 0
began, used = time.perf_counter(), time.process_time()
jobs = collect([str(source)], out, suffixes=READABLE_SUFFIXES)
prepare_output(out, jobs.jobs)
count = len(jobs.jobs)
marks = {max(1, count // 10), count}
with Session(out, settings, told=told) as session:
    opened = time.perf_counter()
    session.work(jobs)
seconds = time.perf_counter() - began
print(json.dumps({
    "count": count, "seconds": seconds, "fsync": spent[0], "cpu": time.process_time() - used,
    "growth": seen[-1][0] - seen[0][0], "descriptors": seen[-1][1] - seen[0][1],
    "done": session.tally.done, "skipped": session.tally.skipped,
}))
"""


def _small_files(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{k:05}.png")


def _measured(folder: Path, out: Path, in_work: int, isolate: str) -> dict[str, Any]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(out), str(in_work), isolate],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)
    return found


def _state(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in out.rglob("*") if p.is_file()}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_thousands_of_small_files_in_flat_memory_and_little_time_of_our_own(
    tmp_path: Path, count: int
) -> None:
    _small_files(tmp_path / "in", count)
    found = _measured(tmp_path / "in", tmp_path / "out", 1, "no")
    assert found["done"] == count
    assert found["growth"] < 50  # MiB, from a tenth of the files to all
    assert found["descriptors"] <= 0
    own = 1000 * found["cpu"] / count
    print(f"{own:.2f} ms of our own per file")
    assert own < (3 if count >= 10_000 else 8)  # a small run has the start in it
    again = _measured(tmp_path / "in", tmp_path / "out", 3, "no")
    assert again["skipped"] == count
    assert again["seconds"] < 0.5 + count / 1000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_helper_process_keeps_memory_flat(tmp_path: Path) -> None:
    _small_files(tmp_path / "in", 2000)
    found = _measured(tmp_path / "in", tmp_path / "out", 3, "yes")
    assert found["done"] == 2000
    assert found["growth"] < 50


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_second_run_over_a_finished_folder_is_quick_and_changes_nothing(tmp_path: Path, count: int) -> None:
    _small_files(tmp_path / "in", count)
    command = [
        *COMMAND,
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--noise",
        "20",
        "--strength",
        "0",
    ]
    assert subprocess.run([*command, "-q"], capture_output=True).returncode == 0
    before = _state(tmp_path / "out")
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    print(f"second run over {count} files: {seconds:.2f} s")
    assert f"0 done, {count} done before, 0 failed" in done.stderr
    assert seconds < 3
    assert _state(tmp_path / "out") == before


def _contents(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `out` by name, the ledger left out."""
    found = [p.relative_to(out) for p in out.rglob("*") if p.is_file()] if out.is_dir() else []
    return {str(p): (out / p).read_bytes() for p in found if p.parts[0] != ".mdrn"}


# A run that is killed again and again while it works its way through the files: each continues where
# the last was killed. Forked, so that the moments lie in the work and not in the start of Python.
KILLED_AGAIN_AND_AGAIN = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from mdrn_plugin import pipeline
from mdrn_plugin.batch.jobs import collect, prepare_output
from mdrn_plugin.batch.run import Settings, run
from mdrn_plugin.formats import RAW_SUFFIXES, READABLE_SUFFIXES
from mdrn_plugin.options import Options
import torch, tifffile, imagecodecs, PIL.JpegImagePlugin, rawpy, zarr
torch.set_num_threads(1)
source, work, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
options = Options(noise="20", strength=float(sys.argv[4]), threads=1)
settings = Settings(options, isolate=False)

def finish(out):
    jobs = collect([str(source)], out, suffixes=READABLE_SUFFIXES | RAW_SUFFIXES)
    prepare_output(out, jobs.jobs)
    return run(jobs, out, settings, told=lambda outcome: None)

def contents(out):
    found = (p.relative_to(out) for p in out.rglob("*") if p.is_file()) if out.is_dir() else ()
    return {str(p): (out / p).read_bytes() for p in found if p.parts[0] != ".mdrn"}

def unfinished(name):
    return any(part.endswith(".mdrn-part") for part in Path(name).parts)

def started(out):
    child = os.fork()
    if child == 0:
        try:
            tally = finish(out)
            os._exit(0 if tally.failed == 0 else 8)
        except BaseException:
            os._exit(9)
    return child

# What is loaded once is loaded here, not in every child.
settings.digest()
import numpy
from mdrn_plugin.picture import Picture, decide_range
picture = numpy.zeros((24, 24), numpy.uint8)
pipeline.denoise_picture(Picture(picture, "YX", decide_range(picture)), options)
began = time.time()
assert os.waitpid(started(work / "whole"), 0)[1] == 0
undisturbed = time.time() - began
start = max(0, min(p.stat().st_mtime for p in (work / "whole").glob("*.*")) - began)
whole, out, moments, done, rounds = contents(work / "whole"), work / "out", random.Random(8), 0, 1
while done < kills:
    child = started(out)
    # On average twice a fiftieth of the way each, from the start on.
    time.sleep(moments.uniform(0, 4 * (start + undisturbed / kills)))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    done += os.WIFSIGNALED(status)
    for name, data in contents(out).items():
        if not unfinished(name):
            assert data == whole[name], f"kill {done}: {name} is half a file"
    if not os.WIFSIGNALED(status):
        assert status == 0 and contents(out) == whole, f"status {status}"
        shutil.rmtree(out)
        rounds += 1
left = sum(map(unfinished, contents(out)))
before = len(contents(out)) - left
assert os.waitpid(started(out), 0)[1] == 0
assert contents(out) == whole
assert sorted(os.listdir(out)) == sorted({".mdrn", *(Path(name).parts[0] for name in whole)})
assert sorted(os.listdir(work)) == ["in", "out", "whole"]
print(f"undisturbed {undisturbed:.1f} s; {done} kills in {rounds} rounds, then {before} of {len(whole)} done")
"""


def _mixed_files(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    for k in range(count):
        rng = np.random.default_rng(k)
        pixels = np.clip(rng.normal(120, 20, (side, side)), 0, 255).astype(np.uint8)
        if k % 20 == 7:
            write_dng(folder / f"{k:03}.dng", size=(side, side), noise=(0.002, 1e-5), seed=k)
        elif k % 20 == 13:
            make_store(folder / f"{k:03}.zarr", pixels, "yx")
        elif k % 3 == 0:
            tifffile.imwrite(folder / f"{k:03}.tif", pixels.astype(np.uint16) * 200, compression="zlib")
        else:
            Image.fromarray(pixels).save(folder / f"{k:03}.{'png' if k % 3 == 1 else 'jpg'}")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(sys.platform != "linux", reason="needs to fork with libraries loaded")
@pytest.mark.parametrize("strength", [0, 1], ids=["written", "denoised"])
def test_killed_fifty_times_on_the_way_through_two_hundred_files(tmp_path: Path, strength: int) -> None:
    """Without the network most moments lie in reading and writing, with it most in computing."""
    _mixed_files(tmp_path / "in", 200, 24)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED_AGAIN_AND_AGAIN,
            str(tmp_path / "in"),
            str(tmp_path),
            "50",
            str(strength),
        ],
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_killed_command_at_fifty_random_moments_and_finished_is_byte_equal(tmp_path: Path) -> None:
    """The same with the command itself: the moments lie in imports, reading, computing and writing."""
    folder = tmp_path / "in"
    _mixed_files(folder, 200, 64)
    wish = ["--noise", "20", "--threads", "1", "-q"]
    began = time.monotonic()
    assert subprocess.run([*COMMAND, str(folder), "-o", str(tmp_path / "whole"), *wish]).returncode == 0
    undisturbed = time.monotonic() - began
    whole = _contents(tmp_path / "whole")
    assert len({Path(name).parts[0] for name in whole}) == 200
    moments, kills, finished, left = random.Random(8), 0, 0, 0
    out = tmp_path / "out"
    while kills < 50:
        process = subprocess.Popen([*COMMAND, str(folder), "-o", str(out), *wish], stderr=subprocess.PIPE)
        try:
            # Up to the end of an undisturbed run, from its start on: imports, decoding, writing.
            process.wait(timeout=moments.uniform(0, undisturbed))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        for name, data in _contents(out).items():
            if any(part.endswith(".mdrn-part") for part in Path(name).parts):
                left += 1
            else:
                assert data == whole[name], f"kill {kills}: half of {name}"
        if process.returncode == 0:
            finished += 1
            assert _contents(out) == whole
            shutil.rmtree(out)
    assert subprocess.run([*COMMAND, str(folder), "-o", str(out), *wish]).returncode == 0
    assert _contents(out) == whole
    assert sorted(os.listdir(out)) == sorted({".mdrn", *(Path(n).parts[0] for n in whole)})
    print(f"{kills} kills, {finished + 1} runs finished, {left} temporary files were left and removed")
