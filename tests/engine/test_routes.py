"""The ways around the network: pieces equal the whole, types come back, the mean is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mdrn_plugin.engine import routes
from mdrn_plugin.engine.routes import Route, count_route_tiles, run_route
from mdrn_plugin.engine.run import Job
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN, exact_halo
from mdrn_plugin.noise import NoiseCurve
from mdrn_plugin.noise.correlation import as_table

LINE = NoiseCurve("line", 0.02, 0.0004)
FLAT = NoiseCurve("constant", 0.0, 0.0, mean=0.01)
FALLING = as_table(np.exp(-np.add.outer(np.arange(16), np.arange(16)) / 6.0) + 0.02)


def _job(**changes: Any) -> Job:
    torch.manual_seed(0)
    network = MDRN(1, 1)
    with torch.no_grad():
        network.tail.weight.mul_(0.2)
    job = Job(FoldedMDRN(network).eval(), black=1.0, gain=0.1, tile=64, halo=exact_halo(1), stride=8)
    return dataclasses.replace(job, **changes)


def _values(shape: tuple[int, int] = (150, 170)) -> Any:
    y, x = np.mgrid[: shape[0], : shape[1]] / 64
    clean = 0.4 + 0.3 * np.sin(2 * x) * np.cos(3 * y)
    return (0.02 * np.random.default_rng(0).poisson(clean / 0.02)).astype(np.float32)[..., None]


def _run(pixels: Any, job: Job, route: Route) -> Any:
    out = np.empty_like(pixels)
    run_route(pixels, out, job, route)
    return out


@pytest.mark.parametrize(
    "route", [Route((LINE,)), Route((FLAT,), (FALLING,))], ids=["stabilised", "correlated"]
)
def test_route_in_pieces_equals_the_whole(route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    values, job = _values(), _job()
    whole = _run(values, job, route)
    monkeypatch.setattr(routes, "_PIECE_PX", 64)
    np.testing.assert_allclose(_run(values, job, route), whole, atol=2e-5)
    assert np.abs(whole - values).max() > 1e-3


def test_route_counts_the_tiles_it_runs() -> None:
    for route in (Route((LINE,)), Route((FLAT,), (FALLING,))):
        done: list[int] = []
        values = _values()
        run_route(values, np.empty_like(values), _job(), route, tile_done=lambda: done.append(1))  # noqa: B023
        assert len(done) == count_route_tiles(150, 170, _job(), route)


def test_route_strength_lies_between_and_zero_is_the_input() -> None:
    values, route = _values(), Route((LINE,))
    full = _run(values, _job(), route)
    np.testing.assert_array_equal(_run(values, _job(strength=0.0), route), values)
    np.testing.assert_allclose(_run(values, _job(strength=0.5), route), (values + full) / 2, atol=1e-6)


def test_route_values_not_finite_stay_and_do_not_spread() -> None:
    values = _values()
    values[40, 50], values[90, 100] = np.nan, np.inf
    out = _run(values, _job(fill=1.0), Route((FLAT,), (FALLING,)))
    assert np.isnan(out[40, 50, 0])
    assert np.isinf(out[90, 100, 0])
    assert np.isfinite(np.delete(out.ravel(), [40 * 170 + 50, 90 * 170 + 100])).all()


def test_route_integers_saturate() -> None:
    pixels = np.clip(255 * _values() * 1.3, 0, 255).astype(np.uint8)
    curve = LINE.rescaled(0.0, 255.0)
    out = _run(pixels, _job(saturate=(0, 255)), Route((curve,)))
    assert out.dtype == np.uint8
    assert np.mean(np.abs(out.astype(float) - pixels)) < 40


def test_route_samples_have_their_own_curve() -> None:
    route = Route((LINE, FLAT), (FALLING, FALLING))
    assert route.part(slice(1, 2)) == Route((FLAT,), (FALLING,))
    assert route.passes == 2
    assert Route((LINE,)).part(slice(None)).passes == 1
