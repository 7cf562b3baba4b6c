"""Megapixels per second of what ships, beside plain methods that install from a package index.

    python benchmarks/speed.py [--size 1024] [--threads 2] [--repeat 5] [--json]

One run, the same picture and the same threads for all; the best of several repetitions.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from peers import plain_methods

from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIERS = ("fast", "balanced", "best")


def methods(noisy: NDArray[np.float32], threads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, call) for everything that can be timed here."""
    for tier in sorted({d.tier for d in shipped().descriptors if d.tier in TIERS}):
        for precision in ("auto", "fp32"):
            yield f"MDRN {tier}, {precision}", _ours(noisy, tier, precision, threads)
    yield from plain_methods(noisy)


def _ours(noisy: NDArray[np.float32], tier: str, precision: str, threads: int) -> Callable[[], Any]:
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, decide_range
    from mdrn_plugin.pipeline import denoise_picture

    picture = Picture(noisy, "YX", decide_range(noisy))
    options = Options(noise="25", quality=tier, precision=precision, threads=threads)
    return lambda: denoise_picture(picture, options)


def main() -> None:
    """Run the benchmark."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, px")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: options.size, : options.size] / options.size
    clean = 0.5 + 0.25 * np.sin(30 * x * y) + 0.2 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
    noisy = (clean + rng.normal(0, 25 / 255, clean.shape)).astype(np.float32)
    rows = []
    for name, call in methods(noisy, options.threads):
        call()
        best = min(_timed(call) for _ in range(options.repeat))
        rows.append({"method": name, "mp_per_s": noisy.size / 1e6 / best, "seconds": best})
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "size": options.size,
    }
    if options.json:
        print(json.dumps({**facts, "rows": rows}))
        return
    print(
        f"{options.size} x {options.size} px, gray, {options.threads} threads, "
        f"{facts['machine']}, torch {torch.__version__}\n"
    )
    print("| method | megapixels/s |\n|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['mp_per_s']:.2f} |")


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
