"""Scenes as a fluorescence microscope shows them, drawn at random: clean pictures for training.

Photographs made smaller and darker have the smoothness of a microscope's pictures, not their structures:
bright threads, tubes, grains and nuclei on black, under a haze of what is out of focus. Here these are
level sets of Gaussian random fields (Adler, "The Geometry of Random Fields", 1981): their lines are threads
and membranes, their islands nuclei and organelles.

Everything is periodic on a square a little larger than the patch, see `training.fields`. 1 is about the
brightest of the picture that the patch is from.
"""

from __future__ import annotations

import numpy as np

from .fields import Plane, blurred, direction, field, islands

_MARGIN = 32  # px around the patch, so that its left side does not repeat its right one
_PSF_PX = (0.45, 2.6)  # standard deviation of the spot that a point becomes
_HAZE_PX = (6.0, 20.0)  # of what lies out of focus
_LINEAR = 0.5  # the darkest picture is shown by its root: the square root stabilises photon noise


def draw_scene(rng: np.random.Generator, side: int) -> Plane:
    """Return one patch.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything.
    side : int
        px.

    Returns
    -------
    ndarray
        Shape (side, side), float64, 0..1.
    """
    period = side + _MARGIN
    cell = islands(field(rng, period, rng.uniform(25, 80)), rng.uniform(-1.5, 0.5), 0.1)
    scene = np.zeros((period, period))
    kinds = (_threads, _tubes, _grains, _nuclei)
    for kind in rng.choice(len(kinds), rng.integers(1, 4), p=(0.4, 0.3, 0.15, 0.15)):
        layer = kinds[kind](rng, period)
        if rng.random() < 0.7:
            layer = layer * cell
        scene += layer * rng.uniform(0.3, 1)
    scene += cell * rng.uniform(0, 0.3) * rng.integers(2)
    focus = blurred(scene, rng.uniform(*_PSF_PX))
    haze = blurred(scene, rng.uniform(*_HAZE_PX))
    scene = focus + rng.uniform(0, 1.5) * rng.integers(2) * haze
    scene /= max(float(scene.max()), 1e-6)
    # Most of a picture is darker than its brightest part.
    scene = scene * rng.uniform(0.1, 1) + rng.uniform(0, 0.2) * rng.integers(2)
    return np.clip(scene[:side, :side], 0, 1) ** rng.uniform(_LINEAR, 1.2)


def _threads(rng: np.random.Generator, period: int) -> Plane:
    """Return filaments or membranes: lines where fields have a value, of even width and uneven brightness."""
    out = np.zeros((period, period))
    stretch, angle = direction(rng)
    for _ in range(rng.integers(1, 6)):
        turn = angle + rng.normal(0, 0.2)
        plane = field(rng, period, rng.uniform(5, 20), stretch, turn) - rng.normal(0, 0.5)
        down, across = np.gradient(plane)
        away_px = np.abs(plane) / np.maximum(np.hypot(down, across), 1e-3)
        width_px = rng.uniform(0.4, 1.5)
        line = np.exp(-((away_px / width_px) ** 2) / 2)
        out += line * _unevenness(rng, period) * rng.uniform(0.3, 1)
    return out


def _tubes(rng: np.random.Generator, period: int) -> Plane:
    """Return thick worms, such as mitochondria."""
    stretch, angle = direction(rng)
    plane = field(rng, period, rng.uniform(2, 5), stretch, angle)
    return islands(plane, rng.uniform(0.3, 1.5), rng.uniform(0.1, 0.5)) * _unevenness(rng, period)


def _grains(rng: np.random.Generator, period: int) -> Plane:
    """Return points of very different brightness, such as vesicles."""
    there = rng.random((period, period)) < 10 ** rng.uniform(-3.3, -1.3)
    return there * rng.exponential(1, there.shape) * rng.uniform(2, 8)


def _nuclei(rng: np.random.Generator, period: int) -> Plane:
    """Return large islands with a texture of their own."""
    there = islands(field(rng, period, rng.uniform(12, 30)), rng.uniform(0.2, 1.2), 0.05)
    texture = 1 + rng.uniform(0, 0.5) * field(rng, period, rng.uniform(1.5, 5))
    return there * np.maximum(texture, 0)


def _unevenness(rng: np.random.Generator, period: int) -> Plane:
    near, far = field(rng, period, rng.uniform(2, 4)), field(rng, period, rng.uniform(10, 40))
    return np.exp(rng.uniform(0, 0.8) * near + rng.uniform(0, 0.8) * far)
