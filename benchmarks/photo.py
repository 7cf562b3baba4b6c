"""Finished photographs: JPEGs of a simulated camera from Kodak24, denoised blindly.

    python benchmarks/photo.py [--data DIR] [--runs DIR] [--quick]

Every picture goes through a camera (training/degrade.py): a lens that blurs by half a pixel, linear
light, a Bayer pattern, noise of the Darmstadt line, white balance, demosaicing, colours, gamma, tone
curve, JPEG of quality 80 to 95 in 4:2:0. The truth is the same way without noise and without JPEG. In
the second table the camera reduces noise itself, more in colour than in brightness: the rest is coarse.

DIR holds ``bench/Kodak24``; default: MDRN_DATA. ``--runs`` is a folder of training runs whose models are
taken before those that ship. ``--quick`` takes every sixth picture, cut to 256 pixels a side.
"""

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

import mdrn_plugin
from mdrn_plugin.errors import MdrnError
from mdrn_plugin.networks.registry import build
from mdrn_plugin.training import camera, degrade
from mdrn_plugin.training.loop import cut_to_stride, settings
from mdrn_plugin.training.recipe import load_recipe
from mdrn_plugin.training.zoo import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

LEVELS_255 = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the RAW's mid grey
LENS_PX = 0.5
MODEL = "mdrn-2b-colour-photo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Photographs")
    parser.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training runs")
    parser.add_argument("--quick", action="store_true", help="every sixth picture, small crops")
    chosen = parser.parse_args(arguments)
    folder = Path(chosen.data or "") / "bench" / "Kodak24"
    if chosen.data is None or not folder.is_dir():
        print("no test set: give --data DIR with bench/Kodak24 in it, or set MDRN_DATA", file=sys.stderr)
        return 2
    ways = methods(chosen.runs)
    for smoothed in (False, True):
        print(f"\n## {'camera that reduces noise itself' if smoothed else 'plain camera'}\n")
        print("| noise of the RAW | " + " | ".join(ways) + " | least gain of the model |")
        print("|---" * (len(ways) + 2) + "|", flush=True)
        for level in LEVELS_255:
            pairs = list(photographs(folder, level, smoothed, chosen.quick))
            scores = [[_psnr(way(y), x) for x, y in pairs] for way in ways.values()]
            least = min(b - a for a, b in zip(scores[0], scores[-1], strict=True))
            cells = " | ".join(f"{np.mean(s):.2f}" for s in scores)
            print(f"| {level:g} | {cells} | {least:+.2f} |", flush=True)
    return 0


def methods(runs: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is compared: functions of a picture (1, 3, H, W), 0..1."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "JPEG": lambda y: y,
        "taken for white noise": lambda y: _pipeline(y, "gaussian"),
        "automatic": lambda y: _pipeline(y, "auto"),
    }
    recipe = load_recipe(MODEL)
    try:
        weights = find_weights(MODEL, runs)
    except MdrnError:
        print(f"({MODEL}: not trained yet, left out)", file=sys.stderr)
        return found
    network = build(recipe.architecture, settings(recipe))
    network.load_state_dict(weights)
    network.eval()

    def model(y: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = network(y)
        return (out.clamp(0, 1) * 255).round() / 255

    return {**found, MODEL: model}


def photographs(
    folder: Path, level_255: float, smoothed: bool, quick: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (truth, JPEG), shape (1, 3, H, W), 0..1, both the same at every call."""
    for path in sorted(folder.glob("*.png"))[:: 6 if quick else 1]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        if quick:
            top, left = (pixels.shape[0] - 264) // 2, (pixels.shape[1] - 264) // 2
            pixels = pixels[top : top + 264, left : left + 264]
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        seed = int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:6], "little")
        generator = torch.Generator().manual_seed(seed)
        cameras = camera.draw_cameras(1, generator)
        look = degrade.draw_look(1, generator)
        look = dataclasses.replace(
            look,
            pattern="RGGB",
            luma_share=torch.full((1,), 0.7 if smoothed else 0.0),
            chroma_share=torch.full((1,), 0.9 if smoothed else 0.0),
            sharpening=torch.zeros(1),
            quality=80 + 15 * torch.rand(1, generator=generator),
            plain=torch.zeros(1, dtype=torch.bool),
            subsample=True,
            offset=(12, 12),  # as in a file: the first block begins at the first pixel of what is yielded
        )
        gain, offset = camera.draw_noise(torch.tensor([level_255]), generator, ("dnd",))
        raw = camera.unprocess(degrade.blur(x, torch.full((1, 3), LENS_PX)), cameras)
        pair = degrade.photograph(raw, cameras, gain, offset, [generator], look)
        yield cut_to_stride(pair.clean, 8), cut_to_stride(pair.noisy, 8)


def _pipeline(y: Tensor, noise_model: str) -> Tensor:
    pixels = (y[0] * 255).round().byte().permute(1, 2, 0).numpy()
    out = mdrn_plugin.denoise(pixels, axes="YXS", noise_model=noise_model)
    return torch.from_numpy(out.copy()).permute(2, 0, 1)[None].float() / 255


def _psnr(x: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((x - truth).double().square().mean()))


if __name__ == "__main__":
    raise SystemExit(main())
