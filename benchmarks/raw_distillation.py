"""The four steps of MWRCANet's distillation, one after the other, on a synthetic RAW set from Kodak24.

    python benchmarks/raw_distillation.py recipes FOLDER
    mdrn-train zoo --recipes FOLDER --data PICTURES --out RUNS --threads 1
    python benchmarks/raw_distillation.py score [--runs RUNS] [--data DIR] [--every N] [--crop PX]

Step 1 trains MWResNet, 2 MWRCANet (the small one that ships); 3 fine-tunes both on the mean of their
outputs on noisy pictures, 4 MWRCANet alone on the outputs of both. Beside it the control: MWRCANet
fine-tuned by as many steps on the clean pictures. ``score`` prints the PSNR of the mosaics of
benchmarks/raw.py of what is finished; noise told.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ablations import write
from kodak import Extent, folder_of, parser, psnr
from raw import GAINS, head, method_of, offset_of, pictures

from mdrn_plugin.errors import MdrnError
from mdrn_plugin.training.zoo import find_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Method = Callable[[Tensor, float, float], Tensor]

FIRST, SECOND = "mwresnet-1", "mwrcanet-small-raw-0-30"
STEPS = 500  # of each fine-tuning
_COMMON = {
    "architecture": "mwrcanet",
    "degrade": "raw",
    "colours": 1,
    "blocks": 2,
    "widths": [32, 48, 64],
    "sigma_255": [0.3, 30],
    "band_255": [0.3, 30],
    "tier": "raw-best",
    "patch": 128,
    "batch": 4,
    "rescale": [0.5, 0.9],
    "adam_rate": 0.0005,
    "validate_sigma_255": [1, 2.5, 5, 10, 20],
    "validate_pictures": 12,
}
_FROM_SCRATCH = {"steps": 4000, "warm_up": 150, "muon_rate": 0.008, "validate_every": 1000}
_TUNING = {"steps": STEPS, "warm_up": 30, "muon_rate": 0.004, "validate_every": STEPS}
ROWS = {
    "1: MWResNet": (FIRST,),
    "2: MWRCANet-small": (SECOND,),
    "mean of their outputs": (FIRST, SECOND),
    "3: MWResNet on the mean": ("mwresnet-3",),
    "3: MWRCANet on the mean": ("mwrcanet-3",),
    "mean of these outputs": ("mwresnet-3", "mwrcanet-3"),
    "4: MWRCANet on both": ("mwrcanet-4",),
    "MWRCANet on clean pictures, the steps of 3 and 4": ("mwrcanet-plain",),
}


def recipes() -> dict[str, dict[str, Any]]:
    """Return the recipes by name."""
    mean = {"distillation": "outputs-mean", "teachers": [FIRST, SECOND]}
    each = {"distillation": "outputs-each", "teachers": ["mwresnet-3", "mwrcanet-3"]}
    plain, tuning = {"block": "residual"}, _COMMON | _TUNING
    return {
        FIRST: _COMMON | _FROM_SCRATCH | plain,
        "mwresnet-3": tuning | plain | mean | {"init": FIRST},
        "mwrcanet-3": tuning | mean | {"init": SECOND},
        "mwrcanet-4": tuning | each | {"init": "mwrcanet-3"},
        "mwrcanet-plain": tuning | {"init": SECOND, "steps": 2 * STEPS, "validate_every": 2 * STEPS},
    }


def score(folder: Path, runs: Path, extent: Extent) -> None:
    """Print the table; rows whose networks are not trained are left out."""
    print("| step (PSNR, dB) | " + " | ".join(head(gain) for gain in GAINS) + " |")
    print("|---" * (len(GAINS) + 1) + "|")
    for row, names in ROWS.items():
        try:
            methods = [method_of(find_network(name, runs).eval()) for name in names]
        except MdrnError as error:
            print(f"({row}: {error})", file=sys.stderr)
            continue
        means = (np.mean(_psnrs(methods, folder, gain, extent)) for gain in GAINS)
        print(f"| {row} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)


def _psnrs(methods: Sequence[Method], folder: Path, gain: float, extent: Extent) -> list[float]:
    offset = offset_of(gain)
    return [
        psnr(torch.stack([method(noisy, gain, offset) for method in methods]).mean(0), clean)
        for clean, noisy in pictures(folder, gain, offset, extent)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the two."""
    options = argparse.ArgumentParser(description="The steps of MWRCANet's distillation")
    parts = options.add_subparsers(dest="part", required=True)
    parts.add_parser("recipes").add_argument("folder", type=Path)
    parts.add_parser("score", parents=[parser("", add_help=False)])
    chosen = options.parse_args(arguments)
    if chosen.part == "recipes":
        write(recipes(), chosen.folder)
        return 0
    folder = folder_of(chosen)
    if folder is None:
        return 2
    score(folder, chosen.runs, Extent.of(chosen))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
