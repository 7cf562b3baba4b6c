"""PSNR and SSIM on the standard test sets, by the protocol of the papers.

Noise of known level is added in float, never clipped, from a fixed seed per picture; the result
is not clipped or rounded either; PSNR and SSIM are on [0, 255], averaged over pictures.

    python benchmarks/quality.py                     the paper's tables by the models that ship
    python benchmarks/quality.py --blind             the noise is measured, not told
    python benchmarks/quality.py --manifest          every model on its own levels, into the manifest
    python benchmarks/quality.py --check mdrn-2b-gray-20-35   is the manifest's number right?

The data folder is --data or the environment variable MDRN_DATA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mdrn_plugin
from mdrn_plugin.compare import ssim
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Published PSNR of others, for the same sets and levels; sources in docs/benchmarks.md.
PUBLISHED: dict[str, dict[str, dict[int, float]]] = {
    "Set12": {
        "BM3D": {15: 32.37, 25: 29.97, 50: 26.72},
        "DnCNN": {15: 32.86, 25: 30.43, 50: 27.18},
        "FFDNet": {15: 32.75, 25: 30.43, 50: 27.32},
        "MDRN-2B": {15: 32.87, 50: 27.35},
        "MDRN-8B": {15: 33.06, 25: 30.67, 50: 27.56},
        "DRUNet": {15: 33.25, 25: 30.94, 50: 27.90},
        "SwinIR": {15: 33.36, 25: 31.01, 50: 27.91},
    },
    "BSD68": {
        "BM3D": {15: 31.08, 25: 28.57, 50: 25.62},
        "DnCNN": {15: 31.73, 25: 29.23, 50: 26.23},
        "FFDNet": {15: 31.63, 25: 29.19, 50: 26.29},
        "MDRN-2B": {15: 31.72, 50: 26.31},
        "MDRN-8B": {15: 31.83, 25: 29.36, 50: 26.41},
        "DRUNet": {15: 31.91, 25: 29.48, 50: 26.59},
        "SwinIR": {15: 31.97, 25: 29.50, 50: 26.58},
    },
    "Kodak24": {
        "BM3D": {30: 30.89, 50: 28.63, 70: 27.27},
        "DnCNN": {30: 31.39, 50: 29.16, 70: 27.64},
        "FFDNet": {30: 31.39, 50: 29.10, 70: 27.68},
        "MDRN-2B": {30: 31.40, 70: 27.69},
        "MDRN-8B": {30: 31.68, 50: 29.40, 70: 27.96},
        "DRUNet": {50: 29.86},
        "SwinIR": {50: 29.79},
        "Restormer": {50: 30.01},
    },
    "CBSD68": {
        "BM3D": {30: 29.73, 50: 27.38, 70: 26.00},
        "DnCNN": {30: 30.40, 50: 28.01, 70: 26.56},
        "FFDNet": {30: 30.31, 50: 27.96, 70: 26.53},
        "MDRN-2B": {30: 30.38, 70: 26.59},
        "MDRN-8B": {30: 30.57, 50: 28.23, 70: 26.77},
        "DRUNet": {50: 28.51},
        "SwinIR": {50: 28.56},
        "Restormer": {50: 28.56},
    },
    "Urban100": {
        "BM3D": {15: 32.34, 25: 29.70, 50: 25.94},
        "DnCNN": {15: 32.68, 25: 29.97, 50: 26.28},
        "FFDNet": {15: 32.42, 25: 29.92, 50: 26.52},
        "MDRN-2B": {15: 32.82, 50: 26.74},
        "MDRN-8B": {15: 33.22, 25: 30.67, 50: 27.24},
        "DRUNet": {15: 33.44, 25: 31.11, 50: 27.96},
        "SwinIR": {15: 33.70, 25: 31.30, 50: 27.98},
    },
    "Urban100 colour": {
        "BM3D": {30: 30.36, 50: 27.94, 70: 26.31},
        "DnCNN": {30: 30.28, 50: 28.16, 70: 26.17},
        "FFDNet": {30: 30.53, 50: 28.05, 70: 26.39},
        "MDRN-2B": {30: 30.66, 70: 26.57},
        "MDRN-8B": {30: 31.35, 50: 28.96, 70: 27.32},
        "DRUNet": {50: 29.61},
        "SwinIR": {50: 29.82},
        "Restormer": {50: 30.02},
    },
    "McMaster": {
        "BM3D": {15: 34.06, 25: 31.66, 50: 28.51},
        "DnCNN": {15: 33.45, 25: 31.52, 50: 28.62},
        "FFDNet": {15: 34.66, 25: 32.35, 50: 29.18},
        "DRUNet": {15: 35.40, 25: 33.14, 50: 30.08},
        "SwinIR": {15: 35.61, 25: 33.20, 50: 30.22},
        "Restormer": {15: 35.61, 25: 33.33, 50: 30.26},
    },
}
GRAY_LEVELS, COLOUR_LEVELS = (15, 25, 50), (30, 50, 70)
LEVELS = {
    "Set12": GRAY_LEVELS,
    "BSD68": GRAY_LEVELS,
    "Kodak24": COLOUR_LEVELS,
    "CBSD68": COLOUR_LEVELS,
    "Urban100": GRAY_LEVELS,
    "Urban100 colour": COLOUR_LEVELS,
    "McMaster": GRAY_LEVELS,  # in colour, at the levels of the SwinIR paper
}
# What a manifest entry quotes: these sets at the paper's levels inside the band.
MANIFEST_SETS = {1: ("Set12", "BSD68"), 3: ("CBSD68",)}
MANIFEST_LEVELS = {1: (5, 15, 25, 50), 3: (5, 30, 50, 70)}


def find_set(data: Path, name: str) -> Path:
    """Return the folder of a set: "Urban100" and "Urban100 colour" are one, shown in gray and in colour."""
    return data / name.removesuffix(" colour")


def load_set(
    folder: Path, limit: int | None = None, gray: bool = False
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return (name, clean picture in 0..1) of every picture of a test set, by name.

    `gray` turns colour pictures into luma rounded to 8 bit (Rec. 601, as behind the gray sets).
    """
    from mdrn_plugin import formats

    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".tif", ".tiff", ".bmp"))
    pictures = []
    for path in files[:limit]:
        pixels = np.asarray(formats.read(path).pixels)
        if gray and pixels.ndim == 3:
            pixels = np.round(pixels[..., :3] @ np.array([0.299, 0.587, 0.114]))
        pictures.append((path.stem, pixels.astype(np.float32) / 255))
    return pictures


def add_noise(clean: NDArray[np.float32], sigma_255: float, name: str) -> NDArray[np.float32]:
    """Add white Gaussian noise from a seed made of name and level."""
    digest = hashlib.sha256(f"{name} {sigma_255:g}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return clean + rng.normal(0, sigma_255 / 255, clean.shape).astype(np.float32)


def psnr(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Return PSNR in dB, peak 1."""
    return float(-10 * np.log10(np.mean((x.astype(np.float64) - y) ** 2)))


def measure(
    pictures: list[tuple[str, NDArray[np.float32]]], sigma_255: float, blind: bool, **options: Any
) -> tuple[float, float]:
    """Return mean PSNR and SSIM of a set at one level."""
    psnr_dB, similarity, _ = measure_with_models(pictures, sigma_255, blind, **options)
    return psnr_dB, similarity


def measure_with_models(
    pictures: list[tuple[str, NDArray[np.float32]]], sigma_255: float, blind: bool, **options: Any
) -> tuple[float, float, list[str]]:
    """Return mean PSNR and SSIM of a set at one level, and the models that were picked."""
    scores, models = [], set()
    for name, clean in pictures:
        noisy = add_noise(clean, sigma_255, name)
        axes = "YXS" if clean.ndim == 3 else "YX"
        noise = "auto" if blind else f"{sigma_255:g}"
        result = mdrn_plugin.denoise(
            noisy, axes=axes, noise=noise, range=(0, 1), return_result=True, **options
        )
        out = result.picture.pixels
        models |= {step.model or "none" for step in result.plan.steps}
        planes = np.moveaxis(np.atleast_3d(out), -1, 0), np.moveaxis(np.atleast_3d(clean), -1, 0)
        similarity = np.mean([ssim(a, b, 1.0) for a, b in zip(*planes, strict=True)])
        scores.append((psnr(out, clean), float(similarity)))
    mean = np.mean(scores, axis=0)
    return float(mean[0]), float(mean[1]), sorted(models)


def run_cells(
    data: Path, sets: list[str], levels: list[int] | None, blind: bool, limit: int | None, **options: Any
) -> list[dict[str, Any]]:
    """Measure the cells of the paper's tables; return one record per cell."""
    records = []
    for name in sets:
        if not find_set(data, name).is_dir():
            print(f"{name}: not in {data}, left out", file=sys.stderr)
            continue
        pictures = load_set(find_set(data, name), limit, gray=name == "Urban100")
        for sigma in LEVELS[name]:
            if levels and sigma not in levels:
                continue
            began = time.perf_counter()
            value, similarity, models = measure_with_models(pictures, sigma, blind, **options)
            record = {"set": name, "sigma": sigma, "psnr": value, "ssim": similarity, "blind": blind}
            record |= {"models": models, "pictures": len(pictures), **options}
            records.append(record)
            print(f"{name} {sigma}: {value:.3f} dB, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return records


def render(records: list[dict[str, Any]]) -> str:
    """Return the paper's tables in Markdown, our records beside the published numbers."""
    lines = []
    for name in (n for n in LEVELS if any(r["set"] == n for r in records)):
        own = [r for r in records if r["set"] == name]
        lines.append(f"\n| {name}, PSNR (SSIM) | " + " | ".join(f"σ {s}" for s in LEVELS[name]) + " |")
        lines.append("|---" * (len(LEVELS[name]) + 1) + "|")
        for method, values in PUBLISHED[name].items():
            cells = " | ".join(_cell(values.get(s)) for s in LEVELS[name])
            lines.append(f"| {method} (published) | {cells} |")
        for quality, blind in sorted({(r.get("quality", "balanced"), r["blind"]) for r in own}):
            found = {
                r["sigma"]: f"**{r['psnr']:.2f}** ({r['ssim']:.4f})"
                for r in own
                if (r.get("quality", "balanced"), r["blind"]) == (quality, blind)
            }
            label = f"ours, {quality}" + (", noise measured" if blind else ", noise told")
            lines.append(f"| **{label}** | " + " | ".join(found.get(s, "–") for s in LEVELS[name]) + " |")
        for quality in sorted({r.get("quality", "balanced") for r in own if not r["blind"]}):
            base = {
                r["sigma"]: r["psnr"]
                for r in own
                if not r["blind"] and r.get("quality", "balanced") == quality
            }
            for rival in ("BM3D", "FFDNet"):
                cells = [
                    f"{base[s] - PUBLISHED[name][rival][s]:+.2f}" if s in base else "–" for s in LEVELS[name]
                ]
                lines.append(f"| ours, {quality}, minus {rival} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def manifest_keys(name: str) -> list[str]:
    """Return the cells that the manifest quotes of a model, as "set/level"."""
    descriptor = shipped().get(name)
    low, high = descriptor.band_255
    levels = [s for s in MANIFEST_LEVELS[descriptor.colours] if low <= s <= high]
    return [f"{test_set}/{sigma}" for test_set in MANIFEST_SETS[descriptor.colours] for sigma in levels]


def model_scores(data: Path, name: str, keys: list[str]) -> dict[str, float]:
    """Measure cells ("set/level") by one model, in dB."""
    scores = {}
    for key in keys:
        test_set, sigma = key.split("/")
        value, _ = measure(load_set(data / test_set), float(sigma), False, model=name)
        scores[key] = round(value, 3)
        print(f"{name} {key}: {value:.3f}", file=sys.stderr)
    return scores


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("MDRN_DATA"))
    parser.add_argument("--table", choices=["paper"], default="paper", help="which tables to print")
    parser.add_argument("--sets", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--levels", type=int, nargs="+", help="only these levels of the tables")
    parser.add_argument("--blind", action="store_true", help="measure the noise instead of telling it")
    parser.add_argument("--quality", default="balanced", choices=["fast", "balanced", "best", "best+"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, help="only so many pictures of each set")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--render", type=Path, nargs="+", help="print the tables of records written before")
    parser.add_argument(
        "--manifest", type=Path, metavar="MANIFEST", help="measure every model into this manifest"
    )
    parser.add_argument("--check", metavar="MODEL", help="compare the manifest's numbers of one model")
    options = parser.parse_args()
    if options.render:
        print(render([record for path in options.render for record in json.loads(path.read_text())]))
        return 0
    if options.data is None:
        parser.error("--data or MDRN_DATA must name the data folder")
    bench = Path(options.data) / "bench"
    if options.check:
        known = shipped().get(options.check).psnr
        scores = model_scores(bench, options.check, list(known))
        worst = max((abs(scores[key] - known[key]) for key in known), default=math.inf)
        print(f"{options.check}: largest difference {worst:.3f} dB over {len(known)} cells")
        return 0 if worst <= 0.01 else 1
    if options.manifest:
        manifest = json.loads(options.manifest.read_text())
        for entry in manifest["models"]:
            if entry["tier"] in ("fast", "balanced", "best"):
                entry["psnr"] = model_scores(bench, entry["name"], manifest_keys(entry["name"]))
        options.manifest.write_text(json.dumps(manifest, indent=2) + "\n")
        return 0
    wishes: dict[str, Any] = {"quality": options.quality}
    if options.threads:
        wishes["threads"] = options.threads
    records = run_cells(bench, options.sets, options.levels, options.blind, options.limit, **wishes)
    print(render(records))
    if options.json:
        options.json.write_text(json.dumps(records, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
