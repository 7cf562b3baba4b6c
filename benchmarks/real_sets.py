"""Real noise of phones, cameras and microscopes: SIDD's validation set, submissions for DND, and FMD.

    python benchmarks/real_sets.py sidd DIR [--raw] [--limit N]
    python benchmarks/real_sets.py dnd DIR --out FOLDER [--raw] [--limit N]
    python benchmarks/real_sets.py cameras DIR [--every N]
    python benchmarks/real_sets.py fmd DIR [--limit N]

The sets must be had from their makers; none is part of this project, and nothing here was trained
on them. Everything runs blindly, as `mdrn-batch` would, one block or crop at a time.

SIDD (Abdelhamed, Lin, Brown, CVPR 2018): DIR holds ``ValidationNoisyBlocksSrgb.mat`` and
``ValidationGtBlocksSrgb.mat`` (or ``...Raw.mat``): 40 scenes of 32 blocks of 256 x 256. Printed: mean PSNR
and SSIM over the blocks, before and after, and the share of blocks that came out worse.

DND (Plötz, Roth, CVPR 2017): DIR holds ``info.mat`` and ``images_srgb/0001.mat`` to ``0050.mat`` (or
``images_raw``). Its truth is not public: written are the 50 files that its server takes, ``NNNN.mat``
with the 20 crops of a picture.

CC (Nam, Hwang, Matsushita, Kim, CVPR 2016; the 15 crops of Xu et al., ICCV 2017) and PolyU (Xu, Li, Liang,
Zhang, Zhang, 2018; 100 crops): DIR holds ``NAME_real.EXT`` and ``NAME_mean.EXT``, a camera's picture and the
mean of many. Printed: mean PSNR before and after, and how many came out worse or untouched.

FMD (Zhang, Zhu, Nichols, Wang, Zhang, Smith, Howard, CVPR 2019): DIR is its mixed test set of single frames,
with ``raw/NAME.png`` and ``gt/NAME.png`` (12 kinds of 4 frames, 512 x 512, 8 bit; the mean of 50 frames is
the truth). Printed: mean PSNR per kind and over all, before and after, as published (whole frames, peak 255).

RAW blocks of SIDD come without their pattern: the two greens are found as the diagonal pair whose means
are nearer to each other; which of the others is red is left open, as it does not matter for denoising. RAW
of DND is denoised with the noise line that its ``info.mat`` gives, plane by plane.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mdrn_plugin
from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURES, CROPS = 50, 20  # of DND


def sidd_blocks(
    folder: Path, *, raw: bool = False, limit: int | None = None
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Yield (name, noisy, truth) of the SIDD validation set.

    Parameters
    ----------
    folder : Path
        With the two ``.mat`` files.
    raw : bool
        Mosaics (Y, X), float, 0 black to 1 white; otherwise sRGB (Y, X, S), uint8.
    limit : int, optional
        Only the first blocks of every scene, so many.

    Raises
    ------
    BadOption
        A file is missing or holds something else.
    """
    kind = "Raw" if raw else "Srgb"
    noisy, truth = (_array(folder / f"Validation{what}Blocks{kind}.mat") for what in ("Noisy", "Gt"))
    if noisy.shape != truth.shape or noisy.ndim != (4 if raw else 5):
        raise BadOption(f"{folder}: blocks of shapes {noisy.shape} and {truth.shape}; is this SIDD's set?")
    for scene in range(noisy.shape[0]):
        for block in range(noisy.shape[1])[:limit]:
            yield f"{scene + 1:02d}_{block + 1:02d}", noisy[scene, block], truth[scene, block]


def _array(file: Path) -> NDArray[Any]:
    """Return the array in a MAT file that has the file's name, in MATLAB's order of axes."""
    from scipy.io import loadmat

    try:
        try:
            return np.asarray(loadmat(file)[file.stem])
        except NotImplementedError:  # version 7.3 is HDF5, axes reversed
            import h5py

            with h5py.File(file) as data:
                return np.asarray(data[file.stem]).T
    except (OSError, KeyError, ValueError) as error:
        raise BadOption(f"{file}: cannot be read ({error}); get it from the makers of the set") from error


def green_pattern(mosaic_YX: NDArray[Any]) -> str:
    """Return "RGGB" or "GRBG", whichever has its greens where two diagonal sites are most alike.

    Red and blue may be exchanged: BGGR is called RGGB, GBRG is called GRBG.
    """
    means = [float(mosaic_YX[y::2, x::2].mean()) for y in (0, 1) for x in (0, 1)]
    return "RGGB" if abs(means[1] - means[2]) <= abs(means[0] - means[3]) else "GRBG"


def dnd_crops(
    folder: Path, *, raw: bool = False, limit: int | None = None
) -> Iterator[tuple[int, NDArray[np.float32], tuple[float, float]]]:
    """Yield (picture from 1, crop, (gain, offset) of the picture's noise) in the benchmark's order.

    Crops are float, 0 to 1: mosaics (Y, X) if `raw`, otherwise sRGB (Y, X, S). `limit` counts pictures.

    Raises
    ------
    BadOption
        A file is missing or holds something else.
    """
    import h5py

    name = "Inoisy" if raw else "InoisySRGB"
    try:
        with h5py.File(folder / "info.mat") as file:
            info = file["info"]
            for k in range(PICTURES)[:limit]:
                boxes = np.asarray(file[info["boundingboxes"][0][k]]).T
                law = file[info["nlf"][0][k]]
                noise = (float(law["a"][0][0]), float(law["b"][0][0]))
                path = folder / ("images_raw" if raw else "images_srgb") / f"{k + 1:04d}.mat"
                with h5py.File(path) as picture:
                    pixels = np.asarray(picture[name], np.float32).T
                for top, left, bottom, right in boxes.astype(int):  # from 1, both ends included
                    yield k + 1, pixels[top - 1 : bottom, left - 1 : right], noise
    except (OSError, KeyError) as error:
        raise BadOption(f"{folder}: not DND's files ({error}); get them from its makers") from error


def write_submission(
    crops: list[NDArray[np.float32]], file: Path, *, raw: bool, picture_crops: int = CROPS
) -> None:
    """Write the denoised crops of one picture as DND's server takes them."""
    from scipy.io import savemat

    if len(crops) != picture_crops:
        raise BadOption(f"{file}: {len(crops)} crops, {picture_crops} are wanted")
    cell = np.empty((1, len(crops)), object)
    for k, crop in enumerate(crops):
        cell[0, k] = crop.astype(np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"Idenoised": cell, "israw": raw, "eval_version": "1.0"})


def denoise_planes(
    mosaic_YX: NDArray[np.float32], noise: tuple[float, float], **how: Any
) -> NDArray[np.float32]:
    """Denoise the four planes of a Bayer mosaic, each as a picture with the noise that is told."""
    out = np.empty_like(mosaic_YX)
    for y in (0, 1):
        for x in (0, 1):
            told = f"{noise[0]!r},{noise[1]!r}"
            plane = np.ascontiguousarray(mosaic_YX[y::2, x::2])
            out[y::2, x::2] = mdrn_plugin.denoise(plane, axes="YX", range=(0.0, 1.0), noise=told, **how)
    return out


def camera_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return the files of pictures and their truths, NAME_real and NAME_mean.

    Raises
    ------
    BadOption
        There are none, or a truth is missing.
    """
    files = sorted(folder.glob("*_real.*"))
    if not files:
        raise BadOption(f"{folder}: no NAME_real.EXT there; get CC or PolyU from their makers")
    pairs = [(f, f.with_name(f.name.replace("_real.", "_mean."))) for f in files]
    for _, truth in pairs:
        if not truth.is_file():
            raise BadOption(f"{truth}: missing; get CC or PolyU from their makers")
    return pairs


def _cameras(chosen: argparse.Namespace) -> None:
    from quality import psnr

    rows = []
    for file, truth in camera_pairs(chosen.folder)[:: chosen.every]:
        noisy = mdrn_plugin.read(file)
        result = mdrn_plugin.denoise(noisy.pixels, axes="YXS", quality=chosen.quality)
        y, z, x = (
            np.asarray(v, np.float64) / 255 for v in (noisy.pixels, result, mdrn_plugin.read(truth).pixels)
        )
        rows.append((psnr(y, x), psnr(z, x)))
        print(f"{file.stem}: {rows[-1][0]:.2f} -> {rows[-1][1]:.2f} dB", flush=True)
    table = np.array(rows)
    before, after = table.mean(0)
    worse, same = int(np.sum(table[:, 1] < table[:, 0])), int(np.sum(table[:, 1] == table[:, 0]))
    print(f"\n{len(rows)} pictures: {before:.2f} -> {after:.2f} dB ({after - before:+.2f})")
    print(f"{worse} came out worse, {same} untouched")


def fmd_pairs(folder: Path, limit: int | None = None) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Yield (name, noisy, truth) of FMD's mixed test set, uint8 (Y, X); `limit` counts frames of a kind.

    Raises
    ------
    BadOption
        There are no such pairs.
    """
    import imageio.v3 as iio

    files = sorted((folder / "raw").glob("*.png"))
    if not files:
        raise BadOption(f"{folder}: no raw/NAME.png there; get FMD's test_mix from its makers")
    for file in files:
        if limit is not None and int(file.stem.rpartition("_")[2]) > limit:
            continue
        truth = folder / "gt" / file.name
        if not truth.is_file():
            raise BadOption(f"{truth}: missing; get FMD's test_mix from its makers")
        yield file.stem, iio.imread(file), iio.imread(truth)


def _fmd(chosen: argparse.Namespace) -> None:
    from quality import psnr

    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, noisy, truth in fmd_pairs(chosen.folder, chosen.limit):
        result = mdrn_plugin.denoise(noisy, quality=chosen.quality)
        y, z, x = (np.asarray(v, np.float64) / 255 for v in (noisy, result, truth))
        kinds.setdefault(name.rpartition("_")[0], []).append((psnr(y, x), psnr(z, x)))
    for kind, rows in kinds.items():
        before, after = np.mean(rows, axis=0)
        print(f"{kind}: {before:.2f} -> {after:.2f} dB ({after - before:+.2f})")
    before, after = np.mean([row for rows in kinds.values() for row in rows], axis=0)
    print(f"all: {before:.2f} -> {after:.2f} dB ({after - before:+.2f})")


def _sidd(chosen: argparse.Namespace) -> None:
    from quality import psnr
    from skimage.metrics import structural_similarity

    rows = []
    for name, noisy, truth in sidd_blocks(chosen.folder, raw=chosen.raw, limit=chosen.limit):
        if chosen.raw:
            result = mdrn_plugin.denoise_raw(
                noisy, pattern=green_pattern(noisy), black=0.0, white=1.0, quality=chosen.quality
            )
        else:
            result = mdrn_plugin.denoise(noisy, axes="YXS", quality=chosen.quality)
        unit = 1.0 if chosen.raw else 255.0
        y, z, x = (np.asarray(v, np.float64) / unit for v in (noisy, result, truth))
        axis = None if chosen.raw else 2
        rows.append(
            [psnr(y, x), psnr(z, x)]
            + [structural_similarity(x, v, data_range=1.0, channel_axis=axis) for v in (y, z)]
        )
        print(f"{name}: {rows[-1][0]:.2f} -> {rows[-1][1]:.2f} dB", flush=True)
    table = np.array(rows)
    noisy_db, own_db, noisy_ssim, own_ssim = table.mean(0)
    worse = float(np.mean(table[:, 1] < table[:, 0]))
    print(
        f"\n{len(rows)} blocks: {noisy_db:.2f} dB / {noisy_ssim:.4f} before, {own_db:.2f} dB / {own_ssim:.4f}"
        f" after; {100 * worse:.1f} % came out worse"
    )


def _dnd(chosen: argparse.Namespace) -> None:
    done: list[NDArray[np.float32]] = []
    for k, crop, noise in dnd_crops(chosen.folder, raw=chosen.raw, limit=chosen.limit):
        if chosen.raw:
            done.append(denoise_planes(crop, noise, quality=chosen.quality))
        else:
            # In 8 bit: so the plan sees what a photographer's file would hold.
            pixels = np.round(255 * np.clip(crop, 0, 1)).astype(np.uint8)
            result = mdrn_plugin.denoise(pixels, axes="YXS", quality=chosen.quality)
            done.append(np.asarray(result, np.float32) / 255)
        if len(done) == CROPS:
            write_submission(done, chosen.out / f"{k:04d}.mat", raw=chosen.raw)
            print(f"{chosen.out / f'{k:04d}.mat'}", flush=True)
            done = []


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(required=True, metavar="SET")
    for name, run in (("sidd", _sidd), ("dnd", _dnd), ("cameras", _cameras), ("fmd", _fmd)):
        one = sets.add_parser(name)
        one.add_argument("folder", type=Path)
        if name in ("sidd", "dnd"):
            one.add_argument("--raw", action="store_true", help="mosaics instead of finished pictures")
        if name == "cameras":
            one.add_argument("--every", type=int, default=1, help="only each so many-th picture")
        one.add_argument("--limit", type=int, help="only so many blocks of a scene, pictures, or frames")
        one.add_argument("--quality", default="balanced")
        if name == "dnd":
            one.add_argument("--out", type=Path, required=True, help="folder of the submission")
        one.set_defaults(run=run)
    chosen = parser.parse_args()
    try:
        chosen.run(chosen)
    except BadOption as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
