"""Is the model that is picked the best one there is? The automatic choice against every model of its size.

    python benchmarks/bands.py [--colour] [--crop 256] [--plot bands.png]

For white noise of 3 to 85 (of 255, every 4) on Kodak24: PSNR of the automatic run (noise measured, model
picked) and of every balanced model that was trained for noise within ``--near`` of the level, told to be
used, for each picture (the others would only take time). Printed per level: how far the
automatic choice is below the best model for that picture, mean and worst, and which models were picked.
Band edges: the step of the mean PSNR from just below to just above each edge, beyond what the level explains.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from quality import add_noise, load_set, psnr

import mdrn_plugin
from mdrn_plugin.zoo import shipped

LEVELS = tuple(range(3, 86, 4))
_EDGE = 0.25  # of 255: the levels on both sides of an edge


def score(noisy: np.ndarray, clean: np.ndarray, **how: Any) -> tuple[float, str]:
    """Return PSNR and the model used."""
    axes = "YXS" if clean.ndim == 3 else "YX"
    result = mdrn_plugin.denoise(noisy, axes=axes, range=(0, 1), return_result=True, **how)
    return psnr(result.picture.pixels, clean), result.plan.steps[0].model or "none"


def centre(clean: np.ndarray, side: int) -> np.ndarray:
    """Return the square in the middle, or the whole picture if `side` is 0."""
    if not side:
        return clean
    top, left = (clean.shape[0] - side) // 2, (clean.shape[1] - side) // 2
    return clean[top : top + side, left : left + side]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("MDRN_DATA"))
    parser.add_argument("--colour", action="store_true", help="in colour; default: gray")
    parser.add_argument("--crop", type=int, default=256, help="px; 0: whole pictures")
    parser.add_argument("--near", type=float, default=15, help="0..255; models farther from a level are out")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument(
        "--levels", type=float, nargs="+", default=LEVELS, help="only these, and the edges within 4 of them"
    )
    parser.add_argument("--plot", type=Path, help="write a plot to this file")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data or MDRN_DATA must name the data folder")
    pictures = [
        (name, centre(clean, options.crop))
        for name, clean in load_set(
            Path(options.data) / "bench" / "Kodak24", options.limit, gray=not options.colour
        )
    ]
    colours = 3 if options.colour else 1
    models = [d for d in shipped().descriptors if d.colours == colours and d.tier == "balanced"]
    rows = []
    for sigma in options.levels:
        near = [
            d for d in models if d.trained_255[0] - options.near <= sigma <= d.trained_255[1] + options.near
        ]
        lost, picked, scores = [], collections.Counter[str](), collections.defaultdict(list)
        for name, clean in pictures:
            noisy = add_noise(clean, sigma, name)
            own, model = score(noisy, clean)
            picked[model] += 1
            scores["picked"].append(own)
            for d in near:
                scores[d.name].append(score(noisy, clean, model=d.name)[0])
            lost.append(max(scores[d.name][-1] for d in near) - own)
        rows.append(
            {
                "sigma": sigma,
                "lost": float(np.mean(lost)),
                "worst": float(np.max(lost)),
                "picked": dict(picked),
                "psnr": {k: float(np.mean(v)) for k, v in scores.items()},
            }
        )
        print(
            f"{sigma:g}: {rows[-1]['lost']:+.3f} dB mean, {rows[-1]['worst']:+.3f} worst, {dict(picked)}",
            file=sys.stderr,
        )
    edges = sorted({e for d in models for e in d.band_255 if 0 < e < 90})
    edges = [e for e in edges if min(abs(e - sigma) for sigma in options.levels) <= 4]
    steps = {edge: edge_step(pictures, edge) for edge in edges}
    print("| σ | below the best model, mean | worst | picked |\n|---|---|---|---|")
    for row in rows:
        names = ", ".join(f"{k} {v}" for k, v in row["picked"].items())
        print(f"| {row['sigma']:g} | {row['lost']:.3f} | {row['worst']:.3f} | {names} |")
    print(f"\nmean over levels {np.mean([r['lost'] for r in rows]):.3f} dB; step at the edges, dB:")
    print(", ".join(f"{edge:g}: {step:+.3f}" for edge, step in steps.items()))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "edges": steps}, indent=2) + "\n")
    if options.plot:
        draw(rows, edges, options.plot)


def edge_step(pictures: list[tuple[str, np.ndarray]], edge: float) -> float:
    """Return the step of the mean PSNR over an edge, noise told, less what the level itself explains.

    Three levels, equally far apart, two of them on one side: the second difference is the step.
    """
    means = []
    for sigma in (edge - 3 * _EDGE, edge - _EDGE, edge + _EDGE, edge + 3 * _EDGE):
        found = []
        for name, clean in pictures:
            # One noise field, scaled: the levels differ by nothing else.
            noisy = clean + (add_noise(clean, edge, name) - clean) * np.float32(sigma / edge)
            found.append(score(noisy, clean, noise=f"{sigma:g}")[0])
        means.append(float(np.mean(found)))
    a, b, c, d = means
    return (c - b) - ((b - a) + (d - c)) / 2


def draw(rows: list[dict[str, Any]], edges: list[float], path: Path) -> None:
    """Plot how far every model and the automatic choice are below the best."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    levels = [r["sigma"] for r in rows]
    best = [max(v for k, v in r["psnr"].items() if k != "picked") for r in rows]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in sorted({k for r in rows for k in r["psnr"]} - {"picked"}):
        lost = [r["psnr"].get(name, np.nan) - b for r, b in zip(rows, best, strict=True)]
        axis.plot(levels, lost, label=name, linewidth=1)
    chosen = [r["psnr"]["picked"] - b for r, b in zip(rows, best, strict=True)]
    axis.plot(levels, chosen, "k.--", label="automatic choice, noise measured")
    for edge in edges:
        axis.axvline(edge, color="0.8", linewidth=0.8, zorder=0)
    axis.set_ylim(-1.0, 0.12)
    axis.set_xlabel("noise level σ, 0..255")
    axis.set_ylabel("PSNR below the best model, dB")
    axis.legend(fontsize=8, loc="lower center")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
