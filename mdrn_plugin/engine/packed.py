"""Running a network for Bayer mosaics: the way of the RAW models of the zoo.

Such a network is called as ``network(x, sigma)``, or ``network(x)`` if its ``noise_map`` is false:
0 is black, 1 is white; sigma is the standard deviation of the noise of each value in the same unit; it
returns the denoised values. One with four ``colours`` (FAN) takes packed mosaics: half the height and
width, channels red, green of the red rows, green of the blue rows, blue. One with a single colour
(MWRCANet) takes the mosaic itself, beginning with red, and perhaps ``pooled``: statistics of the
whole picture, which all tiles share.

Stride and halo of a descriptor count values of what the network takes, the tile counts pixels.
Shapes: ``_HW`` a mosaic, ``_11HW`` the same for torch; N4HW packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.engine.device import is_out_of_memory
from mdrn_plugin.engine.mosaic import blended, keep_clipped
from mdrn_plugin.engine.run import smaller_job, store
from mdrn_plugin.engine.tiles import Tile, cut
from mdrn_plugin.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from mdrn_plugin.engine.mosaic import MosaicRoute
    from mdrn_plugin.engine.run import Job, Stop


_POOLED_PX = 512  # side of the windows whose statistics stand for a picture


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
    while True:
        try:
            run = _Run(job)
            run.look_at(source_HW, route)
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
                after_HW = _denoised(z_HW, (tile.read_top, tile.read_left), run, route)
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


def _tiles(height: int, width: int, job: Job) -> list[Tile]:
    grid = _grid(job)
    halo = job.halo * (grid // job.stride)
    return cut(height, width, max(grid, job.tile // grid * grid), -(-halo // grid) * grid, grid)


def _grid(job: Job) -> int:
    """Return the network's stride in pixels of the mosaic, even."""
    packs = getattr(job.network, "colours", 4) == 4
    return 2 * job.stride if packs else int(np.lcm(job.stride, 2))


def _denoised(
    z_HW: NDArray[Any], place: tuple[int, int], run: _Run, route: MosaicRoute
) -> NDArray[np.float32]:
    """Return the denoised values of a window that begins at `place`, units of the file."""
    mosaic = route.mosaic
    height, width = z_HW.shape
    black_HW = mosaic.blacks_at(*place, height, width)
    x, sigma, (top, left) = _as_seen(z_HW, place, run.grid, route)
    with torch.inference_mode(), torch.autocast(run.device.split(":")[0], enabled=False):
        d_11HW = run.eightfold(x, sigma) if run.ensemble else run.once(x, sigma)
    d_HW = d_11HW[0, 0, top : top + height, left : left + width].cpu().numpy()
    return np.asarray(d_HW * np.float32(mosaic.white - mosaic.floor) + black_HW, np.float32)


def _as_seen(
    z_HW: NDArray[Any], place: tuple[int, int], grid: int, route: MosaicRoute
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return values 0..1 and their noise with red first and sides on the grid, and how much is in front."""
    mosaic = route.mosaic
    height, width = z_HW.shape
    unit = np.float32(mosaic.white - mosaic.floor)
    x_HW = ((z_HW - mosaic.blacks_at(*place, height, width)) / unit).astype(np.float32)
    x_HW = np.nan_to_num(x_HW, nan=0.0, posinf=1.0, neginf=0.0)
    sigma_HW = np.empty_like(x_HW)
    colour_HW = mosaic.colours_at(*place, height, width)
    for k, curve in enumerate(route.curves):
        chosen = colour_HW == k
        # What lies under black has the noise of black, beyond white that of white: as in training.
        signal = mosaic.floor + np.clip(x_HW[chosen], 0.0, 1.0) * unit
        sigma_HW[chosen] = np.sqrt(curve.variance(signal)) / unit
    # In front until a red pixel is first, behind until the grid fits: mirrored, which keeps the colours
    # in their places.
    first = next((k, n) for k in (0, 1) for n in (0, 1) if mosaic.pattern[k][n] == 0)
    top, left = (first[0] - place[0]) % 2, (first[1] - place[1]) % 2
    rim = ((top, (-height - top) % grid), (left, (-width - left) % grid))
    short = any(max(r) >= n for r, n in zip(rim, x_HW.shape, strict=True))
    x, sigma = (
        torch.from_numpy(np.pad(v, rim, mode="symmetric" if short else "reflect"))[None, None]
        for v in (x_HW, sigma_HW)
    )
    return x, sigma, (top, left)


class _Run:
    """A network on a device, and what all its tiles share."""

    def __init__(self, job: Job) -> None:
        self.network = job.network.to(job.device)
        self.device = job.device
        self.ensemble = job.ensemble == 8
        self.packs = getattr(job.network, "colours", 4) == 4
        self.grid = _grid(job)
        self.pooled: list[Tensor] | None = None

    def look_at(self, source_HW: Any, route: MosaicRoute) -> None:
        """Take the statistics of a picture, the mean of those of windows spread over it."""
        pool = getattr(self.network, "pooled", None)
        if pool is None:
            return
        height, width = source_HW.shape
        found = []
        for k, n in [(0, 0), (0, 1), (1, 0), (1, 1)] if min(height, width) > _POOLED_PX else [(0, 0)]:
            # Not the corners: the middles of the four quarters.
            top = max(0, (1 + 2 * k) * height // 4 - _POOLED_PX // 2) // 2 * 2
            left = max(0, (1 + 2 * n) * width // 4 - _POOLED_PX // 2) // 2 * 2
            z_HW = np.asarray(source_HW[top : top + _POOLED_PX, left : left + _POOLED_PX])
            x, sigma, _ = _as_seen(z_HW, (top, left), self.grid, route)
            with torch.inference_mode():
                found.append(pool(*self._inputs(x, sigma)))
        self.pooled = [torch.stack(list(each)).mean(0) for each in zip(*found, strict=True)]

    def once(self, x_11HW: Tensor, sigma_11HW: Tensor) -> Tensor:
        """Return the denoised mosaic."""
        inputs = self._inputs(x_11HW, sigma_11HW)
        more = {} if self.pooled is None else {"pooled": self.pooled}
        found: Tensor = self.network(*inputs, **more).float()
        return functional.pixel_shuffle(found, 2) if self.packs else found

    def _inputs(self, x_11HW: Tensor, sigma_11HW: Tensor) -> list[Tensor]:
        both = [x_11HW, sigma_11HW] if getattr(self.network, "noise_map", True) else [x_11HW]
        both = [t.to(self.device) for t in both]
        return [functional.pixel_unshuffle(t, 2) for t in both] if self.packs else both

    def eightfold(self, x_11HW: Tensor, sigma_11HW: Tensor) -> Tensor:
        """Return the mean over eight symmetries in which red stays first.

        A flipped mosaic begins with green: one line is mirrored in front of it, and as many behind
        as the grid asks for (Bayer-preserving augmentation, Liu et al., CVPR Workshops 2019).
        """
        height, width = x_11HW.shape[2:]
        total = torch.zeros_like(x_11HW)
        for flips in ((), (2,), (3,), (2, 3)):
            rim = [int(k in flips) * n for k in (3, 2) for n in (1, self.grid - 1)]

            def turn(t: Tensor, flips: tuple[int, ...] = flips, rim: list[int] = rim) -> Tensor:
                return functional.pad(t.flip(flips), rim, mode="reflect") if flips else t

            for transposed in (False, True):
                seen = [turn(t) for t in (x_11HW, sigma_11HW)]
                seen = [t.transpose(2, 3).contiguous() if transposed else t for t in seen]
                found = self.once(seen[0], seen[1]).to(total)
                found = found.transpose(2, 3) if transposed else found
                found = found[:, :, rim[2] : rim[2] + height, rim[0] : rim[0] + width]
                total += found.flip(flips) if flips else found
        return total / 8
