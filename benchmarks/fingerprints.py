"""Write training/testsets.json: the fingerprints of the pictures that nobody may train on.

    python benchmarks/fingerprints.py [--data DIR]

DIR holds ``bench/`` and ``micro/``; default: MDRN_DATA. BSD68 is CBSD68 in gray and needs no row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mdrn_plugin.training.testsets import fingerprint

SETS = {"Set12": "bench/Set12", "Kodak24": "bench/Kodak24", "BSD68": "bench/CBSD68", "W2S": "micro/W2S"}
TARGET = Path(__file__).parents[1] / "training" / "testsets.json"


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("MDRN_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None)
    folder = parser.parse_args().data
    found = {}
    for name, part in SETS.items():
        files = sorted(p for p in (folder / part).iterdir() if p.suffix in (".png", ".jpg", ".tif"))
        found[name] = [np.packbits(fingerprint(Image.open(p))).tobytes().hex() for p in files]
        print(f"{name}: {len(files)} pictures")
    TARGET.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
