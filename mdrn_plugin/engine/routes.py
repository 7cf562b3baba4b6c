"""What is done around the network for noise that it was not trained on, piece by piece of a plane.

Stabilise, fill up to white, run, put detail back, return to the picture's values: all on pieces of
at most `_PIECE_PX` a side with a margin around them, so that memory is bounded by the piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.engine.run import count_tiles, run_plane, store
from mdrn_plugin.engine.tiles import Tile, Window, cut
from mdrn_plugin.noise.correlation import SIDE, filling_noise, put_detail_back
from mdrn_plugin.noise.stabilise import stabiliser

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mdrn_plugin.engine.run import Job, Stop
    from mdrn_plugin.noise.correlation import Spectrum
    from mdrn_plugin.noise.curve import NoiseCurve

_PIECE_PX = 2048
_ROWS = 128  # transformed at a time: double precision in between


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What a step asks for, sample by sample.

    Attributes
    ----------
    curves : tuple of NoiseCurve
        Variance of each sample, units of the file.
    spectra : tuple of Spectrum
        Of correlated noise; empty if it is white.
    buried : bool
        As of `plan.Step`.
    """

    curves: tuple[NoiseCurve, ...]
    spectra: tuple[Spectrum, ...] = ()
    buried: bool = False

    @property
    def passes(self) -> int:
        """How often the network runs: with the filling noise added, and with it subtracted."""
        return 2 if self.spectra else 1

    def part(self, samples: slice) -> Route:
        """Return the route of some of the samples."""
        return Route(self.curves[samples], self.spectra[samples], self.buried)


def count_route_tiles(height: int, width: int, job: Job, route: Route) -> int:
    """Return how many tiles `run_route` will go through."""
    tiles = sum(
        count_tiles(p.read_bottom - p.read_top, p.read_right - p.read_left, job)
        for p in _pieces(height, width, job)
    )
    return route.passes * tiles


def run_route(
    source_HWC: Any,
    target_HWC: NDArray[Any],
    job: Job,
    route: Route,
    *,
    window: Window | None = None,
    tile_done: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> Job:
    """Denoise one plane into `target_HWC` by a route; otherwise as `run_plane`.

    Parameters
    ----------
    source_HWC, target_HWC, window, tile_done, stop
        As of `run_plane`; a window begins at a multiple of `grid_of`.
    job : Job
        Black, gain and fill are those of the stabilised values.
    route : Route
        One curve (and spectrum) per sample.
    """
    height, width = source_HWC.shape[:2]
    inner = dataclasses.replace(job, strength=1.0, saturate=None)
    for piece in _pieces(height, width, job, window):
        z_HWC = np.asarray(source_HWC[piece.read_top : piece.read_bottom, piece.read_left : piece.read_right])
        f_HWC = stabilised(z_HWC, route)
        d_HWC = np.zeros_like(f_HWC)
        for sign in (1, -1)[: route.passes]:
            seen = f_HWC + sign * _filling(f_HWC, route, piece) if route.spectra else f_HWC
            out = np.empty_like(f_HWC)
            inner = run_plane(seen, out, inner, tile_done=tile_done, stop=stop)
            d_HWC += out / route.passes
        for k, spectrum in enumerate(route.spectra):
            d_HWC[..., k] = put_detail_back(f_HWC[..., k], d_HWC[..., k], spectrum, buried=route.buried)
        kept = np.s_[
            piece.top - piece.read_top : piece.bottom - piece.read_top,
            piece.left - piece.read_left : piece.right - piece.read_left,
        ]
        result_HWC = np.empty(z_HWC[kept].shape, z_HWC.dtype)
        _bring_back(z_HWC[kept], d_HWC[kept], result_HWC, route, job)
        target_HWC[piece.top : piece.bottom, piece.left : piece.right] = result_HWC
    return dataclasses.replace(job, tile=inner.tile, device=inner.device, precision=inner.precision)


def grid_of(stride: int) -> int:
    """Return what the origins of pieces are multiples of: the network's grid and that of the refinement."""
    return int(np.lcm(stride, SIDE))


def margin_of(halo: int, stride: int) -> int:
    """Return how many px around a piece are read: the refinement's blocks and the tiles both need some."""
    grid = grid_of(stride)
    return -(-(halo + SIDE) // grid) * grid


def _pieces(height: int, width: int, job: Job, window: Window | None = None) -> Iterator[Tile]:
    grid = grid_of(job.stride)
    margin = margin_of(job.halo, job.stride)
    yield from cut(height, width, _PIECE_PX // grid * grid, margin, grid, window)


def stabilised(z_HWC: NDArray[Any], route: Route) -> NDArray[np.float32]:
    """Return the values of a piece with their noise of one level; a few rows at a time."""
    f_HWC = np.empty(z_HWC.shape, np.float32)
    for k, curve in enumerate(route.curves):
        forward = stabiliser(curve).forward
        for top in range(0, len(z_HWC), _ROWS):
            f_HWC[top : top + _ROWS, :, k] = forward(z_HWC[top : top + _ROWS, :, k])
    return f_HWC


def _filling(f_HWC: NDArray[np.float32], route: Route, piece: Tile) -> NDArray[np.float32]:
    rows, columns = f_HWC.shape[:2]
    place = (piece.read_top, piece.read_left, (rows, columns))
    return np.stack(
        [filling_noise(s, k, *place, buried=route.buried) for k, s in enumerate(route.spectra)], axis=2
    )


def _bring_back(
    z_HWC: NDArray[Any], d_HWC: NDArray[np.float32], target_HWC: NDArray[Any], route: Route, job: Job
) -> None:
    for k, curve in enumerate(route.curves):
        inverse = stabiliser(curve).inverse
        for top in range(0, len(z_HWC), _ROWS):
            before = z_HWC[top : top + _ROWS, :, k].astype(np.float64)
            after = inverse(d_HWC[top : top + _ROWS, :, k])
            with np.errstate(invalid="ignore"):
                blended = before + job.strength * (after - before)
            blended = np.where(np.isfinite(before), blended, before)
            target_HWC[top : top + _ROWS, :, k] = store(blended, z_HWC.dtype, job.saturate)
