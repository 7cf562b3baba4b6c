"""The core from outside: arrays of every kind in, the same kind out, trusted or not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import mdrn_plugin
from mdrn_plugin.errors import BadOption, Cancelled, NotSupported
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, decide_range
from mdrn_plugin.pipeline import denoise_picture, provenance
from mdrn_plugin.result import check_residual, judge

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _scene(height: int = 96, width: int = 120) -> NDArray[np.float64]:
    """Smooth shading, edges and stripes, 0..1."""
    y, x = np.mgrid[:height, :width] / 64
    disc = (np.hypot(y - 0.7, x - 0.8) < 0.45) * 0.35
    return np.asarray(0.25 + 0.2 * x / 2 + disc + 0.08 * np.sin(12 * x) * (y > 1))


def _noisy(sigma_255: float, seed: int = 0, **size: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    clean = _scene(**size)
    rng = np.random.default_rng(seed)
    return (clean + rng.normal(0, sigma_255 / 255, clean.shape)).astype(np.float32), clean


def _psnr(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(-10 * np.log10(np.mean((x.astype(float) - y) ** 2)))


@pytest.mark.parametrize(("sigma", "gain_db"), [(10, 5.0), (25, 7.5), (50, 9.5)])
def test_denoise_blind_gains_much_and_nearly_what_the_told_model_gains(sigma: float, gain_db: float) -> None:
    noisy, clean = _noisy(sigma)
    blind = _psnr(mdrn_plugin.denoise(noisy), clean)
    told = _psnr(mdrn_plugin.denoise(noisy, noise=sigma), clean)
    assert blind - _psnr(noisy, clean) > gain_db
    assert abs(blind - told) < 0.1


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_denoise_scaled_floats_give_the_scaled_result(factor: float) -> None:
    noisy, clean = _noisy(25)
    plain = mdrn_plugin.denoise(noisy)
    scaled = mdrn_plugin.denoise((noisy * factor).astype(np.float32)) / factor
    assert abs(_psnr(plain, clean) - _psnr(scaled, clean)) < 0.02


def test_denoise_dim_16_bit_is_denoised() -> None:
    clean = np.rint(_scene() * 500 + 100)
    noisy = np.rint(clean + np.random.default_rng(0).normal(0, 40, clean.shape)).astype(np.uint16)
    out = mdrn_plugin.denoise(noisy)
    assert np.std(out - clean) < 0.5 * np.std(noisy - clean)


def test_exact_tiled_equals_whole_and_default_halo_is_near() -> None:
    noisy, _ = _noisy(25, height=232, width=180)
    picture = Picture(noisy, "YX", decide_range(noisy))

    def run(**wish: Any) -> NDArray[Any]:
        out = denoise_picture(picture, Options(noise="25", **wish)).picture.pixels
        return np.asarray(out)

    whole = run(exact=True, tile=512)
    assert np.abs(run(exact=True, tile=64) - whole).max() <= 1e-6
    near = run(precision="fp32", tile=128)
    assert (near - whole).std() <= 2e-4 * (whole - noisy).std()  # 1e-4 at the default tile of 400


def test_bf16_costs_next_to_nothing() -> None:
    noisy, clean = _noisy(25, height=192, width=192)
    picture = Picture(noisy, "YX", decide_range(noisy))
    fp32, bf16 = (
        denoise_picture(picture, Options(noise="25", precision=p)).picture.pixels for p in ("fp32", "bf16")
    )
    assert (fp32 - bf16).std() <= 0.02 * (fp32 - noisy).std()
    assert _psnr(fp32, clean) - _psnr(bf16, clean) <= 0.01


def test_denoise_input_is_not_written_to() -> None:
    noisy, _ = _noisy(25)
    noisy.setflags(write=False)
    before = noisy.copy()
    mdrn_plugin.denoise(noisy)
    np.testing.assert_array_equal(noisy, before)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f2", "f4", "f8", "?"])
def test_denoise_keeps_shape_and_dtype(kind: str) -> None:
    dtype = np.dtype(kind)
    scale = 1 if dtype.kind in "fb" else min(float(np.iinfo(dtype).max), 60000.0)
    noisy = np.clip(_noisy(25)[0], 0, 1) * scale
    pixels = noisy > 0.5 if kind == "?" else noisy.astype(dtype)
    out = mdrn_plugin.denoise(pixels)
    assert out.shape == pixels.shape
    assert out.dtype == dtype


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 48), "YX"),
        ((40, 48, 3), "YXS"),
        ((3, 40, 48), "SYX"),
        ((2, 40, 48), "CYX"),
        ((2, 3, 40, 48), "TCYX"),
        ((2, 40, 48, 4), "ZYXS"),
        ((48, 40), "XY"),
    ],
)
def test_denoise_any_axes(shape: tuple[int, ...], axes: str) -> None:
    rng = np.random.default_rng(0)
    pixels = (0.5 + rng.normal(0, 0.1, shape)).astype(np.float32)
    result = mdrn_plugin.denoise(pixels, axes=axes, noise=25, return_result=True)
    out = result.picture.pixels
    assert out.shape == shape
    assert len(result.plan.steps) == (shape[axes.index("C")] if "C" in axes else 1)
    if shape[-1] == 4 and axes.endswith("S"):
        np.testing.assert_array_equal(out[..., 3], pixels[..., 3])
        out, pixels = out[..., :3], pixels[..., :3]
    assert out.std() < 0.6 * pixels.std()


def test_denoise_planes_of_a_stack_equal_single_planes() -> None:
    stack = np.stack([_noisy(25, seed)[0] for seed in range(2)])
    out = mdrn_plugin.denoise(stack, axes="ZYX", noise=25)
    for k in range(2):
        np.testing.assert_array_equal(out[k], mdrn_plugin.denoise(stack[k], noise=25))


def test_denoise_torch_xarray_and_dask_come_back_alike() -> None:
    noisy, _ = _noisy(25)
    expected = mdrn_plugin.denoise(noisy)
    tensor = mdrn_plugin.denoise(torch.from_numpy(noisy))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(noisy, dims=("y", "x"), attrs={"unit": "counts"})
    out = mdrn_plugin.denoise(array)
    assert out.dims == ("y", "x")
    assert out.attrs == {"unit": "counts"}
    np.testing.assert_array_equal(out.values, expected)
    dask = pytest.importorskip("dask.array")
    np.testing.assert_array_equal(np.asarray(mdrn_plugin.denoise(dask.from_array(noisy, 50))), expected)


def test_denoise_same_bytes_twice_and_from_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    noisy, _ = _noisy(25)
    expected = mdrn_plugin.denoise(noisy, noise=25)
    with ThreadPoolExecutor(3) as pool:
        for out in pool.map(lambda _: mdrn_plugin.denoise(noisy, noise=25), range(6)):
            np.testing.assert_array_equal(out, expected)


def test_denoise_best_plus_follows_flips() -> None:
    noisy, _ = _noisy(25, height=64, width=64)
    wish: dict[str, Any] = {"noise": 25, "quality": "best+"}
    out = mdrn_plugin.denoise(noisy, **wish)
    flipped = mdrn_plugin.denoise(noisy[::-1, ::-1].copy(), **wish)
    assert np.abs(flipped[::-1, ::-1] - out).max() < 5e-3  # bf16 inside; the sums are reordered


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 5), (2, 3, 4)])
def test_denoise_tiny_pictures_have_a_result(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).random(shape).astype(np.float32)
    out = mdrn_plugin.denoise(pixels)
    assert out.shape == shape
    assert np.isfinite(out).all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1e30, -1e-30])
def test_denoise_constant_picture_is_unchanged(value: float) -> None:
    pixels = np.full((40, 40), value, np.float32)
    np.testing.assert_array_equal(mdrn_plugin.denoise(pixels), pixels)


def test_denoise_all_nan_is_unchanged() -> None:
    pixels = np.full((20, 20), np.nan, np.float32)
    np.testing.assert_array_equal(mdrn_plugin.denoise(pixels), pixels)


def test_denoise_clean_picture_is_left_nearly_alone() -> None:
    clean = np.rint(_scene(256, 256) * 255).astype(np.uint8)
    out = mdrn_plugin.denoise(clean).astype(float)
    assert np.mean((out - clean) ** 2) < 255**2 / 10**4.5  # 45 dB


def test_denoise_strength_zero_is_the_input_and_half_lies_between() -> None:
    noisy, _ = _noisy(25)
    full = mdrn_plugin.denoise(noisy, noise=25)
    np.testing.assert_array_equal(mdrn_plugin.denoise(noisy, noise=25, strength=0), noisy)
    half = mdrn_plugin.denoise(noisy, noise=25, strength=0.5)
    np.testing.assert_allclose(half, (noisy + full) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"axes": "YXZ"}, "axes"),
        ({"axes": "YQ"}, "axes"),
        ({"range": (1, 0)}, "black below white"),
        ({"quality": "ultra"}, "quality"),
        ({"model": "nobody"}, "mdrn-2b-gray"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_denoise_impossible_wish_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        mdrn_plugin.denoise(np.zeros((8, 8), np.float32), **{"noise": 25, **wish})


def test_denoise_complex_is_refused() -> None:
    with pytest.raises(NotSupported, match="complex"):
        mdrn_plugin.denoise(np.zeros((8, 8), np.complex64))


def test_denoise_empty_array_is_refused() -> None:
    with pytest.raises(BadOption, match="at least one pixel"):
        mdrn_plugin.denoise(np.zeros((0, 8), np.float32))


def test_denoise_picture_reports_progress_and_stops() -> None:
    noisy, _ = _noisy(25, height=320, width=288)
    picture = Picture(noisy, "YX", decide_range(noisy))
    seen: list[tuple[int, int]] = []
    denoise_picture(
        picture, Options(noise="25", tile=32), progress=lambda done, total: seen.append((done, total))
    )
    total = seen[-1][1]
    assert total >= 6  # tiles; a network may tell of parts of them
    assert seen == [(k, total) for k in range(1, total + 1)]
    with pytest.raises(Cancelled):
        denoise_picture(picture, Options(noise="25", tile=32), stop=lambda: True)


def test_result_of_white_noise_is_good() -> None:
    noisy, _ = _noisy(25, height=256, width=256)
    result = mdrn_plugin.denoise(noisy, noise=25, return_result=True)
    assert result.check.std == pytest.approx(1, abs=0.1)
    assert max(map(abs, result.check.correlation)) < 0.05
    assert (result.verdict, result.reasons) == ("good", ())


def test_judge_lost_structure_is_not_good() -> None:
    """A blur takes out detail: the residual holds it, correlated and too strong."""
    rng = np.random.default_rng(0)
    stripes = 0.5 + 0.3 * np.sign(np.sin(np.arange(128) / 3))[None, :] * np.ones((128, 1))
    noisy = stripes + rng.normal(0, 0.05, stripes.shape)
    blurred = sum(np.roll(noisy, k, 1) for k in range(-3, 4)) / 7
    profiles = (NoiseProfile((0.05,)),)
    before, after = (Picture(p, "YX", decide_range(p)) for p in (noisy, np.asarray(blurred)))
    check = check_residual(before, after, profiles, 1.0)
    assert check is not None
    assert check.std > 1.5
    verdict, reasons = judge(check, ())
    assert verdict == "do not trust"
    assert any("structure" in reason for reason in reasons)


def test_judge_shifted_brightness_is_not_good() -> None:
    rng = np.random.default_rng(0)
    clean = _scene(128, 128)
    noisy = clean + rng.normal(0, 0.05, clean.shape)
    before, after = (Picture(p, "YX", decide_range(p)) for p in (noisy, clean + 0.03))
    check = check_residual(before, after, (NoiseProfile((0.05,)),), 1.0)
    assert check is not None
    assert check.drift == pytest.approx(0.03, abs=0.01)
    assert judge(check, ())[0] == "do not trust"


def test_judge_perfect_result_is_good() -> None:
    rng = np.random.default_rng(0)
    clean = _scene(256, 256)
    noisy = clean + rng.normal(0, 0.1, clean.shape)
    before, after = (Picture(p, "YX", decide_range(p)) for p in (noisy, clean))
    check = check_residual(before, after, (NoiseProfile((0.1,)),), 1.0)
    assert check is not None
    assert judge(check, ())[0] == "good"


def test_provenance_has_model_and_no_clock_or_path() -> None:
    noisy, _ = _noisy(25)
    result = mdrn_plugin.denoise(noisy, noise=25, return_result=True)
    record = json.loads(provenance(result.plan))
    assert record["steps"][0]["model"].startswith("mdrn-2b-gray")
    assert set(record) == {"program", "version", "steps", "ensemble", "precision", "strength"}
    assert provenance(result.plan) == provenance(
        mdrn_plugin.denoise(noisy, noise=25, return_result=True).plan
    )


def test_public_names_are_these() -> None:
    names = {"__version__", "denoise", "denoise_raw", "estimate_noise", "models", "read", "train_on", "write"}
    assert set(mdrn_plugin.__all__) == names


def test_floats_under_strong_noise_are_seen_at_their_own_contrast() -> None:
    """Noise of 50/255 over black reaches beyond -0.5; the network sees the picture as it is all the same."""
    y, x = np.mgrid[:96, :128]
    clean = 0.5 + 0.5 * np.sign(np.sin(x / 9) * np.sin(y / 9))
    noisy = (clean + 50 / 255 * np.random.default_rng(0).standard_normal(clean.shape)).astype(np.float32)
    assert np.percentile(noisy, 0.1) < -0.5
    result = mdrn_plugin.denoise(noisy, return_result=True)
    step = result.plan.steps[0]
    assert (step.black, step.gain) == (0.0, 1.0)
    assert step.sigma_255 == pytest.approx(50, rel=0.1)
