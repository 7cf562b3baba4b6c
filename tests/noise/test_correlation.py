"""Correlated noise: its spectrum is found, filled up to white, and detail is put back."""

from __future__ import annotations

import numpy as np
import pytest

import mdrn_plugin
from mdrn_plugin.noise import estimate_noise
from mdrn_plugin.noise.blocks import dct_basis
from mdrn_plugin.noise.correlation import (
    FILL,
    SIDE,
    as_table,
    fill_level,
    filling_noise,
    lag_correlation,
    measure_power,
    put_detail_back,
)
from mdrn_plugin.picture import Picture, ValueRange

WHITE = tuple((1.0,) * SIDE for _ in range(SIDE))
# Width of a Gaussian blur that gives white noise a lag-1 correlation of exp(-1 / (4 s²)).
BLUR = {0.3: 0.456, 0.6: 0.70, 0.8: 1.06}


def blurred_noise(shape, lag, seed=0):
    """White noise through a Gaussian of the frequency, brought to standard deviation 1."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    response = np.exp(-2 * np.pi**2 * BLUR[lag] ** 2 * (fx**2 + fy**2))
    white = np.random.default_rng(seed).standard_normal(shape)
    return np.fft.ifft2(np.fft.fft2(white) * response / np.sqrt(np.mean(response**2))).real


def shades(rows=320, columns=400):
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    return 128 + 60 * np.sin(x / 60 + y / 90) + np.where(x > 250, 20 * np.sin(0.8 * y), 0)


@pytest.mark.parametrize("lag", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("sigma", [5, 15, 30])
def test_level_and_correlation_of_blurred_noise_are_found(lag, sigma):
    y = shades() + sigma * blurred_noise((320, 400), lag)
    found = estimate_noise(Picture(y.astype(np.float32), "YX", ValueRange(0.0, 255.0, "test")))
    assert found.correlated
    assert 255 * found.sigma[0] == pytest.approx(sigma, rel=0.15)
    assert found.correlation == pytest.approx((lag, lag), abs=0.1)
    assert np.mean(found.spectra[0]) == pytest.approx(1, rel=0.01)


def test_correlated_and_signal_dependent_noise_is_told_as_both():
    clean = shades()
    y = clean + np.sqrt(0.5 * clean) * blurred_noise(clean.shape, 0.6)
    found = estimate_noise(Picture(y.astype(np.float32), "YX", ValueRange(0.0, 255.0, "test")))
    assert found.correlated
    assert found.depends_on_signal
    for signal in (80.0, 180.0):
        variance = float(found.curves[0].variance(np.array(signal / 255))) * 255**2
        assert variance == pytest.approx(0.5 * signal, rel=0.3)


def test_white_noise_has_no_spectrum_unless_asked_for():
    y = (shades() + np.random.default_rng(0).normal(0, 15, (320, 400))).astype(np.float32)
    picture = Picture(y, "YX", ValueRange(0.0, 255.0, "test"))
    assert estimate_noise(picture).spectra == ()
    forced = estimate_noise(picture, law="correlated")
    measured = np.add.outer(range(SIDE), range(SIDE)) >= 4  # below: extrapolated
    assert np.array(forced.spectra[0])[measured] == pytest.approx(1, abs=0.4)
    assert 255 * forced.sigma[0] == pytest.approx(15, rel=0.1)


def test_texture_under_weak_noise_is_not_called_correlated_noise():
    """Texture everywhere, stronger in some places than in others: no two flat blocks agree."""
    rng = np.random.default_rng(0)
    texture = blurred_noise((320, 400), 0.8, seed=1)
    y, x = np.mgrid[:320, :400]
    strength = np.exp(2.5 * np.sin(x / 40) * np.sin(y / 35))
    z = 128 + 3 * strength * texture + rng.normal(0, 1, texture.shape)
    found = estimate_noise(Picture(z.astype(np.float32), "YX", ValueRange(0.0, 255.0, "test")))
    assert not found.correlated


@pytest.mark.parametrize("lag", [0.3, 0.6])
def test_filled_up_noise_is_nearly_white_and_as_strong_as_said(lag):
    shape = (512, 512)
    noise = blurred_noise(shape, lag)
    power = measure_power(
        [128 + noise[:, :, None]], 0, 0.0, 1.0, (np.nan, np.nan), lambda v: np.asarray(v, np.float64)
    )
    assert power is not None
    power = power.table
    table = as_table(power / power.mean())
    seen = noise + filling_noise(table, 0, 0, 0, shape)
    assert seen.std() == pytest.approx(fill_level(table), rel=0.05)
    before = np.mean(noise[:, 1:] * noise[:, :-1]) / noise.var()
    after = np.mean(seen[:, 1:] * seen[:, :-1]) / seen.var()
    assert before == pytest.approx(lag, abs=0.05)
    assert after < 0.1


def test_filling_noise_is_the_same_at_the_same_place():
    table = as_table(np.linspace(2, 0, SIDE * SIDE).reshape(SIDE, SIDE) + 0.01)
    whole = filling_noise(table, 1, 0, 0, (300, 400))
    np.testing.assert_array_equal(whole[100:180, 260:400], filling_noise(table, 1, 100, 260, (80, 140)))
    assert abs(np.corrcoef(whole.ravel(), filling_noise(table, 2, 0, 0, (300, 400)).ravel())[0, 1]) < 0.05


def test_white_noise_needs_no_filling():
    assert np.abs(filling_noise(WHITE, 0, 0, 0, (64, 64))).max() == 0
    assert fill_level(WHITE) == 1
    assert FILL < 1


def test_lag_correlation_of_a_spectrum():
    assert lag_correlation(np.ones((SIDE, SIDE))) == pytest.approx((0, 0), abs=1e-12)
    across, down = lag_correlation(
        np.outer(np.ones(SIDE), 1.0 + 0.8 * np.cos(np.pi * (np.arange(16) + 0.5) / 16))
    )
    assert (across, down) == pytest.approx((0.4, 0.0), abs=1e-9)


def test_put_detail_back_returns_detail_and_not_noise():
    rng = np.random.default_rng(0)
    _, x = np.mgrid[:128, :192]
    detail = np.where(x > 96, 12 * np.sin(2.5 * x), 0.0)
    noise = rng.standard_normal((128, 192))
    back = put_detail_back(detail + noise, np.zeros((128, 192)), WHITE)
    inside = np.s_[16:-16, 120:-16]
    assert np.std(back[inside] - detail[inside]) < 0.5 * np.std(detail[inside])
    flat = np.s_[16:-16, 16:72]
    assert np.std(back[flat]) < 0.35  # of the noise's 1

    doubted = put_detail_back(detail + noise, np.zeros((128, 192)), WHITE, buried=True)
    assert np.std(doubted[flat]) < 0.7 * np.std(back[flat])
    assert np.std(doubted[inside] - detail[inside]) < 0.5 * np.std(detail[inside])


def soft_scene(seed=0):
    """Shades and discs without fine detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:320, :384].astype(np.float64)
    z = 90 + 50 * np.sin(x / 60 + y / 90)
    for r, c in rng.uniform(30, 290, (12, 2)):
        z += 25 / (1 + np.exp((np.hypot(y - r, x - c) - 15) / 3))
    return z


@pytest.mark.parametrize(("sigma", "buried"), [(3, False), (30, True)])
def test_fine_detail_is_buried_or_not_by_the_strength_of_the_noise(sigma, buried):
    texture = 12 * blurred_noise((320, 384), 0.3, seed=5)  # everywhere but in a part that is flat
    texture[:, 260:] = 0
    y = soft_scene() + texture + sigma * blurred_noise((320, 384), 0.6)
    found = estimate_noise(Picture(y.astype(np.float32), "YX", ValueRange(0.0, 255.0, "test")))
    assert found.correlated
    assert found.buried == buried


def test_strong_correlated_noise_in_a_soft_picture_is_taken_out_at_all_frequencies():
    """Filled up to 0.7 of its highest power, noise of low frequency stays: 30.9 dB here, 36.0 so."""
    clean = soft_scene()
    rising = np.fft.ifft2(
        np.fft.fft2(np.random.default_rng(3).standard_normal(clean.shape))
        / (0.04 + np.hypot(np.fft.fftfreq(320)[:, None], np.fft.fftfreq(384)))
    ).real
    noise = 0.8 * blurred_noise(clean.shape, 0.6) + 0.6 * rising / rising.std()
    y = (clean + 20 * noise).astype(np.float32)
    result = mdrn_plugin.denoise(y, range=(0, 255), return_result=True)
    assert result.profiles[0].buried
    assert "fine detail" in result.plan.explain()
    error = np.asarray(result.picture.pixels, np.float64) - clean
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 34


@pytest.mark.parametrize("shape", [(5, 40), (16, 16), (33, 50)])
def test_put_detail_back_any_size_without_residual_changes_nothing(shape):
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    out = put_detail_back(x, x, WHITE)
    assert out.shape == shape
    np.testing.assert_allclose(out, x, atol=1e-6)


def test_tables_are_of_the_dct_used():
    """A table is the variance of the coefficients of `dct_basis`: white noise of variance 4 gives 4."""
    white = 2 * np.random.default_rng(0).standard_normal((4000, SIDE * SIDE)).astype(np.float32)
    assert np.mean((white @ dct_basis(SIDE).T) ** 2) == pytest.approx(4, rel=0.01)
