"""Speed of the RAW route: FAN on torch's operators and by its compiled kernel, and a DNG from end to end.

    python benchmarks/raw_speed.py [--megapixels 24] [--threads 2] [--repeat 3] [--json]

A Bayer mosaic of 14 bit with Poisson-Gaussian noise is made here. Network and route are measured in
CPU time of one thread, each the least of several, taken in turns. "From end to end" is ``mdrn-batch denoise``
in balanced quality, in a process of its own: reading the DNG, measuring the noise, denoising, checking,
writing the DNG and reading it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from roofline import processor
from torch.nn import functional

from mdrn_plugin import formats
from mdrn_plugin.formats.raw import RawMetadata
from mdrn_plugin.mosaic import make_mosaic
from mdrn_plugin.networks import fan_native
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, ValueRange
from mdrn_plugin.pipeline import carry_out, make_plan, measure
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()"]
BLACK, WHITE = 512.0, 15000.0
GAIN, OFFSET = 5e-4, 2e-6  # of the variance, signal 0..1: about ISO 800 of a camera
MODEL = "fan-raw-0-3"
TILE_PX = 1024, 1152  # columns and rows of what the network is timed on: a tile and its halo


def make_picture(megapixels: float) -> Picture:
    """Return a mosaic of 3:2 whose sides are multiples of 16, with what a DNG needs."""
    width = 16 * round((1.5 * megapixels * 1e6) ** 0.5 / 16)
    height = 16 * round(megapixels * 1e6 / width / 16)
    rng = np.random.default_rng(0)
    pixels = np.empty((height, width), np.uint16)
    x = np.arange(width) / width
    for top in range(0, height, 256):
        y = (np.arange(top, min(top + 256, height)) / width)[:, None]
        light = 0.2 + 0.15 * np.sin(40 * x * y) + 0.1 * (np.hypot(x - 0.5, y - 0.3) < 0.2)
        light += np.sqrt(GAIN * light + OFFSET) * rng.standard_normal(light.shape, np.float32)
        pixels[top : top + 256] = np.clip(np.rint(BLACK + light * (WHITE - BLACK)), 0, 16383)
    balance = (2.0, 1.0, 1.6)
    about = RawMetadata(
        format="raw",
        make="Maker",
        model="Maker One",
        crop=(0, 0, width, height),
        balance=balance,
        matrices=((21, (0.9, -0.25, -0.1, -0.45, 1.25, 0.2, -0.05, 0.2, 0.6)),),
    )
    mosaic = make_mosaic("RGGB", black=BLACK, white=WHITE, balance=balance)
    return Picture(pixels, "YX", ValueRange(BLACK, WHITE, "made"), False, about, mosaic)


def measure_networks(repeat: int) -> dict[str, float]:
    """Return megapixels of mosaic per second and thread of the network alone, by what computes it."""
    network: Any = shipped().load(MODEL)
    x_HW = torch.rand(TILE_PX[1], TILE_PX[0], generator=torch.Generator().manual_seed(0))
    sigma_HW = torch.full_like(x_HW, 0.01)
    packed = [functional.pixel_unshuffle(t[None, None], 2) for t in (x_HW, sigma_HW)]
    calls: dict[str, Callable[[], Any]] = {"operators": lambda: network(*packed)}
    if fan_native.library() is not None:
        compiled = fan_native.NativeFAN(network)
        calls["kernel"] = lambda: compiled.denoised(x_HW, sigma_HW)
        calls["kernel, AVX2"] = lambda: compiled.denoised(x_HW, sigma_HW, lanes=8)
    with torch.inference_mode():
        return {name: x_HW.numel() / 1e6 / s for name, s in _least(calls, repeat).items()}


def measure_route(picture: Picture, repeat: int) -> dict[str, float]:
    """Return the same of the whole way from pixels to checked pixels."""

    def run(precision: str) -> None:
        options = Options(threads=1, precision=precision)
        profiles = measure(picture, options)
        carry_out(picture, profiles, make_plan(picture, profiles, options))

    calls = {"operators": lambda: run("fp32")}
    if fan_native.library() is not None:
        calls["kernel"] = lambda: run("auto")
    return {name: picture.pixels.size / 1e6 / s for name, s in _least(calls, repeat).items()}


def measure_command(picture: Picture, threads: int, precision: str) -> dict[str, float]:
    """Return seconds by the clock, CPU seconds and MiB of the command on a DNG of the picture."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.dng"
        formats.write(source, picture)
        command = [*COMMAND, "denoise", str(source), "-o", str(Path(folder) / "out"), "-q"]
        command += ["--threads", str(threads), "--precision", precision]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status != 0:
            raise SystemExit(f"the command failed with status {status}")
    unit = 1024 if sys.platform == "linux" else 1
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss * unit / 2**20,
    }


def _least(calls: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Return the least CPU time of each call, in turns, so that a busy machine treats them alike."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(repeat):
        for name, call in calls.items():
            began = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - began)
    return best


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--megapixels", type=float, default=24.0)
    options.add_argument("--threads", type=int, default=2, help="of the command; the rest has one")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    picture = make_picture(chosen.megapixels)
    pixels: NDArray[Any] = picture.pixels
    networks, route = measure_networks(3 * chosen.repeat), measure_route(picture, chosen.repeat)
    kinds = {"operators": "fp32"} | ({"kernel": "auto"} if fan_native.library() is not None else {})
    command = {name: measure_command(picture, chosen.threads, wish) for name, wish in kinds.items()}
    if chosen.json:
        print(json.dumps({"pixels": pixels.size, "network": networks, "route": route, "command": command}))
        return
    print(f"{processor()}, {pixels.shape[1]} x {pixels.shape[0]} px, torch {torch.__version__}\n")
    print("| megapixels/s and thread | network | route |\n|---|---|---|")
    for name, speed in networks.items():
        whole = f"{route[name]:.2f}" if name in route else ""
        print(f"| FAN, {name} | {speed:.2f} | {whole} |")
    print(f"\n| from end to end, {chosen.threads} threads | seconds | CPU seconds | MiB |\n|---|---|---|---|")
    for name, found in command.items():
        row = " | ".join(f"{found[key]:.1f}" for key in ("seconds", "cpu_seconds"))
        print(f"| FAN, {name} | {row} | {found['peak_mib']:.0f} |")


if __name__ == "__main__":
    main()
