"""Reading, computing and writing of a batch overlapped: its wall time over the least possible.

    python benchmarks/pipeline.py [--megapixels 12] [--count 10] [--quality balanced] [--repeat 1] [--json]

Colour photographs made here (a scene of edges, waves and texture, noise of 10/255, JPEG of quality 92) go
through the whole pipeline as ``mdrn-batch denoise`` runs it: decoding in its helper process, a
reader, a writer, the ledger, nothing told. Before that the same files are computed alone: decoded
beforehand, nothing encoded. The least possible is the larger of this time and of all processor time
of the batch shared by all cores. Both are repeated in turn, the least of each counts. ``--quick`` takes
six photographs of a megapixel, the fast tier.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mdrn_plugin import formats
from mdrn_plugin.batch.jobs import collect
from mdrn_plugin.batch.run import Settings, run
from mdrn_plugin.options import Options
from mdrn_plugin.pipeline import denoise_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrn_plugin.batch.run import Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Time:
    """What a piece of work took: seconds on the clock, and of all processors for it and its children."""

    wall: float
    processor: float


class Watch:
    """Measures a block; `time` is there behind it."""

    def __enter__(self) -> Watch:
        self._began = time.perf_counter(), sum(os.times()[:4])
        return self

    def __exit__(self, *_: object) -> None:
        wall, processor = self._began
        self.time = Time(time.perf_counter() - wall, sum(os.times()[:4]) - processor)


def photograph(number: int, megapixels: float) -> bytes:
    """Return a noisy colour JPEG of 4:3, the same at every call."""
    height = max(8, round((megapixels * 1e6 * 3 / 4) ** 0.5))
    width = max(8, round(megapixels * 1e6 / height))
    rng = np.random.default_rng(number)
    y = np.linspace(0, 3, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 4, width, dtype=np.float32)
    scene = 0.5 + 0.2 * np.sin(7 * x * y + number) + 0.15 * ((x - 2) ** 2 + (y - 1.5) ** 2 < 1)
    scene += 0.05 * np.sin(np.arange(width) / 1.5) * (x > 3)
    out = np.empty((height, width, 3), np.uint8)
    for sample, tint in enumerate((1.0, 0.9, 0.75)):
        noisy = tint * scene + rng.normal(0, 10 / 255, scene.shape).astype(np.float32)
        out[..., sample] = np.clip(noisy * 255, 0, 255).round()
    file = io.BytesIO()
    Image.fromarray(out).save(file, "JPEG", quality=92)
    return file.getvalue()


def warm_up(file: Path, options: Options) -> str:
    """Load the weights, so that all that is timed finds them ready; return the model's name."""
    picture = formats.read(file)
    small = dataclasses.replace(picture, pixels=picture.pixels[:256, :256])
    return denoise_picture(small, options).plan.steps[0].model or "none"


def compute_alone(folder: Path, options: Options) -> Time:
    """Return the time of computing all photographs, one after the other."""
    pictures = [formats.read(file) for file in sorted(folder.glob("*.jpg"))]
    with Watch() as watch:
        for picture in pictures:
            denoise_picture(picture, options)
    return watch.time


def run_batch(folder: Path, out: Path, options: Options) -> Time:
    """Return the time of a batch over the folder."""
    out.mkdir()
    ends: list[Outcome] = []
    jobs = collect([str(folder)], out, suffixes=formats.READABLE_SUFFIXES)
    with Watch() as watch:
        run(jobs, out, Settings(options), told=ends.append)
    failed = [end.reason for end in ends if end.state != "done"]
    if failed or not ends:
        raise SystemExit(f"the batch failed: {failed}")
    return watch.time


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--threads", type=int, default=cores, help="of the network; default: all cores")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="least of N counts")
    parser.add_argument("--quick", action="store_true", help="six photographs of a megapixel, fast tier")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.megapixels, chosen.count, chosen.quality = 1.0, 6, "fast"
    options = Options(quality=chosen.quality, threads=chosen.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(chosen.count):
            (folder / f"{number:03}.jpg").write_bytes(photograph(number, chosen.megapixels))
        model = warm_up(folder / "000.jpg", options)
        pairs = [
            (compute_alone(folder, options), run_batch(folder, folder / f"out{k}", options))
            for k in range(chosen.repeat)
        ]
    alone, batch = (min(times, key=lambda t: t.wall) for times in zip(*pairs, strict=True))
    least = max(alone.wall, batch.processor / cores)
    facts = {
        "photographs": chosen.count,
        "megapixels": chosen.megapixels,
        "model": model,
        "cores": cores,
        "threads": chosen.threads,
        "alone_s": alone.wall,
        "alone_processor_s": alone.processor,
        "batch_s": batch.wall,
        "batch_processor_s": batch.processor,
        "least_s": least,
        "ratio": batch.wall / least,
    }
    if chosen.json:
        print(json.dumps(facts))
        return
    print(
        f"{chosen.count} photographs of {chosen.megapixels:g} megapixels, {model}, {cores} cores, "
        f"{chosen.threads} threads\n"
        f"computing alone  {alone.wall:8.2f} s, {alone.processor:8.2f} s of processors\n"
        f"whole batch      {batch.wall:8.2f} s, {batch.processor:8.2f} s of processors\n"
        f"over the least possible, {least:.2f} s: {facts['ratio']:.3f}"
    )


if __name__ == "__main__":
    main()
