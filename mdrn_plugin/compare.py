"""Two pictures side by side: PSNR, SSIM, statistics of the difference."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import BadOption
from mdrn_plugin.picture import as_rows_columns_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """How two pictures differ.

    Attributes
    ----------
    psnr : float
        dB, peak = white minus black of the first; infinite for equal pictures.
    ssim : float
        Mean structural similarity, -1..1.
    mean, std, largest : float
        Of the difference, in file units; `largest` is absolute.
    correlation : pair of float
        Lag-1 autocorrelation of the difference, horizontal and vertical.
    """

    psnr: float
    ssim: float
    mean: float
    std: float
    largest: float
    correlation: tuple[float, float]


def compare_files(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Read and compare two files; see `compare_pictures`."""
    from mdrn_plugin import formats

    return compare_pictures(formats.read(a), formats.read(b))


def compare_pictures(a: Picture, b: Picture) -> Comparison:
    """Compare two pictures of the same shape; alpha is left out.

    Raises
    ------
    BadOption
        Different shapes or axes.
    """
    if a.shape != b.shape or a.axes != b.axes:
        raise BadOption(f"compare: expected equal shapes, got {a.axes} {a.shape} and {b.axes} {b.shape}")
    peak = a.range.white - a.range.black
    total = square = products_h = products_v = similarity = 0.0
    largest, count, planes = 0.0, 0, 0
    for index in a.planes():
        x = as_rows_columns_samples(np.asarray(a.pixels[index]), a.plane_axes, a.alpha).astype(np.float64)
        y = as_rows_columns_samples(np.asarray(b.pixels[index]), b.plane_axes, b.alpha).astype(np.float64)
        d = x - y
        total += float(d.sum())
        square += float((d * d).sum())
        largest = max(largest, float(np.abs(d).max()))
        centred = d - d.mean()
        products_h += float((centred[:, 1:] * centred[:, :-1]).sum()) * d.shape[1] / max(1, d.shape[1] - 1)
        products_v += float((centred[1:] * centred[:-1]).sum()) * d.shape[0] / max(1, d.shape[0] - 1)
        count += d.size
        for sample in range(d.shape[2]):
            similarity += ssim(x[..., sample], y[..., sample], peak)
            planes += 1
    mean, mse = total / count, square / count
    variance = max(0.0, mse - mean * mean)
    scale = variance * count or 1.0
    return Comparison(
        psnr=math.inf if mse == 0 else 10 * math.log10(peak * peak / mse),
        ssim=similarity / planes,
        mean=mean,
        std=math.sqrt(variance),
        largest=largest,
        correlation=(products_h / scale, products_v / scale),
    )


def ssim(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], peak: float) -> float:
    """Return the mean structural similarity of two planes (Wang et al. 2004).

    Gaussian window of 11x11 and standard deviation 1.5, K1 = 0.01, K2 = 0.03; windows that lie
    inside the picture. A picture smaller than the window is compared with the largest that fits.
    """
    side = min(11, *x.shape)
    t = np.arange(side) - (side - 1) / 2
    window = np.exp(-(t**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(z: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        rows = sum(w * z[k : z.shape[0] - side + 1 + k] for k, w in enumerate(window))
        assert isinstance(rows, np.ndarray)
        out = sum(w * rows[:, k : z.shape[1] - side + 1 + k] for k, w in enumerate(window))
        assert isinstance(out, np.ndarray)
        return out

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(values.mean())
