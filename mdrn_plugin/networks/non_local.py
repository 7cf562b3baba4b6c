"""What a picture repeats: means over the similar patches around each pixel correct a network's result.

A network sees a neighbourhood and knows what is usual there. Windows of a front, the weave of a cloth
or the lattice of a crystal repeat themselves further on, each time with other noise: where strong noise
hides them from the network, their mean still shows them (non-local means: Buades, Coll & Morel 2005; BM3D:
Dabov et al. 2007; behind a network: Cruz et al. 2018, "Nonlocality-reinforced convolutional neural
networks for image denoising").

Patches are compared by the network's result and the noisy picture together: the first is clean where it is
right, the second still has what the first has lost. A pixel's own value is in none of its means, so the noise
that the network took from it tells without a bias how much of them is true: where both rise and fall
together, it was no noise. A small network makes of that, pixel by pixel, how far to go (`NonLocal`).

Shapes: N pictures, C colours, H rows, W columns; white = 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrn_plugin.networks.compiled import OptionalLibrary, open_library

_INTERFACE = 2  # of non_local_kernel.c
_BLOCK = (32, 256)  # rows and columns, as in non_local_kernel.c
_RADIUS = 4  # of the patches that are compared, px: 9 x 9
SEARCH = 15  # px to all sides
_MARGIN = _RADIUS + SEARCH
# A patch that differs by the noise alone has distance 0, in variances of the noise; one of this distance
# weighs e times less. A second weight is the square of the first.
_DISTANCE = 0.6
_STEEP = 1 / (_DISTANCE * 0.6931471805599453)
_LEAST_EXPONENT = -30  # of 2: weights of less are 0
_LEAST_WEIGHT = 1e-5  # means of less than this are drawn to "no correction"
_MEANS = 4  # for each colour: of noise and of values, by the first weight and by the second

STRIDE = 2
_NEAR, _FAR = 2, 6  # half sides of the windows in which means are held against noise, pairs of pixels
_GROUND = 8  # px; half side of the mean that stands for a place's brightness


def _look() -> tuple[ctypes.CDLL | None, str]:
    place = Path(__file__).with_name("non_local_kernel.lib.so")
    found, why = open_library(place, "mdrn_non_local_interface", _INTERFACE)
    if found is None:
        return None, why
    found.mdrn_non_local.restype = None
    return (found, "") if found.mdrn_non_local_lanes() else (None, "this processor has no AVX2")


optional = OptionalLibrary(_look)
library, why_not = optional.library, optional.why_not


class _Task(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("noisy", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("line", ctypes.c_int64),
        ("plane", ctypes.c_int64),
        ("colours", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("margin", ctypes.c_int32),
        ("search", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("steep", ctypes.c_float),
    )


def similar_sums(
    base_NCHW: Tensor,
    noisy_NCHW: Tensor,
    sigma: Tensor,
    *,
    kernel: bool = False,
    lanes: int = 0,
) -> Tensor:
    """Return weighted sums over the pixels around each one whose patches are like its own.

    The distance of two patches is the mean squared difference in both pictures over the noise's variance,
    less the 2 that noise alone makes; the weight w is exp(-distance / 0.6), 0 below 1e-9. All pixels of
    the picture within `SEARCH` count but the one itself; patches are compared as if it were mirrored at
    its borders.

    Parameters
    ----------
    base_NCHW, noisy_NCHW : Tensor
        A network's result and what it was shown, float32.
    sigma : Tensor
        (N,), standard deviation of the noise, white = 1.
    kernel : bool
        By the compiled kernel, on the CPU. It sums in another order than torch.
    lanes : int
        Floats of a vector of the kernel; 0: as many as the processor has.

    Returns
    -------
    Tensor
        (N, 3 + 4 C, H, W), float32: the sums of w, w² and w⁴, then for each colour those of w·(noisy - base),
        w·base, w²·(noisy - base) and w²·base.
    """
    edge = (_MARGIN,) * 4
    base, noisy = (_mirrored(x.float(), edge) for x in (base_NCHW, noisy_NCHW))
    each = list(zip(base, noisy, sigma.tolist(), strict=True))
    if kernel:
        return torch.stack([_sums_by_kernel(b, y, s, lanes) for b, y, s in each])
    return torch.stack([_sums_by_torch(b, y, s) for b, y, s in each])


def _mirrored(x_NCHW: Tensor, edge: tuple[int, ...]) -> Tensor:
    """Return the pictures with a margin; those smaller than it are mirrored as often as it takes."""
    for dim, width in ((2, edge[2]), (3, edge[0])):
        length = x_NCHW.shape[dim]
        at = torch.arange(-width, length + width, device=x_NCHW.device).remainder(max(1, 2 * length - 2))
        x_NCHW = x_NCHW.index_select(dim, torch.minimum(at, 2 * length - 2 - at).clamp_min(0))
    return x_NCHW.contiguous()


def _sums_by_kernel(base_CHW: Tensor, noisy_CHW: Tensor, sigma: float, lanes: int) -> Tensor:
    found = library()
    assert found is not None
    colours, high, wide = base_CHW.shape
    rows, columns = high - 2 * _MARGIN, wide - 2 * _MARGIN
    out = torch.empty((3 + _MEANS * colours, rows, columns))
    task = _Task(
        base=base_CHW.data_ptr(),
        noisy=noisy_CHW.data_ptr(),
        out=out.data_ptr(),
        line=wide,
        plane=high * wide,
        colours=colours,
        rows=rows,
        columns=columns,
        margin=_MARGIN,
        search=SEARCH,
        scale=_scale(colours, sigma),
        steep=_STEEP,
    )
    across = -(-columns // _BLOCK[1])
    lanes = lanes or found.mdrn_non_local_lanes()

    def band(k: int) -> None:
        for index in range(k * across, (k + 1) * across):
            found.mdrn_non_local(ctypes.byref(task), index, lanes)

    bands = range(-(-rows // _BLOCK[0]))
    threads = min(torch.get_num_threads(), len(bands))
    if threads == 1:
        for k in bands:
            band(k)
        return out
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(band, bands))
    return out


def _sums_by_torch(base_CHW: Tensor, noisy_CHW: Tensor, sigma: float) -> Tensor:
    colours, high, wide = base_CHW.shape
    rows, columns = high - 2 * _MARGIN, wide - 2 * _MARGIN
    both = torch.cat([base_CHW, noisy_CHW])
    values = torch.cat([noisy_CHW - base_CHW, base_CHW])
    out = base_CHW.new_zeros((3 + _MEANS * colours, rows, columns))
    factor = _scale(colours, sigma) * (2 * _RADIUS + 1) ** 2
    here = both[:, SEARCH : high - SEARCH, SEARCH : wide - SEARCH]
    for dy in range(-SEARCH, SEARCH + 1):
        for dx in range(-SEARCH, SEARCH + 1):
            if (not dy and not dx) or abs(dy) >= rows or abs(dx) >= columns:
                continue
            inside = slice(max(0, -dy), rows - max(0, dy)), slice(max(0, -dx), columns - max(0, dx))
            there = both[:, SEARCH + dy : high - SEARCH + dy, SEARCH + dx : wide - SEARCH + dx]
            squares = (here - there).square_().sum(0, keepdim=True)[None]
            mean = functional.avg_pool2d(squares, (2 * _RADIUS + 1, 1), 1)
            mean = functional.avg_pool2d(mean, (1, 2 * _RADIUS + 1), 1)[0, 0]
            exponent = ((2 - mean * factor) * _STEEP).clamp_max_(16)
            weight = torch.where(exponent < _LEAST_EXPONENT, 0, torch.exp2(exponent))[inside]
            square = weight * weight
            out[0][inside] += weight
            out[1][inside] += square
            out[2][inside] += square * square
            near = values[:, _MARGIN + dy : high - _MARGIN + dy, _MARGIN + dx : wide - _MARGIN + dx]
            for c in range(colours):
                for k, factors in enumerate((weight, weight, square, square)):
                    out[3 + _MEANS * c + k][inside].addcmul_(factors, near[c + colours * (k % 2)][inside])
    return out


def _scale(colours: int, sigma: float) -> float:
    return 1 / (colours * (2 * _RADIUS + 1) ** 2 * sigma**2)


def similar_means(base_NCHW: Tensor, noisy_NCHW: Tensor, sigma: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """Return what the similar patches have that a network's result lacks, and how sure it is.

    Parameters
    ----------
    base_NCHW, noisy_NCHW, sigma, **how
        As of `similar_sums`.

    Returns
    -------
    means_NKCHW : Tensor
        K = 4: the mean of noisy - base around, and of base around less base here, by both weights; in
        standard deviations of the noise.
    unsure_NKHW : Tensor
        K = 2: the standard deviation that such means of the noise have, likewise, at most 1.
    """
    sums = similar_sums(base_NCHW, noisy_NCHW, sigma, **how)
    sigma_NCHW = sigma.to(sums)[:, None, None, None]
    of_colour = _split(sums[:, 3:], _MEANS).transpose(1, 2)
    means, unsure = [], []
    for k in (0, 1):
        total = sums[:, k : k + 1].clamp_min(1e-12)
        share = total / (total + _LEAST_WEIGHT)
        means.append(of_colour[:, 2 * k] / total / sigma_NCHW * share)
        means.append((of_colour[:, 2 * k + 1] / total - base_NCHW) / sigma_NCHW * share)
        spread = (sums[:, k + 1 : k + 2].sqrt() / total).clamp_max(1)
        unsure.append(spread * share + (1 - share))
    return torch.stack(means, 1), torch.cat(unsure, 1)


def _split(x_NCHW: Tensor, last: int) -> Tensor:
    """Return the channels as a grid of two dimensions, the second of length `last`."""
    count, channels, *sides = x_NCHW.shape
    return x_NCHW.reshape(count, channels // last, last, *sides)


def _window_mean(x_NCHW: Tensor, half: int) -> Tensor:
    padded = functional.pad(x_NCHW, (half,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * half + 1, 1)


class NonLocal(nn.Module):
    """How far to go to each of the means over similar patches, pixel by pixel.

    Works on 2 x 2 pixels at a time, on the result, the noise taken out, the means, and on how the means
    and that noise go together in windows of 10 and 26 px.

    Parameters
    ----------
    colours : int
        1 gray, 3 RGB.
    channels : int
        Of the inner features.
    layers : int
        3x3 convolutions between the first and the last, even.
    """

    def __init__(self, colours: int, channels: int = 48, layers: int = 4) -> None:
        super().__init__()
        if colours not in (1, 3) or layers % 2:
            raise ValueError(f"expected 1 or 3 colours and an even number of layers: {colours}, {layers}")
        self.colours = colours
        self.stride = STRIDE
        self.halo = _MARGIN + 2 * (layers + 2) + 2 * _FAR + 1
        per_pixel = (2 + _MEANS) * colours + 3
        self.head = nn.Conv2d(4 * per_pixel + 20, channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.tail = nn.Conv2d(channels, 4 * _MEANS * colours, 3, padding=1)

    def set_precision(self, dtype: torch.dtype) -> NonLocal:
        """Let the layers compute in a type; means and their products stay float32."""
        return self.to(dtype)

    def forward(
        self, base_NCHW: Tensor, noise_NCHW: Tensor, means_NKCHW: Tensor, unsure_NKHW: Tensor, sigma: Tensor
    ) -> Tensor:
        """Return what is to be added to a network's result, float32.

        Parameters
        ----------
        base_NCHW : Tensor
            The result, white = 1; height and width even.
        noise_NCHW : Tensor
            What the network took out, white = 1.
        means_NKCHW, unsure_NKHW : Tensor
            As of `similar_means`.
        sigma : Tensor
            (N,), standard deviation of the noise, white = 1.
        """
        sigma_NCHW = sigma.to(base_NCHW)[:, None, None, None]
        noise = noise_NCHW / sigma_NCHW
        detail = ((base_NCHW - _window_mean(base_NCHW, _GROUND)) / sigma_NCHW * 0.2).clamp(-3, 3)
        level = torch.log(10 * sigma_NCHW).expand_as(base_NCHW[:, :1])
        pixels = torch.cat([detail, noise, level, 2 * means_NKCHW.flatten(1, 2), unsure_NKHW], 1)
        together = self._together(noise, means_NKCHW)
        x = torch.cat(
            [
                functional.pixel_unshuffle(pixels, 2),
                *(_told(_window_mean(together, h)) for h in (_NEAR, _FAR)),
            ],
            1,
        )
        x = self.head(x.to(self.head.weight.dtype))
        for first, second in zip(self.inner[::2], self.inner[1::2], strict=True):
            x = x + second(functional.relu(first(functional.relu(x))))
        steps = functional.pixel_shuffle(self.tail(functional.relu(x)), 2).to(base_NCHW.dtype)
        added: Tensor = (_split(steps, self.colours) * means_NKCHW).sum(1) * sigma_NCHW
        return added

    @staticmethod
    def _together(noise_NCHW: Tensor, means_NKCHW: Tensor) -> Tensor:
        """Return the products of noise and means, mean over colours and 2 x 2 px: (N, 10, H / 2, W / 2)."""
        with_noise = (noise_NCHW[:, None] * means_NKCHW).mean(2)
        squares = means_NKCHW.square().mean(2)
        pairs = (means_NKCHW[:, ::2] * means_NKCHW[:, 1::2]).mean(2)
        return functional.avg_pool2d(torch.cat([with_noise, squares, pairs], 1), 2)


def _told(together_NKHW: Tensor) -> Tensor:
    """Return what goes into the first layer of products in a window: regressions and powers."""
    with_noise, squares = together_NKHW[:, :_MEANS], together_NKHW[:, _MEANS : 2 * _MEANS]
    pairs = together_NKHW[:, 2 * _MEANS :]
    slopes = (with_noise / (squares + 0.01)).clamp(-1, 2)
    alike = (pairs / (squares[:, ::2] + squares[:, 1::2] + 0.01)).clamp(-1, 1)
    return torch.cat([slopes, 0.3 * torch.log(squares + 1e-3), alike], 1)


class Refined(nn.Module):
    """A network and what the picture repeats as one, called as the engine calls its own.

    Parameters
    ----------
    network : nn.Module
        Inference form as of `networks.mdrn.FoldedMDRN`.
    gates : NonLocal
        Trained with networks like it.
    sigma : float
        Standard deviation of the noise that the network is shown, white = 1.
    kernel : bool
        As of `similar_sums`.
    """

    def __init__(self, network: Any, gates: Any, sigma: float, *, kernel: bool) -> None:
        super().__init__()
        self.network = network
        self.gates = gates
        self.sigma = sigma
        self.kernel = kernel

    def strips(self, height: int, width: int) -> int:
        """Return how many strips a picture of this size goes through in; the means are one more."""
        count: int = self.network.strips(height, width) + 1
        return count

    def residual(self, x_NCHW: Tensor, *, between: Callable[[], None] | None = None) -> Tensor:
        """Return the noise that is seen in `x_NCHW`, float32."""
        noise: Tensor = self.network.residual(x_NCHW, between=between).float()
        if between is not None:
            between()
        sigma = torch.full((len(x_NCHW),), self.sigma, device=x_NCHW.device)
        base = x_NCHW.float() - noise
        means, unsure = similar_means(base, x_NCHW, sigma, kernel=self.kernel and x_NCHW.device.type == "cpu")
        correction: Tensor = self.gates(base, noise, means, unsure, sigma)
        return noise - correction
