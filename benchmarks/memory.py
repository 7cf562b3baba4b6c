"""Peak memory of `mdrn-batch denoise` over picture size.

    python benchmarks/memory.py [--megapixels 4 16 64] [--quality balanced] [--json]

Each size is a 16-bit gray TIFF made here, denoised by a process of its own; "beyond" is what the
process held at its peak beyond the picture's own bytes (once read, once written). The exponent of
the CPU time over the pixels, 1 if it is linear, is fitted over all sizes, start-up taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()"]


def make_picture(path: Path, megapixels: float) -> int:
    """Write a noisy picture of about this size; return the bytes of its pixels."""
    import tifffile

    width = 8 * round((megapixels * 1e6) ** 0.5 / 8)
    height = 8 * round(megapixels * 1e6 / width / 8)
    pixels = np.empty((height, width), np.uint16)
    rng = np.random.default_rng(0)
    columns = 20000 + 8000 * np.sin(np.arange(width) / 40)
    for top in range(0, height, 256):
        rows = min(256, height - top)
        part = columns[None] + rng.normal(0, 4000, (rows, width))
        pixels[top : top + rows] = np.clip(part, 0, 65535)
    tifffile.imwrite(path, pixels)
    return pixels.nbytes


def measure(megapixels: float, quality: str, threads: int | None) -> dict[str, Any]:
    """Denoise one picture in a process of its own; return its facts."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.tif"
        size = make_picture(source, megapixels)
        command = [
            *COMMAND,
            "denoise",
            str(source),
            "-o",
            str(Path(folder) / "out"),
            "-q",
            "--quality",
            quality,
        ]
        if threads:
            command += ["--threads", str(threads)]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status != 0:
            raise SystemExit(f"{megapixels} megapixels: the command failed with status {status}")
    unit = 1024 if sys.platform == "linux" else 1
    peak = usage.ru_maxrss * unit
    return {
        "megapixels": megapixels,
        "picture_mb": size / 1e6,
        "peak_mb": peak / 1e6,
        "beyond_mb": (peak - 2 * size) / 1e6,
        "seconds": seconds,
        "us_per_pixel": seconds / megapixels,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def exponent(rows: list[dict[str, Any]]) -> float:
    """Return the slope of log CPU time over log pixels, the time of a tiny picture taken off."""
    start_up = measure(0.0001, "balanced", 1)["cpu_seconds"]
    pixels = np.log([row["megapixels"] for row in rows])
    seconds = np.log([row["cpu_seconds"] - start_up for row in rows])
    slope: float = np.polyfit(pixels, seconds, 1)[0]
    return slope


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[4, 16, 64])
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(size, options.quality, options.threads) for size in options.megapixels]
    slope = exponent(rows) if len(rows) > 1 else None
    if options.json:
        print(json.dumps({"rows": rows, "exponent": slope}))
        return
    print(
        "| megapixels | picture, MB | peak, MB | beyond the picture in and out, MB | µs per pixel | CPU, s |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['megapixels']:g} | {row['picture_mb']:.0f} | {row['peak_mb']:.0f} "
            f"| {row['beyond_mb']:.0f} | {row['us_per_pixel']:.2f} | {row['cpu_seconds']:.1f} |"
        )
    if slope is not None:
        print(f"\ntime grows with pixels to the power of {slope:.3f}")


if __name__ == "__main__":
    main()
