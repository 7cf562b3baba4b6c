"""The simulated camera: its arithmetic against independent calculations, Pillow and the laws of noise."""

from __future__ import annotations

import dataclasses
import io
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mdrn_plugin.errors import BadOption
from mdrn_plugin.training import camera, degrade, jpeg, mosaic


def _scene(height: int = 64, width: int = 96, count: int = 1, seed: int = 0) -> Tensor:
    """A smooth coloured picture with some detail, 0..1."""
    torch.manual_seed(seed)
    coarse = functional.interpolate(torch.rand(count, 3, 5, 7), (height, width), mode="bicubic")
    fine = functional.interpolate(torch.rand(count, 3, height // 4, width // 4), (height, width))
    return (0.1 + 0.7 * coarse + 0.15 * fine).clamp(0, 1)


def _cameras(count: int) -> camera.Cameras:
    return camera.draw_cameras(count, torch.Generator().manual_seed(3))


# ---- JPEG ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [50, 80, 95])
@pytest.mark.parametrize("subsample", [True, False])
def test_jpeg_is_pillows_within_rounding(quality: int, subsample: bool) -> None:
    x = (_scene(64, 96) * 255).round() / 255
    pixels = (x[0] * 255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
    found = jpeg.jpeg(x, torch.tensor([quality]), subsample=subsample)[0]
    error = 255 * (found - expected)
    lost = 255 * (expected - x[0])
    assert float(error.abs().mean()) < 1  # of 255: coefficients near a half are rounded either way
    assert abs(float(error.mean())) < 0.2
    ours = (255 * (found - x[0])).square().mean()
    assert float(ours / lost.square().mean()) == pytest.approx(1, abs=0.05)


def test_jpeg_quantisation_tables_are_pillows() -> None:
    tables = jpeg.quantisation(torch.tensor([30, 75, 92]))
    for quality, table in zip((30, 75, 92), tables, strict=True):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            theirs = image.quantization  # type: ignore[attr-defined]
        for kind in (0, 1):
            assert sorted(theirs[kind]) == sorted(table[kind].flatten().tolist())


def test_jpeg_grid_begins_where_the_offset_says() -> None:
    x = _scene(48, 64)
    shifted = jpeg.jpeg(x[..., 3:, 5:], torch.tensor([70]), offset=(3, 5))
    whole = jpeg.jpeg(x, torch.tensor([70]))[..., 3:, 5:]
    torch.testing.assert_close(shifted[..., 15:, 13:], whole[..., 15:, 13:], rtol=0, atol=0)
    assert shifted.shape == x[..., 3:, 5:].shape


def test_jpeg_lower_quality_loses_more() -> None:
    x = _scene(count=1).expand(3, -1, -1, -1)
    error = (jpeg.jpeg(x, torch.tensor([40, 75, 95])) - x).square().mean((1, 2, 3))
    assert error[0] > error[1] > error[2]


# ---- colours ---------------------------------------------------------------------------------


def test_process_undoes_unprocess_below_highlights() -> None:
    x = _scene(count=4) * 0.8
    cameras = _cameras(4)
    raw = camera.unprocess(x, cameras)
    inside = (raw > 0).all(1, keepdim=True) & (raw < 0.99).all(1, keepdim=True)
    linear = torch.where(cameras.toned[:, None, None, None], camera.inverse_tone(x), x)
    inside &= camera.to_linear(linear).mean(1, keepdim=True) < 0.5  # highlights are not undone
    back = camera.process(raw, cameras)
    assert float(inside.float().mean()) > 0.3
    assert float(((back - x).abs() * inside).max()) < 2e-3


def test_white_stays_white_and_black_black() -> None:
    cameras = _cameras(5)
    x = torch.stack([torch.ones(3), torch.zeros(3)], 1)[None, :, :, None].expand(5, 3, 2, 1)
    torch.testing.assert_close(camera.process(camera.unprocess(x, cameras), cameras), x, atol=1e-4, rtol=0)


def test_unprocess_blown_highlights_are_saturated_in_raw() -> None:
    raw = camera.unprocess(torch.ones(3, 3, 2, 2), _cameras(3))
    torch.testing.assert_close(raw, torch.ones_like(raw), atol=1e-4, rtol=0)


def test_tone_and_transfer_curves_are_inverses() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(camera.inverse_tone(camera.tone(x)), x, atol=1e-7, rtol=0)
    torch.testing.assert_close(camera.to_linear(camera.to_srgb(x)), x, atol=1e-4, rtol=0)


def test_camera_matrices_keep_grey_grey() -> None:
    sums = _cameras(6).to_camera.sum(2)
    torch.testing.assert_close(sums, torch.ones_like(sums))


# ---- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [0.0, 0.02, 0.3, 0.8])
@pytest.mark.parametrize(("gain", "offset"), [(0.0004, 1e-6), (0.01, 0.0008)])
def test_sensor_noise_variance_is_the_line(signal: float, gain: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.full((1, 200, 200), signal)
    y = camera.add_sensor_noise(x, gain, offset, generator, limits=None)
    assert float(y.var()) == pytest.approx(gain * signal + offset, rel=0.05)
    assert float(y.mean()) == pytest.approx(signal, abs=4 * math.sqrt((gain * signal + offset) / 40000))


def test_sensor_row_noise_is_shared_along_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    y = camera.add_sensor_noise(torch.zeros(1, 400, 200), 0.0, 0.01, generator, row_share=0.5, limits=None)
    assert float(y.var()) == pytest.approx(0.01, rel=0.1)
    assert float(y.mean(-1).var()) == pytest.approx(0.005, rel=0.25)
    assert float(y.mean(-2).var()) < 0.0002


def test_sensor_quantises_and_saturates() -> None:
    generator = torch.Generator().manual_seed(1)
    y = camera.add_sensor_noise(torch.full((1, 50, 50), 0.97), 0.001, 1e-3, generator, bits=10)
    assert float(y.max()) == 1
    torch.testing.assert_close((y * 1023).round() / 1023, y)


def test_draw_noise_has_the_level_asked_for_and_lies_on_the_line() -> None:
    sigma = torch.linspace(0.5, 25, 200)
    gain, offset = camera.draw_noise(sigma, torch.Generator().manual_seed(2), ("dnd",))
    torch.testing.assert_close(camera.mid_grey_sigma_255(gain, offset), sigma, rtol=1e-3, atol=1e-4)
    line = camera.LINES["dnd"]
    off = torch.log10(offset) - line.slope * torch.log10(gain) - line.intercept
    assert abs(float(off.mean())) < 0.1
    assert float(off.abs().max()) < 2.1 * line.spread


# ---- mosaics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", mosaic.BAYER)
def test_mosaic_keeps_the_colours_of_the_pattern(pattern: str) -> None:
    x = torch.arange(3.0)[None, :, None, None].expand(1, 3, 4, 6)
    expected = torch.tensor(["RGB".index(c) for c in pattern]).reshape(2, 2)
    found = mosaic.mosaic(x, pattern)[0, 0]
    torch.testing.assert_close(found, expected.repeat(2, 3).float())


def test_xtrans_has_its_shares_and_all_colours_in_every_line() -> None:
    sites = mosaic.colour_of_sites("XTRANS", 6, 6)
    assert [int((sites == c).sum()) for c in range(3)] == [8, 20, 8]
    for lines in (sites, sites.T):
        assert all(set(line.tolist()) == {0, 1, 2} for line in lines)


def test_pack_orders_the_planes_and_is_undone() -> None:
    x = torch.arange(3.0)[None, :, None, None].expand(1, 3, 4, 6)
    planes = mosaic.pack(mosaic.mosaic(x))
    assert planes[0, :, 0, 0].tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(mosaic.unpack(planes), mosaic.mosaic(x))


@pytest.mark.parametrize("pattern", [*mosaic.BAYER, "XTRANS"])
def test_demosaic_keeps_measured_values_and_flat_colours(pattern: str) -> None:
    x = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, 18, 24)
    torch.testing.assert_close(mosaic.demosaic(mosaic.mosaic(x, pattern), pattern), x, atol=1e-5, rtol=0)
    y = _scene(18, 24)
    found = mosaic.demosaic(mosaic.mosaic(y, pattern), pattern)
    torch.testing.assert_close(mosaic.mosaic(found, pattern), mosaic.mosaic(y, pattern))


def test_demosaic_beats_bilinear_on_detail() -> None:
    x = _scene(96, 96).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    y = mosaic.mosaic(x)
    sites = mosaic.colour_of_sites("RGGB", 96, 96)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None]
    planes = []
    for c in range(3):
        mask = (sites == c).float()[None, None]
        planes.append(
            functional.conv2d(y * mask, kernel, padding=1) / functional.conv2d(mask, kernel, padding=1)
        )
    bilinear = (torch.cat(planes, 1) - x).square().mean()
    assert (mosaic.demosaic(y) - x).square().mean() < 0.7 * bilinear


@pytest.mark.parametrize("pattern", mosaic.BAYER)
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_unify_gives_rggb_and_growing_loses_nothing(pattern: str, size: tuple[int, int]) -> None:
    x = torch.arange(3.0)[None, :, None, None].expand(1, 3, *size)
    y = mosaic.mosaic(x, pattern)
    for grow in (False, True):
        unified = mosaic.unify(y, pattern, grow=grow)
        height, width = unified.shape[-2:]
        assert height % 2 == width % 2 == 0
        torch.testing.assert_close(unified, mosaic.mosaic(x[..., :1, :1].expand(1, 3, height, width)))
    scene = mosaic.mosaic(_scene(12, 12)[..., : size[0], : size[1]], pattern)
    grown = mosaic.unify(scene, pattern, grow=True)
    torch.testing.assert_close(mosaic.take_back(grown, pattern, *size), scene)


@pytest.mark.parametrize("k", range(8))
def test_augment_keeps_rggb(k: int) -> None:
    x = torch.arange(3.0)[None, :, None, None].expand(1, 3, 8, 12)
    found = mosaic.augment(mosaic.mosaic(x), k)
    torch.testing.assert_close(found, mosaic.mosaic(x[..., :1, :1].expand(1, 3, *found.shape[-2:])))


# ---- pairs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", degrade.KINDS)
def test_degrade_is_a_function_of_seed_step_and_place(kind: str) -> None:
    x = _scene(40, 40, count=4)
    whole = degrade.degrade(kind, x, (1, 10), 7, 3)
    again = degrade.degrade(kind, x[1::2], (1, 10), 7, 3, 4, slice(1, 4, 2))
    for field in dataclasses.fields(degrade.Pair):
        a, b = getattr(whole, field.name), getattr(again, field.name)
        if a is not None:
            torch.testing.assert_close(a[1::2], b, rtol=0, atol=1e-6)
    other = degrade.degrade(kind, x, (1, 10), 7, 4)
    assert not torch.equal(whole.noisy, other.noisy)


def test_raw_pairs_have_the_noise_that_their_map_says() -> None:
    x = (_scene(128, 128, count=4) * 0.8).clamp(0.1, 0.8)
    pair = degrade.degrade("raw", x, (3, 10), 1, 0)
    assert pair.std is not None
    assert pair.noisy.shape == pair.std.shape == (4, 4, 64, 64)
    ratio = ((pair.noisy - pair.clean) / pair.std).square().mean((1, 2, 3))
    torch.testing.assert_close(ratio, torch.ones(4), atol=0.15, rtol=0)
    mosaics = degrade.degrade("raw", x, (3, 10), 1, 0, packed=False)
    torch.testing.assert_close(mosaic.pack(mosaics.noisy), pair.noisy)


def test_photographs_have_correlated_noise_and_a_clean_twin() -> None:
    side = 64 + degrade.margin("camera-jpeg")
    x = torch.full((8, 3, side, side), 0.5)
    pair = degrade.degrade("camera-jpeg", x, (8, 12), 1, 1)
    assert pair.noisy.shape == (8, 3, 64, 64)
    assert float(pair.clean.var((2, 3)).max()) < 1e-6
    noise = pair.noisy - pair.clean
    lag = (noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()
    assert float(lag) > 0.2
    torch.testing.assert_close((pair.noisy * 255).round() / 255, pair.noisy)
    torch.testing.assert_close(pair.sigma, 255 * noise.square().mean((1, 2, 3), keepdim=True).sqrt())


def test_photographs_without_noise_differ_by_jpeg_only() -> None:
    x = functional.avg_pool2d(_scene(216, 216, count=4), 9, 3, 4)
    pair = degrade.degrade("camera-jpeg", x, (0.3, 0.3), 1, 1)
    assert float(pair.sigma.max()) < 7  # the chroma at half size


def test_degrade_unknown_kind_says_the_choices() -> None:
    with pytest.raises(BadOption, match="awgn, photons, microscope, raw, camera-jpeg"):
        degrade.margin("fog")


def test_degrade_costs_little_beside_a_training_step() -> None:
    torch.set_num_threads(1)
    x = torch.rand(16, 3, 72, 72)
    times = []
    for step in range(4):
        began = time.process_time()
        degrade.degrade("camera-jpeg", x, (0.3, 20), 1, step)
        times.append(time.process_time() - began)
    assert min(times) < 0.3  # about 0.05 s measured; a step of the network takes about 1 s


def test_photographs_that_were_made_smaller_keep_every_pixel_and_less_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    fine = torch.rand(1, 3, 72, 72, generator=generator) * 0.5 + 0.2
    cameras = camera.draw_cameras(1, generator)
    look = dataclasses.replace(
        degrade.draw_look(1, generator),
        soft_px=torch.zeros(1),
        sharpening=torch.zeros(1),
        plain=torch.ones(1, dtype=torch.bool),
    )
    raw = camera.unprocess(fine, cameras)
    gain, offset = torch.tensor([1e-3]), torch.tensor([1e-4])
    found = {}
    for left in (-1.0, 0.0, 0.1):
        seeded = [torch.Generator().manual_seed(1)]
        found[left] = degrade.photograph(
            raw, cameras, gain, offset, seeded, dataclasses.replace(look, left=torch.full((1,), left))
        )
    whole = camera.process(raw, cameras)[..., 4:-4, 4:-4]
    assert float((found[0.0].clean - whole).abs().max()) < 1e-6
    assert float((found[-1.0].clean - whole).abs().mean()) > 0.02  # interpolated colours
    rounding = 0.3
    assert float(found[0.0].sigma) == pytest.approx(rounding, abs=0.1)
    assert rounding < float(found[0.1].sigma) < 0.6 * float(found[-1.0].sigma)


def test_an_interpolating_camera_softens_picture_and_noise_alike() -> None:
    generator = torch.Generator().manual_seed(6)
    fine = torch.rand(1, 3, 72, 72, generator=generator) * 0.4 + 0.3
    cameras = camera.draw_cameras(1, generator)
    plain = dataclasses.replace(
        degrade.draw_look(1, generator),
        sharpening=torch.zeros(1),
        plain=torch.ones(1, dtype=torch.bool),
        left=torch.full((1,), -1.0),
    )
    raw = camera.unprocess(fine, cameras)
    gain, offset = torch.tensor([1e-3]), torch.tensor([1e-5])

    def photograph(**changed: Tensor) -> degrade.Pair:
        seeded = [torch.Generator().manual_seed(1)]
        return degrade.photograph(raw, cameras, gain, offset, seeded, dataclasses.replace(plain, **changed))

    sharp, soft = photograph(soft_px=torch.zeros(1)), photograph(soft_px=torch.full((1,), 0.8))
    inner = (..., slice(12, -12), slice(12, -12))  # the kernel reaches over what is cut off
    for a, b in ((sharp.clean, soft.clean), (sharp.noisy - sharp.clean, soft.noisy - soft.clean)):
        expected = degrade.blur(a, torch.full((1, 3), 0.8))
        assert float((b - expected)[inner].abs().max()) < 1.5 / 255  # two roundings
        assert float(b[inner].std()) < 0.8 * float(a[inner].std())
    # One that was made smaller afterwards is sharp to the pixel whatever the camera did.
    smaller = {"left": torch.full((1,), 0.1)}
    assert torch.equal(
        photograph(soft_px=torch.full((1,), 0.8), **smaller).noisy,
        photograph(soft_px=torch.zeros(1), **smaller).noisy,
    )


def test_photographs_of_grey_detail_have_little_colour() -> None:
    """The filters that interpolate colours need balanced ones."""
    y, x = torch.meshgrid(torch.arange(72.0), torch.arange(72.0), indexing="ij")
    x = (0.4 + 0.15 * torch.sin(0.9 * x + 0.4 * y) * torch.cos(0.8 * y)).expand(1, 3, -1, -1)
    generator = torch.Generator().manual_seed(4)
    cameras = camera.draw_cameras(1, generator)
    look = dataclasses.replace(
        degrade.draw_look(1, generator),
        pattern="RGGB",
        sharpening=torch.zeros(1),
        left=torch.full((1,), -1.0),
    )
    raw = camera.unprocess(x, cameras)
    none = torch.zeros(1)
    clean = degrade.photograph(raw, cameras, none, none, [generator], look).clean
    unbalanced = camera.process(mosaic.demosaic(mosaic.mosaic(raw)), cameras)[..., 4:-4, 4:-4]

    def colour(picture: Tensor) -> float:
        return float((picture - picture.mean(1, keepdim=True)).abs().mean())

    assert colour(clean) < 0.6 * colour(unbalanced)


@pytest.mark.parametrize("sigma", [15, 40, 80])
def test_stabilised_photons_have_the_level_and_the_mean_that_the_inverse_expects(sigma: float) -> None:
    clean = torch.linspace(0, 1, 64)[None, None, :, None].expand(400, 1, 64, 64).contiguous()
    pair = degrade.degrade("photons", clean, (sigma, sigma), 1, 1)
    error = pair.noisy - pair.clean
    assert float(pair.sigma.max()) == pytest.approx(sigma)
    # Read noise that alone fills the range leaves no room for signal: the level is lower then. By the range
    # of three standard deviations beyond dark and white, 255 / sigma wide, that is so for these of eight.
    few = pair.sigma.flatten() < 0.99 * sigma
    strong = {15: 0, 40: 3, 80: 5}[int(sigma)] / 8
    assert float(few.float().mean()) == pytest.approx(strong, abs=0.06)
    assert float(pair.sigma.min()) > min(sigma - 0.1, 255 / 7.5)  # room for as many photons as read noise
    # The bright end of a picture: stabilised, so of that level; where no photon comes there is less.
    ratio = error[:, :, -1].std(dim=(1, 2)) * 255 / pair.sigma.flatten()
    assert float(ratio.median()) == pytest.approx(1, abs=0.15)
    dark = error[:, :, 0].std(dim=(1, 2)) * 255
    assert float(dark.min()) < 0.05 * sigma  # without read noise
    # The mean of the transformed counts, not their transform.
    assert abs(float(error.mean())) * 255 < 0.01 * sigma
    # Dark and bright end of a picture's values lie about where the plan puts black and white.
    assert float(torch.quantile(pair.noisy[:, :, 0].flatten(), 0.01)) == pytest.approx(0.1, abs=0.2)
    assert float(torch.quantile(pair.noisy[:, :, -1].flatten(), 0.95)) == pytest.approx(0.9, abs=0.25)


def test_photons_are_a_function_of_seed_step_and_place() -> None:
    clean = torch.rand(4, 1, 16, 16)
    one = degrade.degrade("photons", clean, (20, 80), 1, 5)
    again = degrade.degrade("photons", clean, (20, 80), 1, 5)
    half = degrade.degrade("photons", clean[2:], (20, 80), 1, 5, 4, slice(2, 4))
    assert torch.equal(one.noisy, again.noisy)
    assert torch.equal(one.noisy[2:], half.noisy)
    assert not torch.equal(one.noisy, degrade.degrade("photons", clean, (20, 80), 1, 6).noisy)


def test_a_microscope_has_few_photons_and_white_noise_in_turn() -> None:
    clean = torch.rand(4, 1, 16, 16)
    both = degrade.degrade("microscope", clean, (20, 80), 1, 5)
    photons = degrade.degrade("photons", clean, (20, 80), 1, 5)
    white = degrade.degrade("awgn", clean, (20, 80), 1, 5)
    for part, alone in ((slice(0, None, 2), photons), (slice(1, None, 2), white)):
        assert torch.equal(both.noisy[part], alone.noisy[part])
        assert torch.equal(both.clean[part], alone.clean[part])
        assert torch.equal(both.sigma[part], alone.sigma[part])
