"""Whether a picture, its noise apart, is without fine detail.

A microscope's optics end far below the highest frequency that its camera samples; photographs have
about the same energy in every octave (D. Field, "Relations between the statistics of natural images and
the response properties of cortical cells", 1987), sharp ones up to that frequency. So where an octave
of middle frequencies stands out of the noise, the next one does as well in a photograph, and does not
under a microscope.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.noise.stabilise import stabiliser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mdrn_plugin.noise.curve import NoiseCurve

_SIDE = 64  # px, of the blocks that are looked at
_BLOCKS = 256  # at most
# Bands of frequencies, cycles per pixel: an octave in the middle, what follows, and where noise is alone.
_MIDDLE, _FINE, _NOISE = (0.08, 0.16), (0.16, 0.25), (0.35, 0.5)
_SEEN = 0.1  # energy of the middle band, of that of the noise, from which on it says something
_LEFT = 0.13  # of the middle band's energy in the fine one; photographs have 0.2 and more


def is_smooth(planes_YXS: Sequence[Any], curve: NoiseCurve) -> bool:
    """Return whether pictures have hardly any detail finer than six pixels.

    Parameters
    ----------
    planes_YXS : sequence of ndarray or StreamedPlane
        Of one channel, one sample, units of the file.
    curve : NoiseCurve
        Of their noise, in the same units.
    """
    found = spread_blocks(planes_YXS)
    if not len(found):
        return False
    found = stabiliser(curve).forward(found)
    window, bands = _window_and_bands()
    found = (found - found.mean((1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(found)) ** 2).mean(0)
    middle, fine, noise = (float(power[band].mean()) for band in bands)
    return middle - noise > _SEEN * noise and fine - noise < _LEFT * (middle - noise)


def spread_blocks(planes_YXS: Sequence[Any]) -> NDArray[np.float64]:
    """Return blocks spread evenly over all planes, (N, 64, 64); none with a value that is not finite."""
    blocks = [
        np.asarray(plane[y : y + _SIDE, x : x + _SIDE], np.float64)[..., 0]
        for plane, y, x in _places(planes_YXS)
    ]
    found = np.stack(blocks) if blocks else np.empty((0, _SIDE, _SIDE))
    return found[np.isfinite(found).all((1, 2))]


def _places(planes_YXS: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """Return blocks spread evenly over all planes."""
    places = [
        (k, y, x)
        for k, plane in enumerate(planes_YXS)
        for y in range(0, plane.shape[0] - _SIDE + 1, _SIDE)
        for x in range(0, plane.shape[1] - _SIDE + 1, _SIDE)
    ]
    count = len(places)
    chosen = [places[i * count // _BLOCKS] for i in range(_BLOCKS)] if count > _BLOCKS else places
    return [(planes_YXS[k], y, x) for k, y, x in chosen]


@functools.cache
def _window_and_bands() -> tuple[NDArray[np.float64], tuple[NDArray[np.bool_], ...]]:
    side = np.hanning(_SIDE)
    frequencies = np.fft.fftfreq(_SIDE)
    radius = np.hypot(frequencies[:, None], frequencies)
    bands = tuple((radius >= low) & (radius < high) for low, high in (_MIDDLE, _FINE, _NOISE))
    return np.outer(side, side), bands
