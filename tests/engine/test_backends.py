"""Another runtime in the place of torch: the same picture, or a clear no."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from mdrn_plugin.engine.backends import is_installed, resolve_backend
from mdrn_plugin.errors import BadOption, Cancelled, NotSupported
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, decide_range
from mdrn_plugin.pipeline import denoise_picture, provenance

needs_onnxruntime = pytest.mark.skipif(not is_installed("onnxruntime"), reason="the extra onnx is missing")


def _picture(shape: tuple[int, ...], axes: str, dtype: str) -> Picture:
    rng = np.random.default_rng(3)
    rows = np.linspace(0, 6, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    values = 0.5 + 0.3 * np.sin(rows) + rng.normal(0, 0.1, shape)
    stored = values if dtype == "float32" else np.clip(values, 0, 1) * 65535
    pixels = stored.astype(dtype)
    return Picture(pixels, axes, decide_range(pixels))


@needs_onnxruntime
@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "wish"),
    [
        ((72, 90), "YX", "float32", {}),
        ((72, 90), "YX", "float32", {"quality": "best+", "model": "mdrn-fast-gray-0-90"}),
        ((70, 50, 3), "YXS", "uint16", {"quality": "fast"}),
        ((80, 64), "YX", "uint16", {"quality": "fast", "noise": "0.01,0.001"}),  # stabilised
    ],
)
def test_onnxruntime_gives_the_picture_of_torch(
    shape: tuple[int, ...], axes: str, dtype: str, wish: dict[str, Any]
) -> None:
    picture = _picture(shape, axes, dtype)
    wish = {"noise": "25", "tile": 48, "precision": "fp32", **wish}
    ours, theirs = (denoise_picture(picture, Options(**wish, backend=b)) for b in ("torch", "onnxruntime"))
    unit = picture.range.white - picture.range.black
    difference = np.abs(ours.picture.pixels.astype(float) - theirs.picture.pixels.astype(float)) / unit
    step = 0 if dtype == "float32" else 1 / unit  # of integers, one may be rounded the other way
    assert difference.max() < 1e-4 + step
    assert np.abs(theirs.picture.pixels.astype(float) - picture.pixels.astype(float)).std() / unit > 0.05
    assert "onnxruntime" in theirs.plan.explain()
    assert json.loads(provenance(theirs.plan))["steps"][0]["backend"] == "onnxruntime"
    assert "backend" not in json.loads(provenance(ours.plan))["steps"][0]


@needs_onnxruntime
def test_onnxruntime_is_asked_whether_to_stop_and_tells_its_tiles() -> None:
    seen: list[tuple[int, int]] = []
    options = Options(noise="25", tile=32, backend="onnxruntime", quality="fast")
    picture = _picture((240, 64), "YX", "float32")
    denoise_picture(picture, options, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen) > 1
    with pytest.raises(Cancelled):
        denoise_picture(picture, options, stop=lambda: True)


def test_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotSupported, match=r"mdrn-plugin\[onnx\]"):
        denoise_picture(_picture((32, 32), "YX", "float32"), Options(noise="25", backend="onnxruntime"))


@pytest.mark.parametrize(
    ("backend", "device", "precision", "word"),
    [
        ("onnxruntime", "cuda", "auto", "--device cpu"),
        ("onnxruntime", "auto", "bf16", "--precision fp32"),
        ("tensorflow", "auto", "auto", "onnxruntime"),
    ],
)
def test_impossible_backends_are_refused(backend: str, device: str, precision: str, word: str) -> None:
    with pytest.raises(BadOption, match=word):
        resolve_backend(backend, device, precision)


def test_unknown_backend_is_no_option() -> None:
    with pytest.raises(BadOption, match="torch, onnxruntime"):
        Options(backend="tensorflow")
