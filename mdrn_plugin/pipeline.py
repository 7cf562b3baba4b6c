"""The one way to a denoised pixel: read, estimate, plan, run, check, write.

The command line, the napari widgets, the Python functions and the cluster workers all come
through here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin import pipeline_raw as raw
from mdrn_plugin import tuning
from mdrn_plugin.noise import estimate_channels, told_law, told_sigma
from mdrn_plugin.noise.compression import was_jpeg
from mdrn_plugin.noise.dimness import is_dim
from mdrn_plugin.noise.smoothness import is_smooth
from mdrn_plugin.options import Options, parse_noise
from mdrn_plugin.picture import Picture, ValueRange, channel_spread
from mdrn_plugin.plan import Machine, Plan, resolve
from mdrn_plugin.plan_route import Facts
from mdrn_plugin.result import Result, check_residual, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrn_plugin.engine.run import Progress, Stop
    from mdrn_plugin.noise.curve import NoiseCurve
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.zoo import Zoo


def prepare(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    value_range: ValueRange | None = None,
    *,
    read: Callable[[str | os.PathLike[str]], Picture] | None = None,
) -> Picture:
    """Read `source`, making sure before any work that `target` can hold the result.

    `read` replaces `formats.read`, for callers that confine the decoders or set a limit on pixels.
    """
    from mdrn_plugin import formats

    picture = formats.read(source) if read is None else read(source)
    formats.check_can_hold(
        target,
        shape=picture.shape,
        axes=picture.axes,
        dtype=picture.pixels.dtype,
        alpha=picture.alpha,
        source_metadata=picture.metadata,
    )
    return picture if value_range is None else with_range(picture, value_range)


def with_range(picture: Picture, value_range: ValueRange) -> Picture:
    """Return the picture with black and white as the user says, of a mosaic too."""
    mosaic = picture.mosaic
    if mosaic is not None:
        black = ((value_range.black,) * mosaic.period,) * mosaic.period
        mosaic = dataclasses.replace(mosaic, black=black, white=value_range.white)
    return dataclasses.replace(picture, range=value_range, mosaic=mosaic)


def save(
    target: str | os.PathLike[str], result: Result, *, overwrite: bool = False, verify: bool = False
) -> None:
    """Write a result with its provenance; `verify` decodes what was written and compares."""
    from mdrn_plugin import formats

    formats.write(
        target,
        result.picture,
        provenance=provenance(result.plan),
        overwrite=overwrite,
        verify=verify,
    )


def denoise_picture(
    picture: Picture,
    options: Options,
    *,
    profiles: tuple[NoiseProfile, ...] | None = None,
    out: Any = None,
    zoo: Zoo | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Result:
    """Denoise a picture.

    Parameters
    ----------
    picture : Picture
        Never written to.
    options : Options
        What the user wishes.
    profiles : tuple of NoiseProfile, optional
        One per channel (C), instead of measuring: the noise of the series that the picture is of.
    out
        As of `carry_out`.
    zoo : Zoo, optional
        Models to choose from; default: those shipped.
    progress : callable, optional
        Called with (tiles done, tiles in all).
    stop : callable, optional
        Asked between tiles; true ends the run with `Cancelled`.

    Returns
    -------
    Result
        A new picture of the same shape, axes, dtype and metadata, with plan and verdict.

    Raises
    ------
    BadOption, UnknownModel, WeightsDamaged, OutOfMemory, Cancelled
    """
    began = time.perf_counter()
    if profiles is None:
        profiles = measure(picture, options)
    plan = make_plan(picture, profiles, options, zoo)
    result = carry_out(picture, profiles, plan, out=out, zoo=zoo, progress=progress, stop=stop)
    return dataclasses.replace(result, seconds=time.perf_counter() - began)


def carry_out(
    picture: Picture,
    profiles: tuple[NoiseProfile, ...],
    plan: Plan,
    *,
    out: Any = None,
    zoo: Zoo | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Result:
    """Do what a plan says; the second half of `denoise_picture`.

    For front ends that show the plan before they run it, or run it on a part of the picture that
    it was made for.

    Parameters
    ----------
    picture : Picture
        Never written to.
    profiles : tuple of NoiseProfile
        One per channel (C) of `picture`, as is ``plan.steps``.
    plan : Plan
        From `make_plan`.
    out : ndarray or Streamed, optional
        Where to write the pixels: shape and dtype of ``picture.pixels``, such as a memory-mapped
        file or `formats.scratch_like`. A new array if left out.
    zoo, progress, stop
        As of `denoise_picture`.
    """
    from mdrn_plugin.engine.planes import run_plan, take_rest_of_noise
    from mdrn_plugin.engine.stacks import average_along
    from mdrn_plugin.zoo import available

    began = time.perf_counter()
    pixels = np.empty(picture.shape, picture.pixels.dtype) if out is None else out
    carried_out = run_plan(picture, pixels, plan, zoo or available(), progress=progress, stop=stop)
    carried_out = take_rest_of_noise(picture, pixels, carried_out)
    if carried_out.along is not None:
        average_along(picture, pixels, carried_out, profiles, stop)
    denoised = dataclasses.replace(picture, pixels=pixels)
    if _does_something(plan):
        denoised = raw.told_denoised(denoised, plan.strength)
    check = None
    if _does_something(plan) and picture.mosaic is not None:
        check = raw.check_mosaic(picture, denoised, profiles[0], plan)
    elif _does_something(plan):
        check = check_residual(picture, denoised, profiles, plan.strength, blind=plan.blind)
    verdict, reasons = judge(check, carried_out.doubts, blind=carried_out.blind)
    return Result(denoised, profiles, carried_out, check, verdict, reasons, time.perf_counter() - began)


def measure(picture: Picture, options: Options) -> tuple[NoiseProfile, ...]:
    """Return one noise profile per channel: estimated, or as the user says, or as a RAW file says."""
    if picture.mosaic is not None:
        return (raw.measure_mosaic(picture, picture.mosaic, options),)
    wish = parse_noise(options.noise)
    if options.noise == "auto" and (told := raw.told_by_file(picture)) is not None:
        return (told,)
    if wish.value is None and wish.law is None:
        return estimate_channels(picture, law=options.noise_model)
    unit = picture.range.white - picture.range.black
    found: tuple[NoiseProfile | None, ...] = (None,) * picture.length("C")
    if options.noise_model == "correlated":  # how strong is given, how correlated is measured
        found = estimate_channels(picture, law="correlated")
    if wish.law is not None:
        gain, offset = (wish.law[0] / unit, wish.law[1] / unit**2) if wish.unit == "dn" else wish.law
        signals = zip(_signals(picture), found, strict=True)
        return tuple(told_law(gain, offset, span, picture.colours, f) for span, f in signals)
    assert wish.value is not None
    sigma = wish.value / (255.0 if wish.unit == "255" else unit)
    return tuple(told_sigma(sigma, picture.colours, f) for f in found)


def _signals(picture: Picture) -> tuple[tuple[float, float], ...]:
    """Return the spread of each channel as fractions of white."""
    black, unit = picture.range.black, picture.range.white - picture.range.black
    return tuple(((low - black) / unit, (high - black) / unit) for low, high in channel_spread(picture))


def make_plan(
    picture: Picture, profiles: tuple[NoiseProfile, ...], options: Options, zoo: Zoo | None = None
) -> Plan:
    """Resolve the plan of a picture; nothing is computed yet."""
    from mdrn_plugin.zoo import available

    zoo, machine = zoo or available(), find_machine(options)
    if picture.mosaic is not None:
        plan = raw.plan_mosaic(picture, picture.mosaic, profiles[0], options, zoo, machine)
    else:
        facts = Facts(
            range=picture.range,
            dtype=np.dtype(picture.pixels.dtype).name,
            colours=picture.colours,
            spread=channel_spread(picture),
            samples_joint=picture.colours == 3,
            jpeg=picture.axes == "YXS" and was_jpeg(picture.plane((slice(None),) * 3)),
            smooth=_ask_channels(is_smooth, picture, profiles),
            dim=_ask_channels(is_dim, picture, profiles),
        )
        plan = resolve(facts, profiles, options, zoo, machine)
    if options.along is None:
        return plan
    if picture.length(options.along) < 2:
        note = f"no other planes along {options.along}: each is denoised by itself"
        return dataclasses.replace(plan, notes=(*plan.notes, note))
    return dataclasses.replace(plan, along=options.along)


def _ask_channels(
    question: Callable[[Sequence[Any], NoiseCurve], bool],
    picture: Picture,
    profiles: tuple[NoiseProfile, ...],
) -> tuple[bool, ...]:
    """Return the answer for each channel; asked where gray noise depends on the signal."""
    black, unit = picture.range.black, picture.range.white - picture.range.black
    found = []
    for channel, profile in enumerate(profiles):
        if picture.colours != 1 or not profile.depends_on_signal:
            found.append(False)
            continue
        planes = [picture.plane(p) for p in picture.planes() if picture.channel_of(p) == channel]
        found.append(question(planes, profile.curves[0].rescaled(black, unit)))
    return tuple(found)


def find_machine(options: Options) -> Machine:
    """Return device, precision and threads that the options mean on this computer."""
    import torch

    from mdrn_plugin.engine.backends import resolve_backend
    from mdrn_plugin.engine.device import (
        resolve_device,
        resolve_non_local,
        resolve_precision,
        resolve_raw_precision,
    )

    count = options.threads or torch.get_num_threads()
    device = resolve_device(options.device)
    wish = options.backend
    if wish == "auto" and device == "cpu" and options.precision == "auto" and not options.exact:
        measured = tuning.load(count)  # with what is the default otherwise: nothing else was compared
        wish = measured.backend if measured else "torch"
    backend = resolve_backend(wish, options.device, options.precision)
    if backend != "torch":
        return Machine(
            "cpu",
            "fp32",
            count,
            backend,
            resolve_raw_precision(options.precision, "cpu"),
            resolve_non_local("cpu"),
        )
    precision = resolve_precision(options.precision, device)
    return Machine(
        device,
        precision,
        count,
        raw_precision=resolve_raw_precision(options.precision, device),
        non_local=resolve_non_local(device),
    )


def provenance(plan: Plan) -> str:
    """Return what is written into the file: program, version, models and settings as JSON."""
    from mdrn_plugin import __version__

    record: dict[str, Any] = {
        "program": "mdrn-plugin",
        "version": __version__,
        "steps": [
            {
                "model": s.model,
                "sha256": s.sha256[:16],
                "noise_255": round(s.sigma_255, 2),
                "stabilised": bool(s.curves),
                "correlated": bool(s.spectra),
                **({"backend": s.backend} if s.backend != "torch" else {}),
                **({"coarse": [f"{c.model} {c.sha256[:16]}" for c in s.coarse]} if s.coarse else {}),
                **({"refinement": f"{r.model} {r.sha256[:16]}"} if (r := s.refinement) else {}),
            }
            for s in plan.steps
        ],
        "ensemble": plan.ensemble,
        "precision": plan.precision,
        "strength": plan.strength,
    }
    if plan.along is not None:
        record["along"] = plan.along
    if plan.mosaic is not None:
        record["mosaic"] = plan.mosaic.kind
        record["chroma_strength"] = plan.mosaic.chroma_strength
    return json.dumps(record, sort_keys=True)


def _does_something(plan: Plan) -> bool:
    return any(step.model for step in plan.steps)
