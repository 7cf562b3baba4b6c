"""Noise as microscopes and cameras make it: blind estimates and denoising, beside what knowing it would give.

    python benchmarks/real_noise.py [--data DIR] [--quick] [--part NAME]

Parts: ``law`` (gain and offset of Poisson-Gaussian noise), ``poisson`` (denoising it), ``correlated``
(blurred Gaussian noise), ``camera`` (demosaiced, JPEG quality 90), ``w2s`` (real fluorescence), ``white``
(what the machinery costs where the noise is plain white noise). DIR holds ``bench/`` and ``micro/``;
default: the environment variable MDRN_DATA. ``--quick`` takes every eighth picture, cut to 192 pixels a
side for denoising.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, ValueRange
from mdrn_plugin.pipeline import denoise_picture, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UNIT = ValueRange(0.0, 1.0, "benchmark", given=True)
PEAKS, READS = (1, 5, 10, 30, 120), (0, 1, 3, 5)
# Width of a Gaussian blur (px) that gives white noise a lag-1 correlation of exp(-1 / (4 s²)).
BLUR_PX = {0.3: 0.456, 0.6: 0.70, 0.8: 1.06}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Real noise: estimates and denoising")
    parser.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    parser.add_argument("--quick", action="store_true", help="every eighth picture, small crops")
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="only these")
    chosen = parser.parse_args(arguments)
    if chosen.data is None or not (Path(chosen.data) / "bench").is_dir():
        print("no test sets: give --data DIR with a folder bench/ in it, or set MDRN_DATA", file=sys.stderr)
        return 2
    for name in chosen.part or PARTS:
        print(f"\n## {name}\n", flush=True)
        PARTS[name](Path(chosen.data), chosen.quick)
    return 0


def law(data: Path, quick: bool) -> None:
    """Blind gain and offset on BSD68 and Set12."""
    print("| photons at white | read noise | gain, median error | offset, median error | line / constant |")
    print("|---|---|---|---|---|")
    gains, offsets = [], []
    for peak in PEAKS:
        for read in READS:
            a, b, kinds = [], [], []
            for name, x in _pictures(data, ("Set12", "BSD68"), "L", quick, crop=False):
                curve = measure(_picture(_poisson(x, peak, read, name)), Options())[0].curves
                kinds.append(curve[0].kind if curve else "none")
                a.append(abs(curve[0].gain * peak - 1) if curve else 1.0)
                b.append(abs(curve[0].offset * peak**2 / read**2 - 1) if curve and read else float(not curve))
            gains += a
            offsets += b if read else []
            shown = f"{100 * np.median(b):.0f} %" if read else "–"
            lines = sum(k == "line" for k in kinds)
            print(
                f"| {peak} | {read} | {100 * np.median(a):.0f} % | {shown} | {lines} / {len(kinds) - lines} |"
            )
    print(f"\nmedian of all: gain {100 * np.median(gains):.1f} %, offset {100 * np.median(offsets):.1f} %")


def poisson(data: Path, quick: bool) -> None:
    """Denoise Poisson-Gaussian noise: blind, told gain and offset, and taken for white noise."""
    print("| photons | read noise | noisy | taken for white | blind | told | blind minus told |")
    print("|---|---|---|---|---|---|---|")
    for peak in PEAKS:
        for read in (0, 3):
            rows = []
            for name, x in _pictures(data, ("Set12",), "L", quick):
                y = _poisson(x, peak, read, name)
                told = f"{1 / peak!r},{read**2 / peak**2!r}"
                rows.append(_scores(x, y, [{"noise_model": "gaussian"}, {}, {"noise": told}]))
            _print_row([str(peak), str(read)], rows, difference=(2, 3))


def correlated(data: Path, quick: bool) -> None:
    """Blurred Gaussian noise: the level found, and denoising by the routes."""
    print("| lag 1 | σ | σ, median error | noisy | taken for white | blind | told σ |")
    print("|---|---|---|---|---|---|---|")
    for lag, width in BLUR_PX.items():
        for sigma in (5, 15, 30):
            rows, errors = [], []
            for name, x in _pictures(data, ("BSD68",), "L", quick):
                y = x + sigma / 255 * _blurred(x.shape, width, _seed(name, lag, sigma))
                found = measure(_picture(y), Options())[0]
                errors.append(abs(255 * found.sigma[0] / sigma - 1))
                told = {"noise": str(sigma), "noise_model": "correlated"}
                rows.append(_scores(x, y, [{"noise_model": "gaussian"}, {}, told]))
            _print_row([str(lag), str(sigma), f"{100 * np.median(errors):.0f} %"], rows)


def camera(data: Path, quick: bool) -> None:
    """Kodak24 through a simulated camera: mosaic, noise, bilinear demosaicing, gamma, JPEG quality 90."""
    print("| noise of the sensor (gain, offset) | camera JPEG | taken for white | blind |")
    print("|---|---|---|---|")
    for gain, offset in ((0.002, 1e-5), (0.01, 1e-4), (0.03, 1e-3)):
        rows = []
        for name, x in _pictures(data, ("Kodak24",), "RGB", quick):
            x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
            rows.append(_scores(x, _camera(x, gain, offset, name), [{"noise_model": "gaussian"}, {}]))
        _print_row([f"{gain:g}, {offset:g}"], rows)


def w2s(data: Path, quick: bool) -> None:
    """Single fluorescence frames against the mean of 400, gain and offset aligned."""
    gains, white = [], []
    for path in sorted((data / "micro" / "W2S").glob("*avg1.png"))[:: 8 if quick else 1]:
        y = np.asarray(Image.open(path))
        x = np.asarray(Image.open(str(path).replace("avg1", "avg400"))).astype(np.float64)
        before = _psnr(_aligned(y, x) / 255, x / 255)
        for kind, list_ in (("auto", gains), ("gaussian", white)):
            out = denoise_picture(Picture(y, "YX", ValueRange(0.0, 255.0, "")), Options(noise_model=kind))
            list_.append(_psnr(_aligned(out.picture.pixels, x) / 255, x / 255) - before)
    print(f"{len(gains)} pairs: blind {np.mean(gains):+.2f} dB, taken for white {np.mean(white):+.2f} dB")


def white(data: Path, quick: bool) -> None:
    """Measure what is lost on white noise of one level because other laws are looked for."""
    print("| set | σ | pictures not called white | mean loss, dB | worst |")
    print("|---|---|---|---|---|")
    for name_of_set, mode in (("Set12", "L"), ("BSD68", "L"), ("CBSD68", "RGB"), ("Kodak24", "RGB")):
        for sigma in (5, 15, 25, 50):
            losses = []
            for name, x in _pictures(data, (name_of_set,), mode, quick, crop=False):
                rng = np.random.default_rng(_seed(name, sigma))
                y = x + sigma / 255 * rng.standard_normal(x.shape)
                found = measure(_picture(y), Options())[0]
                if not (found.correlated or found.depends_on_signal):
                    losses.append(0.0)  # the same plan, the same bytes
                    continue
                scores = _scores(x, y, [{"noise_model": "gaussian"}, {}])
                losses.append(scores[1] - scores[2])
            changed = sum(loss != 0 for loss in losses)
            print(
                f"| {name_of_set} | {sigma} | {changed} of {len(losses)} | {np.mean(losses):.3f} | "
                f"{max(losses):.2f} |",
                flush=True,
            )


PARTS: dict[str, Callable[[Path, bool], None]] = {
    "law": law,
    "poisson": poisson,
    "correlated": correlated,
    "camera": camera,
    "w2s": w2s,
    "white": white,
}


def _pictures(
    data: Path, sets: tuple[str, ...], mode: str, quick: bool, crop: bool = True
) -> Iterator[tuple[str, Any]]:
    for name in sets:
        for path in sorted((data / "bench" / name).glob("*.png"))[:: 8 if quick else 1]:
            x = np.asarray(Image.open(path).convert(mode)).astype(np.float64) / 255
            if quick and crop:
                top, left = (x.shape[0] - 192) // 2, (x.shape[1] - 192) // 2
                x = x[top : top + 192, left : left + 192]
            yield path.stem, x


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8], "little")


def _poisson(x: Any, peak: float, read: float, name: str) -> Any:
    rng = np.random.default_rng(_seed(name, peak, read))
    return (rng.poisson(x * peak) + rng.normal(0, read, x.shape)) / peak


def _blurred(shape: tuple[int, ...], width: float, seed: int) -> Any:
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    response = np.exp(-2 * np.pi**2 * width**2 * (fx**2 + fy**2))
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal(shape)) * response
    return np.fft.ifft2(noise / np.sqrt(np.mean(response**2))).real


def _camera(x: Any, gain: float, offset: float, name: str) -> Any:
    linear = x**2.2
    colour = np.zeros(x.shape)
    for i, j, c in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        colour[i::2, j::2, c] = 1
    mosaic = (linear * colour).sum(axis=2)
    rng = np.random.default_rng(_seed(name, gain))
    mosaic += rng.standard_normal(mosaic.shape) * np.sqrt(gain * mosaic + offset)
    planes = [_smooth3(mosaic * colour[..., c]) / _smooth3(colour[..., c]) for c in range(3)]
    shown = 255 * np.clip(np.stack(planes, axis=2), 0, 1) ** (1 / 2.2)
    file = io.BytesIO()
    Image.fromarray(np.rint(shown).astype(np.uint8)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def _smooth3(x: Any) -> Any:
    padded = np.pad(x, 1, mode="reflect")
    weights = (1, 2, 1)
    return sum(
        weights[i] * weights[j] * padded[i : i + x.shape[0], j : j + x.shape[1]]
        for i in range(3)
        for j in range(3)
    )


def _picture(y: Any) -> Picture:
    axes = "YXS" if y.ndim == 3 else "YX"
    if y.dtype == np.uint8:
        return Picture(y, axes, ValueRange(0.0, 255.0, "benchmark"))
    return Picture(y.astype(np.float32), axes, UNIT)


def _scores(x: Any, y: Any, wishes: list[dict[str, str]]) -> list[float]:
    picture = _picture(y)
    unit = 255.0 if y.dtype == np.uint8 else 1.0
    scores = [_psnr(y / unit, x)]
    for wish in wishes:
        scores.append(_psnr(denoise_picture(picture, Options(**wish)).picture.pixels / unit, x))
    return scores


def _psnr(a: Any, b: Any) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2)))


def _aligned(y: Any, x: Any) -> Any:
    gain, offset = np.polyfit(np.ravel(y).astype(np.float64), np.ravel(x), 1)
    return gain * y + offset


def _print_row(head: list[str], rows: list[list[float]], difference: tuple[int, int] | None = None) -> None:
    mean = np.mean(rows, axis=0)
    cells = head + [f"{v:.2f}" for v in mean]
    if difference is not None:
        cells.append(f"{mean[difference[0]] - mean[difference[1]]:+.2f}")
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
