"""RAW denoising: a synthetic set from Kodak24 at five noise lines.

    python benchmarks/raw.py [--data DIR] [--runs DIR] [--every N] [--crop PX] [--part NAME]

Every picture is unprocessed to linear camera colours (training/camera.py) and sampled by an RGGB
pattern; Poisson-Gaussian noise is added whose parameters lie on the line of the Darmstadt set (Brooks
et al. 2019) at five gains. The methods are told the parameters. PSNR is on the mosaic, white = 1.

Parts: ``psnr`` (the table), ``sharpness`` (what is kept of the gradients of the clean mosaic). DIR
holds ``bench/Kodak24``; default: MDRN_DATA. ``--runs`` is a folder of training runs whose models are
taken before those that ship. ``--quick`` is ``--every 6 --crop 256``. BM3D
stands in the table if the package bm3d is installed.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kodak import Extent, colour_pictures, folder_of, parser, psnr, trained

import mdrn_plugin
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.stabilise import stabiliser
from mdrn_plugin.training import camera
from mdrn_plugin.training.degrade import std_map
from mdrn_plugin.training.mosaic import mosaic, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

# Photoelectrons at white: 5000, 1700, 560, 200, 83; about ISO 200 to 12,800 of a small camera.
GAINS = (2e-4, 6e-4, 1.8e-3, 5e-3, 1.2e-2)
GRAY = "mdrn-2b-gray-0-90"
WIDE = "fan-raw-0-30"
BANDS = {(0.0, 3.0): "fan-raw-0-3", (3.0, 8.0): "fan-raw-3-8", (8.0, 30.0): "fan-raw-8-30"}
LARGE = "mwrcanet-small-raw-0-30"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    options = parser("RAW denoising")
    options.add_argument("--part", choices=("psnr", "sharpness"), action="append", help="only these")
    chosen = options.parse_args(arguments)
    folder = folder_of(chosen)
    if folder is None:
        return 2
    tables = {"psnr": (psnr, ".2f", "PSNR, dB"), "sharpness": (_sharpness, ".3f", "gradients kept")}
    for part in chosen.part or tables:
        measure, form, what = tables[part]
        print(f"\n## {part}\n\n| method ({what}) | " + " | ".join(head(a) for a in GAINS) + " |")
        print("|---" * (len(GAINS) + 1) + "|", flush=True)
        for name, method in methods(chosen.runs).items():
            scores = []
            for gain in GAINS:
                offset = offset_of(gain)
                pairs = pictures(folder, gain, offset, Extent.of(chosen))
                scores.append(np.mean([measure(method(y, gain, offset), x) for x, y in pairs]))
            print(f"| {name} | " + " | ".join(format(v, form) for v in scores) + " |", flush=True)
    return 0


def methods(runs: Path) -> dict[str, Callable[[Tensor, float, float], Tensor]]:
    """Return what is compared: functions of (noisy mosaic (1, 1, H, W), gain, offset)."""
    found: dict[str, Callable[[Tensor, float, float], Tensor]] = {"noisy": lambda y, a, b: y}
    try:
        import bm3d
    except ImportError:
        print("(bm3d is not installed: left out)", file=sys.stderr)
    else:
        found["VST + BM3D on the planes"] = lambda y, a, b: _stabilised(y, a, b, lambda p: bm3d.bm3d(p, 1.0))
    found["stabilised MDRN on the planes"] = _mdrn
    found[f"{GRAY} on the whole mosaic"] = _whole
    for name in (WIDE, LARGE):
        network = trained(name, runs)
        if network is not None:
            found[name] = method_of(network)
    bands = {band: trained(name, runs) for band, name in BANDS.items()}
    if all(bands.values()):
        found["fan-raw, the band of the noise"] = lambda y, a, b: method_of(
            next(n for (low, high), n in bands.items() if low <= sigma_255(a, b) < high)
        )(y, a, b)
    return found


def offset_of(gain: float) -> float:
    """Return the offset that the line of the Darmstadt set gives to a gain."""
    line = camera.LINES["dnd"]
    return float(10 ** (line.slope * math.log10(gain) + line.intercept))


def sigma_255(gain: float, offset: float) -> float:
    """Return the noise at mid grey, 0..255."""
    return float(camera.mid_grey_sigma_255(torch.tensor(gain), torch.tensor(offset)))


def pictures(folder: Path, gain: float, offset: float, extent: Extent) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (clean, noisy) mosaics, shape (1, 1, H, W), both the same at every call."""
    for x, seed in colour_pictures(folder, extent):
        cameras = camera.draw_cameras(1, torch.Generator().manual_seed(seed))
        clean = mosaic(camera.unprocess(x, cameras))
        generator = torch.Generator().manual_seed(seed + round(1e6 * gain))
        yield clean, camera.add_sensor_noise(clean[0], gain, offset, generator)[None]


def method_of(network: Any) -> Callable[[Tensor, float, float], Tensor]:
    """Return a RAW network as a function of (noisy mosaic (1, 1, H, W), gain, offset)."""

    def run(y: Tensor, gain: float, offset: float) -> Tensor:
        x = pack(y) if network.colours == 4 else y
        with torch.no_grad():
            out = network(x, std_map(x, torch.tensor(gain), torch.tensor(offset)))
        return unpack(out) if network.colours == 4 else out

    return run


def _mdrn(y: Tensor, gain: float, offset: float) -> Tensor:
    planes = [
        mdrn_plugin.denoise(plane.numpy(), axes="YX", noise=f"{gain!r},{offset!r}", range=(0.0, 1.0))
        for plane in pack(y)[0]
    ]
    return unpack(torch.from_numpy(np.stack(planes))[None].float())


def _whole(y: Tensor, gain: float, offset: float) -> Tensor:
    told = f"{gain!r},{offset!r}"
    out = mdrn_plugin.denoise_raw(
        y[0, 0].numpy(), pattern="RGGB", black=0.0, white=1.0, noise=told, model=GRAY
    )
    return torch.from_numpy(np.asarray(out))[None, None].float()


def _stabilised(y: Tensor, gain: float, offset: float, denoise: Callable[[Any], Any]) -> Tensor:
    vst = stabiliser(NoiseCurve("line", gain, offset, span=(0.0, 1.0)))
    planes = [vst.inverse(denoise(vst.forward(plane.numpy()))) for plane in pack(y)[0]]
    return unpack(torch.from_numpy(np.stack(planes))[None].float())


def _sharpness(x: Tensor, clean: Tensor) -> float:
    """Slope of the gradients of the planes over those of the clean ones: 1 is all of them, 0 a blur."""
    found, true = (torch.cat([d.flatten() for d in _gradients(pack(v))]).double() for v in (x, clean))
    return float((found * true).sum() / true.square().sum())


def _gradients(x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_NCHW[..., 1:] - x_NCHW[..., :-1], x_NCHW[..., 1:, :] - x_NCHW[..., :-1, :]


def head(gain: float) -> str:
    """Return what stands above a gain's column."""
    return f"{1 / gain:.0f} electrons, σ {sigma_255(gain, offset_of(gain)):.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
