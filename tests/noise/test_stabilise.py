"""Variance stabilisation against numerical expectations that know nothing of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mdrn_plugin.noise import NoiseCurve
from mdrn_plugin.noise.stabilise import expected_anscombe, stabiliser, unbiased_inverse


def brute_expectation(mean, gain, sigma, transform):
    """E[transform(gain * P + sigma * N)] summed over all counts, and over a fine grid of the normal law."""
    top = int(mean + 15 * math.sqrt(mean + 1) + 30)
    total = 0.0
    grid = np.linspace(-8, 8, 2001)
    normal = np.exp(-(grid**2) / 2) / np.sum(np.exp(-(grid**2) / 2)) if sigma else np.ones(1)
    noise = sigma * grid if sigma else np.zeros(1)
    for k in range(top + 1):
        probability = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))
        total += probability * float(np.sum(normal * transform(gain * k + noise)))
    return total


@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("mean", [0.1, 1.0, 7.0, 60.0])
def test_expected_anscombe_is_the_expectation(mean, sigma):
    found = expected_anscombe(np.array([mean]), sigma)[0]
    exact = brute_expectation(mean, 1.0, sigma, lambda z: 2 * np.sqrt(np.maximum(z + 0.375 + sigma**2, 0.0)))
    assert found == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize(("gain", "sigma"), [(1.0, 0.0), (1.0, 1.0), (0.02, 0.05), (24.0, 10.0)])
@pytest.mark.parametrize("counts", [0.3, 2.0, 20.0, 90.0, 150.0])
def test_inverse_of_the_expectation_is_the_mean(gain, sigma, counts):
    s = stabiliser(NoiseCurve("line", gain, sigma**2))
    mean = brute_expectation(counts, gain, sigma, s.forward)
    error = abs(float(s.inverse(np.array(mean))) - gain * counts)
    assert error < 0.003 * math.sqrt(gain**2 * counts + sigma**2)


@pytest.mark.parametrize("counts", [5.0, 30.0, 400.0])
def test_closed_form_is_near_the_exact_inverse(counts):
    """Mäkitalo and Foi (2013) give the closed form as an approximation; here within 1 % of the noise."""
    mean = brute_expectation(counts, 1.0, 1.0, lambda z: 2 * np.sqrt(np.maximum(z + 1.375, 0.0)))
    assert abs(float(unbiased_inverse(np.array(mean), 1.0, 1.0)) - counts) < 0.01 * math.sqrt(counts + 1)


def test_algebraic_inverse_would_be_biased():
    """What the unbiased inverse is for: at one photon the algebraic one is off by a quarter of a photon."""
    s = stabiliser(NoiseCurve("line", 1.0, 0.0))
    mean = brute_expectation(1.0, 1.0, 0.0, s.forward)
    assert (mean / 2) ** 2 - 0.375 < 0.85
    assert float(s.inverse(np.array(mean))) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("gain", "sigma", "counts"), [(1.0, 0.0, 5), (2.0, 3.0, 8), (0.1, 0.05, 50)])
def test_stabilised_noise_has_standard_deviation_one(gain, sigma, counts):
    rng = np.random.default_rng(0)
    z = gain * rng.poisson(counts, 200_000) + rng.normal(0, sigma, 200_000)
    assert stabiliser(NoiseCurve("line", gain, sigma**2)).forward(z).std() == pytest.approx(1, abs=0.03)


def test_pedestal_is_where_the_signal_begins():
    s = stabiliser(NoiseCurve("line", 24.0, -280.0))
    pedestal = 280 / 24
    z = pedestal + 24.0 * np.random.default_rng(0).poisson(3.0, 200_000)
    found = float(s.inverse(np.mean(s.forward(z))))
    assert found == pytest.approx(pedestal + 72, abs=0.02 * math.sqrt(24 * 72))


CURVE = NoiseCurve("curve", 0.0, 0.0, (0.0, 0.3, 0.6, 1.0), (1e-4, 4e-4, 4e-4, 2.5e-3), span=(0.0, 1.0))


@pytest.mark.parametrize("signal", [0.1, 0.45, 0.9])
def test_curve_is_stabilised_and_brought_back_without_bias(signal):
    s = stabiliser(CURVE)
    sigma = float(np.sqrt(CURVE.variance(np.array(signal))))
    z = signal + sigma * np.random.default_rng(0).standard_normal(400_000)
    f = s.forward(z)
    assert f.std() == pytest.approx(1, abs=0.03)
    assert float(s.inverse(f.mean())) == pytest.approx(signal, abs=0.004 * sigma + 4e-5)


def test_constant_variance_is_only_a_scale():
    s = stabiliser(NoiseCurve("constant", 0.0, 0.0, mean=0.04))
    z = np.linspace(-3, 4, 50)
    np.testing.assert_allclose(np.diff(s.forward(z)), np.diff(z) / 0.2, rtol=1e-9)
    np.testing.assert_allclose(s.inverse(s.forward(z)), z, atol=1e-6)


@pytest.mark.parametrize("curve", [NoiseCurve("line", 0.02, 1e-3), NoiseCurve("line", 2.0, -50.0), CURVE])
def test_transforms_increase_everywhere_and_pass_nan(curve):
    s = stabiliser(curve)
    floor = -curve.offset / curve.gain if curve.gain else -1.0
    z = np.linspace(floor, floor + 5000 * max(curve.gain, 0.001), 4001)
    assert np.all(np.diff(s.forward(z)) > 0)
    assert np.all(np.diff(s.inverse(np.linspace(s.forward(z)[40], s.forward(z)[-1], 3001))) > 0)
    assert np.isnan(s.forward(np.array([np.nan]))[0])
    assert np.isnan(s.inverse(np.array([np.nan]))[0])


def test_tables_and_closed_form_meet_without_a_step():
    s = stabiliser(NoiseCurve("line", 1.0, 4.0))
    d = s.mean_stabilised[-1] + np.array([-1e-3, -1e-6, 1e-6, 1e-3])
    x = s.inverse(d)
    assert abs(x[2] - x[1]) < 0.02 * math.sqrt(104)
