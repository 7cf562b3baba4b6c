"""Few photons, stabilised: what the network sees of a microscope's picture.

The generalised Anscombe transform gives noise of one level where there are several photons per pixel.
Where there are one or none it is weaker and skewed, so dark parts of a picture carry less noise than the
bright ones. A network that has only seen Gaussian noise does not expect that.

The law of noise is that of `noise.stabilise`: counts P + r N, Poisson and Gaussian; the target is the mean
of the transformed counts, which the exact unbiased inverse brings back to the signal.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

# Read noise, photons, and how often.
_READ = (0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 10.0)
_LEAST_PHOTONS = 0.3  # at white, and not fewer than the read noise
_DIM = 0.6  # the brightest of a patch is at least this share of the brightest of its picture
_TAIL = 3.0  # standard deviations: 99.9 % of the values, where the plan puts white
_POINTS = 500


def add_photon_noise(
    x_NCHW: Tensor, sigma_255: tuple[float, float], each: list[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return stabilised noisy pictures, what to make of them, and the level of each.

    Parameters
    ----------
    x_NCHW : Tensor
        Clean pictures, 0..1.
    sigma_255 : pair of float
        Lowest and highest noise of the stabilised values, 0..255 scale; uniform in its logarithm.
        That decides the photons: 92 is about one at white, 14 about 70. With read noise the level is
        lower where so few photons would be drowned.
    each : list of torch.Generator
        One for each picture.

    Returns
    -------
    noisy, clean : Tensor
        Shape of `x_NCHW`; dark and bright end of the whole picture's values at 0 and 1.
    sigma : Tensor
        Shape (N, 1, 1, 1), 0..255 scale.
    """
    noisy, clean, levels = [], [], []
    for x, generator in zip(x_NCHW, each, strict=True):
        draw = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = (math.log(s) for s in sigma_255)
        read = _READ[int(draw[0] * len(_READ))]
        level = math.exp(low + (high - low) * draw[1])
        dark = _root(-_TAIL * read, read)
        bright = dark + 255 / level
        photons = _photons_up_to(bright**2 / 4 - 0.375 - read**2, read)
        least = max(_LEAST_PHOTONS, read)
        if photons < least:  # read noise alone fills more than that range
            photons = least
            level = 255 / (_root(photons + _TAIL * math.sqrt(photons + read**2), read) - dark)
        mean = x.double() * photons * (_DIM + (1 - _DIM) * draw[2])
        counts = torch.poisson(mean, generator=generator)
        counts += read * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        seen = 2 * (counts + 0.375 + read**2).clamp_min(0).sqrt()
        grid, expected = _expected(read)
        wanted = np.interp(mean.numpy(), grid, expected)
        noisy.append(((seen - dark) * (level / 255)).float())
        clean.append(((torch.from_numpy(wanted) - dark) * (level / 255)).float())
        levels.append(level)
    sigma = torch.tensor(levels, dtype=torch.float32)[:, None, None, None]
    return torch.stack(noisy), torch.stack(clean), sigma


def _root(count: float, read: float) -> float:
    return 2 * math.sqrt(max(count + 0.375 + read**2, 0.0))


def _photons_up_to(top: float, read: float) -> float:
    """Return the mean whose 99.9 % quantile is `top`: P + 3 sqrt(P + r²) = top."""
    spread = (math.sqrt(_TAIL**2 + 4 * (top + read**2)) - _TAIL) / 2 if top > 0 else 0.0
    return spread**2 - read**2


@functools.cache
def _expected(read: float) -> tuple[np.ndarray, np.ndarray]:
    """Return means of counts, and of their transforms."""
    from mdrn_plugin.noise.stabilise import expected_anscombe

    grid = np.linspace(0, math.sqrt(400), _POINTS) ** 2
    return grid, expected_anscombe(grid, read)
