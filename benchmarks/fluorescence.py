"""Synthetic fluorescence: the law of the noise in dark pictures with few bright things.

    python benchmarks/fluorescence.py [--seeds 1]

Six kinds of scene (few and many spots, two cells, many cells, threads, tissue), drawn by random generators
of fixed seeds, 384 x 384, blurred by one pixel as a lens does; photons by Poisson's law, read noise,
8 bit without a pedestal or 16 bit with one of 100. Printed per kind: gain of PSNR over the frame (the peak
is that of the scene), mean over six levels of light, with nothing told, taken for white, and with gain and
offset told; the largest loss of blind against told; and how many laws were found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage

import mdrn_plugin

SIDE = 384
# Photons at the peak and of the background, read noise in photons, bits.
LIGHT = ((200, 2, 0, 8), (50, 1, 0, 8), (20, 0.5, 0, 8), (500, 10, 3, 16), (60, 3, 2, 16), (15, 1, 1.5, 16))
_GAIN, _PEDESTAL = 20.0, 100.0  # values per photon and at no light, 16 bit


def _spots(count: int, low: float, high: float) -> Callable[[np.random.Generator], np.ndarray]:
    def draw(rng: np.random.Generator) -> np.ndarray:
        y, x = np.mgrid[:SIDE, :SIDE]
        out = np.zeros((SIDE, SIDE))
        for r, c in rng.uniform(0, SIDE, (count, 2)):
            width = rng.uniform(low, high)
            out += rng.uniform(0.2, 1) * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * width**2))
        return out

    return draw


def _cells(count: int) -> Callable[[np.random.Generator], np.ndarray]:
    def draw(rng: np.random.Generator) -> np.ndarray:
        y, x = np.mgrid[:SIDE, :SIDE]
        out = np.zeros((SIDE, SIDE))
        for r, c in rng.uniform(40, SIDE - 40, (count, 2)):
            tall, wide = rng.uniform(14, 30, 2)
            inside = np.clip(4 * (1 - ((y - r) / tall) ** 2 - ((x - c) / wide) ** 2), 0, 1)
            out = np.maximum(out, rng.uniform(0.4, 1) * inside * (0.7 + 0.15 * _fog(rng, 3)))
        return out

    return draw


def _threads(rng: np.random.Generator) -> np.ndarray:
    out = np.zeros((SIDE, SIDE))
    for _ in range(40):
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.05, 400))
        path = rng.uniform(0, SIDE, 2) + np.cumsum(np.stack([np.sin(turns), np.cos(turns)], 1), 0)
        place = path.round().astype(int)
        place = place[((place >= 0) & (place < SIDE)).all(1)]
        line = np.zeros((SIDE, SIDE))
        line[place[:, 0], place[:, 1]] = 1
        out += rng.uniform(0.4, 1) * ndimage.gaussian_filter(line, 1.3)
    return out


def _tissue(rng: np.random.Generator) -> np.ndarray:
    out = sum(width * _fog(rng, width) for width in (2, 4, 8, 16))
    return np.square((out - np.min(out)) / np.ptp(out))


def _fog(rng: np.random.Generator, width: float) -> np.ndarray:
    """Return a random texture of that scale, px, within two standard deviations of 0."""
    out = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), width)
    return np.clip(out / out.std(), -2, 2)


SCENES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "25 spots": _spots(25, 1.5, 3),
    "400 spots": _spots(400, 1.2, 2.5),
    "two cells": _cells(2),
    "twelve cells": _cells(12),
    "threads": _threads,
    "tissue": _tissue,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Synthetic fluorescence")
    parser.add_argument("--seeds", type=int, default=1, help="scenes of each kind (default: 1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| scene | noisy, dB | taken for white | blind | told | largest loss | laws found |")
    print("|---" * 7 + "|", flush=True)
    for name, draw in SCENES.items():
        rows, laws = [], 0
        for seed in range(chosen.seeds):
            for k, light in enumerate(LIGHT):
                row, law = _measure(draw, light, 1000 * seed + k)
                rows.append(row)
                laws += law
        noisy, *gains = np.mean(rows, 0)
        loss = max(told - blind for _, _, blind, told in rows)
        cells = " | ".join(f"{gain:+.2f}" for gain in gains)
        print(f"| {name} | {noisy:.2f} | {cells} | {loss:.2f} | {laws} of {len(rows)} |", flush=True)
    return 0


def _measure(
    draw: Callable[[np.random.Generator], np.ndarray], light: tuple[float, ...], seed: int
) -> tuple[list[float], bool]:
    """Return PSNR of the frame and gains over it: white, blind, told; and whether a law was found."""
    peak, background, read, bits = light
    rng = np.random.default_rng(seed)
    shape = ndimage.gaussian_filter(draw(rng), 1.0)
    photons = peak * np.clip(shape / np.quantile(shape, 0.999), 0, 1.2) + background
    seen = rng.poisson(photons) + rng.normal(0, read, photons.shape)
    gain, pedestal = (200 / peak, 0.0) if bits == 8 else (_GAIN, _PEDESTAL)
    frame = np.clip(np.rint(gain * seen + pedestal), 0, 2**bits - 1).astype(f"u{bits // 8}")
    truth = gain * photons + pedestal

    def psnr(pixels: np.ndarray) -> float:
        return float(10 * np.log10((gain * peak) ** 2 / np.mean((pixels.astype(float) - truth) ** 2)))

    noisy = psnr(frame)
    white = mdrn_plugin.denoise(frame, axes="YX", noise_model="gaussian")
    blind = mdrn_plugin.denoise(frame, axes="YX", return_result=True)
    span = (0.0, 255.0) if bits == 8 else (0.0, float(frame.max()))
    unit = span[1] - span[0]
    offset = ((read * gain) ** 2 + 1 / 12 - gain * pedestal) / unit**2
    told = mdrn_plugin.denoise(
        frame.astype(np.float32), axes="YX", range=span, noise=f"{gain / unit!r},{offset!r}"
    )
    gains = [psnr(pixels) - noisy for pixels in (white, blind.picture.pixels, told)]
    found = mdrn_plugin.estimate_noise(frame, axes="YX")
    profile = found[0] if isinstance(found, tuple) else found
    return [noisy, *gains], bool(profile.curves) and profile.curves[0].kind != "constant"


if __name__ == "__main__":
    sys.exit(main())
