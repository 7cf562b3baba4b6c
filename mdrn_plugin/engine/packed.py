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

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.engine.device import FAN_KERNEL, is_out_of_memory
from mdrn_plugin.engine.mosaic import blended, keep_clipped
from mdrn_plugin.engine.run import smaller_job, store
from mdrn_plugin.engine.tiles import Tile, cut
from mdrn_plugin.errors import Cancelled, NotSupported
from mdrn_plugin.networks import fan_native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mdrn_plugin.engine.mosaic import MosaicRoute
    from mdrn_plugin.engine.run import Job, Stop
    from mdrn_plugin.noise.curve import NoiseCurve


_POOLED_PX = 512  # side of the windows whose statistics stand for a picture
_ROWS = 32  # go from file to network and back at a time: they stay in the caches
# The compiled kernel goes down a band of columns row by row: a tall tile costs it no memory to speak of
# and saves the halo. Of a small picture they are shorter, so that there are some for every thread.
_TALL, _TILES_PER_THREAD = 4, 3


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
    """Denoise a Bayer mosaic into `target_HW`; parameters and errors as of `engine.mosaic.run_mosaic`.

    With the compiled kernel, threads share the tiles among themselves; `tile_done` and `stop` are
    called by the caller's thread all the same.

    Raises
    ------
    NotSupported
        The precision is that of the compiled kernel, which is not here: another would give other bytes.
    """
    while True:
        try:
            run = _Run(job, route, np.dtype(source_HW.dtype))
            run.look_at(source_HW)
            height, width = source_HW.shape

            def one(tile: Tile, run: _Run = run) -> None:
                _run_tile(source_HW, target_HW, tile, run)

            for _ in _each(one, _tiles(height, width, job), run.workers, stop):
                if tile_done is not None:
                    tile_done()
            return job
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            job = smaller_job(job, error)


def _each(do: Callable[[Tile], None], tiles: list[Tile], workers: int, stop: Stop | None) -> Iterator[Tile]:
    """Do all tiles, as many at a time as there are workers; yield each when it is done."""

    def go_on() -> None:
        if stop is not None and stop():
            raise Cancelled("stopped on request; nothing was written")

    if workers == 1:
        for tile in tiles:
            go_on()
            do(tile)
            yield tile
        return
    with ThreadPoolExecutor(workers) as pool:
        running: deque[tuple[Tile, Future[None]]] = deque()
        for tile in tiles:
            if len(running) == workers:
                yield _done(running)
            go_on()
            running.append((tile, pool.submit(do, tile)))
        while running:
            yield _done(running)


def _done(running: deque[tuple[Tile, Future[None]]]) -> Tile:
    tile, future = running.popleft()
    future.result()  # its error is raised here
    return tile


def _run_tile(source_HW: Any, target_HW: NDArray[Any], tile: Tile, run: _Run) -> None:
    z_HW = np.asarray(source_HW[tile.read_top : tile.read_bottom, tile.read_left : tile.read_right])
    rows = slice(tile.top - tile.read_top, tile.bottom - tile.read_top)
    columns = slice(tile.left - tile.read_left, tile.right - tile.read_left)
    place = target_HW[tile.top : tile.bottom, tile.left : tile.right]
    d_HW = run.denoised(z_HW, (tile.read_top, tile.read_left))
    route, job = run.route, run.job
    if route.strength != route.chroma_strength:  # luminance is what neighbours have in common
        after_HW = run.in_units_of_the_file(d_HW, tile.read_top, tile.read_left)
        result = blended(z_HW, after_HW, route)[rows, columns]
        stored = store(result, z_HW.dtype, job.saturate)
        place[...] = keep_clipped(z_HW[rows, columns], result, stored, route)
        return
    z_HW, d_HW = z_HW[rows, columns], d_HW[rows, columns]
    for top in range(0, len(z_HW), _ROWS):
        part = slice(top, top + _ROWS)
        after_HW = run.in_units_of_the_file(d_HW[part], tile.top + top, tile.left)
        result = blended(z_HW[part], after_HW, route)
        stored = store(result, z_HW.dtype, job.saturate)
        place[part] = keep_clipped(z_HW[part], result, stored, route)


def _tiles(height: int, width: int, job: Job) -> list[Tile]:
    grid = _grid(job)
    halo = -(-job.halo * (grid // job.stride) // grid) * grid
    tile = max(grid, job.tile // grid * grid)
    if job.precision != FAN_KERNEL or job.user_tile or job.ensemble == 8:
        return cut(height, width, tile, halo, grid)
    rows = _TALL * tile
    while (
        rows > tile
        and len(cut(height, width, tile, halo, grid, rows=rows)) < _TILES_PER_THREAD * torch.get_num_threads()
    ):
        rows //= 2
    return cut(height, width, tile, halo, grid, rows=max(tile, rows // grid * grid))


def _grid(job: Job) -> int:
    """Return the network's stride in pixels of the mosaic, even."""
    packs = getattr(job.network, "colours", 4) == 4
    return 2 * job.stride if packs else int(np.lcm(job.stride, 2))


class _Run:
    """A network on a device, and what all its tiles share."""

    def __init__(self, job: Job, route: MosaicRoute, dtype: np.dtype[Any]) -> None:
        self.job, self.route = job, route
        self.native = _native(job)
        self.network = job.network.to(job.device)
        self.device = job.device
        self.ensemble = job.ensemble == 8
        self.packs = getattr(job.network, "colours", 4) == 4
        self.grid = _grid(job)
        self.workers = torch.get_num_threads() if self.native else 1
        self.pooled: list[Tensor] | None = None
        self.unit = np.float32(route.mosaic.white - route.mosaic.floor)
        self.tables = self._tables(dtype)

    def _tables(self, dtype: np.dtype[Any]) -> list[list[tuple[NDArray[np.float32], ...]]] | None:
        """Return value and deviation for everything that a pixel of each place can hold, if it is little."""
        if dtype.kind != "u" or dtype.itemsize > 2:
            return None
        z_N = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
        made: dict[tuple[float, NoiseCurve], tuple[NDArray[np.float32], ...]] = {}
        for key in itertools.chain.from_iterable(self._kinds()):
            if key not in made:
                made[key] = self._formula(z_N, *key)
        return [[made[key] for key in row] for row in self._kinds()]

    def _kinds(self) -> list[list[tuple[float, NoiseCurve]]]:
        """Return black and curve of each place of the pattern."""
        mosaic = self.route.mosaic
        return [
            [(black, self.route.curves[k]) for black, k in zip(*both, strict=True)]
            for both in zip(mosaic.black, mosaic.pattern, strict=True)
        ]

    def _formula(self, z: NDArray[Any], black: float, curve: NoiseCurve) -> tuple[NDArray[np.float32], ...]:
        """Return values 0..1 and their noise, units of white."""
        x = ((z - np.float32(black)) / self.unit).astype(np.float32)
        x = np.nan_to_num(x, nan=0.0, posinf=1.0, neginf=0.0)
        # What lies under black has the noise of black, beyond white that of white: as in training.
        signal: Any = self.route.mosaic.floor + np.clip(x, 0.0, 1.0) * self.unit
        return x, (np.sqrt(curve.variance(signal)) / self.unit).astype(np.float32)

    def _levels(self, z_HW: NDArray[Any], top: int, left: int) -> tuple[NDArray[np.float32], ...]:
        """Return values 0..1 and their noise of a window that begins at a place of the mosaic."""
        kinds = self._kinds()
        alike = len(set(itertools.chain.from_iterable(kinds))) == 1
        x_HW, sigma_HW = (np.empty(z_HW.shape, np.float32) for _ in range(2))
        for first in range(0, len(z_HW), _ROWS):  # even: the pattern begins anew
            rows = slice(first, first + _ROWS)
            if alike and self.tables is not None:
                for table, out in zip(self.tables[0][0], (x_HW, sigma_HW), strict=True):
                    np.take(table, z_HW[rows], out=out[rows], mode="clip")
                continue
            for i, j in itertools.product(range(1) if alike else range(2), repeat=2):
                some = np.s_[rows] if alike else np.s_[first + i : first + _ROWS : 2, j::2]
                kind = (top + i) % 2, (left + j) % 2
                if self.tables is not None:
                    found = tuple(table[z_HW[some]] for table in self.tables[kind[0]][kind[1]])
                else:
                    found = self._formula(z_HW[some], *kinds[kind[0]][kind[1]])
                x_HW[some], sigma_HW[some] = found
        return x_HW, sigma_HW

    def _as_seen(self, z_HW: NDArray[Any], place: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return values 0..1 and their noise with red first, sides on the grid, and how much is in front."""
        height, width = z_HW.shape
        # In front until a red pixel is first, behind until the grid fits: mirrored, which keeps the colours
        # in their places.
        pattern = self.route.mosaic.pattern
        first = next((k, n) for k in (0, 1) for n in (0, 1) if pattern[k][n] == 0)
        top, left = (first[0] - place[0]) % 2, (first[1] - place[1]) % 2
        rim = ((top, (-height - top) % self.grid), (left, (-width - left) % self.grid))
        short = any(max(r) >= n for r, n in zip(rim, z_HW.shape, strict=True))
        if any(map(any, rim)) and not short:
            z_HW = np.pad(z_HW, rim, mode="reflect")
            place = place[0] - top, place[1] - left
        both = self._levels(z_HW, *place)
        if short:
            both = tuple(np.pad(v, rim, mode="symmetric") for v in both)
        x, sigma = (torch.from_numpy(v)[None, None] for v in both)
        return x, sigma, (top, left)

    def denoised(self, z_HW: NDArray[Any], place: tuple[int, int]) -> NDArray[np.float32]:
        """Return the denoised values of a window that begins at `place`, 0..1."""
        height, width = z_HW.shape
        x, sigma, (top, left) = self._as_seen(z_HW, place)
        with torch.inference_mode(), torch.autocast(self.device.split(":")[0], enabled=False):
            d_11HW = self.eightfold(x, sigma) if self.ensemble else self.once(x, sigma)
        found: NDArray[np.float32] = d_11HW[0, 0, top : top + height, left : left + width].cpu().numpy()
        return found

    def in_units_of_the_file(self, d_HW: NDArray[np.float32], top: int, left: int) -> NDArray[np.float32]:
        """Return values 0..1 of a window that begins at a place of the mosaic as the file has them."""
        mosaic = self.route.mosaic
        alike = len(set(itertools.chain.from_iterable(mosaic.black))) == 1
        black: Any = np.float32(mosaic.floor) if alike else mosaic.blacks_at(top, left, *d_HW.shape)
        return np.asarray(d_HW * self.unit + black, np.float32)

    def look_at(self, source_HW: Any) -> None:
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
            x, sigma, _ = self._as_seen(z_HW, (top, left))
            with torch.inference_mode():
                found.append(pool(*self._inputs(x, sigma)))
        self.pooled = [torch.stack(list(each)).mean(0) for each in zip(*found, strict=True)]

    def once(self, x_11HW: Tensor, sigma_11HW: Tensor) -> Tensor:
        """Return the denoised mosaic."""
        if self.native is not None:
            sigma_HW = sigma_11HW[0, 0] if self.native.noise_map else None
            return self.native.denoised(x_11HW[0, 0], sigma_HW)[None, None]
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


_natives: dict[int, tuple[nn.Module, fan_native.NativeFAN | None]] = {}


def _native(job: Job) -> fan_native.NativeFAN | None:
    """Return the compiled form of a network if the plan says so and it has one; made once and kept."""
    if job.precision != FAN_KERNEL:
        return None
    if fan_native.library() is None:
        raise NotSupported(
            f"precision {job.precision}: the plan was made where FAN's compiled kernel runs, and here it is "
            f"not ({fan_native.why_not()}); plan again on this machine, or everywhere with --precision fp32"
        )
    key = id(job.network)
    if key not in _natives:
        made = fan_native.NativeFAN(job.network) if fan_native.fits(job.network) else None  # type: ignore[arg-type]
        _natives[key] = (job.network, made)  # the network too: its id must not be used again
    return _natives[key][1]
