"""PSNR and SSIM against an independent library."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mdrn_plugin.compare import compare_pictures, ssim
from mdrn_plugin.errors import BadOption
from mdrn_plugin.picture import Picture, ValueRange

UNIT = ValueRange(0.0, 1.0, "")


def test_compare_pictures_equals_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((60, 70))
    b = a + rng.normal(0, 0.1, a.shape)
    found = compare_pictures(Picture(a, "YX", UNIT), Picture(b, "YX", UNIT))
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1))
    expected = structural_similarity(
        a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
    )
    assert found.ssim == pytest.approx(expected, abs=1e-6)
    assert found.std == pytest.approx((a - b).std())
    assert max(map(abs, found.correlation)) < 0.05


def test_compare_pictures_correlated_difference_is_seen() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (80, 81))
    noise = (noise[:, 1:] + noise[:, :-1]) / 2  # correlation 0.5 along a row
    zero = np.zeros(noise.shape)
    found = compare_pictures(Picture(noise, "YX", UNIT), Picture(zero, "YX", UNIT))
    assert found.correlation == (pytest.approx(0.5, abs=0.03), pytest.approx(0, abs=0.03))


def test_compare_equal_pictures() -> None:
    a = Picture(np.eye(12), "YX", UNIT)
    found = compare_pictures(a, a)
    assert (found.psnr, found.ssim, found.largest) == (np.inf, pytest.approx(1), 0)


def test_compare_other_shape_is_refused() -> None:
    with pytest.raises(BadOption, match="equal shapes"):
        compare_pictures(Picture(np.zeros((3, 4)), "YX", UNIT), Picture(np.zeros((4, 3)), "YX", UNIT))


@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (11, 11)])
def test_ssim_small_pictures_have_a_value(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random(shape)
    assert ssim(x, x, 1.0) == pytest.approx(1)
