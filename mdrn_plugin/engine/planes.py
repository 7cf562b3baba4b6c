"""Carrying out a plan: every plane of a picture, channel by channel, into an array."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.engine.backends import load_network
from mdrn_plugin.engine.device import threads
from mdrn_plugin.engine.flat_parts import measure_shares, take_rest
from mdrn_plugin.engine.mosaic import MosaicRoute, count_mosaic_tiles, run_mosaic
from mdrn_plugin.engine.packed import count_packed_tiles, run_packed
from mdrn_plugin.engine.routes import Route, count_route_tiles, run_route, stabilised
from mdrn_plugin.engine.run import Job, count_tiles, run_plane
from mdrn_plugin.networks.non_local import Refined
from mdrn_plugin.networks.scales import at_scales
from mdrn_plugin.picture import as_rows_columns_samples, samples_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.engine.run import Progress, Stop
    from mdrn_plugin.picture import Picture
    from mdrn_plugin.plan import Plan, Step
    from mdrn_plugin.zoo import Zoo


def run_plan(
    picture: Picture,
    out: Any,
    plan: Plan,
    zoo: Zoo,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Plan:
    """Denoise a picture into `out` as the plan says.

    Parameters
    ----------
    picture : Picture
        Never written to.
    out : ndarray or Streamed
        Shape and dtype of ``picture.pixels``; alpha is copied into it.
    plan : Plan
        One step per channel (C).
    zoo : Zoo
        Where the plan's models are.
    progress : callable, optional
        Called with (tiles done, tiles in all).
    stop : callable, optional
        Asked between tiles.

    Returns
    -------
    Plan
        As it was carried out: smaller tiles or another device if memory ran out, with a note.
    """
    if plan.mosaic is not None:
        return _run_mosaic_plan(picture, out, plan, zoo, progress, stop)
    jobs = [job_of(plan, step, zoo) for step in plan.steps]
    routes = [Route(step.curves, step.spectra, step.buried) if step.curves else None for step in plan.steps]
    planes = list(picture.planes())
    height, width = picture.length("Y"), picture.length("X")
    passes = 1 if plan.joint else picture.colours
    total = done = 0
    for index in planes:
        job, route = jobs[picture.channel_of(index)], routes[picture.channel_of(index)]
        if job is not None:
            tiles = count_route_tiles(height, width, job, route) if route else count_tiles(height, width, job)
            total += passes * tiles

    def tile_done() -> None:
        nonlocal done
        done = min(done + 1, total)
        if progress is not None:
            progress(done, total)

    written = dataclasses.replace(picture, pixels=out)
    if picture.alpha or None in jobs:
        for index in picture.bands():
            if picture.alpha or jobs[picture.channel_of(index)] is None:
                out[index] = np.asarray(picture.pixels[index])
    with threads(plan.threads):
        for index in planes:
            channel = picture.channel_of(index)
            job = jobs[channel]
            if job is None:
                continue
            before, after = picture.plane(index), written.plane(index)
            route = routes[channel]
            for part in [slice(None)] if plan.joint else [slice(s, s + 1) for s in range(picture.colours)]:
                places = (samples_of(before, part), samples_of(after, part))
                if route is None:
                    job = run_plane(*places, job, tile_done=tile_done, stop=stop)
                else:
                    job = run_route(*places, job, route.part(part), tile_done=tile_done, stop=stop)
            jobs[channel] = job
    return _as_carried_out(plan, jobs)


def take_rest_of_noise(picture: Picture, out: Any, plan: Plan) -> Plan:
    """Take what a network that is not told the noise left of it, in place; see `engine.flat_parts`.

    Parameters
    ----------
    picture, out, plan
        As of `run_plan`, which is over.

    Returns
    -------
    Plan
        With a note for each plane of which more was taken.
    """
    if not plan.joint or plan.mosaic is not None or plan.strength <= 0:
        return plan
    written = dataclasses.replace(picture, pixels=out)
    notes = []
    with threads(plan.threads):
        for index in picture.planes():
            if not plan.steps[picture.channel_of(index)].blind:
                continue
            before, after = (samples_of(p.plane(index), slice(None)) for p in (picture, written))
            shares = measure_shares(before, after, plan.strength)
            if shares:
                take_rest(before, after, shares, plan.saturate)
                notes.append(shares.explain())
    return dataclasses.replace(plan, notes=(*plan.notes, *dict.fromkeys(notes))) if notes else plan


def _run_mosaic_plan(
    picture: Picture, out: NDArray[Any], plan: Plan, zoo: Zoo, progress: Progress | None, stop: Stop | None
) -> Plan:
    job, wish, step = job_of(plan, plan.steps[0], zoo), plan.mosaic, plan.steps[0]
    assert wish is not None
    source = np.asarray(picture.pixels)
    if job is None:
        out[...] = source
        return plan
    route = MosaicRoute(wish.mosaic, step.curves, wish.window, plan.strength, wish.chroma_strength)
    packed = wish.kind == "network"
    height, width = source.shape
    total = done = 0

    def tile_done() -> None:
        nonlocal done
        done = min(done + 1, total)
        if progress is not None:
            progress(done, total)

    with threads(plan.threads):
        if packed:
            total = count_packed_tiles(height, width, job)
            job = run_packed(source, out, job, route, tile_done=tile_done, stop=stop)
        else:
            total = count_mosaic_tiles(height, width, job, route)
            job = run_mosaic(source, out, job, route, tile_done=tile_done, stop=stop)
    return _as_carried_out(plan, [job])


def network_planes(picture: Picture, plan: Plan) -> Iterator[tuple[Step, NDArray[np.float32]]]:
    """Yield what the networks of a plan are shown: (step, plane), float32, (samples, height, width).

    For training on a user's pictures: stabilised and scaled, so that the noise is white and of
    the level ``step.sigma_255``. The filling noise of correlated noise is not added.
    """
    for index in picture.planes():
        step = plan.steps[picture.channel_of(index)]
        source = np.asarray(picture.pixels[index])
        z_HWC = as_rows_columns_samples(source, picture.plane_axes, picture.alpha)
        for part in [slice(None)] if plan.joint else [slice(s, s + 1) for s in range(picture.colours)]:
            values = z_HWC[..., part]
            if step.curves:
                values = stabilised(values, Route(step.curves[part]))
            yield step, np.moveaxis(((values - step.black) * step.gain).astype(np.float32), 2, 0)


def job_of(plan: Plan, step: Step, zoo: Zoo) -> Job | None:
    """Return what the engine needs for one step; None if the channel is passed through."""
    if step.model is None:
        return None
    network = load_network(zoo, step.model, step.backend, plan.threads)
    if step.coarse:
        coarser = [load_network(zoo, scale.model, step.backend, plan.threads) for scale in step.coarse]
        network = at_scales([network, *coarser])
    if step.refinement is not None:
        gates = zoo.load(step.refinement.model)
        network = Refined(network, gates, step.sigma_255 / 255, kernel=step.refinement.means == "kernel")
    return Job(
        network=network,
        black=step.black,
        gain=step.gain,
        tile=step.tile,
        halo=step.halo,
        stride=step.stride,
        ensemble=plan.ensemble,
        device=plan.device,
        precision=plan.precision,
        strength=plan.strength,
        saturate=plan.saturate,
        fill=step.black + 0.5 / step.gain,
        user_tile=plan.user_tile,
    )


def _as_carried_out(plan: Plan, jobs: list[Job | None]) -> Plan:
    """Return the plan with what changed when memory ran out."""
    steps = tuple(
        step if job is None or job.tile == step.tile else dataclasses.replace(step, tile=job.tile)
        for step, job in zip(plan.steps, jobs, strict=True)
    )
    devices = {job.device for job in jobs if job}
    changed = steps != plan.steps or not devices <= {plan.device}
    if not changed:
        return plan
    device = "cpu" if "cpu" in devices else plan.device
    note = f"memory ran out: went on with tiles of {min(s.tile for s in steps)} px on {device}"
    return dataclasses.replace(plan, steps=steps, device=device, notes=(*plan.notes, note))
