"""Seeded mutations of every format, and corpora of installed packages, through the command itself.

    python tests/fuzz.py [--count 500] [--seed 1] [--corpus FOLDER ...] [--keep FOLDER]

Each file must end as a picture or as one clean failure within 20 seconds: no crash, no traceback,
each one reported. Prints one line; the exit code is 1 if something was found, and the files that
did it are kept. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "formats"))

from format_samples import SAMPLES

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()", "denoise"]
# Nothing is computed, decoding is confined and pictures are small: what is tried is the reading.
WISH = ["--noise", "20", "--strength", "0", "--max-pixels", "30000000", "--isolate", "--json", "-q"]
LIMIT_S = 20.0
CHUNK = 500  # files of one run of the command
# Packages that bring pictures along, where they are installed.
PACKAGES = ("skimage", "matplotlib", "imageio", "PIL", "scipy", "napari", "networkx", "sklearn", "tifffile")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ico", ".pgm", ".ppm", ".dcm")
_UUID = b"urn:uuid:00000000-0000-1000-8000-000000000000"
_LARGEST = 4 * 2**20  # bytes of a file of a corpus


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes with one to three kinds of damage."""
    bad = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        size = len(bad)
        if size < 8:
            break
        # Half of the damage goes where the structure is.
        top = min(size, 512) if random.random() < 0.5 else size
        at = int(random.integers(top))
        kind = int(random.integers(8))
        if kind == 0:  # flipped bits
            for place in random.integers(0, top, int(random.integers(1, 9))):
                bad[place] ^= 1 << int(random.integers(8))
        elif kind == 1:  # a number at its limits
            value = random.choice([0, 1, 0x7F, 0x80, 0xFF])
            bad[at : at + 4] = bytes([int(value)]) * min(4, size - at)
        elif kind == 2:  # cut short
            del bad[max(1, at) :]
        elif kind == 3:  # a piece is missing
            del bad[at : at + int(random.integers(1, 65))]
        elif kind == 4:  # a piece comes twice
            bad[at:at] = bad[at : at + int(random.integers(1, 257))]
        elif kind == 5:  # noise
            length = min(int(random.integers(1, 65)), size - at)
            bad[at : at + length] = random.bytes(length)
        elif kind == 6:  # a piece of elsewhere
            other, length = int(random.integers(size)), int(random.integers(1, 65))
            piece = bytes(bad[other : other + length])
            bad[at : at + len(piece)] = piece
        else:  # zeros to the end of a block, as a disk leaves them
            end = min(size, (at // 512 + 1) * 512)
            bad[at:end] = bytes(end - at)
    return bytes(bad)


def mutations(folder: Path, count: int, seed: int) -> list[Path]:
    """Write `count` damaged samples, every format in turn."""
    random = np.random.default_rng(seed)
    # The OME sample gets a new UUID each time it is made.
    sound = {name: re.sub(rb"urn:uuid:[\w-]{36}", _UUID, make()) for name, make in SAMPLES.items()}
    names = sorted(sound)
    made = []
    for k in range(count):
        name = names[k % len(names)]
        path = folder / f"{k:05}-{name}"
        path.write_bytes(mutate(sound[name], random))
        made.append(path)
    return made


def corpora(folder: Path, extra: Iterable[Path] = ()) -> list[Path]:
    """Copy the pictures of installed packages, and of further folders."""
    roots = list(extra)
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        roots += [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    made = []
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in ENDINGS and path.is_file() and path.stat().st_size < _LARGEST:
                copy = folder / f"corpus-{len(made):05}{path.suffix.lower()}"
                shutil.copyfile(path, copy)
                made.append(copy)
    return made


def run_all(files: list[Path], work: Path) -> tuple[list[str], dict[str, int], float]:
    """Give the files to the command.

    Returns
    -------
    list of str
        What was found to be wrong.
    dict
        How many files ended how.
    float
        The longest that one took, seconds.
    """
    wrong: list[str] = []
    states = {"done": 0, "failed": 0}
    longest = 0.0
    for start in range(0, len(files), CHUNK):
        part = files[start : start + CHUNK]
        out = work / f"out-{start}"
        try:
            done = subprocess.run(
                [*COMMAND, "-", "-o", str(out), *WISH],
                input="".join(f"{path}\n" for path in part),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT_S * 3 + 2 * len(part),
            )
        except subprocess.TimeoutExpired:
            wrong.append(f"{part[0].name} and the following: the command hangs")
            continue
        if done.returncode not in (0, 3):
            wrong.append(
                f"{part[0].name} and the following: exit code {done.returncode}: {done.stderr[-500:]}"
            )
        if "Traceback" in done.stderr or "please report" in done.stderr + done.stdout:
            wrong.append(f"{part[0].name} and the following: a bug came out: {done.stderr[-1000:]}")
        told: dict[str, dict[str, object]] = {}
        for line in done.stdout.splitlines():
            found = json.loads(line)
            if found["event"] == "file":
                told[Path(found["source"]).name] = found
        for path in part:
            end = told.get(path.name)
            if end is None:
                wrong.append(f"{path.name}: was not reported")
                continue
            seconds, reason = float(str(end["seconds"])), str(end["reason"])
            longest = max(longest, seconds)
            states[str(end["state"])] += 1
            if seconds > LIMIT_S or "did not end within" in reason:
                wrong.append(f"{path.name}: hangs ({seconds:.0f} s)")
            if "made to do harm" in reason:
                wrong.append(f"{path.name}: took the helper process down: {reason}")
            if end["state"] == "failed":
                if path.name not in reason or ";" not in reason:
                    wrong.append(f"{path.name}: its reason names no file or no remedy: {reason}")
                if (out / path.name).exists():
                    wrong.append(f"{path.name}: failed, yet there is an output")
        for left in out.rglob("*.mdrn-part"):
            wrong.append(f"{left.name}: was left behind")
        shutil.rmtree(out, ignore_errors=True)
    return wrong, states, longest


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="mutated files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a folder of further files")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where finds are kept")
    wish = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        files = mutations(work / "in", wish.count, wish.seed) + corpora(work / "in", wish.corpus)
        wrong, states, longest = run_all(files, work)
        for text in wrong:
            print(text)
            culprit = work / "in" / text.partition(":")[0]
            if culprit.is_file():
                os.makedirs(wish.keep, exist_ok=True)
                shutil.copyfile(culprit, wish.keep / culprit.name)
    print(
        f"{len(files)} files (seed {wish.seed}): {states['done']} pictures, "
        f"{states['failed']} clean failures, "
        f"{len(wrong)} finds; longest {longest:.2f} s, in all {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
