"""Noise that depends on the signal: laws made here are found again, and none is found where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from mdrn_plugin.noise import NoiseCurve, estimate_noise
from mdrn_plugin.noise.curve import _monotone, _Sets
from mdrn_plugin.noise.stabilise import stabiliser
from mdrn_plugin.picture import Picture, ValueRange

UNIT = ValueRange(0.0, 1.0, "test")


def scene(rows=300, columns=400, low=0.05, high=0.95):
    """Make shades, a textured third and discs, between low and high."""
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    base = 0.5 + 0.3 * np.sin(x / 70 + y / 110) + 0.12 * np.cos(y / 45)
    base += np.where(x < columns / 3, 0.08 * np.sin(0.9 * x) * np.sin(0.7 * y), 0)
    base += np.where((x - columns * 0.7) ** 2 + (y - rows / 2) ** 2 < (rows / 5) ** 2, 0.15, 0)
    base = (base - base.min()) / (base.max() - base.min())
    return low + (high - low) * base


def poisson_gaussian(clean, gain, sigma, seed=1):
    rng = np.random.default_rng(seed)
    return gain * rng.poisson(clean / gain) + rng.normal(0, sigma, clean.shape)


def profile(pixels, axes="YX", span=UNIT, **kind):
    return estimate_noise(Picture(pixels, axes, span), **kind)


@pytest.mark.parametrize("peak", [5, 10, 30, 120, 1000])
@pytest.mark.parametrize("read", [0, 1, 3])
def test_line_of_poisson_gaussian_noise_is_found(peak, read):
    z = poisson_gaussian(scene(), 1 / peak, read / peak).astype(np.float32)
    curve = profile(z).curves[0]
    assert curve.gain == pytest.approx(1 / peak, rel=0.1 if read**2 < peak else 0.25)
    # At the darkest and the brightest the variance is what counts; the offset alone where it is not
    # small beside the rest.
    for signal in (0.05, 0.5, 0.95):
        expected = signal / peak + (read / peak) ** 2
        assert float(curve.gain * signal + curve.offset) == pytest.approx(
            expected, rel=0.15 if signal > 0.1 else 0.3
        )
    if read**2 > 0.3 * peak:
        assert curve.offset == pytest.approx((read / peak) ** 2, rel=0.15)


def test_line_in_units_of_a_16_bit_camera_with_pedestal():
    counts = scene(low=20, high=2000)
    z = 100 + poisson_gaussian(2.0 * counts, 2.0, 4.0)
    found = profile(np.rint(z).astype(np.uint16), span=ValueRange(0.0, 65535.0, "test")).curves[0]
    in_file = found.rescaled(0.0, 65535.0)
    assert in_file.gain == pytest.approx(2.0, rel=0.1)
    signal = 100 + 2.0 * 1000
    assert float(in_file.variance(np.array(signal))) == pytest.approx(2 * 2000 + 16, rel=0.1)


@pytest.mark.parametrize("sigma", [0.02, 0.06, 0.1, 0.2])
def test_white_noise_of_one_level_is_constant(sigma):
    z = (scene() + np.random.default_rng(2).normal(0, sigma, scene().shape)).astype(np.float32)
    found = profile(z)
    assert found.curves[0].kind == "constant"
    assert not found.depends_on_signal
    assert np.sqrt(found.curves[0].mean) == pytest.approx(sigma, rel=0.04)
    assert found.sigma[0] == pytest.approx(sigma, rel=0.04)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texture_between_flat_tones_is_no_dependence(seed):
    # Texture that grows with the tone looks like noise that does, but for the flat tones above it.
    rng = np.random.default_rng(seed)
    clean = np.full((384, 512), 0.1)
    clean[:, 300:] = 0.9
    ramp = np.linspace(0.15, 0.75, 180)
    clean[:, 100:280] = ramp + (0.01 + 0.12 * (ramp - 0.15)) * rng.standard_normal((384, 180))
    found = profile(clean + rng.normal(0, 5 / 255, clean.shape))
    assert not found.depends_on_signal
    assert 255 * found.sigma[0] == pytest.approx(5, rel=0.05)


def test_one_brightness_only_says_nothing_of_a_dependence():
    """Poisson noise is skewed: mean and variance of a block scatter together even here."""
    z = np.random.default_rng(0).poisson(4.0, (300, 300)).astype(np.float32)
    assert not profile(z, span=ValueRange(0.0, 20.0, "test")).depends_on_signal


def test_noise_that_saturates_is_a_curve_that_rises():
    clean = scene()
    sigma = 0.01 + 0.09 * clean**3  # no line fits: 0.0001 at 0, 0.00045 at half, 0.01 at 1
    z = clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)
    curve = profile(z.astype(np.float32)).curves[0]
    assert curve.kind == "curve"
    assert np.all(np.diff(curve.variances) >= 0)
    for signal in (0.3, 0.6, 0.85):
        found = float(np.sqrt(curve.variance(np.array(signal))))
        assert found == pytest.approx(0.01 + 0.09 * signal**3, rel=0.25)


def test_photons_that_did_not_come_are_not_clipped_noise():
    """A dark picture of few photons: most pixels are 0, and the law is exact all the same."""
    z = poisson_gaussian(scene(low=0.001, high=0.9) ** 3, 0.1, 0.0).astype(np.float32)
    assert np.mean(z == 0) > 0.4
    found = profile(z)
    assert found.curves[0].kind == "line"
    assert found.curves[0].gain == pytest.approx(0.1, rel=0.15)
    assert found.clipped == 0
    assert "clipped" not in found.doubt


def test_dark_background_with_few_bright_spots_is_no_rendered_picture():
    y, x = np.mgrid[:512, :512]
    spots = sum(np.exp(-((y - r) ** 2 + (x - c) ** 2) / 800) for r, c in ((100, 100), (300, 380), (420, 150)))
    z = np.random.default_rng(0).poisson(12 * spots)
    found = profile((8 * z).astype(np.uint8), span=ValueRange(0.0, 255.0, "test"))
    assert found.curves[0].kind == "line"
    assert 255 * found.curves[0].gain == pytest.approx(8, rel=0.2)


def specks(kind, size=384, seed=3):
    """Make a dark picture with few bright things as a microscope shows them, 0 to about 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    z = np.zeros((size, size))
    if kind == "spots":
        for r, c in rng.uniform(0, size, (25, 2)):
            z += rng.uniform(0.3, 1) * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * rng.uniform(2, 3) ** 2))
    elif kind == "two cells":
        for r, c in rng.uniform(60, size - 60, (2, 2)):
            z = np.maximum(z, np.clip(4 * (1 - ((y - r) / 25) ** 2 - ((x - c) / 20) ** 2), 0, 1))
        z *= 0.8 + 0.1 * np.sin(x / 3) * np.sin(y / 4)
    else:  # threads everywhere: no flat area
        for angle, phase in rng.uniform(0, np.pi, (30, 2)):
            along = x * np.cos(angle) + y * np.sin(angle) + 8 * np.sin(y / 40 + phase)
            across = along - rng.uniform(along.min(), along.max())
            z += rng.uniform(0.4, 1) * np.exp(-(across**2) / (2 * 1.7**2))
    return z / np.quantile(z, 0.999)


@pytest.mark.parametrize("kind", ["spots", "two cells", "threads"])
@pytest.mark.parametrize("peak", [30, 200])
def test_law_of_a_dark_picture_with_few_bright_things(kind, peak):
    z = poisson_gaussian(0.01 + specks(kind), 1 / peak, 1 / peak).astype(np.float32)
    curve = profile(z).curves[0]
    assert curve.kind == "line"
    assert curve.gain == pytest.approx(1 / peak, rel=0.2)


@pytest.mark.parametrize("seed", [0, 2])
def test_background_of_few_photons_belongs_to_the_law(seed):
    """Most pixels are background of one photon. Without them the law has four times its noise there."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:384, :384]
    z = np.zeros((384, 384))
    for r, c in rng.uniform(40, 344, (12, 2)):
        inside = np.clip(4 * (1 - ((y - r) / 22) ** 2 - ((x - c) / 20) ** 2), 0, 1)
        texture = 0.8 + 0.15 * np.sin(x / 5 + r) * np.sin(y / 6 + c)
        z = np.maximum(z, rng.uniform(0.4, 1) * inside * texture)
    frame = np.clip(4 * rng.poisson(50 * z + 1), 0, 255).astype(np.uint8)
    curve = profile(frame, span=ValueRange(0.0, 255.0, "test")).curves[0]
    assert curve.kind == "line"
    assert 255 * curve.gain == pytest.approx(4, rel=0.1)
    assert 255**2 * float(curve.variance(np.array(4 / 255))) == pytest.approx(16, rel=0.2)


@pytest.mark.parametrize("kind", ["spots", "two cells", "threads"])
def test_white_noise_in_a_dark_picture_with_few_bright_things_has_one_level(kind):
    z = specks(kind) + np.random.default_rng(2).normal(0, 0.03, (384, 384))
    found = profile(z.astype(np.float32))
    assert all(c.kind == "constant" for c in found.curves)
    assert found.sigma[0] == pytest.approx(0.03, rel=0.05)


def test_variance_that_scatters_about_a_line_is_texture():
    """The levels rise sixfold with the signal, but lie far from any line: no noise does that."""
    signal = np.linspace(0, 1, 12)
    error, number = np.full(12, 0.8), np.full(12, 20.0)
    line = 0.2 + signal
    bumps = np.exp(0.5 * np.array([1, -1] * 6))
    assert _Sets(signal, line * np.exp(0.05 * np.sign(bumps - 1)), error, number).follow(line)
    assert not _Sets(signal, line * bumps, error, number).follow(line)
    assert not _Sets(signal[:3], line[:3], error[:3], number[:3]).follow(line[:3])  # too few to tell
    assert not _Sets(signal, 3 + signal, error, number).follow(3 + signal)  # hardly rises


def test_channels_and_samples_have_their_own_law():
    clean = scene()
    z = np.stack(
        [poisson_gaussian(clean, g, 0.0, seed=k) for k, g in enumerate((0.01, 0.05, 0.002))], axis=-1
    )
    gains = [c.gain for c in profile(z.astype(np.float32), "YXS").curves]
    assert gains == pytest.approx([0.01, 0.05, 0.002], rel=0.1)


def test_stack_is_measured_jointly():
    """Planes of one brightness each: none of them alone could tell the law."""
    planes = [poisson_gaussian(np.full((160, 160), 0.1 * k), 0.02, 0.0, seed=k) for k in range(1, 9)]
    stack = np.stack(planes).astype(np.float32)
    curve = profile(stack, "ZYX").curves[0]
    assert curve.kind == "line"
    assert curve.gain == pytest.approx(0.02, rel=0.1)
    assert not profile(stack[3], "YX").depends_on_signal


def test_gaussian_only_is_not_looked_at_further():
    z = poisson_gaussian(scene(), 0.05, 0.0).astype(np.float32)
    assert profile(z, law="gaussian").curves == ()


def test_curve_rescaled_there_and_back_is_itself():
    curve = NoiseCurve("line", 0.02, 0.001, span=(0.1, 0.9), mean=0.01)
    there = curve.rescaled(100.0, 4095.0)
    signal = np.array([0.2, 0.7])
    np.testing.assert_allclose(there.variance(100 + 4095 * signal), 4095**2 * curve.variance(signal))
    back = there.rescaled(-100 / 4095, 1 / 4095)
    assert (back.gain, back.offset) == pytest.approx((0.02, 0.001))
    assert curve.stronger(4.0).variance(signal) == pytest.approx(4 * curve.variance(signal))


@pytest.mark.parametrize(
    "curve",
    [
        NoiseCurve("constant", 0.0, 0.0, mean=0.0),
        NoiseCurve("curve", 0.0, 0.0, levels=(0.1, 0.5, 0.9), variances=(0.0, 0.0, 1e-3), mean=3e-4),
        NoiseCurve("curve", 0.0, 0.0, levels=(0.1, 0.5, 0.9), variances=(0.0, 0.0, 0.0), mean=0.0),
    ],
    ids=["constant", "partly", "wholly"],
)
def test_no_noise_at_some_tones_still_has_a_transform_and_back(curve):
    """Compression leaves areas without any."""
    signal = np.linspace(0.1, 0.9, 9)
    assert np.all(curve.variance(signal) > 0)
    with np.errstate(all="raise"):
        values = stabiliser(curve).forward(signal)
    assert np.all(np.diff(values) > 0)
    assert np.all(np.isfinite(stabiliser(curve).inverse(values)))


def test_monotone_is_the_nearest_monotone_sequence():
    weights = np.ones(5)
    np.testing.assert_allclose(_monotone(np.array([1.0, 3.0, 2.0, 4.0, 5.0]), weights), [1, 2.5, 2.5, 4, 5])
    np.testing.assert_allclose(_monotone(np.array([5.0, 2.0, 3.0, 1.0, 1.0]), weights), [5, 2.5, 2.5, 1, 1])
