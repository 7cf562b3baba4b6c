"""Learning from noisy pictures alone: how good D-BSN and its student become, and on what curve.

    python benchmarks/selfsupervised.py make FOLDER [--data DIR]
    mdrn-train self FOLDER --name dbsn --minutes 60 --models MODELS --threads 2
    python benchmarks/selfsupervised.py score MODELS/dbsn.run [--data DIR] [--every N]
    python benchmarks/selfsupervised.py curve MODELS/dbsn.run PNG
    python benchmarks/selfsupervised.py single FOLDER [--picture FILE] [--data DIR]
    python benchmarks/selfsupervised.py n2v FOLDER --minutes 60 [--threads 2] [--data DIR]
    python benchmarks/selfsupervised.py law LAW FOLDER --minutes 15 [--threads 2] [--data DIR]

``make`` writes the 400 BSDS500 pictures outside BSD68, gray, with white Gaussian noise of σ 25, as float
TIFF; the training reads nothing else. ``score`` measures on BSD68, noise of the same law: the Bayes
result, the level of the noise that the network finds, the student and the shipped model that it began
as. ``curve`` draws the run's log. ``single`` makes one noisy picture of 1024 x 1024 pixels from a
training photograph, or from the middle of FILE, and says what methods without learning reach on it
(scikit-image, and the package bm3d if it is installed). ``n2v`` gives Noise2Void the same noisy
pictures and a time, and measures it on BSD68
as ``score`` does (CAREamics, to be installed beside: its default UNet, rates and augmentation,
patches of 64 px, batches of 16). ``law`` learns the blind-spot network and the variances under another LAW
of the noise, on the same clean pictures, and measures the Bayes results on BSD68 or CBSD68, state in
FOLDER: ``poisson-gaussian``, gray, variance (40 x)² + 10² on 0..255 (the paper's HG, as its code has it);
``multivariate``, colour, one covariance of the channels, 75² |U' D² U| with a random diagonal D and an
orthonormal U (MG). DIR holds
``bench/`` and ``train/``; default: the environment variable MDRN_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

import mdrn_plugin
from mdrn_plugin.networks.dbsn import DBSN, posterior
from mdrn_plugin.training.bayes import Trust, bayes, calibrate
from mdrn_plugin.training.selfsupervised import SelfOptions, learn_blind_spot

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGMA = 25 / 255
_SIDE = 1024  # px, of the single picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one of the six."""
    parser = argparse.ArgumentParser(description="Learning from noisy pictures alone")
    parser.add_argument("--data", default=os.environ.get("MDRN_DATA"), help="default: MDRN_DATA")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("make").add_argument("folder", type=Path)
    alone = parts.add_parser("single")
    alone.add_argument("folder", type=Path)
    alone.add_argument("--picture", type=Path, help="default: the first training photograph of that size")
    one = parts.add_parser("score")
    one.add_argument("run", type=Path)
    one.add_argument("--every", type=int, default=1, help="only every N-th picture")
    peer = parts.add_parser("n2v")
    peer.add_argument("folder", type=Path)
    peer.add_argument("--minutes", type=float, default=60, help="of training")
    peer.add_argument("--threads", type=int, default=2)
    peer.add_argument("--every", type=int, default=1, help="only every N-th picture")
    law = parts.add_parser("law")
    law.add_argument("law", choices=("poisson-gaussian", "multivariate"))
    law.add_argument("folder", type=Path)
    law.add_argument("--minutes", type=float, default=15, help="of training")
    law.add_argument("--threads", type=int, default=2)
    law.add_argument("--every", type=int, default=1, help="only every N-th picture")
    drawn = parts.add_parser("curve")
    for name in ("run", "png"):
        drawn.add_argument(name, type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.data is None or not (Path(chosen.data) / "bench").is_dir():
        print("no pictures: give --data DIR with bench/ and train/, or set MDRN_DATA", file=sys.stderr)
        return 2
    data = Path(chosen.data)
    if chosen.part == "make":
        make(data, chosen.folder)
    elif chosen.part == "single":
        single(data, chosen.folder, chosen.picture)
    elif chosen.part == "n2v":
        torch.set_num_threads(chosen.threads)
        noise2void(data, chosen.folder, chosen.minutes, chosen.every)
    elif chosen.part == "law":
        torch.set_num_threads(chosen.threads)
        other_law(data, chosen.law, chosen.folder, chosen.minutes, chosen.every)
    elif chosen.part == "score":
        score(data, chosen.run, chosen.every)
    else:
        curve(chosen.run, chosen.png)
    return 0


def make(data: Path, folder: Path) -> None:
    """Write the noisy pictures to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20201)
    for path in _training(data):
        clean = np.asarray(Image.open(path).convert("L"), np.float32)
        noisy = (clean + 255 * SIGMA * rng.standard_normal(clean.shape)) / 255
        tifffile.imwrite(folder / f"{path.stem}.tif", noisy.astype(np.float32))


def _training(data: Path) -> list[Path]:
    return [
        path
        for name in ("BSDS500_train", "BSDS500_test")
        for path in sorted((data / "train" / name).glob("*.jpg"))
    ]


def single(data: Path, folder: Path, picture: Path | None) -> None:
    """Write ``single.tif`` and print what denoisers reach on it that learn nothing."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    folder.mkdir(parents=True, exist_ok=True)
    clean = _single_clean([picture] if picture else sorted((data / "train" / "photos").glob("*.jpg")))
    seed = _seed(picture.stem if picture else "single")
    noisy = clean + SIGMA * np.random.default_rng(seed).standard_normal(clean.shape)
    tifffile.imwrite(folder / "single.tif", noisy.astype(np.float32))
    print(f"noisy {_psnr(noisy, clean):.2f}")
    for weight in (0.06, 0.08, 0.1, 0.12):
        print(f"total variation, weight {weight}: {_psnr(denoise_tv_chambolle(noisy, weight), clean):.2f}")
    for strength in (0.6, 0.8, 1.0):
        out = denoise_nl_means(noisy, 5, 9, strength * SIGMA, sigma=SIGMA, fast_mode=True)
        print(f"non-local means, h {strength} σ: {_psnr(out, clean):.2f}")
    if importlib.util.find_spec("bm3d") is not None:
        from bm3d import bm3d

        print(f"BM3D: {_psnr(bm3d(noisy, SIGMA), clean):.2f}")
    shot = noisy.astype(np.float32)
    for name in (None, *(m.name for m in mdrn_plugin.models() if m.tier == "own")):
        for quality in ("balanced", "best", "best+"):
            out = mdrn_plugin.denoise(shot, quality=quality, model=name)
            print(f"{name or 'shipped models'}, {quality}, blind: {_psnr(out, clean):.2f}", flush=True)


def score(data: Path, run: Path, every: int) -> None:
    """Print PSNR on BSD68 and the level found."""
    network, level, trust, found = _dbsn(run / "noise.safetensors", data, every)
    rows = []
    os.environ["MDRN_MODELS"] = str(run.parent)
    own = run.name.removesuffix(".run")
    there = own in [m.name for m in mdrn_plugin.models()]
    for clean, noisy in _bsd68(data, every):
        bayesian = bayes(network, torch.from_numpy(noisy)[None], level, trust)[0].numpy()
        row = [_psnr(noisy, clean), _psnr(bayesian, clean), _psnr(mdrn_plugin.denoise(noisy), clean)]
        rows.append(row + ([_psnr(mdrn_plugin.denoise(noisy, model=own), clean)] if there else []))
    names = ("noisy", "D-BSN", "shipped, blind", "student")
    means = np.mean(rows, axis=0)
    print(f"BSD68, {len(rows)} pictures, σ 25")
    print(", ".join(f"{n} {m:.2f}" for n, m in zip(names, means, strict=False)))
    print(
        f"level used {255 * level:.2f}, left where surest {255 * float(trust.residual[0].sqrt()):.2f}, "
        f"CNN_est {255 * np.mean(found):.2f}"
    )


def noise2void(data: Path, folder: Path, minutes: float, every: int) -> None:
    """Train Noise2Void on the noisy pictures of a folder and print its PSNR on BSD68."""
    from careamics import CAREamist  # type: ignore[import-not-found]
    from careamics.config import create_advanced_n2v_config  # type: ignore[import-not-found]

    noisy = [tifffile.imread(path) for path in sorted(folder.glob("*.tif"))]
    noisy = [picture.T if picture.shape[0] > picture.shape[1] else picture for picture in noisy]
    small = [min(axis) for axis in zip(*(picture.shape for picture in noisy), strict=True)]
    stack = np.stack([picture[: small[0], : small[1]] for picture in noisy])
    config = create_advanced_n2v_config(
        "n2v",
        data_type="array",
        axes="SYX",
        patch_size=[64, 64],
        batch_size=16,
        num_epochs=10_000,
        num_steps=100,
        num_workers=0,
        seed=1,
        trainer_params={"max_time": {"seconds": round(60 * minutes)}, "accelerator": "cpu"},
    )
    careamist = CAREamist(config, work_dir=folder / "n2v", enable_progress_bar=False)
    careamist.train(train_data=stack)
    results = []
    for clean, picture in _bsd68(data, every):
        height, width = picture.shape
        whole = np.pad(picture, ((0, -height % 4), (0, -width % 4)), mode="reflect")  # as its UNet needs them
        found, _ = careamist.predict(whole, axes="YX", data_type="array")
        results.append(_psnr(np.squeeze(found[0])[:height, :width], clean))
    print(f"Noise2Void, {minutes:g} minutes, BSD68, {len(results)} pictures, σ 25: {np.mean(results):.2f}")


def other_law(data: Path, law: str, folder: Path, minutes: float, every: int) -> None:
    """Learn from pictures with noise of another law and print PSNR on BSD68 or CBSD68."""
    gray = law == "poisson-gaussian"
    rng = np.random.default_rng(20202)
    orthonormal = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    spread = np.abs(orthonormal.T @ np.diag(rng.uniform(size=3) ** 2) @ orthonormal) * (75 / 255) ** 2
    mixing = np.linalg.cholesky(spread + 1e-9 * np.eye(3))

    def planes(path: Path, rng: np.random.Generator) -> tuple[Any, Any]:
        """Return a picture clean and noisy, (channels, height, width)."""
        clean = np.asarray(Image.open(path).convert("L" if gray else "RGB"), np.float32) / 255
        clean = np.atleast_3d(clean).transpose(2, 0, 1)
        field = rng.standard_normal(clean.shape)
        if gray:
            noise = field * np.sqrt((40 / 255 * clean) ** 2 + (10 / 255) ** 2)
        else:
            noise = np.einsum("ij,jhw->ihw", mixing, field)
        return clean, (clean + noise).astype(np.float32)

    learnt_from = [planes(path, rng)[1] for path in _training(data)]
    level = float(np.median([mdrn_plugin.estimate_noise(y[0])[0].sigma[0] for y in learnt_from[::20]]))
    options = SelfOptions(name="law", minutes=minutes)
    network = learn_blind_spot(learnt_from, level, law, folder, options)
    rows = []
    for path in sorted((data / "bench" / ("BSD68" if gray else "CBSD68")).glob("*.png"))[::every]:
        clean, noisy = planes(path, np.random.default_rng(_seed(path.stem)))
        y = torch.from_numpy(noisy)[None].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            said = network(y)
            mean = said.noise_covariance.diagonal(dim1=-2, dim2=-1).mean()
            alike = (mean * torch.eye(len(clean))).expand_as(said.noise_covariance)
            results = [
                said.mean,
                posterior(y, dataclasses.replace(said, noise_covariance=alike)),
                posterior(y, said),
            ]
        rows.append([_psnr(noisy, clean)] + [_psnr(x[0].numpy(), clean) for x in results])
    names = ("noisy", "prediction alone", "Bayes with white noise of the mean level", "Bayes with its law")
    print(f"{law}, {minutes:g} minutes, {len(rows)} pictures")
    print(", ".join(f"{n} {m:.2f}" for n, m in zip(names, np.mean(rows, axis=0), strict=True)))
    if not gray:
        print(f"covariance {np.array2string(255**2 * spread, precision=0)}")
        print(f"as learnt {np.array2string(255**2 * said.noise_covariance[0, 0, 0].numpy(), precision=0)}")


def curve(run: Path, png: Path) -> None:
    """Draw what was measured on the parts held back over processor time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    minutes, scores = _stage(lines, "mean")
    # The noise of the pixel that is compared with is independent of its prediction.
    errors = np.maximum(scores - SIGMA**2, 1e-6)
    left.plot(minutes, -10 * np.log10(errors), marker=".")
    left.set(title="prediction from the surroundings", ylabel="PSNR on parts held back, dB")
    right.plot(*_stage(lines, "noise"), marker=".")
    right.set(title="with its variance and the noise", ylabel="negative log likelihood on parts held back")
    for axes in (left, right):
        axes.set_xlabel("processor time, minutes")
        axes.grid(alpha=0.3)
    figure.savefig(png, dpi=110)


def _stage(lines: list[dict[str, Any]], stage: str) -> tuple[Any, Any]:
    """Return minutes and scores of a stage."""
    own = [line for line in lines if line["stage"] == stage]
    return np.array([x["cpu_seconds"] / 60 for x in own]), np.array([x["score"] for x in own])


def _dbsn(file: Path, data: Path, every: int) -> tuple[DBSN, float, Trust, list[float]]:
    """Return the network of a state, the level used, its trust, and the level of CNN_est in each picture.

    Level and trust as the training has them, but measured on the noisy pictures of BSD68: the level is
    what is left where predictions are surest, or the median of the pictures' estimates if that is less.
    """
    state = load_file(file)
    weights = {k.removeprefix("best/"): v for k, v in state.items() if k.startswith("best/")}
    channels = weights["backbone.head.weight"].shape[0]
    blocks = {k.split(".")[3] for k in weights if ".wide." in k}
    network = DBSN(1, channels, len(blocks)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict(weights)
    noisy = [y for _, y in _bsd68(data, every)]
    parts = [torch.from_numpy(y[:192, :192])[None, None] for y in noisy]
    with torch.no_grad():
        found = [float(network(part).noise_covariance.mean().sqrt()) for part in parts]
    trust = calibrate(network, parts)
    blind = float(np.median([mdrn_plugin.estimate_noise(y)[0].sigma[0] for y in noisy]))
    return network, min(blind, float(trust.residual[0].sqrt())), trust, found


def _bsd68(data: Path, every: int) -> list[tuple[Any, Any]]:
    pairs = []
    for path in sorted((data / "bench" / "BSD68").glob("*.png"))[::every]:
        clean = np.asarray(Image.open(path).convert("L"), np.float32) / 255
        rng = np.random.default_rng(_seed(path.stem))
        pairs.append((clean, (clean + SIGMA * rng.standard_normal(clean.shape)).astype(np.float32)))
    return pairs


def _single_clean(paths: Sequence[Path]) -> Any:
    for path in paths:
        clean = np.asarray(Image.open(path).convert("L"), np.float64) / 255
        if min(clean.shape) >= _SIDE:
            top, left = (clean.shape[0] - _SIDE) // 2, (clean.shape[1] - _SIDE) // 2
            return clean[top : top + _SIDE, left : left + _SIDE]
    raise SystemExit(f"no picture of {_SIDE} pixels a side among {len(paths)}")


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"self {name}".encode()).digest()[:8], "little")


def _psnr(a: Any, b: Any) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2)))


if __name__ == "__main__":
    raise SystemExit(main())
