"""Averaging denoised planes of a stack with their neighbours, where they show the same.

What denoising leaves of the noise differs from plane to plane, the scene hardly does. A neighbour counts
by how alike it is in the surroundings of a pixel: what moves, counts for nothing. Measured by
``benchmarks/stacks.py``, see docs/decisions/0017-stacks.md.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.engine.device import threads
from mdrn_plugin.engine.run import store
from mdrn_plugin.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mdrn_plugin.engine.run import Stop
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.plan import Plan

    Plane = NDArray[np.float32]

REACH = 2  # planes to each side
_SMOOTHINGS = 3  # boxes of 3 x 3: about a Gaussian of 1.4 px
_CHANCE = 2.0  # times the usual difference; beyond that it is something that moved
_MOST_USUAL = 0.15  # of the noise's variance


def likeness(a_HWC: Plane, b_HWC: Plane, variance_HWC: Plane) -> Plane:
    """Return 1 where two denoised planes differ by no more than noise, less the more they differ.

    The usual difference of the two is taken for what is left of the noise, unless it is more than denoising
    leaves: then most of the plane moves.

    Parameters
    ----------
    a_HWC, b_HWC : ndarray, float32
        The planes.
    variance_HWC : ndarray, float32
        Of the noise before denoising, alike in units; above 0.

    Returns
    -------
    ndarray (H, W, 1), float32
        0..1; 0 where either plane is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        relative = ((a_HWC - b_HWC) ** 2 / variance_HWC).mean(2)
    broken = ~np.isfinite(relative)
    difference = torch.from_numpy(np.where(broken, np.float32(0), relative))[None, None]
    for _ in range(_SMOOTHINGS):
        difference = functional.avg_pool2d(difference, 3, 1, 1, count_include_pad=False)
    smooth = difference[0, 0].numpy()
    usual = min(float(np.median(smooth)), _MOST_USUAL) + 1e-6
    found = np.exp(-np.maximum(smooth / usual - _CHANCE, 0) / 2).astype(np.float32)
    found[broken] = 0
    return found[..., None]


def average_along(
    picture: Picture,
    out: Any,
    plan: Plan,
    profiles: tuple[NoiseProfile, ...],
    stop: Stop | None = None,
) -> None:
    """Average the denoised planes in `out` along the axis that the plan names, in place.

    Parameters
    ----------
    picture : Picture
        As it was before denoising.
    out : ndarray or Streamed
        Denoised pixels, shape and dtype of ``picture.pixels``.
    plan : Plan
        ``plan.along`` is one of the picture's axes.
    profiles : tuple of NoiseProfile
        One per channel (C).
    stop : callable, optional
        Asked before each plane.

    Raises
    ------
    Cancelled
        `stop` said so; the target is half done and must be thrown away.
    """
    assert plan.along is not None
    black, unit = picture.range.black, picture.range.white - picture.range.black
    dtype = np.dtype(picture.pixels.dtype)
    written = dataclasses.replace(picture, pixels=out)

    with threads(plan.threads):
        for line in _lines(picture, plan.along):
            channel = picture.channel_of(line[0])
            if plan.steps[channel].model is None:
                continue
            known: dict[int, Plane] = {}  # as denoised, while they are needed: `out` is written over
            for t, index in enumerate(line):
                if stop is not None and stop():
                    raise Cancelled("stopped on request; nothing was written")
                near = range(max(0, t - REACH), min(len(line), t + REACH + 1))
                for k in near:
                    if k not in known:
                        known[k] = ((written.plane(line[k])[:, :] - black) / unit).astype(np.float32)
                others = [known[k] for k in near if k != t]
                mean = _mean(known[t], others, profiles[channel])
                written.plane(index)[:, :] = store(mean * unit + black, dtype, plan.saturate)
                known.pop(t - REACH, None)


def _mean(here: Plane, others: list[Plane], profile: NoiseProfile) -> NDArray[np.float64]:
    """Return the weighted mean of a plane and its neighbours, fractions of white."""
    variance = _variance(here, profile)
    total, weights = here.astype(np.float64), np.ones((*here.shape[:2], 1))
    for plane in others:
        weight = likeness(here, plane, variance)
        total += weight * np.where(weight > 0, plane, 0)
        weights += weight
    mean: NDArray[np.float64] = total / weights
    return mean


def _variance(plane_HWC: Plane, profile: NoiseProfile) -> Plane:
    samples = []
    for s in range(plane_HWC.shape[2]):
        sigma = profile.sigma[min(s, len(profile.sigma) - 1)]
        variance = np.full(plane_HWC.shape[:2], sigma**2)
        if profile.depends_on_signal:
            curve = profile.curves[min(s, len(profile.curves) - 1)]
            variance = curve.variance(np.nan_to_num(plane_HWC[..., s]))
        samples.append(np.maximum(variance, 1e-12))
    return np.stack(samples, 2).astype(np.float32)


def _lines(picture: Picture, axis: str) -> Iterator[list[tuple[slice | int, ...]]]:
    """Yield the planes of the picture that lie behind each other along an axis, as indices in order."""
    place = picture.axes.index(axis)
    for index in picture.planes():
        if index[place] == 0:
            yield [(*index[:place], t, *index[place + 1 :]) for t in range(picture.shape[place])]
