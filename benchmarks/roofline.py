"""How close the engine comes to its own convolutions, and to plain eager torch.

    python benchmarks/roofline.py [--blocks 2 8] [--precision bf16 fp32 fp32-kernel] [--size 1024]
        [--threads 1] [--json]

The floor is the time of the network's convolutions alone: each layer by itself, by the fastest of
the operators that torch has for it, on the fastest of several tile sizes that fit into the caches,
its operands warm. The engine is timed as `run_plane` on a whole picture, in bf16 by the compiled
kernel where it runs (its own operators are not among the floor's), eager torch as the network
as it is trained (channels_last, same precision, whole picture, inference mode). Repetitions of all
take turns and the least time of each counts; with one thread it is CPU time, so that a busy machine
disturbs less.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.engine.device import FP32_KERNEL, resolve_precision
from mdrn_plugin.engine.run import Job, run_plane
from mdrn_plugin.networks.mdrn import LEVELS, MDRN, FoldedMDRN
from mdrn_plugin.networks.strips import Convolution
from mdrn_plugin.plan import TILE_CPU

# Tiles that the floor may choose from: rows, columns.
TILES = ((32, 64), (64, 64), (64, 128), (128, 128), (32, 1024))


def layers(blocks: int, colours: int = 1, channels: int = 64) -> dict[tuple[str, int, int], float]:
    """Return how often each kind of layer is computed per pixel of the picture.

    A kind is (what, inputs, outputs); layers of stride 2 and transposed ones count per pixel of
    their larger side. Those that the engine folds away for good are not counted.
    """
    counts: dict[tuple[str, int, int], float] = {}

    def add(what: str, inputs: int, outputs: int, times: float) -> None:
        key = (what, inputs, outputs)
        counts[key] = counts.get(key, 0) + times

    half = channels // 2
    add("3x3", colours, channels, 1)
    add("3x3", channels, colours, 1)
    for level in range(LEVELS):
        share = 0.25**level
        nodes = LEVELS - level
        add("1x1", channels, channels, 2 * blocks * nodes * share)
        add("3x3", half, half, blocks * nodes * share)
        add("3x3 dilated", half, half, blocks * nodes * share)
        if level:
            add("down", channels, channels, 4 * share)
        for column in range(1, nodes):
            add("1x1", column * channels, channels, share)
            add("up", channels, channels, share)
    return counts


def multiplications(counts: dict[tuple[str, int, int], float]) -> float:
    """Return the multiplications per pixel of `layers`."""
    taps = {"1x1": 1, "3x3": 9, "3x3 dilated": 9, "down": 1, "up": 1}
    return sum(taps[what] * a * b * times for (what, a, b), times in counts.items())


def clock(threads: int) -> Callable[[], float]:
    """Return the clock that disturbs least: CPU time of one thread, else the wall."""
    return time.thread_time if threads == 1 else time.perf_counter


def least(
    call: Callable[[], Any], now: Callable[[], float], seconds: float = 0.3, least_runs: int = 2
) -> float:
    """Return the least time of a call, repeated for about `seconds`."""
    call()
    best, spent, runs = float("inf"), 0.0, 0
    while spent < seconds or runs < least_runs:
        began = now()
        call()
        taken = now() - began
        best, spent, runs = min(best, taken), spent + max(taken, 1e-5), runs + 1
    return best


def layer_time(kind: tuple[str, int, int], dtype: torch.dtype, now: Callable[[], float]) -> float:
    """Return the least time of one layer, seconds per pixel of its larger side."""
    what, inputs, outputs = kind
    best = float("inf")
    for rows, columns in TILES:
        for call in _calls(what, inputs, outputs, rows, columns, dtype):
            best = min(best, least(call, now, 0.05) / (rows * columns))
    return best


def _calls(
    what: str, inputs: int, outputs: int, rows: int, columns: int, dtype: torch.dtype
) -> list[Callable[[], Tensor]]:
    def picture(channels: int, height: int, width: int) -> Tensor:
        return torch.randn(1, height, width, channels).to(dtype).permute(0, 3, 1, 2)

    side = {"1x1": 1, "3x3": 3, "3x3 dilated": 3, "down": 2, "up": 2}[what]
    weight, bias = torch.randn(outputs, inputs, side, side).to(dtype), torch.randn(outputs).to(dtype)
    if what == "up":
        x = picture(inputs, rows // 2, columns // 2)
        wide = Convolution(weight.permute(0, 2, 3, 1).reshape(outputs * 4, inputs, 1, 1), bias.repeat(4))
        turned = weight.transpose(0, 1).contiguous()
        # Without the pixel shuffle behind it: the floor counts convolutions only.
        return [lambda: wide(x), lambda: functional.conv_transpose2d(x, turned, bias, 2)]
    x = picture(inputs, rows, columns)
    stride, dilation = (2, 1) if what == "down" else (1, 2 if "dilated" in what else 1)
    fused = Convolution(weight, bias, stride=stride, dilation=dilation, pad_rows=True)
    flat = x.contiguous()
    padding = fused.padding[0]
    calls = [
        lambda: fused(x),
        lambda: functional.conv2d(x, weight, bias, stride, padding, dilation),
        lambda: functional.conv2d(flat, weight, bias, stride, padding, dilation),
    ]
    if what == "1x1":
        matrix = weight[:, :, 0, 0].t().contiguous()
        pixels = x.permute(0, 2, 3, 1).reshape(-1, inputs)
        calls.append(lambda: torch.addmm(bias, pixels, matrix))
    return calls


def measure(blocks: int, precision: str, size: int, threads: int, repeat: int) -> dict[str, Any]:
    """Return floor, engine and eager time, seconds per pixel, and their ratios."""
    now = clock(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    plain = MDRN(1, blocks).eval()
    folded = FoldedMDRN(plain).eval()
    eager = plain.to(dtype=dtype, memory_format=torch.channels_last)
    noisy = np.random.default_rng(0).random((size, size, 1), np.float32)
    whole = torch.from_numpy(noisy).permute(2, 0, 1)[None].to(dtype)
    out = np.empty_like(noisy)
    # The tile of the plan, the halo of the manifest: neither matters up to this size.
    form = precision if precision == FP32_KERNEL else resolve_precision(precision, "cpu")
    job = Job(folded, 0.0, 1.0, TILE_CPU, 48, 8, precision=form)
    counts = layers(blocks)
    floors = dict.fromkeys(counts, float("inf"))
    engine_seconds = eager_seconds = float("inf")
    with torch.inference_mode():
        for turn in range(repeat):
            for kind in counts:
                floors[kind] = min(floors[kind], layer_time(kind, dtype, now))
            engine_seconds = min(engine_seconds, least(lambda: run_plane(noisy, out, job), now, 0, 1))
            if turn == 0:
                eager_seconds = least(lambda: eager.residual(whole), now, 0, 1)
    floor = sum(floors[kind] * times for kind, times in counts.items())
    engine, plain_seconds = engine_seconds / size**2, eager_seconds / size**2
    work = multiplications(counts)
    # The fastest that this machine multiplies in a convolution: 3x3, 64 to 64 channels.
    with torch.inference_mode():
        peak = 9 * 64 * 64 / layer_time(("3x3", 64, 64), dtype, now)
    return {
        "blocks": blocks,
        "precision": form,
        "threads": threads,
        "floor_us_per_px": floor * 1e6,
        "engine_us_per_px": engine * 1e6,
        "eager_us_per_px": plain_seconds * 1e6,
        "engine_over_floor_speed": floor / engine,
        "engine_over_eager_speed": plain_seconds / engine,
        "gmac_per_s": work / engine / 1e9,
        "peak_gmac_per_s": peak / 1e9,
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 8])
    parser.add_argument(
        "--precision", nargs="+", choices=["bf16", "fp32", FP32_KERNEL], default=["bf16", "fp32"]
    )
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, px")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(blocks, precision, options.size, options.threads, options.repeat)
        for blocks in options.blocks
        for precision in options.precision
    ]
    if options.json:
        print(json.dumps({"processor": processor(), "torch": torch.__version__, "rows": rows}))
        return
    print(
        f"{processor()}, {options.threads} threads, {options.size} x {options.size} px, "
        f"torch {torch.__version__}\n"
    )
    print("| network | floor, µs/px | engine, µs/px | of the floor's speed | over eager | GMAC/s | of peak |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['blocks']}B {r['precision']} | {r['floor_us_per_px']:.2f} | {r['engine_us_per_px']:.2f} "
            f"| {r['engine_over_floor_speed']:.0%} | {r['engine_over_eager_speed']:.1f} x "
            f"| {r['gmac_per_s']:.0f} | {r['gmac_per_s'] / r['peak_gmac_per_s']:.0%} |"
        )


if __name__ == "__main__":
    main()
