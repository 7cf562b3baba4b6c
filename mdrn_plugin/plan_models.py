"""Which model of the zoo: by the noise that the network will see, the quality, and the kind of picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdrn_plugin.errors import BadOption

if TYPE_CHECKING:
    from mdrn_plugin.noise.profile import NoiseProfile
    from mdrn_plugin.options import Options
    from mdrn_plugin.plan_route import Facts, Route
    from mdrn_plugin.zoo import Descriptor, Zoo

_TIERS = {"fast": "fast", "balanced": "balanced", "best": "best", "best+": "best"}
# What serves a tier that the zoo does not have.
_FALLBACK = {"fast": ("balanced", "best"), "balanced": ("best", "fast"), "best": ("balanced", "fast")}

# Noise, on 0..255, from which a second network at half the size, and a third at a quarter, pay. On 25 crops
# of DIV2K two scales gain 0.02 dB at 15, 0.03 at 25, 0.04 at 35, 0.08 at 50 and 0.10 at 75 in gray, much the
# same in colour, for 23 % more time, and a third 0.01 to 0.02 from 35 on; decision 0027.
_SCALES_FROM = {"fast": (), "balanced": (15.0,), "best": (10.0, 35.0)}
# The same for finished photographs, by the measured noise; their model works at both sizes. CC gains 0.20 dB
# and strong noise of simulated cameras 0.19; where there is next to none nothing is gained, and clean JPEGs
# lose 0.01 to 0.02.
_PHOTO_SCALES_FROM = 1.0


def has_colour(zoo: Zoo, options: Options) -> bool:
    """Return whether a colour picture can go through one network with all its samples."""
    if options.model is not None:
        return zoo.get(options.model).colours == 3
    return any(d.colours == 3 for d in zoo.descriptors)


def is_for_raw(descriptor: Descriptor) -> bool:
    """Whether a model is for the mosaics of RAW files."""
    return descriptor.tier.startswith("raw")


def is_refiner(descriptor: Descriptor) -> bool:
    """Whether a model only corrects what others return (`networks.non_local`)."""
    return descriptor.architecture == "non-local"


def choose_model(
    zoo: Zoo, colours: int, options: Options, sigma_255: float, notes: list[str], doubts: list[str]
) -> tuple[Descriptor, str]:
    """Return the model for a noise level, and why.

    The narrowest band that contains the level, within the tier that the quality names; where that
    tier has none, in the next. Above all bands, the highest one.
    """
    if options.model is not None:
        descriptor = zoo.get(options.model)
        if is_for_raw(descriptor):
            raise BadOption(
                f"model {options.model}: is for Bayer mosaics; choose another, see mdrn-batch models"
            )
        if is_refiner(descriptor):
            raise BadOption(
                f"model {options.model}: corrects what other models return, by itself it does nothing; "
                "use --quality best, or choose another, see mdrn-batch models"
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
    tiers = (wanted, *_FALLBACK[wanted])
    models = [d for d in zoo.descriptors if d.colours == colours and d.tier in tiers]
    if not models:
        raise BadOption("the zoo has no model for this picture; reinstall mdrn-plugin, or give --model")
    # Above all bands the contrast will be reduced until the noise lies on the highest edge.
    level = min(sigma_255, max(d.band_255[1] for d in models))
    covering = [d for d in models if d.band_255[0] <= level <= d.band_255[1]]
    if not covering:
        covering = [min(models, key=lambda d: abs(d.band_255[0] - level))]
    best = min(covering, key=lambda d: (tiers.index(d.tier), d.band_255[1] - d.band_255[0], d.name))
    if best.tier != wanted:
        some = any(d.tier == wanted for d in models)
        where = " for this noise" if some else ""
        notes.append(f"no model of the tier {wanted!r}{where} yet: {best.tier!r} used instead")
    low, high = best.band_255
    return best, f"noise {sigma_255:.1f}/255 lies in its band {low:g} to {high:g}"


def photo_model(
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


def stabilised_model(
    route: Route, smooth: bool, dim: bool, joint: bool, options: Options, zoo: Zoo
) -> tuple[Descriptor, str] | None:
    """Return the gray model that knows what stabilised noise is, and why.

    Of few photons the noise is neither of one level nor Gaussian behind the transform: there is a
    model for that. There is another for pictures without fine detail, as microscopes show them. Sharp
    pictures of which much is dim go to the former, whatever their bright parts get. The fast tier keeps
    to its own network.
    """
    if not route.curves or joint or options.model is not None or options.quality == "fast":
        return None
    sigma_255 = route.sigma * route.gain * 255
    counted = all(c.kind == "line" and c.gain > 0 for c in route.curves) and not route.spectra
    of = {d.tier: d for d in reversed(zoo.descriptors) if d.colours == 1}
    photons, micro = of.get("photons"), of.get("micro")
    level = f"noise {sigma_255:.1f}/255, "
    if photons and counted and sigma_255 >= photons.band_255[0]:
        return photons, level + "few photons, after stabilising"
    if micro and smooth and sigma_255 >= micro.band_255[0]:
        return micro, level + "in a picture without fine detail; for microscopy"
    if photons and counted and dim and sigma_255 >= photons.trained_255[0]:
        return photons, level + "after stabilising; much of the picture gets less than a photon per pixel"
    return None


SIZES = ("half", "a quarter of")


def coarser_models(
    descriptor: Descriptor, sigma_255: float, options: Options, zoo: Zoo
) -> tuple[Descriptor, ...]:
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


def refining_model(descriptor: Descriptor, sigma_255: float, options: Options, zoo: Zoo) -> Descriptor | None:
    """Return the model that corrects a result by what the picture repeats: in `best`, for white noise.

    It corrects models that the user asked for or trained as well.
    """
    if _TIERS[options.quality] != "best" or descriptor.tier not in ("balanced", "best", "own"):
        return None
    for refiner in zoo.descriptors:
        low, high = refiner.band_255
        if is_refiner(refiner) and refiner.colours == descriptor.colours and low <= sigma_255 <= high:
            return refiner
    return None


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
