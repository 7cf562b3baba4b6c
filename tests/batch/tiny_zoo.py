"""A folder with one tiny network: what is tested is all but the network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def make_models(folder: Path, *, channels: int = 16, unshuffle: int = 2) -> Path:
    """Write the model "tiny", gray, of random weights; `MDRN_MODELS` is to name the folder."""
    import torch
    from safetensors.torch import save

    from mdrn_plugin.networks.mdrn import MDRN, STRIDE, exact_halo

    settings: dict[str, Any] = {"colours": 1, "blocks": 1, "channels": channels, "unshuffle": unshuffle}
    torch.manual_seed(0)
    data = save({k: v.contiguous() for k, v in MDRN(**settings).state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.safetensors").write_bytes(data)
    entry = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": "mdrn",
        "settings": settings,
        "tier": "own",
        "band_255": [0, 90],
        "trained_255": [0, 92],
        "stride": STRIDE * unshuffle,
        "halo": exact_halo(1) * unshuffle,
        "default_halo": 16,
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "models": [entry]}))
    return folder
