"""Megapixels per second of what ships, beside plain methods that install from a package index.

    python benchmarks/speed.py [--size 1024] [--threads 2] [--repeat 5] [--json]

One run, the same picture and the same threads for all; the best of several repetitions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import mdrn_plugin

if TYPE_CHECKING:
    from numpy.typing import NDArray


def methods(noisy: NDArray[np.float32], threads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, call) for everything that can be timed here."""
    tiers = sorted({(d.tier, d.colours) for d in mdrn_plugin.models()})
    for tier, colours in tiers:
        if colours == 1:
            for precision in ("auto", "fp32"):
                yield f"MDRN {tier}, {precision}", _ours(noisy, tier, precision, threads)
    if importlib.util.find_spec("skimage") is not None:
        from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

        sigma = 25 / 255
        yield (
            "scikit-image NL means (fast)",
            lambda: denoise_nl_means(noisy, 7, 11, h=0.8 * sigma, sigma=sigma, fast_mode=True),
        )
        yield "scikit-image TV", lambda: denoise_tv_chambolle(noisy, 0.1)
        if importlib.util.find_spec("pywt") is not None:
            yield "scikit-image wavelet", lambda: denoise_wavelet(noisy, sigma=sigma, rescale_sigma=True)


def _ours(noisy: NDArray[np.float32], tier: str, precision: str, threads: int) -> Callable[[], Any]:
    from mdrn_plugin.picture import Picture, decide_range
    from mdrn_plugin.pipeline import denoise_picture
    from mdrn_plugin.plan import Options

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
