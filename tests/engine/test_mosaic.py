"""Mosaics through gray networks and through networks of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mdrn_plugin.engine.mosaic import MosaicRoute, blended, colour_offsets
from mdrn_plugin.engine.packed import count_packed_tiles, run_packed
from mdrn_plugin.engine.run import Job
from mdrn_plugin.mosaic import make_mosaic
from mdrn_plugin.networks.registry import build
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.plan import Options
from mdrn_plugin.plan_mosaic import noise_255, raw_model
from mdrn_plugin.zoo import Descriptor, Zoo, shipped

CURVE = NoiseCurve("line", 2.0, 40.0)


def _route(pattern: str = "RGGB", **wishes: Any) -> MosaicRoute:
    return MosaicRoute(make_mosaic(pattern, black=100, white=4000), (CURVE,) * 3, 7, **wishes)


def _scene(height: int = 96, width: int = 120) -> Any:
    y, x = np.mgrid[:height, :width]
    return 800 + 500 * np.sin(x / 9) * np.cos(y / 13) + 300 * (x > y)


@pytest.mark.parametrize("pattern", ["RGGB", "GBRG", "X-Trans"])
def test_offsets_of_a_coloured_scene_leave_a_gray_one(pattern: str) -> None:
    light = _scene() / 60
    mosaic = make_mosaic(pattern, white=4000)
    colour = mosaic.colours_at(0, 0, *light.shape)
    factor = np.array([0.5, 1.0, 0.7])[colour]
    plain = (light * factor).astype(np.float32)
    gray = plain - colour_offsets(plain, colour, 7, cell=mosaic.cell)
    inside = gray[12:-12, 12:-12]
    # Neighbours of a gray picture are alike; of a mosaic they are not.
    assert (
        np.abs(np.diff(inside, axis=1)).mean() < 0.3 * np.abs(np.diff(plain[12:-12, 12:-12], axis=1)).mean()
    )


def test_offsets_of_gray_are_next_to_nothing() -> None:
    light = (_scene() / 60).astype(np.float32)
    colour = make_mosaic("RGGB", white=4000).colours_at(0, 0, *light.shape)
    assert np.abs(colour_offsets(light, colour, 5, cell=2)[12:-12, 12:-12]).mean() < 0.15


@pytest.mark.parametrize(("light", "chroma"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_strengths_take_out_their_share(light: float, chroma: float) -> None:
    route = _route(strength=light, chroma_strength=chroma)
    noisy = np.random.default_rng(0).normal(1000, 30, (64, 64)).astype(np.float32)
    after = np.full_like(noisy, 1000)
    found = blended(noisy, after, route)
    if light == chroma:
        assert np.allclose(found, noisy + light * (after - noisy), atol=1e-3)
    else:
        common = (noisy - found).reshape(32, 2, 32, 2).mean(axis=(1, 3)).std()
        # Luminance alone takes what blocks have in common, colour alone leaves most of it.
        assert (common > 9) if light == 1 else (common < 9)


class _Shift(nn.Module):
    """Knows the four channels apart: adds 1, 2, 3, 4 hundredths to them."""

    colours = 4
    noise_map = True

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert x.shape == sigma.shape
        assert bool((sigma > 0).all())
        return x + torch.tensor([0.01, 0.02, 0.03, 0.04]).view(1, 4, 1, 1)


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (7, 5)])
def test_packed_gives_each_channel_its_colour(pattern: str, size: tuple[int, int]) -> None:
    mosaic = np.full(size, 1000.0, np.float32)
    out = np.empty_like(mosaic)
    route = _route(pattern)
    run_packed(mosaic, out, Job(_Shift(), 0, 1, 16, 8, 8), route)
    colour = route.mosaic.colours_at(0, 0, *size)
    added = (out - mosaic) / (4000 - 100) * 100
    assert np.allclose(added[colour == 0], 1, atol=1e-3)
    assert np.allclose(added[colour == 2], 4, atol=1e-3)
    assert set(np.rint(added[colour == 1]).astype(int).ravel()) == {2, 3}


def _network(architecture: str) -> nn.Module:
    torch.manual_seed(3)
    settings: dict[str, Any] = {"noise_map": True}
    if architecture == "mwrcanet":
        settings |= {"blocks": 1, "widths": (8, 8, 8)}
    network = build(architecture, settings).eval()
    return network.requires_grad_(False)


@pytest.mark.parametrize("architecture", ["fan", "mwrcanet"])
def test_packed_in_tiles_equals_whole_and_counts_them(architecture: str) -> None:
    network: Any = _network(architecture)
    size = (336, 400)
    mosaic = (_scene(*size) + np.random.default_rng(1).normal(0, 30, size)).astype(np.float32)
    route = _route("GBRG")
    halo = -(-network.halo // network.stride) * network.stride
    job = Job(network, 0, 1, 512, halo, network.stride)
    whole, tiled = np.empty_like(mosaic), np.empty_like(mosaic)
    run_packed(mosaic, whole, job, route)
    count = 0

    def tile_done() -> None:
        nonlocal count
        count += 1

    small = dataclasses.replace(job, tile=64)
    run_packed(mosaic, tiled, small, route, tile_done=tile_done)
    assert count == count_packed_tiles(*size, small) > 1
    assert np.abs(whole - tiled).max() < 1e-2 * np.abs(whole - mosaic).std() + 1e-2


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.transpose])
def test_packed_ensemble_does_not_care_how_the_picture_is_turned(turn: Callable[[Any], Any]) -> None:
    mosaic = (_scene(64, 64) + np.random.default_rng(1).normal(0, 30, (64, 64))).astype(np.float32)
    network: Any = _network("fan")
    job = Job(network, 0, 1, 512, network.halo, network.stride, ensemble=8)
    turned_name = {np.fliplr: "GRBG", np.flipud: "GBRG", np.transpose: "RGGB"}[turn]
    straight, turned = np.empty_like(mosaic), np.empty_like(mosaic)
    run_packed(mosaic, straight, job, _route("RGGB"))
    run_packed(np.ascontiguousarray(turn(mosaic)), turned, job, _route(turned_name))
    inside = np.s_[24:-24, 24:-24]  # the rims are mirrored at other places
    difference = (turn(straight) - turned)[inside]
    assert np.abs(difference).std() < 0.35 * np.abs(straight - mosaic)[inside].std()


def _descriptor(name: str, tier: str, band: tuple[float, float], architecture: str = "fan") -> Descriptor:
    return Descriptor(
        name,
        "f",
        "0",
        architecture,
        {"colours": 4},
        tier,
        4,
        band,
        band,
        stride=8,
        halo=40,
        default_halo=40,
        psnr={},
    )


def test_model_for_raw_is_that_whose_band_is_narrowest() -> None:
    zoo = Zoo(
        shipped().folder,
        (
            _descriptor("wide", "raw", (0.3, 30)),
            _descriptor("low", "raw", (0, 3)),
            _descriptor("large", "raw-best", (0.3, 30), "mwrcanet"),
        ),
    )
    # 2/255 at 18 % gray
    curve = NoiseCurve("line", (2 / 255) ** 2 / 0.18, 0.0)
    profile = NoiseProfile((0.01,) * 3, curves=(curve,) * 3)
    assert noise_255(profile) == pytest.approx(2)
    chosen = {q: raw_model(zoo, Options(quality=q), profile) for q in ("fast", "balanced", "best", "best+")}
    assert {q: d and d.name for q, d in chosen.items()} == {
        "fast": "low",
        "balanced": "low",
        "best": "large",
        "best+": "large",
    }
    loud = dataclasses.replace(profile, curves=(curve.stronger(1e4),) * 3)
    assert raw_model(zoo, Options(), loud) is None
    named = raw_model(zoo, Options(model="wide"), profile)
    assert named is not None
    assert named.name == "wide"
