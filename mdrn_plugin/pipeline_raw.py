"""The steps of `pipeline` as they are for RAW: noise of a mosaic, its plan, the check of its result."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.noise import estimate_noise, told_law, told_sigma
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.options import Options, parse_noise
from mdrn_plugin.picture import Picture, channel_spread, sample
from mdrn_plugin.plan_mosaic import resolve_mosaic, with_three_curves
from mdrn_plugin.result import ResidualCheck, check_residual

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.mosaic import Mosaic
    from mdrn_plugin.plan import Machine, Plan
    from mdrn_plugin.zoo import Zoo

_BULK = (0.1, 99.9)  # percent


def measure_mosaic(picture: Picture, mosaic: Mosaic, options: Options) -> NoiseProfile:
    """Return the noise of a mosaic, with a curve for each of red, green and blue.

    As the user says; else as the file says (DNG's NoiseProfile); else measured, on the pixels of like
    places of all repeats. All colours of a sensor share one law: their pixels are the same behind
    different filters.
    """
    wish = parse_noise(options.noise)
    unit = mosaic.white - mosaic.floor
    if wish.law is not None:
        gain, offset = (wish.law[0] / unit, wish.law[1] / unit**2) if wish.unit == "dn" else wish.law
        return with_three_curves(told_law(gain, offset, _span(picture, mosaic), 1))
    if wish.value is not None:
        return with_three_curves(told_sigma(wish.value / (255.0 if wish.unit == "255" else unit), 1))
    if mosaic.noise is not None:
        return _told(mosaic.noise, [_span(picture, mosaic, k) for k in range(3)])
    law = "auto" if options.noise_model == "correlated" else options.noise_model
    found = estimate_noise(_pooled(like_places(picture, mosaic)), law=law)
    if not found.curves and law != "gaussian" and max(found.sigma, default=0.0) > 0:
        found = found.with_doubt("too little to measure how the noise depends on light")
    if law != "gaussian":
        found = dataclasses.replace(found, curves=tuple(map(_photon_line, found.curves)))
    return with_three_curves(dataclasses.replace(found, spectra=(), buried=False))


def _photon_line(curve: NoiseCurve) -> NoiseCurve:
    """Return the line that was fitted, where it was too uncertain to be preferred to one level.

    Light arrives in photons: the noise of a sensor grows with it, however little of that a small
    picture proves. The level that was measured must be met within the picture's signals; where it
    is not, or the line falls, the line is nothing that photons make and the level stays.
    """
    if curve.kind != "constant" or not curve.gain > 0:
        return curve
    line = dataclasses.replace(curve, kind="line")
    low, high = line.variance(np.array(curve.span))
    return line if low <= curve.mean <= high else curve


def told_by_file(picture: Picture) -> NoiseProfile | None:
    """Return the noise that a RAW file without mosaic says it has; None if it says nothing."""
    noise = getattr(picture.metadata, "noise", None)
    if noise is None or picture.axes not in ("YX", "YXS"):
        return None
    black, unit = picture.range.black, picture.range.white - picture.range.black
    low, high = channel_spread(picture)[0]
    span = ((low - black) / unit, (high - black) / unit)
    return _told(noise[: picture.colours], [span] * picture.colours)


def _told(pairs: tuple[tuple[float, float], ...], spans: list[tuple[float, float]]) -> NoiseProfile:
    curves = []
    for (gain, offset), span in zip(pairs, spans, strict=True):
        kind = "line" if gain > 0 else "constant"
        curves.append(NoiseCurve(kind, gain, offset, mean=offset, span=span, source="file"))
    sigma = [
        math.sqrt(float(c.variance(np.array([(s[0] + s[1]) / 2]))[0]))
        for c, s in zip(curves, spans, strict=True)
    ]
    return NoiseProfile(tuple(sigma), source="file", curves=tuple(curves))


def told_denoised(picture: Picture, strength: float) -> Picture:
    """Return the picture with the note, if it is from a RAW file, that it was denoised."""
    from mdrn_plugin.formats.raw import RawMetadata

    about = picture.metadata
    if not isinstance(about, RawMetadata):
        return picture
    return dataclasses.replace(picture, metadata=dataclasses.replace(about, denoised=strength))


def plan_mosaic(
    picture: Picture, mosaic: Mosaic, profile: NoiseProfile, options: Options, zoo: Zoo, machine: Machine
) -> Plan:
    """Resolve the plan of a mosaic."""
    unit = mosaic.white - mosaic.floor
    spans = [_span(picture, mosaic, k) for k in range(3)]
    spread = tuple((mosaic.floor + unit * low, mosaic.floor + unit * high) for low, high in spans)
    kind = np.dtype(picture.pixels.dtype).name
    return resolve_mosaic(mosaic, spread, profile, kind, options, zoo, machine)


def check_mosaic(noisy: Picture, result: Picture, profile: NoiseProfile, plan: Plan) -> ResidualCheck | None:
    """Measure what was taken out of a mosaic, on the pixels of like places."""
    assert noisy.mosaic is not None
    assert plan.mosaic is not None
    strength = math.sqrt((plan.strength**2 + plan.mosaic.chroma_strength**2) / 2)
    places = _places(noisy.mosaic)
    parts = [like_places(p, noisy.mosaic) for p in (noisy, result)]
    profiles = tuple(
        dataclasses.replace(profile, sigma=profile.sigma[k : k + 1], curves=profile.curves[k : k + 1])
        for k in (noisy.mosaic.pattern[y][x] for y, x in places)
    )
    return check_residual(parts[0], parts[1], profiles, strength)


def like_places(picture: Picture, mosaic: Mosaic) -> Picture:
    """Return the pixels of like places as channels (CYX), each a picture of one colour.

    The four of Bayer's repeat; of X-Trans, whose greens repeat every 3 pixels, these five. Of a strip
    that no whole repeat fills, nothing. Float32 if the places differ in black, which is taken out.
    """
    step = mosaic.cell
    pixels = np.asarray(picture.pixels)
    height, width = (max(1, n // step) for n in pixels.shape)
    channels = []
    for y, x in _places(mosaic):
        part: NDArray[Any] = pixels[min(y, pixels.shape[0] - 1) :: step, min(x, pixels.shape[1] - 1) :: step]
        part = part[:height, :width]
        black = mosaic.black[y][x]
        channels.append(part if black == mosaic.floor else part.astype(np.float32) - (black - mosaic.floor))
    height, width = (min(c.shape[k] for c in channels) for k in (0, 1))
    stack = np.stack([c[:height, :width] for c in channels])
    return Picture(stack, "CYX", dataclasses.replace(picture.range, black=mosaic.floor, white=mosaic.white))


def _places(mosaic: Mosaic) -> list[tuple[int, int]]:
    cells = [(y, x) for y in range(mosaic.cell) for x in range(mosaic.cell)]
    return cells if mosaic.period == 2 else [(y, x) for y, x in cells if mosaic.pattern[y][x] == 1]


def _pooled(places: Picture) -> Picture:
    return dataclasses.replace(places, axes="ZYX")


def _span(picture: Picture, mosaic: Mosaic, colour: int | None = None) -> tuple[float, float]:
    """Return the spread of one colour, or of all, as fractions of white, black taken out."""
    pixels, period = np.asarray(picture.pixels), mosaic.period
    parts = []
    for y in range(period):
        for x in range(period):
            if colour is None or mosaic.pattern[y][x] == colour:
                found = sample(pixels[y::period, x::period], 1_000_000).astype(np.float64)
                parts.append(found - (mosaic.black[y][x] - mosaic.floor))
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, _BULK) if values.size else (mosaic.floor, mosaic.white)
    unit = mosaic.white - mosaic.floor
    return (float(low) - mosaic.floor) / unit, (float(high) - mosaic.floor) / unit
