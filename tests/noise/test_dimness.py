"""A picture is dim where the transform for photon noise fails: where much of it gets less than a photon."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.dimness import is_dim


def counted(share: float, dark: float, bright: float, gain: float = 1.0, seed: int = 1) -> np.ndarray:
    """Return what a sensor counts whose left part gets `dark` photons and whose right part `bright`."""
    photons = np.full((256, 256), bright)
    photons[:, : round(share * 256)] = dark
    return gain * np.random.default_rng(seed).poisson(photons)[..., None].astype(float)


LINE = NoiseCurve("line", 1.0, 0.0, mean=1.0, span=(0.0, 50.0))


@pytest.mark.parametrize("gain", [0.01, 1.0, 40.0])
def test_dim_by_photons_and_not_by_the_unit(gain: float) -> None:
    law = dataclasses.replace(LINE, gain=gain)
    assert is_dim([counted(0.5, 0.2, 30, gain)], law)
    assert not is_dim([counted(0.5, 3.0, 30, gain)], law)


def test_a_quarter_is_enough_and_a_tenth_is_not() -> None:
    assert is_dim([counted(0.35, 0.1, 30)], LINE)
    assert not is_dim([counted(0.1, 0.1, 30)], LINE)


def test_read_noise_stabilises_the_dark() -> None:
    assert not is_dim([counted(0.5, 0.1, 30)], dataclasses.replace(LINE, offset=4.0))


def test_a_pedestal_is_not_light() -> None:
    assert is_dim([counted(0.5, 0.2, 30) + 100], dataclasses.replace(LINE, offset=-100.0))


def test_other_laws_and_pictures_too_small_are_not_called_dim() -> None:
    dark = counted(1.0, 0.1, 30)
    assert not is_dim([dark], dataclasses.replace(LINE, kind="constant"))
    assert not is_dim([dark], dataclasses.replace(LINE, kind="curve"))
    assert not is_dim([dark[:40]], LINE)
    assert not is_dim([np.full_like(dark, np.nan)], LINE)
