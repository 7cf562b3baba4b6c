"""What depth, HADS and HMDS bring: small networks, equal steps, several seeds.

    python benchmarks/ablations.py recipes FOLDER
    mdrn-train zoo --recipes FOLDER --data PICTURES --out RUNS --threads 1
    python benchmarks/ablations.py score RUNS [--data DIR] [--every N]

``recipes`` writes one recipe per run: MDRN of 32 channels at half the resolution, 500 steps of 8 patches
of 64 x 64. ``score`` measures what is finished on the test sets (noise of fixed seeds, float32, no
rounding) and prints the tables of docs/benchmarks.md. DIR holds ``bench/``; default: MDRN_DATA.

- depth: 1, 2, 4 and 8 blocks per group, gray, sigma 25.
- HADS: 2 blocks, drawn to the features of the run of 8 blocks of seed 1; several weights.
- HMDS, gray: sigma 50 from the run of sigma 25; colour: sigma 70 from that of sigma 50. Each beside the
  same run without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from quality import add_noise, load_set, psnr
from safetensors.torch import load_file
from torch.nn import functional

from mdrn_plugin.training.distil import network_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = (1, 2, 3)
DEPTHS = (1, 2, 4, 8)
WEIGHTS = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of the feature distance, swept with seed 1
CHOSEN = 0.003  # the weight of the other seeds
_COMMON = {
    "channels": 32,
    "unshuffle": 2,
    "tier": "fast",
    "steps": 500,
    "batch": 8,
    "muon_rate": 0.014,
    "adam_rate": 0.0007,
    "ema": 0.99,
    "validate_every": 500,
}


def recipes() -> dict[str, dict[str, Any]]:
    """Return the recipes by name; the order in which they are trained follows from what they need."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, sigma: int, *, colours: int = 1, blocks: int = 2, seed: int = 1, **more: Any) -> None:
        levels = {key: [sigma, sigma] for key in ("sigma_255", "band_255")}
        values = {"colours": colours, "blocks": blocks, "seed": seed, "validate_sigma_255": [sigma]}
        found[f"{name}-s{seed}"] = _COMMON | values | levels | more

    def sweep(name: str, sigma: int, weights: Sequence[float], teacher: str, **more: Any) -> None:
        for weight in weights:
            for seed in SEEDS if weight == CHOSEN else SEEDS[:1]:
                how = {"teacher": teacher, "kdl_weight": weight, **more}
                add(f"{name}-{weight}", sigma, seed=seed, **how)

    for seed in SEEDS:
        for blocks in DEPTHS:
            add(f"depth-{blocks}", 25, blocks=blocks, seed=seed)
    sweep("hads", 25, WEIGHTS, "depth-8-s1", distillation="hads")
    add("colour", 50, colours=3)
    lower = {"gray-50": (50, 25, 1, "depth-2-s1"), "colour-70": (70, 50, 3, "colour-s1")}
    for name, (sigma, below, colours, teacher) in lower.items():
        for seed in SEEDS:
            add(f"plain-{name}", sigma, colours=colours, seed=seed, init=teacher)
        how = {"distillation": "hmds", "teacher_sigma_255": [below, below], "init": teacher}
        sweep(f"hmds-{name}", sigma, WEIGHTS, teacher, colours=colours, **how)
    return found


def write(recipes: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write recipes as TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in recipes.items():
        lines = [f"{k} = {_toml(v)}" for k, v in values.items()]
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def score(data: Path, runs: Path, every: int) -> None:
    """Print, for every group of runs, mean and range over the seeds on two test sets."""
    groups: dict[str, list[str]] = {}
    for name in recipes():
        groups.setdefault(name.rsplit("-s", 1)[0], []).append(name)
    gray, colour = ("Set12", "BSD68"), ("CBSD68", "Kodak24")
    print(f"| run | σ | seeds | {gray[0]} / {colour[0]} | {gray[1]} / {colour[1]} |\n|---|---|---|---|---|")
    for group, names in groups.items():
        done = [n for n in names if (runs / n / f"{n}.safetensors").is_file()]
        if not done:
            continue
        recipe = recipes()[names[0]]
        cells = []
        for set_ in gray if recipe["colours"] == 1 else colour:
            values = [_mean_psnr(data, set_, runs / n / f"{n}.safetensors", recipe, every) for n in done]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        print(f"| {group} | {recipe['sigma_255'][0]} | {len(done)} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def _mean_psnr(data: Path, set_: str, weights: Path, recipe: dict[str, Any], every: int) -> float:
    state = {k: v.float() for k, v in load_file(weights).items()}
    network = network_of(state).eval()
    network.load_state_dict(state)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sigma = recipe["sigma_255"][0]
    values = []
    for name, clean in load_set(data / "bench" / set_)[::every]:
        noisy = torch.from_numpy(np.atleast_3d(add_noise(clean, sigma, name))).permute(2, 0, 1)[None]
        height, width = noisy.shape[2:]
        rows, columns = -height % network.stride, -width % network.stride
        padded = functional.pad(noisy, (0, columns, 0, rows), mode="reflect")
        out = network(padded.contiguous(memory_format=torch.channels_last))[0, :, :height, :width]
        values.append(psnr(out.permute(1, 2, 0).numpy().reshape(clean.shape), clean))
    return float(np.mean(values))


def _toml(value: Any) -> str:
    return json.dumps(value)  # what recipes hold, TOML writes alike


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the two."""
    parser = argparse.ArgumentParser(description="What depth and distillation bring")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("recipes").add_argument("folder", type=Path)
    scored = parts.add_parser("score")
    scored.add_argument("runs", type=Path)
    scored.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    scored.add_argument("--every", type=int, default=1, help="only every N-th picture")
    chosen = parser.parse_args(arguments)
    if chosen.part == "recipes":
        write(recipes(), chosen.folder)
        return 0
    if chosen.data is None or not (Path(chosen.data) / "bench").is_dir():
        print("no pictures: give --data DIR with bench/, or set MDRN_DATA", file=sys.stderr)
        return 2
    score(Path(chosen.data), chosen.runs, chosen.every)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
