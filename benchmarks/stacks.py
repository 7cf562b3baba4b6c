"""Would neighbouring planes help? Simulated stacks, plane by plane against means over neighbours.

    python benchmarks/stacks.py [--data DIR] [--pictures 12] [--quick]

Stacks of nine planes from validation crops: a scene that stands still; the same drifting by a quarter of
a pixel per plane; and with three textured discs that move by two pixels per plane before it. White
noise of 25/255, or a variance of 0.01 * signal + 0.0004; the noise is told, the networks are the 2B ones. All
methods know where a pixel is like itself in another plane from the planes denoised by themselves
(`mdrn_plugin.engine.stacks.likeness`):

``after``      the weighted mean of the denoised planes, two before to two behind: ``--along``
``recursive``  the weighted mean of the denoised plane and the result of the plane before
``before``     the weighted mean of the noisy planes, denoised as one plane and as the mean of five, and
               between the two by how much was averaged: three times the network's work

PSNR of the middle plane; gain over plane by plane; the same where something moves (the discs with two
pixels around, two planes to each side: trails included); and the worst block of 16 x 16 px: how much its
root mean square error grew, in units of the noise. Ghosts show in the last two.

DIR holds ``train/DIV2K_valid_crops``; default: MDRN_DATA. ``--quick`` takes three pictures.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from mdrn_plugin.engine.planes import run_plan
from mdrn_plugin.engine.stacks import REACH, likeness
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, ValueRange
from mdrn_plugin.pipeline import make_plan, measure
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Stack = NDArray[np.float32]

PLANES, SIDE = 9, 192
MIDDLE = PLANES // 2
NOISES = {"white": (0.0, (25 / 255) ** 2), "Poisson-Gaussian": (0.01, 0.0004)}  # gain and offset
SCENES = ("still", "drift", "motion")
METHODS = ("after", "recursive", "before")
_MEMORY = 0.7  # weight of the past in the recursion
_BLOCK = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Stacks")
    parser.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="three pictures")
    chosen = parser.parse_args(arguments)
    folder = Path(chosen.data or "") / "train" / "DIV2K_valid_crops"
    if chosen.data is None or not folder.is_dir():
        print("no pictures: give --data DIR with train/DIV2K_valid_crops in it", file=sys.stderr)
        return 2
    files = sorted(folder.glob("*.png"))
    files = files[:: max(1, len(files) // (3 if chosen.quick else chosen.pictures))]
    print("| noise | scene | plane by plane, dB | method | gain, dB | where it moves, dB | worst block |")
    print("|---" * 7 + "|", flush=True)
    for noise, law in NOISES.items():
        for scene in SCENES:
            rows = [compare(file, files[k - 1], scene, law, k) for k, file in enumerate(files)]
            for number, method in enumerate(METHODS):
                plain = np.mean([row[0] for row in rows])
                gain, moving = (np.mean([row[1][number][n] for row in rows]) for n in (0, 1))
                worst = max(row[1][number][2] for row in rows)
                where = f"{moving:+.2f}" if scene == "motion" else ""
                print(
                    f"| {noise} | {scene} | {plain:.2f} | {method} | {gain:+.2f} | {where} | {worst:+.2f} |",
                    flush=True,
                )
    return 0


def compare(
    file: Path, other: Path, scene: str, law: tuple[float, float], seed: int
) -> tuple[float, list[tuple[float, float, float]]]:
    """Return the PSNR of plane by plane; of each method gain, gain where it moves, and worst block."""
    clean, moving = make_stack(_gray(file), _gray(other), scene)
    rng = np.random.default_rng(seed)
    variance = law[0] * clean + law[1]
    noisy = (clean + rng.normal(size=clean.shape) * np.sqrt(variance)).astype(np.float32)
    alone = denoise(noisy, law)
    truth = clean[MIDDLE]
    plain = _error(alone[MIDDLE], truth)
    scores = []
    for method in METHODS:
        error = _error(_METHODS[method](noisy, alone, law), truth)
        grown = np.sqrt(_blocks(error)) - np.sqrt(_blocks(plain))
        scores.append(
            (
                _decibels(plain.mean() / error.mean()),
                _decibels(plain[moving].mean() / error[moving].mean()) if moving.any() else 0.0,
                float(grown.max() / math.sqrt(variance.mean())),
            )
        )
    return _decibels(1 / plain.mean()), scores


def make_stack(scene_HW: Stack, other_HW: Stack, scene: str) -> tuple[Stack, NDArray[np.bool_]]:
    """Return clean planes (T, H, W), 0..1, and where something moves near the middle plane."""
    rim = (scene_HW.shape[0] - SIDE) // 2
    cut = np.s_[rim : rim + SIDE, rim : rim + SIDE]
    step = 0.25 if scene == "drift" else 0.0
    planes = np.stack(
        [ndimage.shift(scene_HW, step * (t - MIDDLE), order=3, mode="reflect")[cut] for t in range(PLANES)]
    )
    touched = np.zeros((PLANES, SIDE, SIDE), bool)
    if scene == "motion":
        y, x = np.mgrid[:SIDE, :SIDE]
        for k, (radius, angle) in enumerate(((10, 0.3), (16, 2.2), (22, 4.1))):
            for t in range(PLANES):
                way = 2.0 * (t - MIDDLE)
                top, left = 50 + 45 * k + way * math.sin(angle), 140 - 45 * k + way * math.cos(angle)
                disc = (y - top) ** 2 + (x - left) ** 2 < radius**2
                shift = (way * math.sin(angle), way * math.cos(angle))
                texture = ndimage.shift(other_HW, shift, mode="reflect")
                planes[t][disc] = texture[cut][disc]
                touched[t] |= (y - top) ** 2 + (x - left) ** 2 < (radius + 2) ** 2
    near = touched[MIDDLE - REACH : MIDDLE + REACH + 1].any(0)
    return np.clip(planes, 0, 1).astype(np.float32), near


def denoise(noisy: Stack, law: tuple[float, float], planes: float = 1.0) -> Stack:
    """Return each plane (T, H, W) denoised; every value is the mean of so many `planes` of the law."""
    gain, offset = law[0] / planes, law[1] / planes
    told = f"{gain!r},{offset!r}" if gain else repr(255 * math.sqrt(offset))
    picture = Picture(noisy, "TYX", ValueRange(0.0, 1.0, "", given=True))
    options = Options(noise=told)
    out = np.empty_like(noisy)
    run_plan(picture, out, make_plan(picture, measure(picture, options), options), shipped())
    return out


def _after(noisy: Stack, alone: Stack, law: tuple[float, float]) -> Stack:
    near = range(MIDDLE - REACH, MIDDLE + REACH + 1)
    weights = np.stack([_alike(alone[MIDDLE], alone[t], law) for t in near])
    return (weights * alone[near.start : near.stop]).sum(0) / weights.sum(0)


def _recursive(noisy: Stack, alone: Stack, law: tuple[float, float]) -> Stack:
    result = alone[0]
    for t in range(1, MIDDLE + 1):
        weight = _MEMORY * _alike(alone[t], result, law)
        result = weight * result + (1 - weight) * alone[t]
    return result


def _before(noisy: Stack, alone: Stack, law: tuple[float, float]) -> Stack:
    near = range(MIDDLE - REACH, MIDDLE + REACH + 1)
    weights = np.stack([_alike(alone[MIDDLE], alone[t], law) for t in near])
    weights /= weights.sum(0)
    mean = (weights * noisy[near.start : near.stop]).sum(0)[None].astype(np.float32)
    # 0: one plane alone, 1: the mean of all; between them by the logarithm of the noise that is left.
    share = -np.log((weights**2).sum(0)) / math.log(len(near))
    weak, strong = denoise(mean, law, len(near))[0], denoise(mean, law)[0]
    return share * weak + (1 - share) * strong


def _alike(a_HW: Stack, b_HW: Stack, law: tuple[float, float]) -> Stack:
    variance = np.maximum(law[0] * a_HW + law[1], 1e-8)
    return likeness(*(v[..., None].astype(np.float32) for v in (a_HW, b_HW, variance)))[..., 0]


_METHODS = {"after": _after, "recursive": _recursive, "before": _before}


def _gray(file: Path) -> Stack:
    return np.asarray(Image.open(file).convert("L"), np.float32) / 255


def _error(x: Stack, truth: Stack) -> Stack:
    return (x - truth) ** 2


def _blocks(error_HW: Stack) -> Stack:
    count = SIDE // _BLOCK
    found: Stack = error_HW.reshape(count, _BLOCK, count, _BLOCK).mean((1, 3))
    return found


def _decibels(ratio: float) -> float:
    return 10 * math.log10(float(ratio))


if __name__ == "__main__":
    raise SystemExit(main())
