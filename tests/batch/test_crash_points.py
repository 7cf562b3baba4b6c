"""Killed at every moment: each point at which a run touches the disk is tried, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from format_samples import GRAY, RGB, encoded, tiff

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs to fork with libraries loaded")

# Runs in a process of its own: forks a run for every point, kills it there, finishes the work in
# another, and compares. Forked, because a fresh start would take seconds each time.
SCRIPT = """
import os, shutil, signal, sys
from pathlib import Path
from mdrn_plugin import pipeline
from mdrn_plugin.batch.jobs import collect, prepare_output
from mdrn_plugin.batch.run import Settings, run
from mdrn_plugin.formats import READABLE_SUFFIXES
from mdrn_plugin.options import Options
import torch, tifffile, imagecodecs, PIL.JpegImagePlugin, PIL.WebPImagePlugin, PIL.BmpImagePlugin

torch.set_num_threads(1)
source, work = Path(sys.argv[1]), Path(sys.argv[2])
settings = Settings(Options(noise="20", strength=0, threads=1), isolate=False, jobs=int(sys.argv[3]))

def finish(out):
    jobs = collect([str(source)], out, suffixes=READABLE_SUFFIXES)
    prepare_output(out, jobs.jobs)
    return run(jobs, out, settings, told=lambda outcome: None)

def contents(out):
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

def forked(task):
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException:
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def killed_at(point, out):
    reached = 0
    def guard(name):
        real = getattr(os, name)
        def step(*args, **rest):
            nonlocal reached
            reached += 1
            if reached == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **rest)
        setattr(os, name, step)
    for name in ("write", "fsync", "replace", "link", "unlink", "pwrite", "posix_fallocate"):
        guard(name)
    finish(out)

# What is loaded once is loaded here, not in every child.
settings.digest()
import numpy
from mdrn_plugin.picture import Picture, decide_range
picture = numpy.zeros((8, 8), numpy.uint8)
pipeline.denoise_picture(Picture(picture, "YX", decide_range(picture)), settings.options)

assert forked(lambda: finish(work / "whole")) == 0
whole = contents(work / "whole")
point = 0
while True:
    point += 1
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    status = forked(lambda: killed_at(point, out))
    if out.is_dir():
        for name, data in contents(out).items():
            if not name.endswith(".mdrn-part"):
                assert data == whole[name], f"point {point}: {name} is half a file"
    if not os.WIFSIGNALED(status):
        assert status == 0, f"point {point}: status {status}"
        break
    def again():
        tally = finish(out)
        assert tally.failed == 0 and tally.count == len(whole), tally
    assert forked(again) == 0, f"point {point}: the next run does not finish"
    assert contents(out) == whole, f"point {point}: {sorted(contents(out))}"
    assert sorted(p.name for p in out.iterdir()) == sorted([".mdrn", *whole]), point
    assert sorted(p.name for p in work.iterdir()) == ["in", "out", "whole"], point
print(point - 1)
"""


FILES = {
    "a.tif": lambda: tiff(GRAY, compression="zlib"),
    "b.png": lambda: encoded(RGB, "PNG"),
    "c.jpg": lambda: encoded(GRAY, "JPEG"),
    "d.webp": lambda: encoded(RGB, "WEBP", lossless=True),
    "e.bmp": lambda: encoded(GRAY, "BMP"),
}


@pytest.mark.parametrize(
    ("in_work", "count", "streamed"),
    [
        (1, 2, False),
        (1, 1, True),
        pytest.param(1, 5, False, marks=pytest.mark.slow),
        pytest.param(3, 5, True, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_touch_of_the_disk_and_finished_by_the_next(
    tmp_path: Path, in_work: int, count: int, streamed: bool
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in list(FILES)[:count]:
        (folder / name).write_bytes(FILES[name]())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path), str(in_work)],
        capture_output=True,
        text=True,
        env={**os.environ, "MDRN_STREAM_BYTES": "0" if streamed else str(2**40)},
    )
    assert done.returncode == 0, done.stderr
    # For each file: two lines of the ledger, each synchronised; file and folder, link and unlink.
    # Streamed, room is taken for the result, and it is written there first.
    assert int(done.stdout) >= 8 * count + 2 * streamed
