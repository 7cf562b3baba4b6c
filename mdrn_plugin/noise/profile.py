"""How noisy a picture is, in one record."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdrn_plugin.picture import ValueRange


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseProfile:
    """Noise of one channel, or of the samples of one colour picture.

    Attributes
    ----------
    sigma : tuple of float
        Standard deviation of each channel (C) or sample (S), as a fraction of white minus black.
    correlation : tuple of float
        Lag-1 autocorrelation of the noise (horizontal, vertical); 0 for white noise.
    clipped : float
        Share of the pixels at black or white, 0..1.
    source : str
        "blind", "user" or "file".
    doubt : str
        In words why the estimate may be wrong; empty if there is no reason to think so.
    low_high_ratio : float
        Noise of the flattest blocks at low over that at high spatial frequencies, both as standard
        deviations; about 1 for white noise, 4..11 for camera pictures. 1 where it was not measured.
        Texture raises it too.
    correlated : bool
        Whether the spectrum of the flattest blocks speaks against white noise, texture allowed for.
    """

    sigma: tuple[float, ...]
    correlation: tuple[float, float] = (0.0, 0.0)
    clipped: float = 0.0
    source: str = "blind"
    doubt: str = ""
    low_high_ratio: float = 1.0
    correlated: bool = False


def describe(profile: NoiseProfile, range: ValueRange | None = None) -> str:
    """Say in words what was found.

    Parameters
    ----------
    profile : NoiseProfile
        As measured, given or read.
    range : ValueRange, optional
        Black and white of the picture, to give the noise in the units of the file too.
    """
    source = {"user": "as given", "file": "as the file says"}.get(profile.source, "")
    levels = ", ".join(_short(255 * s) for s in profile.sigma)
    mean = math.sqrt(sum(s * s for s in profile.sigma) / max(1, len(profile.sigma)))
    words = f"noise σ = {levels}/255 ({_short(100 * mean)} % of white)"
    if range is not None:
        span = range.white - range.black
        words += " = " + ", ".join(f"{s * span:.3g}" for s in profile.sigma) + " in units of the file"
    horizontal, vertical = profile.correlation
    if profile.correlated:
        words += f", correlated ({horizontal:.2f} across, {vertical:.2f} down)"
    elif profile.source == "blind":
        words += ", white"
    if source:
        words += f", {source}"
    if profile.clipped > 0:
        words += f"; {100 * profile.clipped:.1f} % of pixels clipped"
    return words + (f"; doubtful: {profile.doubt}" if profile.doubt else "")


def _short(value: float) -> str:
    """One decimal, or three digits where that would read 0."""
    return f"{value:.1f}" if value >= 0.95 or value == 0 else f"{value:.3g}"
