"""One part of a plane by a plan, aligned as the whole plane would be: what volumes are made of.

A window reads its surroundings as far as the network sees, and no further than the plane; its
tiles lie on the grid of the whole plane. So what comes out depends on the plan and on the window,
not on who computes it nor on what was computed before.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.engine.device import threads
from mdrn_plugin.engine.planes import job_of
from mdrn_plugin.engine.routes import Route, grid_of, margin_of, run_route
from mdrn_plugin.engine.run import run_plane
from mdrn_plugin.engine.tiles import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mdrn_plugin.engine.run import Stop
    from mdrn_plugin.plan import Plan
    from mdrn_plugin.zoo import Zoo


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a plane in memory that is sliced by the coordinates of the plane.

    Attributes
    ----------
    pixels : ndarray (h, w, C)
        Any dtype, file units.
    top, left : int
        Where in the plane it lies, px.
    height, width : int
        Of the plane, px.
    """

    pixels: NDArray[Any]
    top: int
    left: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the plane: rows, columns, samples."""
        return self.height, self.width, int(self.pixels.shape[2])

    def __getitem__(self, place: tuple[slice, slice]) -> NDArray[Any]:
        """Return a view; rows and columns are those of the plane."""
        return self.pixels[self._inside(place)]

    def __setitem__(self, place: tuple[slice, slice], values: NDArray[Any]) -> None:
        """Set a part; rows and columns are those of the plane."""
        self.pixels[self._inside(place)] = values

    def samples(self, chosen: slice) -> Part:
        """Return the same part with some of the samples."""
        return dataclasses.replace(self, pixels=self.pixels[:, :, chosen])

    def _inside(self, place: tuple[slice, slice]) -> tuple[slice, slice]:
        rows, columns = place
        found = (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )
        if min(found[0].start, found[1].start) < 0:
            raise AssertionError(f"{place} begins before the part at {self.top}, {self.left}")
        if found[0].stop > self.pixels.shape[0] or found[1].stop > self.pixels.shape[1]:
            raise AssertionError(f"{place} ends behind the part at {self.top}, {self.left}")
        return found


def grid_of_plan(plan: Plan) -> int:
    """Return what the origins of windows are multiples of, px."""
    return math.lcm(1, *(grid_of(step.stride) for step in plan.steps))


def margin_of_plan(plan: Plan) -> int:
    """Return how many px around a window are read."""
    margins = [0]
    for step in plan.steps:
        if step.model is not None:
            margins.append(margin_of(step.halo, step.stride) if step.curves else step.halo)
    return max(margins)


def around(window: Window, margin: int, height: int, width: int) -> Window:
    """Return the window with its margin, cut at the border of the plane."""
    return Window(
        max(0, window.top - margin),
        min(height, window.bottom + margin),
        max(0, window.left - margin),
        min(width, window.right + margin),
    )


def run_window(
    source: Part,
    target: Part,
    window: Window,
    plan: Plan,
    step: int,
    zoo: Zoo,
    *,
    tile_done: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> None:
    """Denoise a window of a plane into `target`.

    Parameters
    ----------
    source : Part
        Holds the window and `margin_of_plan` around it, as far as the plane goes.
    target : Part
        Holds the window; same dtype as `source`.
    window : Window
        Begins at multiples of `grid_of_plan`.
    plan : Plan
        Its tile is not changed: if memory runs out, that is an error.
    step : int
        Which of ``plan.steps``: the channel (C) of the plane.
    zoo : Zoo
        Where the plan's models are.
    tile_done, stop : callable, optional
        As of `engine.run.run_plane`.

    Raises
    ------
    OutOfMemory, Cancelled
    """
    chosen = plan.steps[step]
    place = np.s_[window.top : window.bottom, window.left : window.right]
    job = job_of(plan, chosen, zoo)
    if job is None:
        target[place] = source[place]
        return
    # Another tile would be another plan, and the blocks of other workers have this one.
    job = dataclasses.replace(job, user_tile=True)
    route = Route(chosen.curves, chosen.spectra, chosen.buried) if chosen.curves else None
    samples = source.shape[2]
    with threads(plan.threads):
        for part in [slice(None)] if plan.joint else [slice(s, s + 1) for s in range(samples)]:
            # Sliced like an array of the whole plane, which is all that is asked of them.
            before: Any = source.samples(part)
            after: Any = target.samples(part)
            if route is None:
                run_plane(before, after, job, window=window, tile_done=tile_done, stop=stop)
            else:
                inner = route.part(part)
                run_route(before, after, job, inner, window=window, tile_done=tile_done, stop=stop)
