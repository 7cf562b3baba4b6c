"""Mosaics through gray networks and through networks of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mdrn_plugin.engine.device import FAN_KERNEL, resolve_raw_precision, threads
from mdrn_plugin.engine.mosaic import MosaicRoute, blended, colour_offsets, keep_clipped
from mdrn_plugin.engine.packed import count_packed_tiles, run_packed
from mdrn_plugin.engine.run import Job
from mdrn_plugin.errors import Cancelled, NotSupported
from mdrn_plugin.mosaic import make_mosaic
from mdrn_plugin.networks import fan_native
from mdrn_plugin.networks.registry import build
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.options import Options
from mdrn_plugin.plan import Machine
from mdrn_plugin.plan_mosaic import noise_255, raw_model, resolve_mosaic
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


needs_kernel = pytest.mark.skipif(
    fan_native.library() is None, reason=f"no compiled kernel here: {fan_native.why_not()}"
)


def _integers(*size: int) -> np.ndarray[Any, Any]:
    noisy = _scene(*size) + np.random.default_rng(1).normal(0, 30, size)
    return np.clip(np.rint(noisy), 0, 4095).astype(np.uint16)


@needs_kernel
@pytest.mark.parametrize("pattern", ["RGGB", "GBRG"])
@pytest.mark.parametrize("size", [(336, 400), (333, 215)])
def test_packed_kernel_has_the_same_bytes_for_all_tiles_and_threads(
    pattern: str, size: tuple[int, int]
) -> None:
    network: Any = _network("fan")
    mosaic, route = _integers(*size), _route(pattern)
    job = Job(network, 0, 1, 512, network.halo, network.stride, precision=FAN_KERNEL, saturate=(0, 4095))
    expected, operators = np.empty_like(mosaic), np.empty_like(mosaic)
    run_packed(mosaic, expected, job, route)
    for tile, user_tile, count in ((16, False, 2), (48, True, 1), (64, True, 3)):
        one = dataclasses.replace(job, tile=tile, user_tile=user_tile)
        found, done = np.empty_like(mosaic), []
        with threads(count):
            run_packed(mosaic, found, one, route, tile_done=lambda done=done: done.append(1))  # type: ignore[misc]
            assert len(done) == count_packed_tiles(*size, one) > 1
        assert np.array_equal(found, expected)
    run_packed(mosaic, operators, dataclasses.replace(job, precision="fp32"), route)
    assert np.abs(operators.astype(int) - expected).max() <= 1
    assert np.abs(operators.astype(int) - mosaic).mean() > 0.05


@needs_kernel
@pytest.mark.parametrize("count", [1, 2])
def test_packed_kernel_stops_on_request_and_raises_what_a_thread_raises(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = _network("fan")
    mosaic, asked = _integers(320, 320), iter((False, False, True))
    job = Job(network, 0, 1, 64, network.halo, network.stride, precision=FAN_KERNEL, user_tile=True)
    done: list[int] = []
    with threads(count):
        with pytest.raises(Cancelled):
            run_packed(
                mosaic,
                np.empty_like(mosaic),
                job,
                _route(),
                tile_done=lambda: done.append(1),
                stop=lambda: next(asked),
            )
        assert 0 < len(done) <= 2

        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(fan_native.NativeFAN, "denoised", broken)
        with pytest.raises(ZeroDivisionError):
            run_packed(mosaic, np.empty_like(mosaic), job, _route())


def test_packed_plan_for_the_kernel_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_native, "library", lambda: None)
    network: Any = _network("fan")
    job = Job(network, 0, 1, 512, network.halo, network.stride, precision=FAN_KERNEL)
    mosaic = _integers(32, 32)
    with pytest.raises(NotSupported, match="--precision fp32"):
        run_packed(mosaic, np.empty_like(mosaic), job, _route())
    assert resolve_raw_precision("auto", "cpu") == "fp32"


@needs_kernel
def test_raw_precision_is_the_kernels_on_the_cpu_unless_fp32_is_asked_for() -> None:
    assert [resolve_raw_precision(wish, "cpu") for wish in ("auto", "bf16", "fp32")] == [
        FAN_KERNEL,
        FAN_KERNEL,
        "fp32",
    ]
    assert resolve_raw_precision("auto", "cuda:0") == "fp32"


@needs_kernel
def test_packed_sizes_that_the_kernel_has_not_run_on_operators() -> None:
    torch.manual_seed(0)
    network: Any = build("fan", {"noise_map": True, "widths": (12, 16, 16, 16)}).eval().requires_grad_(False)
    mosaic = _integers(64, 80)
    job = Job(network, 0, 1, 512, network.halo, network.stride)
    expected, found = np.empty_like(mosaic), np.empty_like(mosaic)
    run_packed(mosaic, expected, job, _route())
    run_packed(mosaic, found, dataclasses.replace(job, precision=FAN_KERNEL), _route())
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("blacks", [100.0, (90.0, 100.0, 108.0, 102.0)])
@pytest.mark.parametrize("size", [(48, 64), (33, 47), (5, 7)])
@pytest.mark.parametrize("pattern", ["RGGB", "GRBG"])
def test_packed_integers_looked_up_are_what_floats_are_computed_as(
    pattern: str, size: tuple[int, int], blacks: Any
) -> None:
    """Values and deviations as they reach the network: by tables for integers, by formula for floats."""
    curves = tuple(NoiseCurve("line", a, 20.0, span=(100, 4000)) for a in (0.5, 1.0, 2.0))
    route = dataclasses.replace(
        _route(pattern), mosaic=make_mosaic(pattern, black=blacks, white=4000.0), curves=curves
    )
    network = _Seen()
    job = Job(network, 0, 1, 16, 8, 8)
    mosaic = _integers(*size)
    for dtype in (np.uint16, np.float32, np.int32):
        source = mosaic.astype(dtype)
        run_packed(source, np.empty_like(source), job, route)
    tiles = len(network.shown) // 3
    for k in range(tiles):
        for other in (k + tiles, k + 2 * tiles):
            assert all(map(torch.equal, network.shown[k], network.shown[other]))
    if size == (5, 7) and pattern != "RGGB":
        return  # too small to be mirrored without its edge: what is first is no red pixel
    # And against the law itself, at a red pixel.
    y, x = next((y, x) for y in (0, 1) for x in (0, 1) if route.mosaic.pattern[y][x] == 0)
    value = float(mosaic[y, x]) - route.mosaic.black[y][x]
    unit = 4000 - route.mosaic.floor
    seen, sigma = (float(t[0, 0, 0, 0]) for t in network.shown[0])
    assert seen == pytest.approx(value / unit, rel=1e-6)
    expected = math.sqrt(0.5 * (route.mosaic.floor + max(0, value)) + 20) / unit
    assert sigma == pytest.approx(expected, rel=1e-5)


class _Seen(nn.Module):
    """Notes what it is shown."""

    colours = 4
    noise_map = True

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.shown.append((x.clone(), sigma.clone()))
        return x


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_packed_keeps_clipped_pixels_of_every_type(dtype: Any) -> None:
    route = dataclasses.replace(_route(), mosaic=make_mosaic("RGGB", black=0.0, white=100.5))
    before = np.array([[99, 100], [101, 120]], dtype)
    kept = keep_clipped(before, np.array([[1, 2], [3, np.nan]], np.float32), np.full((2, 2), 7, dtype), route)
    assert kept.tolist() == [[7, 7], [101, 120]]
    far = dataclasses.replace(route, mosaic=make_mosaic("RGGB", black=0.0, white=1e9))
    assert keep_clipped(before, np.ones((2, 2), np.float32), np.full((2, 2), 7, dtype), far).max() == 7


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


def test_plan_names_the_kernel_where_fan_runs_and_nothing_is_asked_to_be_exact() -> None:
    fan, other = _descriptor("fan", "raw", (0, 30)), _descriptor("large", "raw-best", (0, 30), "mwrcanet")
    zoo, mosaic = Zoo(shipped().folder, (fan, other)), _route().mosaic
    curve = NoiseCurve("line", (2 / 255) ** 2 / 0.18, 0.0)
    profile = NoiseProfile((0.01,) * 3, curves=(curve,) * 3)
    machine = Machine("cpu", "bf16-kernel", 2, raw_precision=FAN_KERNEL)
    spread = ((100.0, 4000.0),) * 3

    def precision(**wishes: Any) -> str:
        return resolve_mosaic(mosaic, spread, profile, "uint16", Options(**wishes), zoo, machine).precision

    assert precision() == FAN_KERNEL
    assert precision(exact=True) == precision(quality="best") == "fp32"
    plain = dataclasses.replace(machine, raw_precision="fp32")
    assert resolve_mosaic(mosaic, spread, profile, "uint16", Options(), zoo, plain).precision == "fp32"
