"""Two noisy pictures to try the plugin on: procedural, so that no rights are touched."""

from __future__ import annotations

from typing import Any

import numpy as np

LayerData = tuple[Any, dict[str, Any], str]


def cells() -> list[LayerData]:
    """Return a fluorescence stack (ZYX, uint16): photon noise, read noise, offset of the camera."""
    rng = np.random.default_rng(20220428)
    depth, size = 6, 256
    z, y, x = (
        v.astype(np.float32) for v in np.meshgrid(range(depth), range(size), range(size), indexing="ij")
    )
    scene = np.zeros((depth, size, size), np.float32)
    for _ in range(9):
        cy, cx, cz = rng.uniform(20, size - 20), rng.uniform(20, size - 20), rng.uniform(1, depth - 2)
        long, short, turn = rng.uniform(22, 34), rng.uniform(15, 22), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        radius = np.sqrt((u / long) ** 2 + (v / short) ** 2 + ((z - cz) / 3) ** 2)
        wave = 1 + 0.5 * np.sin(u * rng.uniform(0.4, 0.9)) * np.cos(v * rng.uniform(0.4, 0.9))
        scene += rng.uniform(0.3, 1) * wave / (1 + np.exp((radius - 1) * 14))
    for _ in range(60):  # filaments
        py, px, heading = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, 2 * np.pi)
        plane = int(rng.integers(depth))
        steps = np.cumsum(rng.normal(0, 0.06, 160)) + heading
        rows = np.clip(py + np.cumsum(np.sin(steps)), 0, size - 1).astype(int)
        columns = np.clip(px + np.cumsum(np.cos(steps)), 0, size - 1).astype(int)
        scene[plane, rows, columns] += 0.6
    electrons = 70 * np.clip(scene, 0, 2) + 2
    counts = 100 + 2.2 * (rng.poisson(electrons) + rng.normal(0, 2.5, scene.shape))
    pixels = np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
    layer = {
        "name": "noisy cells",
        "scale": (0.5, 0.13, 0.13),
        "units": ("um", "um", "um"),
        "axis_labels": ("z", "y", "x"),
        "colormap": "green",
        "contrast_limits": (90.0, 420.0),
    }
    return [(pixels, layer, "image")]


def dusk() -> list[LayerData]:
    """Return a colour photograph (YXS, uint8) of hills at dusk with the noise of a small sensor."""
    rng = np.random.default_rng(7)
    height, width = 384, 576
    y, x = (v.astype(np.float32) for v in np.mgrid[0:height, 0:width])
    share = (y / height)[..., None]
    scene = np.array([0.10, 0.15, 0.36]) * (1 - share) + np.array([0.98, 0.62, 0.42]) * share
    sun = np.exp(-(((x - 400) / 30) ** 2 + ((y - 190) / 30) ** 2))[..., None]
    scene = scene + sun * np.array([0.6, 0.5, 0.25])
    for base, swing, tint in (
        (200, 70, (0.42, 0.36, 0.50)),
        (250, 55, (0.24, 0.24, 0.36)),
        (310, 40, (0.10, 0.13, 0.17)),
    ):
        waves = sum(
            np.sin(x[0] * f + rng.uniform(0, 6)) / (k + 1)
            for k, f in enumerate((0.008, 0.021, 0.055, 0.13, 0.31))
        )
        crest = base - swing * 0.5 * np.asarray(waves)
        cover = np.clip(y - crest[None], 0, 1)[..., None]
        grain = 1 + 0.25 * np.sin(x * 0.35 + y * 0.9) * np.sin(y * 0.23 - x * 0.11)
        scene = scene * (1 - cover) + cover * grain[..., None] * np.array(tint)
    for left in range(30, width, 97):  # lit windows
        scene[330:338, left : left + 6] = (1.0, 0.85, 0.45)
    linear = np.clip(scene, 0, 1) ** 2.2
    signal = rng.poisson(linear * 260) + rng.normal(0, 2.2, linear.shape)
    shown = np.clip(signal / 260, 0, 1) ** (1 / 2.2)
    return [(np.rint(shown * 255).astype(np.uint8), {"name": "noisy dusk", "rgb": True}, "image")]
