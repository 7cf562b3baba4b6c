"""Finished photographs: JPEGs of a simulated camera from Kodak24, denoised blindly.

    python benchmarks/photo.py [--data DIR] [--runs DIR] [--every N] [--crop PX]

Every picture goes through a camera (training/degrade.py): a lens that blurs by half a pixel, linear
light, a Bayer pattern, noise of the Darmstadt line, white balance, demosaicing, colours, gamma, tone
curve, JPEG of quality 80 to 95 in 4:2:0. The truth is the same way without noise and without JPEG. In
the second table the camera reduces noise itself, more in colour than in brightness: the rest is coarse.

DIR holds ``bench/Kodak24``; default: MDRN_DATA. ``--runs`` is a folder of training runs whose models are
taken before those that ship. ``--quick`` is ``--every 6 --crop 256``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from kodak import Extent, colour_pictures, folder_of, parser, psnr, trained

import mdrn_plugin
from mdrn_plugin.training import camera, degrade
from mdrn_plugin.training.loop import cut_to_stride

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

LEVELS_255 = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the RAW's mid grey
LENS_PX = 0.5
MODEL = "mdrn-2b-colour-photo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    chosen = parser("Photographs").parse_args(arguments)
    folder = folder_of(chosen)
    if folder is None:
        return 2
    ways = methods(chosen.runs)
    for smoothed in (False, True):
        print(f"\n## {'camera that reduces noise itself' if smoothed else 'plain camera'}\n")
        print("| noise of the RAW | " + " | ".join(ways) + " | least gain of the model |")
        print("|---" * (len(ways) + 2) + "|", flush=True)
        for level in LEVELS_255:
            pairs = list(photographs(folder, level, smoothed, Extent.of(chosen)))
            scores = [[psnr(way(y), x) for x, y in pairs] for way in ways.values()]
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
    network = trained(MODEL, runs)
    if network is None:
        return found

    def model(y: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = network(y)
        return (out.clamp(0, 1) * 255).round() / 255

    return {**found, MODEL: model}


def photographs(
    folder: Path, level_255: float, smoothed: bool, extent: Extent
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (truth, JPEG), shape (1, 3, H, W), 0..1, both the same at every call."""
    for x, seed in colour_pictures(folder, extent, 8):
        generator = torch.Generator().manual_seed(seed)
        cameras = camera.draw_cameras(1, generator)
        look = degrade.draw_look(1, generator)
        look = dataclasses.replace(
            look,
            pattern="RGGB",
            luma_share=torch.full((1,), 0.7 if smoothed else 0.0),
            chroma_share=torch.full((1,), 0.9 if smoothed else 0.0),
            soft_px=torch.zeros(1),
            sharpening=torch.zeros(1),
            quality=80 + 15 * torch.rand(1, generator=generator),
            plain=torch.zeros(1, dtype=torch.bool),
            left=torch.full((1,), -1.0),
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


if __name__ == "__main__":
    raise SystemExit(main())
