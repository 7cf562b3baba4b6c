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

_INTERFACE = 3  # of non_local_kernel.c
_BLOCK = (32, 256)  # rows and columns, as in non_local_kernel.c
_RADIUS = 4  # of the patches that are compared, px: 9 x 9
_WIDE_RADIUS = 10  # of those of the noisy picture alone: 21 x 21
SEARCH = 15  # px to all sides
# A patch that differs by the noise alone has distance 0, in variances of the noise; one of this distance
# weighs e times less. A second weight is the square of the first.
_DISTANCE = 0.6
_WIDE_DISTANCE = 0.2  # likewise, of wide patches: their mean scatters less
_STEEP, _WIDE_STEEP = (1 / (distance * 0.6931471805599453) for distance in (_DISTANCE, _WIDE_DISTANCE))
_LEAST_EXPONENT = -30  # of 2: weights of less are 0
_LEAST_WEIGHT = 1e-5  # means of less than this are drawn to "no correction"

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
        ("wide", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("steep", ctypes.c_float),
        ("wide_steep", ctypes.c_float),
    )


def count_means(wide: bool) -> int:
    """Return how many means there are for each colour: of noise and of values, by each weight."""
    return 6 if wide else 4


def _margin(wide: bool) -> int:
    return SEARCH + (_WIDE_RADIUS if wide else _RADIUS)


def similar_sums(
    base_NCHW: Tensor,
    noisy_NCHW: Tensor,
    sigma: Tensor,
    *,
    wide: bool = False,
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
    wide : bool
        Sums by a third weight v as well: of patches of 21 x 21 px in the noisy picture alone, with 0.2 in
        place of 0.6. Fine structure that the result has lost on a whole wall is found by nothing else.
    kernel : bool
        By the compiled kernel, on the CPU. It sums in another order than torch.
    lanes : int
        Floats of a vector of the kernel; 0: as many as the processor has.

    Returns
    -------
    Tensor
        (N, 3 + 4 C, H, W), float32: the sums of w, w² and w⁴, then for each colour those of w·(noisy - base),
        w·base, w²·(noisy - base) and w²·base. With `wide` (N, 5 + 6 C, H, W): those of v and v² after that of
        w⁴, those of v·(noisy - base) and v·base at the end of each colour.
    """
    edge = (_margin(wide),) * 4
    base, noisy = (_mirrored(x.float(), edge) for x in (base_NCHW, noisy_NCHW))
    each = list(zip(base, noisy, sigma.tolist(), strict=True))
    if kernel:
        return torch.stack([_sums_by_kernel(b, y, s, wide, lanes) for b, y, s in each])
    return torch.stack([_sums_by_torch(b, y, s, wide) for b, y, s in each])


def _mirrored(x_NCHW: Tensor, edge: tuple[int, ...]) -> Tensor:
    """Return the pictures with a margin; those smaller than it are mirrored as often as it takes."""
    for dim, width in ((2, edge[2]), (3, edge[0])):
        length = x_NCHW.shape[dim]
        at = torch.arange(-width, length + width, device=x_NCHW.device).remainder(max(1, 2 * length - 2))
        x_NCHW = x_NCHW.index_select(dim, torch.minimum(at, 2 * length - 2 - at).clamp_min(0))
    return x_NCHW.contiguous()


def _nothing_yet(like_CHW: Tensor, wide: bool) -> Tensor:
    """Return sums of nothing for pictures with their margins."""
    colours, high, wide_px = like_CHW.shape
    around = 2 * _margin(wide)
    planes = 3 + wide * 2 + count_means(wide) * colours
    return like_CHW.new_zeros((planes, high - around, wide_px - around))


def _sums_by_kernel(base_CHW: Tensor, noisy_CHW: Tensor, sigma: float, wide: bool, lanes: int) -> Tensor:
    found = library()
    assert found is not None
    out = _nothing_yet(base_CHW, wide)
    rows, columns = out.shape[1:]
    task = _Task(
        base=base_CHW.data_ptr(),
        noisy=noisy_CHW.data_ptr(),
        out=out.data_ptr(),
        line=base_CHW.shape[2],
        plane=base_CHW[0].numel(),
        colours=len(base_CHW),
        rows=rows,
        columns=columns,
        margin=_margin(wide),
        search=SEARCH,
        wide=wide,
        scale=1 / (len(base_CHW) * sigma**2),
        steep=_STEEP,
        wide_steep=_WIDE_STEEP,
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


def _sums_by_torch(base_CHW: Tensor, noisy_CHW: Tensor, sigma: float, wide: bool) -> Tensor:
    colours, margin = len(base_CHW), _margin(wide)
    out = _nothing_yet(base_CHW, wide)
    rows, columns = out.shape[1:]
    values = torch.stack([noisy_CHW - base_CHW, base_CHW], 1)
    kinds = [(torch.cat([base_CHW, noisy_CHW]), _RADIUS, _STEEP)]
    kinds += [(noisy_CHW, _WIDE_RADIUS, _WIDE_STEEP)] if wide else []
    counts, sums = torch.tensor_split(out, (3 + wide * 2,))
    sums = sums.reshape(colours, -1, 2, rows, columns)

    def moved(x: Tensor, dy: int, dx: int, radius: int) -> Tensor:
        top, left = margin - radius + dy, margin - radius + dx
        return x[..., top : top + rows + 2 * radius, left : left + columns + 2 * radius]

    for dy in range(-SEARCH, SEARCH + 1):
        for dx in range(-SEARCH, SEARCH + 1):
            if (not dy and not dx) or abs(dy) >= rows or abs(dx) >= columns:
                continue
            weights = []
            for compared, radius, steep in kinds:
                squares = (moved(compared, 0, 0, radius) - moved(compared, dy, dx, radius)).square_()
                distance = _box_mean(squares.sum(0), radius) / (colours * sigma**2)
                exponent = ((2 - distance) * steep).clamp_max_(16)
                weights.append(torch.where(exponent < _LEAST_EXPONENT, 0, torch.exp2(exponent)))
            weights.insert(1, weights[0].square())
            powers = [weights[0], weights[1], weights[1].square()]
            powers += [weights[2], weights[2].square()] if wide else []
            inside = ..., slice(max(0, -dy), rows - max(0, dy)), slice(max(0, -dx), columns - max(0, dx))
            near = moved(values, dy, dx, 0)
            for k, weight in enumerate(powers):
                counts[k][inside] += weight[inside]
            for k, weight in enumerate(weights):
                sums[:, k][inside].addcmul_(weight[inside], near[inside])
    return out


def _box_mean(x_HW: Tensor, radius: int) -> Tensor:
    """Return the means of the squares that lie wholly inside."""
    side = 2 * radius + 1
    rows = functional.avg_pool2d(x_HW[None, None], (side, 1), 1)
    return functional.avg_pool2d(rows, (1, side), 1)[0, 0]


def similar_means(
    base_NCHW: Tensor, noisy_NCHW: Tensor, sigma: Tensor, *, wide: bool = False, **how: Any
) -> tuple[Tensor, Tensor]:
    """Return what the similar patches have that a network's result lacks, and how sure it is.

    Parameters
    ----------
    base_NCHW, noisy_NCHW, sigma, wide, **how
        As of `similar_sums`.

    Returns
    -------
    means_NKCHW : Tensor
        K = 4, with `wide` 6: the mean of noisy - base around, and of base around less base here, by each
        weight; in standard deviations of the noise.
    unsure_NKHW : Tensor
        K = 2, with `wide` 3: the standard deviation that such means of the noise have, likewise, at most 1.
    """
    sums = similar_sums(base_NCHW, noisy_NCHW, sigma, wide=wide, **how)
    sigma_NCHW = sigma.to(sums)[:, None, None, None]
    of_colour = _split(sums[:, 3 + wide * 2 :], count_means(wide)).transpose(1, 2)
    means, unsure = [], []
    for k, at in enumerate((0, 1, 3) if wide else (0, 1)):
        total = sums[:, at : at + 1].clamp_min(1e-12)
        share = total / (total + _LEAST_WEIGHT)
        means.append(of_colour[:, 2 * k] / total / sigma_NCHW * share)
        means.append((of_colour[:, 2 * k + 1] / total - base_NCHW) / sigma_NCHW * share)
        spread = (sums[:, at + 1 : at + 2].sqrt() / total).clamp_max(1)
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
    wide : bool
        With the means over wide patches, as of `similar_sums`.
    """

    def __init__(self, colours: int, channels: int = 48, layers: int = 4, wide: bool = False) -> None:
        super().__init__()
        if colours not in (1, 3) or layers % 2:
            raise ValueError(f"expected 1 or 3 colours and an even number of layers: {colours}, {layers}")
        self.colours = colours
        self.stride = STRIDE
        self.wide = wide
        self.halo = _margin(wide) + 2 * (layers + 2) + 2 * _FAR + 1
        means = count_means(wide)
        per_pixel = (2 + means) * colours + 1 + means // 2
        self.head = nn.Conv2d(4 * per_pixel + 5 * means, channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.tail = nn.Conv2d(channels, 4 * means * colours, 3, padding=1)

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
        """Return the products of noise and K means, means over colours and 2 x 2 px: 5 K / 2 for each."""
        with_noise = (noise_NCHW[:, None] * means_NKCHW).mean(2)
        squares = means_NKCHW.square().mean(2)
        pairs = (means_NKCHW[:, ::2] * means_NKCHW[:, 1::2]).mean(2)
        return functional.avg_pool2d(torch.cat([with_noise, squares, pairs], 1), 2)


def _told(together_NKHW: Tensor) -> Tensor:
    """Return what goes into the first layer of products in a window: regressions and powers."""
    means = together_NKHW.shape[1] * 2 // 5
    with_noise, squares, pairs = torch.tensor_split(together_NKHW, (means, 2 * means), 1)
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
        kernel = self.kernel and x_NCHW.device.type == "cpu"
        means, unsure = similar_means(base, x_NCHW, sigma, wide=self.gates.wide, kernel=kernel)
        correction: Tensor = self.gates(base, noise, means, unsure, sigma)
        return noise - correction
