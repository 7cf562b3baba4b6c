"""Peak memory of `mdrn-batch denoise` over picture size.

    python benchmarks/memory.py [--megapixels 4 16 64] [--quality balanced] [--json]
    python benchmarks/memory.py --volume 4.3

Each size is a 16-bit gray TIFF made here, denoised by a process of its own; "beyond" is what the
process held at its peak beyond the picture's own bytes (once read, once written). The exponent of
the CPU time over the pixels, 1 if it is linear, is fitted over all sizes, start-up taken off.

With --volume: one plane of that many gigapixels, 8 bit, as OME-Zarr in shards of 4096 x 4096, through
`denoise` in one process, pyramid included. The network is a tiny one of random weights made here: what
is measured is all but the network's own time.
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


def make_models(folder: Path) -> None:
    """Write a zoo of one tiny network of random weights, called "tiny"."""
    import hashlib

    import torch
    from safetensors.torch import save

    from mdrn_plugin.networks.mdrn import MDRN

    settings: dict[str, Any] = {"colours": 1, "blocks": 1, "channels": 8, "unshuffle": 4}
    torch.manual_seed(0)
    data = save({k: v.contiguous() for k, v in MDRN(**settings).state_dict().items()})
    entry = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": "mdrn",
        "settings": settings,
        "tier": "own",
        "band_255": [0, 90],
        "trained_255": [0, 92],
        "stride": 32,
        "halo": 128,
        "default_halo": 64,
    }
    folder.mkdir()
    (folder / entry["file"]).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "models": [entry]}))


def make_volume(folder: Path, side: int) -> None:
    """Write a noisy plane of `side` x `side` px, 8 bit, as OME-Zarr 0.5; it repeats itself, shifted."""
    import zarr

    shard = 4096
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    fast = zarr.codecs.BloscCodec(cname="lz4", clevel=1)
    array = group.create_array(
        "0", shape=(side, side), dtype="uint8", chunks=(512, 512), shards=(shard, shard), compressors=fast
    )
    place = np.arange(shard)
    scene = 110 + 40 * np.sin(place / 40) + 30 * np.sin(place / 97)[:, None]
    scene = np.clip(scene + np.random.default_rng(0).normal(0, 20, scene.shape), 0, 255).astype(np.uint8)
    for top in range(0, side, shard):
        for left in range(0, side, shard):
            rows, columns = min(shard, side - top), min(shard, side - left)
            array[top : top + rows, left : left + columns] = np.roll(scene, top // 64, 0)[:rows, :columns]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
    group.attrs.put({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}})


def measure_volume(gigapixels: float, threads: int | None) -> dict[str, Any]:
    """Denoise one volume in a process of its own; return its facts."""
    side = 64 * round((gigapixels * 1e9) ** 0.5 / 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder / "models")
        make_volume(folder / "in.zarr", side)
        command = [*COMMAND, "denoise", str(folder / "in.zarr"), "-o", str(folder / "out"), "-q"]
        command += ["--model", "tiny", "--threads", str(threads or 1), "--precision", "fp32"]
        began = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, "MDRN_MODELS": str(folder / "models")})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status != 0:
            raise SystemExit(f"{gigapixels} gigapixels: the command failed with status {status}")
        written = sum(f.stat().st_size for f in (folder / "out").rglob("*") if f.is_file())
    return {
        "gigapixels": side * side / 1e9,
        "peak_mb": usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "written_mb": written / 1e6,
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
    parser.add_argument("--volume", type=float, metavar="GIGAPIXELS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.volume is not None:
        row = measure_volume(options.volume, options.threads)
        print(
            json.dumps(row)
            if options.json
            else f"{row['gigapixels']:.2f} gigapixels: peak {row['peak_mb']:.0f} MB, {row['seconds']:.0f} s, "
            f"CPU {row['cpu_seconds']:.0f} s, {row['written_mb']:.0f} MB written"
        )
        return
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
