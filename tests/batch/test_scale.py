"""Time and memory of the whole command over the size of the picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_zoo import make_models

linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory in other units elsewhere")
COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()", "denoise"]


def _picture(path: Path, side: int) -> int:
    rng = np.random.default_rng(0)
    pixels = np.empty((side, side), np.uint16)
    columns = 20000 + 8000 * np.sin(np.arange(side) / 40)
    for top in range(0, side, 256):
        rows = min(256, side - top)
        pixels[top : top + rows] = np.clip(columns + rng.normal(0, 4000, (rows, side)), 0, 65535)
    tifffile.imwrite(path, pixels)
    return pixels.nbytes


def _run(source: Path, out: Path, models: Path) -> tuple[float, float]:
    """Return (peak memory in MB, processor time in s) of one run of the command."""
    environment = {**os.environ, "MDRN_MODELS": str(models)}
    command = [*COMMAND, str(source), "-o", str(out), "--model", "tiny", "--threads", "1", "-q"]
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime


def _measured(folder: Path, models: Path, sides: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Return (MB beyond the picture in and out, processor time in s) for squares of these sides."""
    found = {}
    for side in sides:
        size = _picture(folder / f"{side}.tif", side)
        # The least of two: memory and time of a shared machine scatter upwards.
        runs = [_run(folder / f"{side}.tif", folder / f"out{side}-{k}", models) for k in range(2)]
        found[side] = (min(r[0] for r in runs) - 2 * size / 1e6, min(r[1] for r in runs))
        print(f"{side}: {found[side][0]:.0f} MB beyond the picture, {found[side][1]:.2f} s")
    return found


@linux
def test_memory_beyond_the_picture_is_flat(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", channels=32)
    found = _measured(tmp_path, models, (2000, 4000))
    assert found[4000][0] - found[2000][0] < 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
@linux
def test_time_is_linear_and_memory_flat_from_4_to_64_megapixels(tmp_path: Path) -> None:
    # A network at full resolution, so that it is most of the time, as in a real one.
    models = make_models(tmp_path / "models", channels=32, unshuffle=1)
    found = _measured(tmp_path, models, (1000, 2000, 4000, 8000))
    assert found[8000][0] - found[2000][0] < 50
    # What one megapixel takes has the start and all that does not grow: the looks at noise and residual.
    fixed = found[1000][1]
    per_pixel = {s: (found[s][1] - fixed) / (s**2 - 1000**2) for s in (2000, 4000, 8000)}
    print({s: f"{1e6 * t:.3f} us per pixel" for s, t in per_pixel.items()})
    assert max(per_pixel.values()) < 1.15 * min(per_pixel.values())
