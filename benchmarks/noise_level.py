"""How well the blind noise level works: a markdown table for the standard test sets.

    python benchmarks/noise_level.py [--data DIR]

DIR holds ``bench/BSD68``, ``bench/CBSD68`` and ``bench/Kodak24``; the default is the environment
variable MDRN_DATA. White Gaussian noise is added in float and left unclipped, or clipped and
rounded to 8 bit; errors are relative to the sigma added. Where scikit-image is installed, its
wavelet estimate stands beside ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mdrn_plugin.noise.level import Level, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SETS = ("BSD68", "CBSD68", "Kodak24")
SIGMAS = (5, 10, 15, 25, 50, 75)
SEED = 2022


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Accuracy and speed of the blind noise level")
    parser.add_argument(
        "--data", default=os.environ.get("MDRN_DATA"), help="folder with bench/ (default: MDRN_DATA)"
    )
    parser.add_argument("--every", type=int, default=1, help="take every N-th picture only")
    chosen = parser.parse_args(arguments)
    if chosen.data is None or not (Path(chosen.data) / "bench").is_dir():
        print("no test sets: give --data DIR with a folder bench/ in it, or set MDRN_DATA", file=sys.stderr)
        return 2
    peer = _peer()
    bench = Path(chosen.data) / "bench"
    pictures = {
        name: [_load(p) for p in sorted((bench / name).glob("*.png"))[:: chosen.every]] for name in SETS
    }
    print(
        "Relative error of sigma in %: median / 95th percentile / worst; doubt: pictures called correlated\n"
    )
    head = "| set | noise | σ | ours | called correlated | lag 1, median |"
    print(head + (" scikit-image |" if peer else ""))
    print("|---" * (6 + bool(peer)) + "|")
    for name, loaded in pictures.items():
        for kind in ("float", "8 bit, clipped"):
            for sigma in SIGMAS:
                print(_row(name, loaded, kind, sigma, peer), flush=True)
    _clean(pictures["Kodak24"], peer)
    _time(peer)
    return 0


def _row(name: str, pictures: list[Any], kind: str, sigma: int, peer: Callable[[Any], float] | None) -> str:
    rng = np.random.default_rng(SEED)
    ours, theirs, lags, flagged = [], [], [], 0
    for x_HWC in pictures:
        y_HWC = x_HWC + sigma * rng.standard_normal(x_HWC.shape, dtype=np.float32)
        if kind != "float":
            y_HWC = np.clip(np.rint(y_HWC), 0, 255).astype(np.uint8)
        level = _measure(y_HWC)
        ours.append(_joint(level))
        lags.append(max(abs(r) for r in level.correlation))
        flagged += level.correlated
        if peer:
            theirs.append(peer(y_HWC))
    cells = [
        name,
        kind,
        str(sigma),
        _errors(ours, sigma),
        f"{flagged} of {len(pictures)}",
        f"{np.median(lags):.3f}",
    ]
    return "| " + " | ".join(cells + ([_errors(theirs, sigma)] if peer else [])) + " |"


def _errors(found: list[float], sigma: float) -> str:
    errors = 100 * np.abs(np.asarray(found) / sigma - 1)
    return f"{np.median(errors):.1f} / {np.quantile(errors, 0.95):.1f} / {errors.max():.1f}"


def _measure(y_HWC: Any) -> Level:
    clipped = y_HWC.dtype == np.uint8
    return measure([y_HWC], low=0.0 if clipped else None, high=255.0 if clipped else None)


def _joint(level: Level) -> float:
    return float(np.sqrt(np.mean(level.sigma**2)))


def _clean(pictures: list[Any], peer: Callable[[Any], float] | None) -> None:
    print("\nKodak24 as it is, σ of 255 (wanted: at most 2.5)\n")
    for label, values in (
        ("ours, 8 bit", [_joint(_measure(x.astype(np.uint8))) for x in pictures]),
        ("scikit-image", [peer(x) for x in pictures] if peer else []),
    ):
        if values:
            ok = sum(v <= 2.5 for v in values)
            spread = f"median {np.median(values):.2f}, worst {max(values):.2f}"
            print(f"- {label}: {ok} of {len(values)} at most 2.5; {spread}")


def _time(peer: Callable[[Any], float] | None) -> None:
    print("\nSeconds of one core for 12 megapixels (best of 3)\n")
    rng = np.random.default_rng(SEED)
    gray = rng.normal(100, 10, (3000, 4000, 1))
    for label, x_HWC in (
        ("gray, 8 bit", gray.astype(np.uint8)),
        ("colour, 8 bit", np.repeat(gray, 3, axis=2).astype(np.uint8)),
        ("colour, float32", np.repeat(gray, 3, axis=2).astype(np.float32)),
    ):
        words = f"- {label}: {_best(lambda x=x_HWC: _measure(x)):.3f}"  # type: ignore[misc]
        if peer:
            words += f" (scikit-image {_best(lambda x=x_HWC: peer(x), 1):.2f})"  # type: ignore[misc]
        print(words)


def _best(call: Callable[[], object], runs: int = 3) -> float:
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _peer() -> Callable[[Any], float] | None:
    if importlib.util.find_spec("pywt") is None or importlib.util.find_spec("skimage") is None:
        return None  # its estimate needs PyWavelets
    from skimage.restoration import estimate_sigma

    def joint(x_HWC: Any) -> float:
        each = estimate_sigma(x_HWC.astype(np.float32), channel_axis=-1)
        return float(np.sqrt(np.mean(np.square(each))))

    return joint


def _load(path: Path) -> Any:
    x = np.asarray(Image.open(path), dtype=np.float32)
    return x[:, :, None] if x.ndim == 2 else x[:, :, :3]


if __name__ == "__main__":
    raise SystemExit(main())
