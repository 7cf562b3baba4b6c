"""How noisy a picture is, in one record."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.noise.curve import NoiseCurve

if TYPE_CHECKING:
    from mdrn_plugin.noise.correlation import Spectrum
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
    curves : tuple of NoiseCurve
        How the variance of each sample depends on the signal; empty where it was not measured.
    spectra : tuple of Spectrum
        Of each sample, where the noise is correlated: variance at each frequency over its mean (see
        `mdrn_plugin.noise.correlation`); else empty.
    buried : bool
        The noise is correlated, and in most of the picture no fine detail stands out of it.
    """

    sigma: tuple[float, ...]
    correlation: tuple[float, float] = (0.0, 0.0)
    clipped: float = 0.0
    source: str = "blind"
    doubt: str = ""
    low_high_ratio: float = 1.0
    correlated: bool = False
    curves: tuple[NoiseCurve, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    buried: bool = False

    @property
    def depends_on_signal(self) -> bool:
        """Whether the noise of a sample was found to change with the signal."""
        return any(curve.kind != "constant" for curve in self.curves)

    def with_doubt(self, reason: str) -> NoiseProfile:
        """Return the profile with one more reason for doubt."""
        return dataclasses.replace(self, doubt="; ".join(d for d in (self.doubt, reason) if d))


def told_sigma(sigma: float, colours: int, found: NoiseProfile | None = None) -> NoiseProfile:
    """Return the profile of noise whose level is known.

    Parameters
    ----------
    sigma : float
        Standard deviation, fraction of white minus black.
    colours : int
        Samples of a pixel.
    found : NoiseProfile, optional
        What was measured: gives the spectrum of correlated noise.
    """
    curves: tuple[NoiseCurve, ...] = ()
    if found is not None and found.spectra:
        curves = (NoiseCurve("constant", 0.0, 0.0, mean=sigma**2, source="user"),) * colours
    profile = NoiseProfile((sigma,) * colours, source="user", curves=curves)
    return _with_spectrum(profile, found)


def told_law(
    gain: float, offset: float, span: tuple[float, float], colours: int, found: NoiseProfile | None = None
) -> NoiseProfile:
    """Return the profile of noise whose variance is known to be ``gain * signal + offset``.

    Parameters
    ----------
    gain, offset : float
        Signal and standard deviation are fractions of white minus black.
    span : pair of float
        Signal between which the picture lies.
    colours : int
        Samples of a pixel.
    found : NoiseProfile, optional
        What was measured: gives the spectrum of correlated noise.
    """
    curve = NoiseCurve("line", gain, offset, span=span, source="user")
    variance = float(curve.variance(np.array([(span[0] + span[1]) / 2]))[0])
    profile = NoiseProfile((math.sqrt(variance),) * colours, source="user", curves=(curve,) * colours)
    return _with_spectrum(profile, found)


def _with_spectrum(profile: NoiseProfile, found: NoiseProfile | None) -> NoiseProfile:
    if found is None:
        return profile
    return dataclasses.replace(
        profile,
        correlation=found.correlation,
        clipped=found.clipped,
        correlated=found.correlated,
        spectra=found.spectra,
        buried=found.buried,
    )


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
    words += _dependence(profile)
    if source:
        words += f", {source}"
    if profile.clipped > 0:
        words += f"; {100 * profile.clipped:.1f} % of pixels clipped"
    return words + (f"; doubtful: {profile.doubt}" if profile.doubt else "")


def _dependence(profile: NoiseProfile) -> str:
    if not profile.depends_on_signal:
        return ""
    line = [c for c in profile.curves if c.kind == "line"]
    if len(line) == len(profile.curves):
        laws = ", ".join(
            f"{c.gain:.3g} * signal {'-' if c.offset < 0 else '+'} {abs(c.offset):.3g}" for c in line
        )
        return f", grows with the signal (variance {laws}, signal 0..1)"
    return ", depends on the signal by a curve"


def _short(value: float) -> str:
    """One decimal, or three digits where that would read 0."""
    return f"{value:.1f}" if value >= 0.95 or value == 0 else f"{value:.3g}"
