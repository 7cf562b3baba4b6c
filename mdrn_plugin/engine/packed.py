"""Running a network for packed mosaics: the seam for models of the architecture "fan".

Such a network is called as ``network(x_N4HW, sigma_N4HW)``: half the mosaic's height and width,
channels red, green of the red rows, green of the blue rows, blue; 0 is black, 1 is white; sigma is
the standard deviation of the noise of each value in the same unit. It returns the denoised values.
A network without noise map (``noise_map`` false) is called with the first only. Stride and halo of
its descriptor count packed pixels, the tile counts pixels of the mosaic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mdrn_plugin.engine.device import is_out_of_memory
from mdrn_plugin.engine.run import smaller_job, store
from mdrn_plugin.engine.tiles import Tile, cut
from mdrn_plugin.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from mdrn_plugin.engine.mosaic import MosaicRoute
    from mdrn_plugin.engine.run import Job, Stop


def count_packed_tiles(height: int, width: int, job: Job) -> int:
    """Return how many tiles `run_packed` will go through."""
    return len(_tiles(height, width, job))


def run_packed(
    source_HW: Any,
    target_HW: NDArray[Any],
    job: Job,
    route: MosaicRoute,
    *,
    tile_done: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> Job:
    """Denoise a Bayer mosaic into `target_HW`; parameters and errors as of `engine.mosaic.run_mosaic`."""
    from mdrn_plugin.engine.mosaic import blended, keep_clipped

    network = job.network.to(job.device)
    while True:
        try:
            height, width = source_HW.shape
            for tile in _tiles(height, width, job):
                if stop is not None and stop():
                    raise Cancelled("stopped on request; nothing was written")
                read = np.s_[tile.read_top : tile.read_bottom, tile.read_left : tile.read_right]
                kept = np.s_[
                    tile.top - tile.read_top : tile.bottom - tile.read_top,
                    tile.left - tile.read_left : tile.right - tile.read_left,
                ]
                z_HW = np.asarray(source_HW[read])
                after_HW = _denoised(z_HW, tile, network, job, route)
                result = blended(z_HW, after_HW, route)[kept]
                stored = store(result, z_HW.dtype, job.saturate)
                place = target_HW[tile.top : tile.bottom, tile.left : tile.right]
                place[...] = keep_clipped(z_HW[kept], result, stored, route)
                if tile_done is not None:
                    tile_done()
            return job
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            job = smaller_job(job, error)
            network = job.network.to(job.device)


def _tiles(height: int, width: int, job: Job) -> list[Tile]:
    grid = 2 * job.stride
    return cut(height, width, max(grid, job.tile // grid * grid), -(-2 * job.halo // grid) * grid, grid)


def _denoised(
    z_HW: NDArray[Any], tile: Tile, network: torch.nn.Module, job: Job, route: MosaicRoute
) -> NDArray[np.float32]:
    mosaic = route.mosaic
    height, width = z_HW.shape
    place = (tile.read_top, tile.read_left, height, width)
    black_HW = mosaic.blacks_at(*place)
    x_HW = ((z_HW.astype(np.float32) - black_HW) / np.float32(mosaic.white - mosaic.floor)).astype(np.float32)
    sigma_HW = np.empty_like(x_HW)
    colour_HW = mosaic.colours_at(*place)
    for k, curve in enumerate(route.curves):
        chosen = colour_HW == k
        # The signal of the curve counts from the common black; what lies under it has the noise of black.
        signal = mosaic.floor + np.clip(x_HW[chosen], 0.0, 1.0) * (mosaic.white - mosaic.floor)
        sigma_HW[chosen] = np.sqrt(curve.variance(signal)) / (mosaic.white - mosaic.floor)
    # Rows and columns in front until a red pixel is first, and behind until the network's stride fits:
    # reflected, which keeps the colours in their places.
    first = next((k, n) for k in (0, 1) for n in (0, 1) if mosaic.pattern[k][n] == 0)
    top, left = (first[0] - tile.read_top) % 2, (first[1] - tile.read_left) % 2
    grid = 2 * job.stride
    rim = ((top, (-height - top) % grid), (left, (-width - left) % grid))
    x, sigma = (_packed(_mirrored(v, rim)).to(job.device) for v in (x_HW, sigma_HW))
    with torch.inference_mode(), torch.autocast(job.device.split(":")[0], enabled=False):
        run = _eightfold if job.ensemble == 8 else _once
        d_14HW = run(network, x, sigma)
    d_HW = torch.nn.functional.pixel_shuffle(d_14HW.float(), 2)[0, 0].cpu().numpy()
    d_HW = d_HW[top : top + height, left : left + width]
    return np.asarray(d_HW * np.float32(mosaic.white - mosaic.floor) + black_HW, np.float32)


def _mirrored(
    values_HW: NDArray[np.float32], rim: tuple[tuple[int, int], tuple[int, int]]
) -> NDArray[np.float32]:
    short = any(max(r) >= n for r, n in zip(rim, values_HW.shape, strict=True))
    return np.pad(values_HW, rim, mode="symmetric" if short else "reflect")


def _packed(values_HW: NDArray[np.float32]) -> Tensor:
    whole = torch.from_numpy(np.ascontiguousarray(values_HW))[None, None]
    return torch.nn.functional.pixel_unshuffle(whole, 2)


def _once(network: torch.nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    found: Tensor = network(x, sigma) if getattr(network, "noise_map", True) else network(x)
    return found


def _eightfold(network: torch.nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean over the eight symmetries, in which red stays first (Bayer-preserving).

    A turned mosaic begins with another colour: the channels are put back into their order, as if the
    mosaic had been cut one pixel further (Liu et al., CVPR Workshops 2019).
    """
    total = torch.zeros_like(x)
    for transposed in (False, True):
        for flips in ((), (2,), (3,), (2, 3)):

            def turn(t: Tensor, flips: tuple[int, ...] = flips, transposed: bool = transposed) -> Tensor:
                t = t.flip(flips) if flips else t
                return t.transpose(2, 3)[:, [0, 2, 1, 3]] if transposed else t

            found = _once(network, turn(x), turn(sigma)).float()
            found = found.transpose(2, 3)[:, [0, 2, 1, 3]] if transposed else found
            total += found.flip(flips) if flips else found
    return total / 8
