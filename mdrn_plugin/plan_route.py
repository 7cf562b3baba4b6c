"""How noise reaches the network: as it is, stabilised, filled up to white, or as a camera left it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.noise.correlation import fill_level
from mdrn_plugin.noise.stabilise import stabiliser
from mdrn_plugin.picture import NOISY_UNIT_INTERVAL

if TYPE_CHECKING:
    from mdrn_plugin.noise.correlation import Spectrum
    from mdrn_plugin.noise.curve import NoiseCurve
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import ValueRange

# Pictures whose values spread over this share of black..white are taken as they are; others are
# scaled so that their spread fills the range, the range the networks were trained on. A picture of full
# contrast under the strongest noise that the models know (90 of 255) spreads over 1 + 6.2 * 90 / 255 = 3.2.
_NATURAL_SPREAD = (0.2, 3.3)
# The same for floats in units of a power of ten other than 1: less certain, so closer to 1.
_DECADE_SPREAD = 0.4


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What the plan needs to know of a picture."""

    range: ValueRange
    dtype: str
    colours: int  # samples of a pixel without alpha
    spread: tuple[tuple[float, float], ...]  # per channel: 0.1 and 99.9 % quantile, file units
    samples_joint: bool  # the samples are the R, G, B of one colour picture
    jpeg: bool = False  # the pixels were decoded from JPEG and not resampled since
    smooth: tuple[bool, ...] = ()  # per channel: no fine detail, as under a microscope; empty: not looked at
    dim: tuple[bool, ...] = ()  # per channel: much of it gets less than a photon per pixel; likewise


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """The way to noise that a network knows; sigma in the units that black and gain are for."""

    sigma: float
    black: float
    gain: float
    curves: tuple[NoiseCurve, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    reason: str = ""
    buried: bool = False


def choose_route(
    facts: Facts, spread: tuple[float, float], profile: NoiseProfile, options: Options, notes: list[str]
) -> Route:
    """Decide between the noise as it is, stabilised, and filled up to white."""
    unit = facts.range.white - facts.range.black
    black, gain = natural_mapping(facts, spread)
    plain = Route(pooled(profile.sigma) * unit, black, gain)
    wish = options.noise_model
    if wish == "gaussian" or not profile.curves or max(profile.sigma) <= 0:
        if wish in ("poisson-gaussian", "correlated"):
            notes.append(f"noise model {wish}: nothing to measure it on, taken for white noise of one level")
        return plain
    curves, why = _stabilising_curves(profile, wish, notes)
    spectra = profile.spectra if wish in ("auto", "correlated") else ()
    if not curves and not spectra:
        return plain
    if not curves:
        curves = profile.curves
    in_file = tuple(c.rescaled(facts.range.black, unit) for c in curves)
    sigma = 1.0
    reasons = [why] if why else []
    if spectra:
        sigma = pooled(tuple(fill_level(s, buried=profile.buried) for s in spectra))
        across, down = profile.correlation
        hidden = ", as hardly any fine detail stands out of it," if profile.buried else ""
        reasons.append(
            f"noise correlated by {across:.2f} across and {down:.2f} down: filled up to white noise of "
            f"{sigma:.2f} times its strength for the network{hidden or ','} and detail put back behind it"
        )
    black, gain = _stabilised_mapping(in_file, spread, (black, gain))
    return Route(
        sigma, black, gain, in_file, spectra, "; ".join(reasons), buried=bool(spectra) and profile.buried
    )


def as_photo(facts: Facts, profile: NoiseProfile) -> Route:
    """Show the network the picture as it is: it knows cameras, not levels of noise."""
    unit = facts.range.white - facts.range.black
    across, down = profile.correlation
    why = ""
    if facts.jpeg:
        why = "the pixels come from JPEG: "
    elif profile.spectra:
        why = f"noise correlated by {across:.2f} across and {down:.2f} down in a picture of 8 bit: "
    return Route(
        pooled(profile.sigma) * unit,
        facts.range.black,
        1 / unit,
        reason=f"{why}taken for a photograph that a camera finished",
    )


def _stabilising_curves(
    profile: NoiseProfile, wish: str, notes: list[str]
) -> tuple[tuple[NoiseCurve, ...], str]:
    """Return the curves to stabilise by and the reason, or nothing if the noise is the same everywhere."""
    if wish == "poisson-gaussian" and not profile.depends_on_signal:
        lines = tuple(dataclasses.replace(c, kind="line") for c in profile.curves)
        if all(c.gain > 0 for c in lines):
            return lines, "stabilised by a generalised Anscombe transform, as asked for"
        notes.append("noise model poisson-gaussian: the noise does not grow with the signal, not stabilised")
        return (), ""
    if not profile.depends_on_signal:
        return (), ""
    source = {"user": "as given", "file": "as the file says"}.get(profile.source, "as measured")
    if all(c.kind == "line" and c.gain > 0 for c in profile.curves):
        return profile.curves, (
            f"noise grows with the signal, {source}: stabilised by a generalised Anscombe transform"
        )
    return profile.curves, f"noise depends on the signal by a curve, {source}: stabilised by its integral"


def _stabilised_mapping(
    curves: tuple[NoiseCurve, ...], spread: tuple[float, float], natural: tuple[float, float]
) -> tuple[float, float]:
    """Return black and gain for stabilised values: their spread fills the range, as pictures do.

    Where nothing depends on the signal the transform is a scale, and the picture is seen as it
    would be without.
    """
    ends = [stabiliser(c).forward(np.array(spread)) for c in curves]
    low, high = min(float(e[0]) for e in ends), max(float(e[1]) for e in ends)
    if all(c.kind == "constant" for c in curves):
        sigma = pooled(tuple(math.sqrt(c.mean) for c in curves))
        zeros = [float(stabiliser(c).forward(np.array(natural[0]))) for c in curves]
        return sum(zeros) / len(zeros), natural[1] * sigma
    return low, 1 / (high - low) if high > low else 1.0


def natural_mapping(facts: Facts, spread: tuple[float, float]) -> tuple[float, float]:
    """Return black and gain of what the network sees: ``(value - black) * gain``.

    Pictures of natural contrast are seen as they are. Floats may come in any unit: the unit is
    then the power of ten that holds the values, so that a picture multiplied by 0.01 or 100 is
    seen exactly as before. What is left (dim pictures in a wide type) is stretched to its spread;
    that costs up to 0.05 dB where it was not needed, measured on Set12 at noise 25.
    """
    low, high = spread
    if not high > low:
        return facts.range.black, 1 / (facts.range.white - facts.range.black)
    if facts.dtype.startswith("float") and not facts.range.given:
        # A range of 0..1 was told from the means where noise reaches beyond it (`picture.decide_range`).
        unit_range = (facts.range.black, facts.range.white) == (0.0, 1.0)
        noisy = low >= NOISY_UNIT_INTERVAL[0] and high <= NOISY_UNIT_INTERVAL[1]
        if unit_range and noisy and _NATURAL_SPREAD[0] <= high - low <= _NATURAL_SPREAD[1]:
            return 0.0, 1.0
        for power in (0, _decade(low, high)):
            unit = 10.0**power
            least = _NATURAL_SPREAD[0] if power == 0 else _DECADE_SPREAD
            if -0.5 * unit <= low and high <= 1.5 * unit and high - low >= least * unit:
                return 0.0, 1 / unit
    else:
        unit = facts.range.white - facts.range.black
        if _NATURAL_SPREAD[0] <= (high - low) / unit <= _NATURAL_SPREAD[1]:
            return facts.range.black, 1 / unit
    return low, 1 / (high - low)


def _decade(low: float, high: float) -> int:
    """Return the smallest k with the spread inside -0.5..1.5 times ten to the k."""
    return math.ceil(math.log10(max(high / 1.5, -low / 0.5, 1e-300)))


def pooled(sigma: tuple[float, ...]) -> float:
    """Return the root mean square of the samples' noise."""
    return math.sqrt(sum(s * s for s in sigma) / len(sigma))
