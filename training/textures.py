"""Periodic textures, drawn at random into photographs: clean pictures for training.

Stripes, weaves and meshes are rare in photographs taken for their beauty, and a network that saw few of
them smooths them away where noise is strong, though a period seen often enough could be told from it. Here
a photograph's patch gets a cloth: gratings whose phase runs with a random field, as folds bend them, on a
shaded ground, over all of it or over an island.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .fields import Plane, blurred, field, islands

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARGIN = 32  # px around the patch, so that its left side does not repeat its right one
_CYCLES_PER_PX = (1 / 20, 1 / 2.3)
_HARMONICS_BELOW = 0.2  # cycles per px: finer gratings stay sines, as sharper ones would alias
_BEND = 0.35  # at most this change of the frequency along a fold, of the frequency
_CONTRAST = (0.06, 0.9)  # peak to peak, white = 1
_LENS_PX = (0.2, 0.7)  # standard deviation of the spot that a point becomes


def draw_texture(rng: np.random.Generator, photograph_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a patch with a texture in it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything.
    photograph_CHW : ndarray
        Shape (C, side, side), 0..1; left as it is.

    Returns
    -------
    ndarray
        The same shape, float32, 0..1.
    """
    channels, side, _ = photograph_CHW.shape
    period = side + _MARGIN
    kind = rng.random()
    texture = _grating(rng, period, rng.uniform(0, math.pi))
    if kind > 0.5:  # threads of two directions, or bars with gaps
        angle = rng.uniform(0, math.pi)
        first = _grating(rng, period, angle)
        second = _grating(rng, period, angle + math.pi / 2 + rng.normal(0, 0.15))
        texture = (first + second) / 2 if kind > 0.75 else np.maximum(first, second)
    shade = 0.5 + rng.uniform(0, 0.15) * field(rng, period, rng.uniform(10, 40))
    strength = math.exp(rng.uniform(*np.log(_CONTRAST))) / 2
    depth = strength * np.exp(rng.uniform(0, 0.6) * field(rng, period, rng.uniform(6, 30)))
    there = np.ones((period, period))
    if rng.random() < 0.6:
        there = islands(field(rng, period, rng.uniform(10, 40)), rng.uniform(-1, 0.5), rng.uniform(0.02, 0.2))
    lens_px = rng.uniform(*_LENS_PX)
    there = blurred(there, lens_px)[:side, :side]
    wave = blurred(depth * texture, lens_px)[:side, :side]
    if rng.random() < 0.5:  # printed on what is there
        ground = photograph_CHW.astype(np.float64)
    else:
        brightness = rng.uniform(0.1, 0.9, (channels, 1, 1))
        ground = brightness + (shade[:side, :side] - 0.5)
    colour = rng.uniform(0.5, 1, (channels, 1, 1)) if channels > 1 else 1.0
    cloth = ground + colour * wave
    return np.clip(photograph_CHW + there * (cloth - photograph_CHW), 0, 1).astype(np.float32)


def _grating(rng: np.random.Generator, period: int, angle: float) -> Plane:
    """Return waves between -1 and 1 across `angle`, bent by folds; coarse ones have a profile."""
    frequency = math.exp(rng.uniform(*np.log(_CYCLES_PER_PX)))
    rows, columns = np.mgrid[:period, :period]
    size_px = rng.uniform(8, 40)
    bend = rng.uniform(0, _BEND) * frequency * size_px * field(rng, period, size_px)
    phase = frequency * (columns * math.cos(angle) + rows * math.sin(angle)) + bend + rng.random()
    wave: Plane = np.sin(2 * math.pi * phase)
    if frequency < _HARMONICS_BELOW:
        steep, bias = math.exp(rng.uniform(math.log(0.3), math.log(5))), rng.uniform(-0.6, 0.6)
        wave = np.tanh(steep * (wave + bias)) / math.tanh(steep)
    return wave
