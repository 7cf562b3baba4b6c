"""Planes of a stack averaged along an axis: less noise where it stands still, no ghosts where it moves."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mdrn_plugin.engine.stacks import average_along
from mdrn_plugin.errors import BadOption, Cancelled
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, ValueRange
from mdrn_plugin.pipeline import denoise_picture, make_plan, measure, provenance

if TYPE_CHECKING:
    from pathlib import Path

    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.plan import Plan

SIGMA = 25 / 255
UNIT = ValueRange(0.0, 1.0, "", given=True)


def _stack(moves: bool, planes: int = 7, side: int = 72) -> tuple[Any, Any]:
    """Return truth and noisy stack, and a bright square that moves by 4 px per plane."""
    y, x = np.mgrid[:side, :side]
    truth = np.repeat((0.4 + 0.2 * np.sin(x / 5) * np.cos(y / 7))[None], planes, 0)
    if moves:
        for t in range(planes):
            truth[t, 30:42, 10 + 4 * t : 22 + 4 * t] = 0.9
    noisy = truth + np.random.default_rng(0).normal(0, SIGMA, truth.shape)
    return truth.astype(np.float32), noisy.astype(np.float32)


def _error(x: Any, truth: Any) -> float:
    return float(((x - truth) ** 2).mean())


def _plan(picture: Picture, along: str) -> tuple[Plan, tuple[NoiseProfile, ...]]:
    options = Options(noise="25", along=along)
    profiles = measure(picture, options)
    return make_plan(picture, profiles, options), profiles


@pytest.mark.parametrize("moves", [False, True])
def test_along_removes_more_noise_and_leaves_no_trail(moves: bool) -> None:
    truth, noisy = _stack(moves)
    picture = Picture(noisy, "TYX", UNIT)
    alone, mean = (
        denoise_picture(picture, Options(noise="25", quality="fast", along=along)).picture.pixels
        for along in (None, "T")
    )
    assert _error(mean, truth) < 0.93 * _error(alone, truth)  # 0.3 dB
    if moves:
        for t in range(len(truth)):  # where the square is one and two planes before and behind
            row = np.s_[t, 30:42, max(0, 2 + 4 * t) : 30 + 4 * t]
            assert _error(mean[row], truth[row]) < 1.05 * _error(alone[row], truth[row])


def test_result_does_not_depend_on_the_direction_of_the_axis() -> None:
    """It would, if planes that were written already were looked at."""
    _, noisy = _stack(True)
    forth, back = noisy.copy(), noisy[::-1].copy()
    for pixels in (forth, back):
        picture = Picture(pixels.copy(), "TYX", UNIT)
        average_along(picture, pixels, *_plan(picture, "T"))
    np.testing.assert_allclose(forth, back[::-1], atol=1e-6)
    assert np.abs(forth - noisy).max() > 0.01


def test_every_channel_is_averaged_along_the_axis_asked_for() -> None:
    _, noisy = _stack(False, planes=12)
    values = noisy.reshape(3, 2, 2, 72, 72)  # Z, C, T
    pixels = values.copy()
    picture = Picture(values, "ZCTYX", UNIT)
    plan, profiles = _plan(picture, "Z")
    assert len(profiles) == 2
    passed = dataclasses.replace(plan.steps[0], model=None)
    average_along(picture, pixels, dataclasses.replace(plan, steps=(passed, plan.steps[1])), profiles)
    assert (pixels[:, 0] == values[:, 0]).all()  # nothing was done to it
    for t in range(2):
        line = Picture(values[:, 1, t].copy(), "ZYX", UNIT)
        expected = line.pixels.copy()
        average_along(line, expected, *_plan(line, "Z"))
        np.testing.assert_array_equal(pixels[:, 1, t], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_equal_planes_stay_as_they_are(dtype: str) -> None:
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    plane = (_stack(False)[1][0].clip(0, 1) * top).astype(dtype)
    pixels = np.repeat(plane[None], 4, 0)
    picture = Picture(pixels.copy(), "TYX", ValueRange(0.0, float(top), "", given=True))
    average_along(picture, pixels, *_plan(picture, "T"))
    np.testing.assert_allclose(pixels, picture.pixels, rtol=1e-6)


def test_values_that_are_not_finite_stay_where_they_are() -> None:
    _, noisy = _stack(False)
    noisy[3, 20, 20], noisy[2, 40, 40] = np.nan, np.inf
    pixels = noisy.copy()
    picture = Picture(noisy, "TYX", UNIT)
    average_along(picture, pixels, *_plan(picture, "T"))
    np.testing.assert_array_equal(np.isfinite(pixels), np.isfinite(noisy))


def test_plan_and_provenance_say_it_and_stop_is_asked() -> None:
    _, noisy = _stack(False, planes=3, side=32)
    picture = Picture(noisy, "ZYX", UNIT)
    plan, profiles = _plan(picture, "Z")
    assert "along Z" in plan.explain()
    assert json.loads(provenance(plan))["along"] == "Z"
    with pytest.raises(Cancelled):
        average_along(picture, noisy.copy(), plan, profiles, stop=lambda: True)


def test_picture_without_the_axis_is_told_so() -> None:
    picture = Picture(_stack(False)[1], "TYX", UNIT)
    plan, _ = _plan(picture, "Z")
    assert plan.along is None
    assert any("along Z" in note for note in plan.notes)


def test_impossible_wishes_are_refused(tmp_path: Path) -> None:
    from mdrn_plugin.batch.blocks import prepare

    with pytest.raises(BadOption, match="Z or T"):
        Options(along="C")
    with pytest.raises(BadOption, match="strength"):
        Options(along="T", strength=0.5)
    with pytest.raises(BadOption, match="--along"):
        prepare(tmp_path / "a.zarr", tmp_path / "out" / "a.zarr", tmp_path / "out", Options(along="Z"))
