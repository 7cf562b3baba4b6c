"""JPEG is known by its coefficients, and only where they still are where the encoder put them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mdrn_plugin.noise.compression import was_jpeg


def _scene(seed: int = 0, noise: float = 4.0) -> np.ndarray:
    """Return a picture whose spectrum falls with the frequency, as that of photographs does."""
    rng = np.random.default_rng(seed)
    fy, fx = np.meshgrid(np.fft.fftfreq(240), np.fft.fftfreq(320), indexing="ij")
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / 240)
    layers = np.fft.fft2(rng.normal(size=(3, 240, 320))) * falling
    waves = np.moveaxis(np.fft.ifft2(layers).real, 0, 2)
    pixels = 128 + 45 * waves / waves.std() + rng.normal(0, noise, waves.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _jpeg(pixels: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [60, 80, 90, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("noise", [2.0, 12.0])
def test_jpeg_is_known(quality: int, subsampling: int, noise: float) -> None:
    assert was_jpeg(_jpeg(_scene(noise=noise), quality, subsampling))


@pytest.mark.parametrize("noise", [0.0, 2.0, 12.0])
def test_pictures_never_compressed_are_not_taken_for_it(noise: float) -> None:
    assert not was_jpeg(_scene(noise=noise))


@pytest.mark.parametrize(("top", "left"), [(3, 5), (0, 1), (7, 0)])
def test_cropped_jpeg_is_known(top: int, left: int) -> None:
    assert was_jpeg(_jpeg(_scene(), 80, 2)[top:, left:])


def test_resized_or_noisy_afterwards_is_no_jpeg_any_more() -> None:
    pixels = _jpeg(_scene(), 85, 2)
    assert not was_jpeg(np.asarray(Image.fromarray(pixels).resize((200, 150))))
    rng = np.random.default_rng(1)
    noisy = np.clip(pixels + rng.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)
    assert not was_jpeg(noisy)


def test_drawings_noise_and_other_kinds_of_pixels_are_no_jpeg() -> None:
    drawing = np.zeros((256, 256, 3), np.uint8)
    drawing[40:200, 30:180] = 255, 200, 0
    drawing[100:130] = 0, 0, 128
    assert not was_jpeg(drawing)
    checks = np.kron(np.indices((64, 64)).sum(0) % 2, np.ones((4, 4)))[..., None] * np.array([255, 128, 64])
    assert not was_jpeg(checks.astype(np.uint8))
    assert not was_jpeg(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    assert not was_jpeg(_jpeg(_scene(), 80, 0).astype(np.uint16))
    assert not was_jpeg(_jpeg(_scene(), 80, 0)[..., :1])
    assert not was_jpeg(np.zeros((5, 7, 3), np.uint8))
