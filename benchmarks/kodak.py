"""What the benchmarks on Kodak24 share: their options, the pictures, a network as it was trained, PSNR."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mdrn_plugin.errors import MdrnError
from mdrn_plugin.networks.registry import build
from mdrn_plugin.training.loop import settings
from mdrn_plugin.training.recipe import load_recipe
from mdrn_plugin.training.zoo import find_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def parser(description: str, add_help: bool = True) -> argparse.ArgumentParser:
    """Return a parser of --data, --runs, --every, --crop and --quick."""
    found = argparse.ArgumentParser(description=description, add_help=add_help)
    found.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    found.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training runs")
    found.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th picture")
    found.add_argument("--crop", type=int, default=0, metavar="PX", help="only the middle of each")
    found.add_argument("--quick", action="store_true", help="the same as --every 6 --crop 256")
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How much of the pictures is taken."""

    every: int = 1  # every so manieth picture
    crop: int = 0  # px a side, from the middle; 0: all

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Extent:
        """Return what the options say."""
        return cls(6, 256) if chosen.quick else cls(chosen.every, chosen.crop)


def folder_of(chosen: argparse.Namespace) -> Path | None:
    """Return the folder of the pictures; None, and a line that says what to do, if it is not there."""
    folder = Path(chosen.data or "") / "bench" / "Kodak24"
    if chosen.data is not None and folder.is_dir():
        return folder
    print("no test set: give --data DIR with bench/Kodak24 in it, or set MDRN_DATA", file=sys.stderr)
    return None


def colour_pictures(folder: Path, extent: Extent, margin: int = 0) -> Iterator[tuple[Tensor, int]]:
    """Yield (picture (1, 3, H, W), 0..1; seed by its name); crops are larger by `margin`, px."""
    for path in sorted(folder.glob("*.png"))[:: extent.every]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        if extent.crop:
            side = extent.crop + margin
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            pixels = pixels[top : top + side, left : left + side]
        seed = int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:6], "little")
        yield torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255, seed


def trained(name: str, runs: Path) -> torch.nn.Module | None:
    """Return a network with the weights of its run or those that ship; None, and a line, without any."""
    recipe = load_recipe(name)
    try:
        weights = find_weights(name, runs)
    except MdrnError:
        print(f"({name}: not trained yet, left out)", file=sys.stderr)
        return None
    network = build(recipe.architecture, settings(recipe))
    network.load_state_dict(weights)
    return network.eval()


def psnr(x: Tensor, clean: Tensor) -> float:
    """Return the PSNR in dB, white = 1."""
    return -10 * math.log10(float((x - clean).double().square().mean()))
