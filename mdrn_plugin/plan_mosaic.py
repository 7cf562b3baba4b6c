"""The plan of a mosaic: which model, and what its network is shown.

For Bayer, a model of the tier "raw" ("raw-best" for the qualities "best" and "best+") if the zoo has
one whose band holds the noise (`engine.packed`); else a gray model on the whole stabilised mosaic with
the colours laid aside (`engine.mosaic`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mdrn_plugin.noise.stabilise import stabiliser
from mdrn_plugin.plan import (
    NO_NOISE_255,
    TILE_CPU,
    Machine,
    MosaicStep,
    Plan,
    Step,
    backend_notes,
    model_step,
)
from mdrn_plugin.plan_models import choose_model, is_for_raw, within_range

if TYPE_CHECKING:
    from mdrn_plugin.mosaic import Mosaic
    from mdrn_plugin.noise.curve import NoiseCurve
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.zoo import Descriptor, Zoo

# Window of the fit of the colours by the noise that the network sees (0..255): the more noise, the wider.
# PSNR of 5 pictures of DIV2K behind a gamma of 2.2, Bayer and X-Trans, six levels of noise.
_WINDOWS = ((5.0, 5), (9.0, 7), (14.0, 9), (18.0, 11), (40.0, 15), (math.inf, 21))
# A signal by which the noise of a mosaic is named for the choice of a model: 18 % gray.
GRAY = 0.18
_RAW_TIERS = {
    "fast": ("raw",),
    "balanced": ("raw",),
    "best": ("raw-best", "raw"),
    "best+": ("raw-best", "raw"),
}


def resolve_mosaic(
    mosaic: Mosaic,
    spread: tuple[tuple[float, float], ...],
    profile: NoiseProfile,
    dtype: str,
    options: Options,
    zoo: Zoo,
    machine: Machine,
) -> Plan:
    """Choose model, scale, tiles and precision for a mosaic; pure.

    Parameters
    ----------
    mosaic : Mosaic
        Pattern and levels.
    spread : triple of pairs of float
        0.1 and 99.9 % quantile of red, green and blue, units of the file.
    profile : NoiseProfile
        One curve for each of red, green, blue; fractions of white minus black.
    dtype : str
        Of the pixels.
    options, zoo, machine
        As of `mdrn_plugin.plan.resolve`.

    Raises
    ------
    UnknownModel, BadOption
        As of `resolve`.
    """
    notes: list[str] = []
    doubts = [profile.doubt] if profile.doubt else []
    curves = _curves(mosaic, profile)
    chroma = options.strength if options.chroma_strength is None else options.chroma_strength
    descriptor = raw_model(zoo, options, profile)
    precision = "fp32" if options.exact else machine.precision
    if descriptor is not None and options.strength == chroma == 0:
        step = _passed_through("strength 0, passed through")
        route = MosaicStep("network", mosaic, 0, chroma)
    elif descriptor is not None and mosaic.period == 2:
        step = _network_step(mosaic, descriptor, curves, profile, options, machine, doubts)
        compiled = descriptor.architecture == "fan" and not options.exact
        precision = machine.raw_precision if compiled else "fp32"
        route = MosaicStep("network", mosaic, 0, chroma)
    else:
        step = _gray_step(spread, curves, profile, options, chroma, zoo, machine, notes, doubts)
        route = MosaicStep("gray", mosaic, _window(step.sigma_255), chroma)
    if profile.spectra:
        notes.append("the noise is correlated: that is not made use of in mosaics")
    notes.extend(backend_notes((step,), machine))
    kind = np.dtype(dtype)
    saturate = (0, int(np.iinfo(kind).max)) if kind.kind in "ui" else None
    return Plan(
        steps=(step,),
        joint=False,
        ensemble=8 if options.quality == "best+" else 1,
        device=machine.device,
        precision=precision,
        threads=machine.threads,
        strength=options.strength,
        saturate=saturate,
        user_tile=options.tile is not None,
        notes=tuple(dict.fromkeys(notes)),
        doubts=tuple(dict.fromkeys(doubts)),
        mosaic=route,
    )


def noise_255(profile: NoiseProfile) -> float:
    """Return the noise at 18 % gray on 0..255: what the bands of RAW models are in."""
    curve = profile.curves[1] if len(profile.curves) == 3 else None
    if curve is None:
        return 255 * max(profile.sigma)
    return 255 * math.sqrt(float(curve.variance(np.array([GRAY]))[0]))


def raw_model(zoo: Zoo, options: Options, profile: NoiseProfile) -> Descriptor | None:
    """Return the model for mosaics whose band holds the noise, None if there is none."""
    if options.model is not None:
        chosen = zoo.get(options.model)
        return chosen if is_for_raw(chosen) else None
    level = noise_255(profile)
    for tier in _RAW_TIERS[options.quality]:
        models = [d for d in zoo.descriptors if d.tier == tier]
        covering = [d for d in models if d.band_255[0] <= level <= d.band_255[1]]
        if covering:
            return min(covering, key=lambda d: (d.band_255[1] - d.band_255[0], d.name))
    return None


def _curves(mosaic: Mosaic, profile: NoiseProfile) -> tuple[NoiseCurve, ...]:
    unit = mosaic.white - mosaic.floor
    return tuple(c.rescaled(mosaic.floor, unit) for c in profile.curves)


def _network_step(
    mosaic: Mosaic,
    descriptor: Descriptor,
    curves: tuple[NoiseCurve, ...],
    profile: NoiseProfile,
    options: Options,
    machine: Machine,
    doubts: list[str],
) -> Step:
    level = noise_255(profile)
    low, high = descriptor.band_255
    reason = f"noise {level:.1f}/255 at 18 % gray lies in its band {low:g} to {high:g}"
    if options.model is not None:
        reason = "chosen by the user"
        low, high = descriptor.trained_255
        if not low <= level <= high:
            doubts.append(f"{descriptor.name} was trained on noise {low:g} to {high:g}, this is {level:.1f}")
    return model_step(
        descriptor,
        options,
        machine,
        grid=2 * descriptor.stride,
        sigma_255=level,
        black=mosaic.floor,
        gain=1 / (mosaic.white - mosaic.floor),
        reason=reason,
        curves=curves,
        route=_source(profile),
    )


def _passed_through(reason: str) -> Step:
    return Step(None, "", 0.0, 0.0, 1.0, TILE_CPU, 0, 8, reason)


def _gray_step(
    spread: tuple[tuple[float, float], ...],
    curves: tuple[NoiseCurve, ...],
    profile: NoiseProfile,
    options: Options,
    chroma: float,
    zoo: Zoo,
    machine: Machine,
    notes: list[str],
    doubts: list[str],
) -> Step:
    if not curves or not all(c.mean > 0 or c.kind != "constant" for c in curves):
        return _passed_through("no noise found, passed through")
    ends = [stabiliser(c).forward(np.array(s)) for c, s in zip(curves, spread, strict=True)]
    weights = (0.25, 0.5, 0.25)
    low, high = (sum(w * float(e[k]) for w, e in zip(weights, ends, strict=True)) for k in (0, 1))
    # A flat picture is seen with noise of half the contrast, not filled with it.
    gain = 1 / max(high - low, 2.0)
    sigma_255 = gain * 255
    if options.model is None and (sigma_255 < NO_NOISE_255 or options.strength == chroma == 0):
        silent = sigma_255 < NO_NOISE_255
        reason = "no noise found, passed through" if silent else "strength 0, passed through"
        return Step(None, "", sigma_255, low, gain, TILE_CPU, 0, 8, reason)
    descriptor, reason = choose_model(zoo, 1, options, sigma_255, notes, doubts)
    gain, sigma_255 = within_range(gain, sigma_255, descriptor, options, zoo, doubts)
    return model_step(
        descriptor,
        options,
        machine,
        sigma_255=sigma_255,
        black=low,
        gain=gain,
        reason=reason,
        curves=curves,
        route=f"{_source(profile)}; mosaic denoised whole, its colours laid aside",
    )


def _source(profile: NoiseProfile) -> str:
    source = {"user": "as given", "file": "as the file says"}.get(profile.source, "as measured")
    if all(c.kind == "constant" for c in profile.curves):
        return f"noise of one level, {source}"
    lines = all(c.kind == "line" for c in profile.curves)
    how = "a generalised Anscombe transform" if lines else "its integral"
    return f"noise grows with the signal, {source}: stabilised by {how}"


def _window(sigma_255: float) -> int:
    return next(window for limit, window in _WINDOWS if sigma_255 <= limit)


def with_three_curves(profile: NoiseProfile) -> NoiseProfile:
    """Return the profile of one law that all colours of a sensor share, colour by colour."""
    from mdrn_plugin.noise.curve import NoiseCurve as Curve

    sigma = profile.sigma[0] if profile.sigma else 0.0
    curve = profile.curves[0] if profile.curves else Curve("constant", 0.0, 0.0, mean=sigma**2)
    if curve.kind == "constant" and not curve.mean > 0:
        curve = dataclasses.replace(curve, mean=sigma**2)
    return dataclasses.replace(profile, sigma=(sigma,) * 3, curves=(curve,) * 3)
