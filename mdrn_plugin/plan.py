"""From wishes and facts to one resolved plan; pure, so it can be shown before anything is done."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.plan_models import (
    SIZES,
    choose_model,
    coarser_models,
    has_colour,
    photo_model,
    refining_model,
    stabilised_model,
    within_range,
)
from mdrn_plugin.plan_route import as_photo, choose_route, natural_mapping, pooled

if TYPE_CHECKING:
    from mdrn_plugin.mosaic import Mosaic
    from mdrn_plugin.noise.correlation import Spectrum
    from mdrn_plugin.noise.curve import NoiseCurve
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.plan_route import Facts
    from mdrn_plugin.zoo import Descriptor, Zoo

# Noise below this, on 0..255, is not worth a network: rounding to 8 bit alone is 0.29.
NO_NOISE_255 = 0.3

# px. Networks take a tile in strips of rows, whose memory grows with its width: 9 megapixels (2B, bf16)
# needed 778 MB at 1024 and 933 MB at 2048, in the same time (67.1 and 66.4 s of one core), although a
# halo of 48 adds 20 % of pixels to the one and 10 % to the other.
TILE_CPU = 1024
TILE_CUDA = 1024
# Other runtimes keep all features of a tile: with onnxruntime a megapixel (2B, fp32, one thread) takes
# 0.40 GB and 14.7 us per pixel at 256, 1.26 GB and 11.6 us at 512; torch at 1024 takes 9.7 us.
TILE_RUNTIME = 512

# px. A coarser network sees as many of its own pixels. At these halos (two scales at noise 30, three at 75)
# the residual differs from that of the whole plane by 7e-6 and 3e-5 of white (rms), 1.3e-4 and 3e-4 at most.
_HALO_OF_SCALES = (64, 96)
_REACH_OF_SCALES = 12  # px, of what spreads a coarser network's correction


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What the plan needs to know of the computer; `engine.device` finds it out."""

    device: str
    precision: str
    threads: int
    backend: str = "torch"  # what runs the models that it can run
    raw_precision: str = "fp32"  # of FAN
    non_local: str = ""  # what looks for what repeats itself: "kernel" or "torch"; empty: too slow here


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """The model of a coarser scale.

    Attributes
    ----------
    model, sha256 : str
        As of `Step`.
    """

    model: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True)
class Refinement:
    """What corrects a network's result by what the picture repeats (`networks.non_local`).

    Attributes
    ----------
    model, sha256 : str
        As of `Step`.
    means : str
        "kernel" or "torch": what sums over similar patches.
    """

    model: str
    sha256: str
    means: str


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What is done to one channel (C), or to all samples of a colour picture.

    Attributes
    ----------
    model : str, optional
        None: the channel is passed through.
    sha256 : str
        Of the model's weights; empty without model.
    sigma_255 : float
        Noise that the network will see, on 0..255.
    black, gain : float
        The network sees ``(value - black) * gain``; the value is the stabilised one where there are curves.
    tile, halo, stride : int
        px.
    reason : str
        In words.
    curves : tuple of NoiseCurve
        Variance of each sample as a function of its value, units of the file: the picture is
        stabilised by them before the network, and brought back behind it. Empty: not stabilised.
    spectra : tuple of Spectrum
        Of correlated noise, each sample: it is filled up to white noise. Empty: white as it is.
    buried : bool
        Hardly any fine detail stands out of that noise: it is filled up to its highest power.
    route : str
        In words why it is stabilised or filled up; empty if neither.
    backend : str
        One of `BACKENDS`; what is not torch computes in fp32.
    blind : bool
        The model was trained on what cameras do and is not told any noise: what was measured decides
        neither what it sees nor how its result is judged.
    coarse : tuple of Scale
        Of the picture at half the size, at a quarter: they correct the coarse detail of the one before
        (`networks.scales`).
    refinement : Refinement, optional
        Behind all of them.
    """

    model: str | None
    sha256: str
    sigma_255: float
    black: float
    gain: float
    tile: int
    halo: int
    stride: int
    reason: str
    curves: tuple[NoiseCurve, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    buried: bool = False
    route: str = ""
    backend: str = "torch"
    blind: bool = False
    coarse: tuple[Scale, ...] = ()
    refinement: Refinement | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MosaicStep:
    """What is done around the network to the mosaic of a RAW file.

    Attributes
    ----------
    kind : str
        "gray": the whole mosaic through a gray model, colours laid aside; "network": a model for packed
        mosaics.
    mosaic : Mosaic
        Pattern and levels.
    window : int
        Of the fit of the colours, px; 0 for "network".
    chroma_strength : float
        0 keeps the colour noise, 1 takes it away.
    """

    kind: str
    mosaic: Mosaic
    window: int
    chroma_strength: float


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the result, resolved; equal plans give equal bytes."""

    steps: tuple[Step, ...]  # one per channel of C, else one
    joint: bool  # a step covers all samples at once (colour model), else sample by sample
    ensemble: int
    device: str
    precision: str
    threads: int
    strength: float
    saturate: tuple[int, int] | None
    user_tile: bool
    notes: tuple[str, ...] = ()  # worth knowing
    doubts: tuple[str, ...] = ()  # reasons not to trust the result
    mosaic: MosaicStep | None = None  # of RAW files: one step then, for the whole mosaic
    along: str | None = None  # axis on which denoised planes are averaged with their neighbours

    @property
    def blind(self) -> bool:
        """Whether every model works without being told the noise."""
        return all(step.blind for step in self.steps)

    def explain(self) -> str:
        """Return the plan in about five lines."""
        lines = []
        for k, step in enumerate(self.steps):
            where = f"channel {k}: " if len(self.steps) > 1 else ""
            lines.append(f"{where}model {step.model or 'none'}: {step.reason}")
            if step.route:
                lines.append(f"{where}{step.route}")
        first = next((s for s in self.steps if s.model), None)
        if first is not None:
            value = "stabilised value" if first.curves else "value"
            lines.append(
                f"network sees ({value} - {first.black:.6g}) * {first.gain:.6g}, "
                f"noise {first.sigma_255:.1f}/255"
            )
            lines.append(
                f"tiles of {first.tile} px with a halo of {first.halo} px"
                + (", mean of 8 symmetries" if self.ensemble == 8 else "")
                + (f", strength {self.strength:g}" if self.strength != 1 else "")
                + self._explain_chroma()
            )
        runtimes = sorted({f", {s.backend}" for s in self.steps if s.backend != "torch"})
        lines.append(f"{self.device}, {self.precision}, {self.threads} threads" + "".join(runtimes))
        if self.along is not None:
            lines.append(f"planes averaged with their neighbours along {self.along} where they show the same")
        lines.extend(f"note: {note}" for note in self.notes)
        lines.extend(f"doubt: {doubt}" for doubt in self.doubts)
        return "\n".join(lines)

    def _explain_chroma(self) -> str:
        if self.mosaic is None or self.mosaic.chroma_strength == self.strength:
            return ""
        return f", of colour {self.mosaic.chroma_strength:g}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, stable within a version; no clock, no path."""
        return dataclasses.asdict(self)


def resolve(
    facts: Facts, profiles: tuple[NoiseProfile, ...], options: Options, zoo: Zoo, machine: Machine
) -> Plan:
    """Choose model, scale, tiles and precision for a picture.

    Parameters
    ----------
    facts : Facts
        Of the picture.
    profiles : tuple of NoiseProfile
        One per channel of C, or one for a picture without channels.
    options : Options
        What the user wishes.
    zoo : Zoo
        The models there are.
    machine : Machine
        Device, precision, threads.

    Raises
    ------
    UnknownModel
        ``options.model`` does not exist.
    BadOption
        ``options.model`` cannot do this picture; the zoo has no model for it.
    """
    notes: list[str] = []
    doubts: list[str] = []
    joint = facts.samples_joint and has_colour(zoo, options)
    if facts.samples_joint and not joint:
        notes.append("no colour model of that kind: each colour is denoised by itself")
    no = (False,) * len(profiles)
    steps = tuple(
        _step(facts, spread, profile, smooth, dim, joint, options, zoo, machine, notes, doubts)
        for spread, profile, smooth, dim in zip(
            facts.spread, profiles, facts.smooth or no, facts.dim or no, strict=True
        )
    )
    if not all(step.blind for step in steps):
        doubts.extend(p.doubt for p in profiles if p.doubt)
    notes.extend(backend_notes(steps, machine))
    return Plan(
        steps=steps,
        joint=joint,
        ensemble=8 if options.quality == "best+" else 1,
        device=machine.device,
        precision="fp32" if options.exact else machine.precision,
        threads=machine.threads,
        strength=options.strength,
        saturate=_saturation(facts),
        user_tile=options.tile is not None,
        notes=tuple(dict.fromkeys(notes)),
        doubts=tuple(dict.fromkeys(doubts)),
    )


def _step(
    facts: Facts,
    spread: tuple[float, float],
    profile: NoiseProfile,
    smooth: bool,
    dim: bool,
    joint: bool,
    options: Options,
    zoo: Zoo,
    machine: Machine,
    notes: list[str],
    doubts: list[str],
) -> Step:
    unit = facts.range.white - facts.range.black
    photo = photo_model(facts, profile, joint, options, zoo)
    route = as_photo(facts, profile) if photo else choose_route(facts, spread, profile, options, notes)
    black, gain = route.black, route.gain
    sigma_255 = route.sigma * gain * 255
    # JPEG wipes the noise out of flat areas, where it is measured, and leaves it in the others.
    silent = photo is None or not facts.jpeg
    silent = silent and pooled(profile.sigma) * unit * natural_mapping(facts, spread)[1] * 255 < NO_NOISE_255
    if options.model is None and (silent or options.strength == 0):
        reason = "no noise found, passed through" if options.strength else "strength 0, passed through"
        return Step(None, "", sigma_255, black, gain, TILE_CPU, 0, 8, reason)
    missing: list[str] = []  # of the tier that was asked for
    stabilised = stabilised_model(route, smooth, dim, joint, options, zoo)
    if photo:
        descriptor, reason = photo, "blind to the level; for finished photographs"
    elif stabilised:
        descriptor, reason = stabilised
    else:
        descriptor, reason = choose_model(zoo, 3 if joint else 1, options, sigma_255, missing, doubts)
    if not photo:
        gain, sigma_255 = within_range(gain, sigma_255, descriptor, options, zoo, doubts)
    coarse = coarser_models(descriptor, sigma_255, options, zoo)
    if coarse:
        reason += f"; {', '.join(d.name for d in coarse)} at {' and '.join(SIZES[: len(coarse)])} the size"
    refiner = None if route.spectra else refining_model(descriptor, sigma_255, options, zoo)
    if refiner and not machine.non_local:
        refiner = None
        notes.append("what the picture repeats was not looked for: needs the compiled kernel, or a GPU")
    if refiner:
        reason += "; what the picture repeats is looked at besides"
    else:
        notes.extend(missing)
    return model_step(
        descriptor,
        options,
        machine,
        coarse=coarse,
        refiner=refiner,
        sigma_255=sigma_255,
        black=black,
        gain=gain,
        reason=reason,
        curves=route.curves,
        spectra=route.spectra,
        buried=route.buried,
        route=route.reason,
        blind=photo is not None,
    )


def model_step(
    descriptor: Descriptor,
    options: Options,
    machine: Machine,
    *,
    coarse: tuple[Descriptor, ...] = (),
    refiner: Descriptor | None = None,
    grid: int | None = None,
    **what: Any,
) -> Step:
    """Return the step of a model: its tiles, and `what` else a `Step` says.

    `coarse` are the models of coarser scales, `refiner` that of what the picture repeats. `grid` is what
    sides of tiles are multiples of, px; the stride if left out.
    """
    stride = max(d.stride << k for k, d in enumerate((descriptor, *coarse)))
    grid = grid or stride
    backend = machine.backend if descriptor.architecture == "mdrn" else "torch"
    usual = TILE_CUDA if machine.device.startswith("cuda") else TILE_CPU
    tile = options.tile or (usual if backend == "torch" else TILE_RUNTIME)
    return Step(
        model=descriptor.name,
        sha256=descriptor.sha256,
        tile=max(grid, tile // grid * grid),
        halo=_halo((descriptor, *coarse), refiner, stride, exact=options.exact),
        stride=stride,
        backend=backend,
        coarse=tuple(Scale(d.name, d.sha256) for d in coarse),
        refinement=Refinement(refiner.name, refiner.sha256, machine.non_local) if refiner else None,
        **what,
    )


def _halo(scales: tuple[Descriptor, ...], refiner: Descriptor | None, stride: int, *, exact: bool) -> int:
    """Return how much around a tile is read, px: all that its result depends on, or what matters of it."""
    if not exact:
        usual = scales[0].default_halo
        usual = usual if len(scales) == 1 else max(usual, _HALO_OF_SCALES[len(scales) - 2])
        return usual + (-(-refiner.default_halo // stride) * stride if refiner else 0)
    halo = scales[-1].halo
    for descriptor in reversed(scales[:-1]):
        halo = max(descriptor.halo, 2 * halo) + _REACH_OF_SCALES
    halo += refiner.halo if refiner else 0
    return -(-halo // stride) * stride


def backend_notes(steps: tuple[Step, ...], machine: Machine) -> list[str]:
    """Return notes about models that the wished backend cannot run."""
    left = dict.fromkeys(s.model for s in steps if s.model and s.backend != machine.backend)
    return [f"{name} does not run in {machine.backend}: torch is used" for name in left]


def _saturation(facts: Facts) -> tuple[int, int] | None:
    dtype = np.dtype(facts.dtype)
    if dtype.kind not in "ui":
        return None
    info = np.iinfo(dtype)
    top = int(info.max)
    bits = facts.range.white + 1
    if bits < top and math.log2(bits).is_integer() and dtype.kind == "u":
        top = int(facts.range.white)  # 10, 12 or 14 bit: never above what the sensor can say
    return int(info.min), top
