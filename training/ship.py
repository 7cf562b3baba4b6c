"""Putting finished runs among the weights that ship."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes
from mdrn_plugin.networks.mdrn import MDRN, STRIDE, exact_halo
from mdrn_plugin.networks.registry import build

from .recipe import load_recipe

# px; what a shorter halo than the exact one changes, as a share of the residual's standard deviation
# (2B, tiles of 392, noise 10 and 50: 32 px 8e-4 and 4e-4, 48 px 8e-5 and 5e-5, 64 px 5e-7 and 3e-7;
# fast tier, tiles of 96: 32 px 2e-3 and 7e-4, 48 px 2e-5 and 1e-5, 64 px nothing; two blocks, tiles of 256,
# noise 5, 25 and 75: 48 px up to 2e-3, rms 5e-5; 64 px up to 3e-6).
_DEFAULT_HALO = {(2, 1): 48, (8, 1): 64, (1, 2): 48, (2, 2): 64}
# px beyond the halo of the networks that are corrected (64 and 96 for two and three scales). Tiles of 256 px
# of two pictures of Urban100 then differ from the whole by 6e-6 and 5e-5 of white (rms), 2e-3 at most, at
# noise 25; with none by 1e-5 and 6e-5. At noise 50 by 6e-5 and 2e-4 with none, 4e-5 and 1e-4 with 32 px.
_HALO_OF_REPEATS = 16

LICENCES = {
    "weights": "BSD-3-Clause",
    "data": "BSDS500 (Arbelaez et al. 2011, free for research and education) and 247 photographs under the "
    "Unsplash, Creative Commons and public domain licences; the pictures themselves are not part of "
    "this distribution",
}


def ship(runs: list[Path], weights: Path, recipes: Path | None = None) -> list[str]:
    """Copy the results of finished runs into `weights` and enter them into its manifest.

    Parameters
    ----------
    runs : list of Path
        Folders of finished runs (with ``entry.json``).
    weights : Path
        Folder with ``manifest.json``; made if it is missing.
    recipes : Path, optional
        Folder of the recipes that the runs used; default: those shipped.

    Returns
    -------
    list of str
        Names of the models that were entered.

    Raises
    ------
    BadOption
        A run is not finished, or its weights do not fit its entry.
    """
    source = weights / "manifest.json"
    manifest: dict[str, Any] = {"format": 1, "models": []}
    if source.is_file():
        manifest = json.loads(source.read_text(encoding="utf-8"))
    manifest["licences"] = LICENCES
    models = {entry["name"]: entry for entry in manifest["models"]}
    names = []
    for run in runs:
        try:
            entry = json.loads((run / "entry.json").read_text(encoding="utf-8"))
            data = (run / entry["file"]).read_bytes()
        except OSError as error:
            raise BadOption(
                f"{run}: not a finished run ({error.strerror}); run it to its end first"
            ) from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BadOption(f"{run}: weights and entry.json do not belong together; run it again")
        name = entry["name"]
        entry["tier"] = load_recipe(name if recipes is None else str(recipes / f"{name}.toml")).tier
        entry.update(_tiling(entry["architecture"], entry["settings"]))
        write_bytes(weights / entry["file"], data)
        models[entry["name"]] = entry
        names.append(entry["name"])
    manifest["models"] = [models[name] for name in sorted(models)]
    write_bytes(source, (json.dumps(manifest, indent=2) + "\n").encode())
    return names


def _tiling(architecture: str, settings: dict[str, Any]) -> dict[str, int]:
    """Return what the engine must know of a network: stride and halos, px (packed px for FAN)."""
    if architecture != "mdrn":
        with torch.device("meta"):
            network = build(architecture, settings)
        assert not isinstance(network, MDRN)
        usual = _HALO_OF_REPEATS if architecture == "non-local" else network.halo
        return {"stride": network.stride, "halo": network.halo, "default_halo": usual}
    blocks, unshuffle = settings["blocks"], settings.get("unshuffle", 1)
    halo = exact_halo(blocks, unshuffle)
    return {
        "stride": STRIDE * unshuffle,
        "halo": halo,
        "default_halo": _DEFAULT_HALO.get((blocks, unshuffle), halo),
    }
