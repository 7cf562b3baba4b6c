"""Whether much of a picture gets less than a photon per pixel.

There the generalised Anscombe transform does not stabilise, however many photons the bright parts get: the
noise is weaker and skewed (Mäkitalo and Foi, "Optimal Inversion of the Generalized Anscombe Transformation
for Poisson-Gaussian Noise", 2013). The variance in units of the squared gain is the number of photons, read
noise counted as the photons that make as much of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.noise.smoothness import spread_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrn_plugin.noise.curve import NoiseCurve

_MEAN = 4  # px, side of the squares whose means stand for the signal
_FEW = 0.5  # photons per pixel
_SHARE = 0.25  # of the picture


def is_dim(planes_YXS: Sequence[Any], curve: NoiseCurve) -> bool:
    """Return whether a quarter of the pixels get less than half a photon.

    Parameters
    ----------
    planes_YXS : sequence of ndarray or StreamedPlane
        Of one channel, one sample, units of the file.
    curve : NoiseCurve
        Of their noise, in the same units; only a line with a gain above 0 counts photons.
    """
    if curve.kind != "line" or curve.gain <= 0:
        return False
    blocks = spread_blocks(planes_YXS)
    if not len(blocks):
        return False
    side = blocks.shape[1] // _MEAN
    signal = blocks.reshape(len(blocks), side, _MEAN, side, _MEAN).mean((2, 4))
    photons = (curve.gain * signal + curve.offset) / curve.gain**2
    return float(np.mean(photons < _FEW)) >= _SHARE
