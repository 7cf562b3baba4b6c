"""From wishes and facts to one resolved plan; pure, so it can be shown before anything is done."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import BadOption
from mdrn_plugin.noise.correlation import fill_level
from mdrn_plugin.noise.stabilise import stabiliser

if TYPE_CHECKING:
    from mdrn_plugin.mosaic import Mosaic
    from mdrn_plugin.noise.correlation import Spectrum
    from mdrn_plugin.noise.curve import NoiseCurve
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.picture import ValueRange
    from mdrn_plugin.zoo import Descriptor, Zoo

NOISE_MODELS = ("auto", "gaussian", "poisson-gaussian", "correlated")
QUALITIES = ("fast", "balanced", "best", "best+")
BACKENDS = ("torch", "onnxruntime")
_TIERS = {"fast": "fast", "balanced": "balanced", "best": "best", "best+": "best"}
# What serves a tier that the zoo does not have.
_FALLBACK = {"fast": ("balanced", "best"), "balanced": ("best", "fast"), "best": ("balanced", "fast")}

# Pictures whose values spread over this share of black..white are taken as they are; others are
# scaled so that their spread fills the range, the range the networks were trained on. A picture of full
# contrast under the strongest noise that the models know (90 of 255) spreads over 1 + 6.2 * 90 / 255 = 3.2.
_NATURAL_SPREAD = (0.2, 3.3)
# The same for floats in units of a power of ten other than 1: less certain, so closer to 1.
_DECADE_SPREAD = 0.4

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

# Noise, on 0..255, from which a second network at half the size, and a third at a quarter, pay. On 25 crops
# of DIV2K two scales gain 0.02 dB at 15, 0.03 at 25, 0.04 at 35, 0.08 at 50 and 0.10 at 75 in gray, much the
# same in colour, for 23 % more time, and a third 0.01 to 0.02 from 35 on; decision 0027.
_SCALES_FROM = {"fast": (), "balanced": (15.0,), "best": (10.0, 35.0)}
# The same for finished photographs, by the measured noise; their model works at both sizes. CC gains 0.20 dB
# and strong noise of simulated cameras 0.19; where there is next to none nothing is gained, and clean JPEGs
# lose 0.01 to 0.02.
_PHOTO_SCALES_FROM = 1.0
# px. A coarser network sees as many of its own pixels. At these halos (two scales at noise 30, three at 75)
# the residual differs from that of the whole plane by 7e-6 and 3e-5 of white (rms), 1.3e-4 and 3e-4 at most.
_HALO_OF_SCALES = (64, 96)
_REACH_OF_SCALES = 12  # px, of what spreads a coarser network's correction


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can wish for; every front end fills in this record.

    Attributes
    ----------
    noise : str
        "auto"; "25" for a standard deviation of 25/255 of white; "25dn" in units of the file;
        "0.01,0.0004" for a variance of 0.01 * signal + 0.0004, signal 0..1 from black to white;
        "2.5,30dn" for the same in units of the file.
    noise_model : str
        One of `NOISE_MODELS`: what kind of noise to expect; "auto" decides by what is measured.
    quality : str
        One of `QUALITIES`; "best+" adds the x8 self-ensemble.
    model : str, optional
        Name of a model, instead of the choice by noise and quality.
    device, precision : str
        See `engine.device`.
    backend : str
        "auto", or one of `BACKENDS`.
    tile : int, optional
        Side of a tile, px; never overridden.
    threads : int, optional
        CPU threads.
    strength : float
        0 keeps the input, 1 takes the network's result.
    chroma_strength : float, optional
        The same for the colour noise of RAW mosaics; left out: as `strength`.
    exact : bool
        fp32 and the full halo: tiled equals whole to rounding.
    along : str, optional
        "Z" or "T": denoised planes are averaged with their neighbours on this axis, where these show
        the same.
    """

    noise: str = "auto"
    noise_model: str = "auto"
    quality: str = "balanced"
    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    tile: int | None = None
    threads: int | None = None
    strength: float = 1.0
    chroma_strength: float | None = None
    exact: bool = False
    along: str | None = None

    def __post_init__(self) -> None:
        law = parse_noise(self.noise).law
        if self.noise_model not in NOISE_MODELS:
            raise BadOption(f"noise model {self.noise_model!r}: expected one of {', '.join(NOISE_MODELS)}")
        if law is not None and self.noise_model == "gaussian":
            raise BadOption(
                f"noise {self.noise!r}: gain and offset are for the noise model poisson-gaussian; "
                "give one standard deviation, or leave out the noise model"
            )
        if self.quality not in QUALITIES:
            raise BadOption(f"quality {self.quality!r}: expected one of {', '.join(QUALITIES)}")
        if self.backend not in ("auto", *BACKENDS):
            raise BadOption(f"backend {self.backend!r}: expected one of auto, {', '.join(BACKENDS)}")
        if not 0 <= self.strength <= 1:
            raise BadOption(f"strength {self.strength}: expected a number from 0 to 1")
        if self.chroma_strength is not None and not 0 <= self.chroma_strength <= 1:
            raise BadOption(f"chroma strength {self.chroma_strength}: expected a number from 0 to 1")
        if self.tile is not None and (self.tile < 32 or self.tile % 16):
            raise BadOption(f"tile {self.tile}: expected a multiple of 16 from 32 on, such as 256")
        if self.threads is not None and self.threads < 1:
            raise BadOption(f"threads {self.threads}: expected 1 or more")
        if self.along not in (None, "Z", "T"):
            raise BadOption(f"along {self.along!r}: expected Z or T")
        if self.along is not None and self.strength != 1:
            raise BadOption(f"along {self.along}: averages what strength {self.strength} keeps; drop one")


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


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What the plan needs to know of the computer; `engine.device` finds it out."""

    device: str
    precision: str
    threads: int
    backend: str = "torch"  # what runs the models that it can run
    raw_precision: str = "fp32"  # of FAN


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


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseWish:
    """A parsed noise option."""

    value: float | None  # standard deviation; None: estimate, or see law
    unit: str  # "255", "dn", or for a law "1"
    law: tuple[float, float] | None = None  # gain and offset of the variance


def parse_noise(text: str) -> NoiseWish:
    """Parse "auto", "25", "25dn", "0.01,0.0004" or "2.5,30dn".

    Raises
    ------
    BadOption
        Anything else.
    """
    plain = text.strip().lower()
    if plain == "auto":
        return NoiseWish(None, "255")
    in_file = plain.endswith("dn")
    try:
        values = [float(part) for part in plain.removesuffix("dn").split(",")]
    except ValueError:
        values = []
    if len(values) == 1 and math.isfinite(values[0]) and values[0] >= 0:
        return NoiseWish(values[0], "dn" if in_file else "255")
    # A negative offset is a pedestal: the signal begins above black.
    if len(values) == 2 and all(map(math.isfinite, values)) and values[0] > 0:
        return NoiseWish(None, "dn" if in_file else "1", (values[0], values[1]))
    raise BadOption(
        f"noise {text!r}: expected auto, a number such as 25 (of 255), 25dn (units of the file), "
        "or gain and offset of the variance such as 0.01,0.0004 (gain above 0)"
    )


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
    joint = facts.samples_joint and _has_colour(zoo, options)
    if facts.samples_joint and not joint:
        notes.append("no colour model of that kind: each colour is denoised by itself")
    steps = tuple(
        _step(facts, spread, profile, smooth, joint, options, zoo, machine, notes, doubts)
        for spread, profile, smooth in zip(
            facts.spread, profiles, facts.smooth or (False,) * len(profiles), strict=True
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


def _has_colour(zoo: Zoo, options: Options) -> bool:
    if options.model is not None:
        return zoo.get(options.model).colours == 3
    return any(d.colours == 3 for d in zoo.descriptors)


def _step(
    facts: Facts,
    spread: tuple[float, float],
    profile: NoiseProfile,
    smooth: bool,
    joint: bool,
    options: Options,
    zoo: Zoo,
    machine: Machine,
    notes: list[str],
    doubts: list[str],
) -> Step:
    unit = facts.range.white - facts.range.black
    photo = _photo_model(facts, profile, joint, options, zoo)
    route = _as_photo(facts, profile) if photo else _route(facts, spread, profile, options, notes)
    black, gain = route.black, route.gain
    sigma_255 = route.sigma * gain * 255
    # JPEG wipes the noise out of flat areas, where it is measured, and leaves it in the others.
    silent = photo is None or not facts.jpeg
    silent = silent and _pooled(profile.sigma) * unit * _mapping(facts, spread)[1] * 255 < NO_NOISE_255
    if options.model is None and (silent or options.strength == 0):
        reason = "no noise found, passed through" if options.strength else "strength 0, passed through"
        return Step(None, "", sigma_255, black, gain, TILE_CPU, 0, 8, reason)
    stabilised = _stabilised_model(route, smooth, joint, options, zoo)
    if photo:
        descriptor, reason = photo, "blind to the level; for finished photographs"
    elif stabilised:
        descriptor, reason = stabilised
    else:
        descriptor, reason = choose_model(zoo, 3 if joint else 1, options, sigma_255, notes, doubts)
    if not photo:
        gain, sigma_255 = within_range(gain, sigma_255, descriptor, options, zoo, doubts)
    coarse = _coarser(descriptor, sigma_255, options, zoo)
    if coarse:
        reason += f"; {', '.join(d.name for d in coarse)} at {' and '.join(_SIZES[: len(coarse)])} the size"
    return model_step(
        descriptor,
        options,
        machine,
        coarse=coarse,
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


_SIZES = ("half", "a quarter of")


def _coarser(descriptor: Descriptor, sigma_255: float, options: Options, zoo: Zoo) -> tuple[Descriptor, ...]:
    """Return the models that correct coarse detail at half and a quarter of the size.

    Each scale has half the noise of the one before. None where one model was asked for, and none of few
    photons, whose means are another law's.
    """
    if options.model is not None:
        return ()
    if descriptor.tier == "photo":
        return (descriptor,) if sigma_255 >= _PHOTO_SCALES_FROM else ()
    if descriptor.tier not in ("balanced", "best", "micro"):
        return ()
    found = []
    for k, least in enumerate(_SCALES_FROM[_TIERS[options.quality]], 1):
        if sigma_255 < least:
            break
        level = sigma_255 / 2**k
        low, high = descriptor.band_255
        if descriptor.tier == "micro" and low <= level <= high:
            found.append(descriptor)
        else:
            found.append(choose_model(zoo, descriptor.colours, options, level, [], [])[0])
    return tuple(found)


def within_range(
    gain: float, sigma_255: float, descriptor: Descriptor, options: Options, zoo: Zoo, doubts: list[str]
) -> tuple[float, float]:
    """Return gain and noise that the network sees: contrast is reduced if the noise is above all models."""
    top = max(d.band_255[1] for d in zoo.descriptors if d.colours == descriptor.colours)
    limit = descriptor.trained_255[1] if options.model else top
    if sigma_255 <= limit:
        return gain, sigma_255
    doubts.append(
        f"noise {sigma_255:.0f}/255 is above the models' range: contrast reduced before the network"
    )
    return gain * limit / sigma_255, limit


def model_step(
    descriptor: Descriptor,
    options: Options,
    machine: Machine,
    *,
    coarse: tuple[Descriptor, ...] = (),
    grid: int | None = None,
    **what: Any,
) -> Step:
    """Return the step of a model: its tiles, and `what` else a `Step` says.

    `coarse` are the models of coarser scales. `grid` is what sides of tiles are multiples of, px; the
    stride if left out.
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
        halo=_halo((descriptor, *coarse), stride, exact=options.exact),
        stride=stride,
        backend=backend,
        coarse=tuple(Scale(d.name, d.sha256) for d in coarse),
        **what,
    )


def _halo(scales: tuple[Descriptor, ...], stride: int, *, exact: bool) -> int:
    """Return how much around a tile is read, px: all that its result depends on, or what matters of it."""
    if not exact:
        usual = scales[0].default_halo
        return usual if len(scales) == 1 else max(usual, _HALO_OF_SCALES[len(scales) - 2])
    halo = scales[-1].halo
    for descriptor in reversed(scales[:-1]):
        halo = max(descriptor.halo, 2 * halo) + _REACH_OF_SCALES
    return -(-halo // stride) * stride


def backend_notes(steps: tuple[Step, ...], machine: Machine) -> list[str]:
    """Return notes about models that the wished backend cannot run."""
    left = dict.fromkeys(s.model for s in steps if s.model and s.backend != machine.backend)
    return [f"{name} does not run in {machine.backend}: torch is used" for name in left]


# --- what is done before and after the network ------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Route:
    """The way to noise that a network knows; sigma in the units that black and gain are for."""

    sigma: float
    black: float
    gain: float
    curves: tuple[NoiseCurve, ...] = ()
    spectra: tuple[Spectrum, ...] = ()
    reason: str = ""
    buried: bool = False


def _route(
    facts: Facts, spread: tuple[float, float], profile: NoiseProfile, options: Options, notes: list[str]
) -> _Route:
    """Decide between the noise as it is, stabilised, and filled up to white."""
    unit = facts.range.white - facts.range.black
    black, gain = _mapping(facts, spread)
    plain = _Route(_pooled(profile.sigma) * unit, black, gain)
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
        sigma = _pooled(tuple(fill_level(s, buried=profile.buried) for s in spectra))
        across, down = profile.correlation
        hidden = ", as hardly any fine detail stands out of it," if profile.buried else ""
        reasons.append(
            f"noise correlated by {across:.2f} across and {down:.2f} down: filled up to white noise of "
            f"{sigma:.2f} times its strength for the network{hidden or ','} and detail put back behind it"
        )
    black, gain = _stabilised_mapping(in_file, spread, (black, gain))
    return _Route(
        sigma, black, gain, in_file, spectra, "; ".join(reasons), buried=bool(spectra) and profile.buried
    )


def _photo_model(
    facts: Facts, profile: NoiseProfile, joint: bool, options: Options, zoo: Zoo
) -> Descriptor | None:
    """Return the model for finished photographs if it is asked for, or if this looks like one.

    Colour, 8 bit, and either from JPEG or with noise that hangs together from pixel to pixel: what
    interpolation of colours, the camera's noise reduction and JPEG leave. The fast tier keeps to its
    own network.
    """
    if options.model is not None:
        chosen = zoo.get(options.model)
        return chosen if chosen.tier == "photo" and joint and facts.samples_joint else None
    if not joint or facts.dtype != "uint8" or not (facts.jpeg or profile.spectra):
        return None
    if options.noise_model != "auto" or options.quality == "fast":
        return None
    return next((d for d in zoo.descriptors if d.tier == "photo" and d.colours == 3), None)


def _stabilised_model(
    route: _Route, smooth: bool, joint: bool, options: Options, zoo: Zoo
) -> tuple[Descriptor, str] | None:
    """Return the gray model that knows what stabilised noise is, and why.

    Of few photons the noise is neither of one level nor Gaussian behind the transform: there is a
    model for that. There is another for pictures without fine detail, as microscopes show them. The
    fast tier keeps to its own network.
    """
    if not route.curves or joint or options.model is not None or options.quality == "fast":
        return None
    sigma_255 = route.sigma * route.gain * 255
    counted = all(c.kind == "line" and c.gain > 0 for c in route.curves) and not route.spectra
    for tier, fits, why in (
        ("photons", counted, "few photons, after stabilising"),
        ("micro", smooth, "in a picture without fine detail; for microscopy"),
    ):
        models = (d for d in zoo.descriptors if d.tier == tier and d.colours == 1)
        found = next((d for d in models if fits and d.band_255[0] <= sigma_255), None)
        if found:
            return found, f"noise {sigma_255:.1f}/255, {why}"
    return None


def _as_photo(facts: Facts, profile: NoiseProfile) -> _Route:
    """Show the network the picture as it is: it knows cameras, not levels of noise."""
    unit = facts.range.white - facts.range.black
    across, down = profile.correlation
    why = ""
    if facts.jpeg:
        why = "the pixels come from JPEG: "
    elif profile.spectra:
        why = f"noise correlated by {across:.2f} across and {down:.2f} down in a picture of 8 bit: "
    return _Route(
        _pooled(profile.sigma) * unit,
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
        sigma = _pooled(tuple(math.sqrt(c.mean) for c in curves))
        zeros = [float(stabiliser(c).forward(np.array(natural[0]))) for c in curves]
        return sum(zeros) / len(zeros), natural[1] * sigma
    return low, 1 / (high - low) if high > low else 1.0


def is_for_raw(descriptor: Descriptor) -> bool:
    """Whether a model is for the mosaics of RAW files."""
    return descriptor.tier.startswith("raw")


def choose_model(
    zoo: Zoo, colours: int, options: Options, sigma_255: float, notes: list[str], doubts: list[str]
) -> tuple[Descriptor, str]:
    """Return the model for a noise level, and why.

    The narrowest band that contains the level, within the tier that the quality names; above all
    bands, the highest one.
    """
    if options.model is not None:
        descriptor = zoo.get(options.model)
        if is_for_raw(descriptor):
            raise BadOption(
                f"model {options.model}: is for Bayer mosaics; choose another, see mdrn-batch models"
            )
        if descriptor.colours != colours:
            kind = "colour" if descriptor.colours == 3 else "gray"
            raise BadOption(
                f"model {options.model}: is for {kind} pictures; choose another, see mdrn-batch models"
            )
        low, high = descriptor.trained_255
        if not low <= sigma_255 <= high:
            doubts.append(
                f"{descriptor.name} was trained on noise {low:g} to {high:g}, this is {sigma_255:.1f}"
            )
        return descriptor, "chosen by the user"
    wanted = _TIERS[options.quality]
    for tier in (wanted, *_FALLBACK[wanted]):
        models = [d for d in zoo.descriptors if d.colours == colours and d.tier == tier]
        if not models:
            continue
        if tier != wanted:
            notes.append(f"no model of the tier {wanted!r} yet: {tier!r} used instead")
        # Above all bands the contrast will be reduced until the noise lies on the highest edge.
        level = min(sigma_255, max(d.band_255[1] for d in models))
        covering = [d for d in models if d.band_255[0] <= level <= d.band_255[1]]
        if not covering:
            covering = [min(models, key=lambda d: abs(d.band_255[0] - level))]
        best = min(covering, key=lambda d: (d.band_255[1] - d.band_255[0], d.name))
        return (
            best,
            f"noise {sigma_255:.1f}/255 lies in its band {best.band_255[0]:g} to {best.band_255[1]:g}",
        )
    raise BadOption("the zoo has no model for this picture; reinstall mdrn-plugin, or give --model")


def _mapping(facts: Facts, spread: tuple[float, float]) -> tuple[float, float]:
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


def _pooled(sigma: tuple[float, ...]) -> float:
    return math.sqrt(sum(s * s for s in sigma) / len(sigma))


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
