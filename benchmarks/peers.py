"""Megapixels per second of our networks beside those of other papers and plain methods; one run.

    python benchmarks/peers.py [--quick] [--size 1024] [--threads 1] [--plot FILE.png] [--json]

All networks have random weights here: only the time counts. Ours run as the engine runs them, halo
included, in bf16 by the compiled kernel where it runs; the others on torch's fused operators, in
whichever of several tile sizes is fastest and without halo, which favours them. "Best precision" is
bf16 where the processor multiplies it, else fp32. Scikit-image's and OpenCV's methods and BM3D run
if they are installed; their PSNR, and ours with the weights that ship, is measured on one synthetic
picture with noise of 25/255.

The last line, with ``--json``, is JSON: the rows, and ratios of speeds of which
``fast_over_ffdnet`` is one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from architectures import DnCNN, DRUNet, FFDNet
from quality import PUBLISHED, add_noise, find_set, load_set
from roofline import clock, least, processor
from torch import nn

import mdrn_plugin
from mdrn_plugin.engine.device import resolve_precision
from mdrn_plugin.engine.run import Job, run_plane
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN
from mdrn_plugin.plan import TILE_CPU
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGMA = 25 / 255
PLOTTED = "Set12"
TIERS = {"fast": "fast", "2B": "balanced", "8B": "best"}


def ours() -> dict[str, dict[str, Any]]:
    """Return the settings of our networks for gray pictures; those of the fast tier as it ships."""
    fast = next(d for d in shipped().descriptors if d.tier == "fast" and d.colours == 1)
    settings = {k: v for k, v in fast.settings.items() if k != "colours"}
    return {"fast": settings, "2B": {"blocks": 2}, "8B": {"blocks": 8}}


def test_picture(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (clean, noisy): edges, waves and flat parts, white noise of 25/255."""
    y, x = np.mgrid[:size, :size] / size
    clean = 0.5 + 0.25 * np.sin(30 * x * y) + 0.2 * (np.hypot(x - 0.5, y - 0.5) < 0.3)
    noisy = clean + np.random.default_rng(0).normal(0, SIGMA, clean.shape)
    return clean.astype(np.float32), noisy.astype(np.float32)


def our_network(settings: dict[str, int], noisy: NDArray[np.float32], form: str) -> Callable[[], Any]:
    """Return a call that runs one of our networks over the picture, in a precision of the engine."""
    network = MDRN(1, **settings)
    source, out = noisy[..., None], np.empty_like(noisy[..., None])
    # Tile and halo as the plan has them: 48 px are the default of 2B and of the fast tier.
    job = Job(FoldedMDRN(network).eval(), 0.0, 1.0, TILE_CPU, 48, network.stride, precision=form)
    return lambda: run_plane(source, out, job)


def other_network(network: nn.Module, noisy: NDArray[np.float32], side: int, dtype: torch.dtype) -> Any:
    """Return a call that runs a network over the picture in tiles of `side` px, without halo."""
    network = network.to(dtype=dtype, memory_format=torch.channels_last).eval()
    x = torch.from_numpy(noisy)[None, None].to(dtype)
    tiles = [strip_tile for strip in x.split(side, 2) for strip_tile in strip.split(side, 3)]

    def run() -> None:
        with torch.inference_mode():
            for tile in tiles:
                network(tile)

    return run


def plain_methods(noisy: NDArray[np.float32]) -> Iterator[tuple[str, Callable[[], NDArray[Any]]]]:
    """Yield (name, call) of the methods that are installed."""
    if importlib.util.find_spec("skimage") is not None:
        from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

        yield (
            "scikit-image NL means",
            lambda: denoise_nl_means(noisy, 7, 11, h=0.8 * SIGMA, sigma=SIGMA, fast_mode=True),
        )
        yield "scikit-image TV", lambda: denoise_tv_chambolle(noisy, 0.1)
        if importlib.util.find_spec("pywt") is not None:
            yield "scikit-image wavelet", lambda: denoise_wavelet(noisy, sigma=SIGMA, rescale_sigma=True)
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        eight = np.clip(noisy * 255, 0, 255).astype(np.uint8)
        yield "OpenCV NL means", lambda: cv2.fastNlMeansDenoising(eight, None, 0.8 * 25, 7, 21) / 255
    if importlib.util.find_spec("bm3d") is not None:
        from bm3d import bm3d

        yield "BM3D", lambda: bm3d(noisy, SIGMA)


def psnr(clean: NDArray[Any], image: NDArray[Any]) -> float:
    """Return the PSNR in dB, white = 1."""
    return -10 * math.log10(float(np.mean((clean.astype(float) - image) ** 2)))


def shipped_psnr(clean: NDArray[np.float32], noisy: NDArray[np.float32], quality: str) -> float | None:
    """Return the PSNR of the weights that ship for a quality; None if there are none."""
    tier = TIERS[quality]
    if not any(d.tier == tier for d in shipped().descriptors):
        return None
    return psnr(clean, mdrn_plugin.denoise(noisy, noise="25", quality=tier))


def measure(size: int, threads: int, repeat: int, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return a row per method: name, precision, megapixels per second, PSNR if there is one."""
    now = clock(threads)
    clean, noisy = test_picture(size)
    default = resolve_precision("auto", "cpu")
    precisions = ["fp32"] if default.startswith("fp32") else ["bf16", "fp32"]
    if quick:
        precisions = precisions[:1]
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    calls: list[tuple[str, str, Callable[[], Any]]] = []
    for precision in precisions:
        form = default if precision == precisions[0] else resolve_precision(precision, "cpu")
        for name, settings in ours().items():
            calls.append((f"MDRN {name}", precision, our_network(settings, noisy, form)))
        for network in (DnCNN(), FFDNet(), DRUNet()):
            for side in (256,) if quick else (128, 256, 512):
                call = other_network(network, noisy, side, dtypes[precision])
                calls.append((type(network).__name__, precision, call))
    best: dict[tuple[str, str], float] = {}
    torch.manual_seed(0)
    for _ in range(repeat):
        for name, precision, call in calls:
            seconds = least(call, now, 0, 1)
            best[name, precision] = min(best.get((name, precision), math.inf), seconds)
    rows = [
        {"method": name, "precision": precision, "mp_per_s": size**2 / 1e6 / seconds, "psnr": None}
        for (name, precision), seconds in best.items()
    ]
    for row in rows:
        kind = str(row["method"]).removeprefix("MDRN ")
        if kind in TIERS and row["precision"] == precisions[0]:
            row["psnr"] = shipped_psnr(clean, noisy, kind)
    for name, plain in plain_methods(noisy):
        seconds = least(plain, now, 0, 1)
        rows.append(
            {
                "method": name,
                "precision": "",
                "mp_per_s": size**2 / 1e6 / seconds,
                "psnr": psnr(clean, plain()),
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the ratios of speeds that are promised, each network in its best precision."""
    fastest: dict[str, float] = {}
    for row in rows:
        fastest[row["method"]] = max(fastest.get(row["method"], 0.0), row["mp_per_s"])
    pairs = {
        "fast_over_ffdnet": ("MDRN fast", "FFDNet"),
        "fast_over_2b": ("MDRN fast", "MDRN 2B"),
        "2b_over_drunet": ("MDRN 2B", "DRUNet"),
        "8b_over_drunet": ("MDRN 8B", "DRUNet"),
    }
    return {name: round(fastest[a] / fastest[b], 3) for name, (a, b) in pairs.items()}


def level_of(method: str, data: Path | None) -> tuple[float, bool] | None:
    """Return the PSNR on Set12 at 25/255, and whether it is a published one; None if there is neither."""
    kind = method.removeprefix("MDRN ")
    if kind in TIERS:
        key = f"{PLOTTED}/25"
        known = [d.psnr[key] for d in shipped().descriptors if d.tier == TIERS[kind] and key in d.psnr]
        return (max(known), False) if known else None
    if method in PUBLISHED[PLOTTED]:
        return PUBLISHED[PLOTTED][method][25], True
    if data is None:
        return None
    levels = []
    for name, clean in load_set(find_set(data / "bench", PLOTTED)):
        call = dict(plain_methods(add_noise(clean, 25, name)))[method]
        levels.append(psnr(clean, call()))
    return float(np.mean(levels)), False


def plot(rows: list[dict[str, Any]], path: str, data: Path | None, title: str) -> None:
    """Draw PSNR over speed, each method in its fastest precision."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    fastest: dict[str, float] = {}
    for row in rows:
        fastest[row["method"]] = max(fastest.get(row["method"], 0.0), row["mp_per_s"])
    for method, speed in fastest.items():
        found = level_of(method, data)
        if found is None:
            continue
        level, published = found
        colour = "tab:red" if method.startswith("MDRN") else "tab:blue"
        axes.plot(speed, level, "o", color=colour, markerfacecolor="white" if published else colour)
        axes.annotate(method, (speed, level), (6, 4), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="megapixels per second", ylabel="PSNR on Set12, σ 25, dB", title=title)
    axes.margins(0.2, 0.12)
    axes.grid(alpha=0.3)
    axes.plot([], [], "o", color="grey", label="measured")
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="published PSNR, speed measured")
    axes.legend(loc="center left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="512 px, two repetitions, one precision, one tile size"
    )
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, px")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument(
        "--data", default=os.environ.get("MDRN_DATA"), help="for the plot; default: MDRN_DATA"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, repeat = (512, 2) if options.quick else (options.size, options.repeat)
    rows = measure(size, options.threads, repeat, quick=options.quick)
    found = ratios(rows)
    print(f"{processor()}, {options.threads} threads, {size} x {size} px, torch {torch.__version__}\n")
    print("| method | precision | megapixels/s | PSNR, dB |")
    print("|---|---|---|---|")
    for row in sorted(rows, key=lambda r: -r["mp_per_s"]):
        level = "" if row["psnr"] is None else f"{row['psnr']:.2f}"
        print(f"| {row['method']} | {row['precision']} | {row['mp_per_s']:.3f} | {level} |")
    print()
    if options.plot:
        title = (
            f"{processor()}, {options.threads} thread{'s' * (options.threads > 1)}, best precision of each"
        )
        plot(rows, options.plot, Path(options.data) if options.data else None, title)
    if options.json:
        print(json.dumps({**found, "threads": options.threads, "size": size, "rows": rows}))
    else:
        print(", ".join(f"{name} {value:g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
