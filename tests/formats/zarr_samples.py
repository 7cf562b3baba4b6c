"""OME-Zarr stores for tests, made without our writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def noisy(shape: tuple[int, ...], dtype: Any = np.uint16, seed: int = 0) -> Any:
    """Return a scene with noise of 20/255 of 1/4 of the range: planes of bars."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    scene = 120 + 50 * (x // 40 % 2) + 30 * (y // 64 % 2)
    values = np.clip(scene + rng.normal(0, 20, shape), 0, 255)
    if np.dtype(dtype).kind == "f":
        return (values / 255).astype(dtype)
    return (values * (np.iinfo(dtype).max // 255 // (4 if np.iinfo(dtype).max > 255 else 1))).astype(dtype)


def make_store(
    folder: Path,
    pixels: Any,
    axes: str,
    version: str = "0.5",
    *,
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
    levels: int = 1,
    **more: Any,
) -> Path:
    """Write a store as other programs do."""
    import zarr

    number_of_zarr = 2 if version == "0.4" else 3
    group = zarr.open_group(str(folder), mode="w", zarr_format=number_of_zarr)
    chunks = chunks or tuple(min(64, n) if a in "yx" else 1 for a, n in zip(axes, pixels.shape, strict=True))
    datasets = []
    for number in range(levels):
        step = tuple(slice(None, None, 2**number) if a in "yx" else slice(None) for a in axes)
        part = pixels[step]
        array = group.create_array(
            str(number),
            shape=part.shape,
            dtype=part.dtype,
            chunks=chunks,
            shards=shards if number_of_zarr == 3 else None,
            fill_value=7,
            **({"chunk_key_encoding": {"name": "v2", "separator": "/"}} if number_of_zarr == 2 else {}),
        )
        array[...] = part
        scale = [0.25 * 2**number if a in "yx" else 2.0 if a == "z" else 1.0 for a in axes]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    kinds = {"t": "time", "c": "channel"}
    multiscales: dict[str, Any] = {
        "name": "scene",
        "axes": [
            {"name": a, "type": kinds.get(a, "space"), **({"unit": "micrometer"} if a in "zyx" else {})}
            for a in axes
        ],
        "datasets": datasets,
    }
    omero = {"channels": [{"label": "DAPI", "color": "0000FF", "window": {"start": 0, "end": 9}}]}
    if number_of_zarr == 2:
        multiscales["version"] = "0.4"
        group.attrs.put({"multiscales": [multiscales], "omero": omero, "lab": {"dish": 5}, **more})
    else:
        ome = {"version": "0.5", "multiscales": [multiscales], "omero": omero}
        group.attrs.put({"ome": ome, "lab": {"dish": 5}, **more})
    return folder


def edit(store: Path, change: Any) -> None:
    """Change the OME part of a store's metadata in place."""
    file = store / ("zarr.json" if (store / "zarr.json").exists() else ".zattrs")
    node = json.loads(file.read_text())
    change(node["attributes"]["ome"] if file.name == "zarr.json" else node)
    file.write_text(json.dumps(node))


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
