"""The plan is pure: facts, wishes and a zoo in, one resolved record out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrn_plugin.errors import BadOption, UnknownModel
from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.profile import NoiseProfile
from mdrn_plugin.options import Options, parse_noise
from mdrn_plugin.picture import ValueRange
from mdrn_plugin.plan import Machine, Plan, Refinement, resolve
from mdrn_plugin.plan_route import Facts
from mdrn_plugin.zoo import Descriptor, Zoo

BANDS = ((0, 10), (10, 20), (20, 35), (35, 60), (60, 90), (0, 90))


def _descriptor(colours: int, low: float, high: float, tier: str = "balanced") -> Descriptor:
    colour = "gray" if colours == 1 else "colour"
    size = {
        "balanced": "2b",
        "best": "8b",
        "fast": "fast",
        "photo": "photo",
        "micro": "micro",
        "photons": "photons",
        "refiner": "refiner",
    }[tier]
    return Descriptor(
        name=f"mdrn-{size}-{colour}-{low:g}-{high:g}",
        file="x",
        sha256="0" * 64,
        architecture="mdrn",
        settings={},
        tier=tier,
        colours=colours,
        band_255=(low, high),
        trained_255=(max(0.0, low - 2), high + 2),
        stride=8,
        halo=96,
        default_halo=32,
        psnr={},
    )


ZOO = Zoo(Path(), tuple(_descriptor(c, *band) for c in (1, 3) for band in BANDS))
MACHINE = Machine("cpu", "bf16", 2)
UNIT = ValueRange(0.0, 1.0, "")


def _facts(**changes: Any) -> Facts:
    facts = Facts(UNIT, "float32", 1, ((0.0, 1.0),), samples_joint=False)
    return dataclasses.replace(facts, **changes)


def _resolve(sigma_255: float, options: Options | None = None, **changes: Any) -> Plan:
    facts = _facts(**changes)
    unit = facts.range.white - facts.range.black
    profile = NoiseProfile((sigma_255 / 255 / unit if unit == 1 else sigma_255 / unit,) * facts.colours)
    return resolve(facts, (profile,) * len(facts.spread), options or Options(), ZOO, MACHINE)


@pytest.mark.parametrize(
    ("sigma", "model"),
    [(5, "0-10"), (10.01, "10-20"), (25, "20-35"), (50, "35-60"), (75, "60-90"), (90, "60-90")],
)
def test_resolve_picks_the_narrowest_band_around_the_noise(sigma: float, model: str) -> None:
    assert _resolve(sigma).steps[0].model == f"mdrn-2b-gray-{model}"


def test_resolve_noise_above_the_range_reduces_contrast_and_says_so() -> None:
    plan = _resolve(180)
    assert plan.steps[0].model == "mdrn-2b-gray-60-90"
    assert plan.steps[0].gain == pytest.approx(0.5)
    assert plan.steps[0].sigma_255 == pytest.approx(90)
    assert any("above the models' range" in doubt for doubt in plan.doubts)


def test_resolve_strongest_noise_in_a_picture_of_full_contrast_is_seen_as_it_is() -> None:
    """Noise of 90 reaches a unit beyond black and white on either side; that is no reason to scale it."""
    given = ValueRange(0.0, 1.0, "given", given=True)
    step = _resolve(90, range=given, spread=((-1.09, 2.09),)).steps[0]
    assert (step.model, step.black, step.gain) == ("mdrn-2b-gray-60-90", 0.0, 1.0)


def test_resolve_no_noise_passes_through() -> None:
    assert _resolve(0.1).steps[0].model is None


def test_resolve_colour_picture_takes_a_colour_model_for_all_samples() -> None:
    plan = _resolve(25, colours=3, samples_joint=True)
    assert plan.joint
    assert plan.steps[0].model == "mdrn-2b-colour-20-35"


def test_resolve_channels_get_models_of_their_own() -> None:
    facts = _facts(spread=((0.0, 1.0), (0.0, 1.0)))
    profiles = (NoiseProfile((5 / 255,)), NoiseProfile((50 / 255,)))
    plan = resolve(facts, profiles, Options(), ZOO, MACHINE)
    assert [s.model for s in plan.steps] == ["mdrn-2b-gray-0-10", "mdrn-2b-gray-35-60"]


@pytest.mark.parametrize("factor", [0.01, 100.0, 1e-6, 1e6])
def test_resolve_floats_in_another_power_of_ten_are_seen_alike(factor: float) -> None:
    white = 1.0 if factor < 1 else factor
    spread = ((-0.05 * factor, 1.07 * factor),)
    facts = _facts(range=ValueRange(0.0, white, ""), spread=spread)
    profile = NoiseProfile((25 / 255 * factor / white,))
    step = resolve(facts, (profile,), Options(), ZOO, MACHINE).steps[0]
    assert step.gain * factor == pytest.approx(1)
    assert step.black == 0
    assert step.sigma_255 == pytest.approx(25)


def test_resolve_dim_16_bit_is_not_taken_for_clean() -> None:
    """Noise of 20 in 65,535 is 0.08 of 255, yet it is a fifteenth of what the picture spans."""
    facts = _facts(range=ValueRange(0.0, 65535.0, ""), dtype="uint16", spread=((100.0, 400.0),))
    step = resolve(facts, (NoiseProfile((20 / 65535,)),), Options(), ZOO, MACHINE).steps[0]
    assert step.model == "mdrn-2b-gray-10-20"
    assert step.sigma_255 == pytest.approx(17)
    assert step.black == 100


def test_resolve_users_range_is_obeyed() -> None:
    given = ValueRange(0.0, 2.0, "given", given=True)
    facts = _facts(range=given, spread=((0.0, 1.0),))
    step = resolve(facts, (NoiseProfile((10 / 255,)),), Options(), ZOO, MACHINE).steps[0]
    assert step.gain == pytest.approx(0.5)


def test_resolve_constant_picture_does_not_divide_by_zero() -> None:
    step = _resolve(0, spread=((0.3, 0.3),)).steps[0]
    assert step.model is None


def test_resolve_exact_means_fp32_and_the_whole_halo() -> None:
    plan = _resolve(12, Options(exact=True))
    assert (plan.precision, plan.steps[0].halo) == ("fp32", 96)
    assert (_resolve(12).precision, _resolve(12).steps[0].halo) == ("bf16", 32)
    # At two scales: twice the 96 px of the coarser, the 12 px of its correction, in steps of 16.
    assert _resolve(25, Options(exact=True)).steps[0].halo == 208


@pytest.mark.parametrize(
    ("quality", "sigma", "coarse"),
    [
        ("balanced", 14, ()),
        ("balanced", 25, ("mdrn-2b-gray-10-20",)),
        ("balanced", 50, ("mdrn-2b-gray-20-35",)),
        ("best", 9, ()),
        ("best", 30, ("mdrn-2b-gray-10-20",)),
        ("best", 50, ("mdrn-2b-gray-20-35", "mdrn-2b-gray-10-20")),
        ("fast", 50, ()),
    ],
)
def test_resolve_strong_noise_is_seen_at_more_scales(
    quality: str, sigma: float, coarse: tuple[str, ...]
) -> None:
    zoo = dataclasses.replace(ZOO, descriptors=(*ZOO.descriptors, _descriptor(1, 0, 90, "fast")))
    step = resolve(_facts(), (NoiseProfile((sigma / 255,)),), Options(quality=quality), zoo, MACHINE).steps[0]
    assert tuple(scale.model for scale in step.coarse) == coarse
    assert step.stride == 8 << len(coarse)
    assert step.tile % step.stride == step.halo % step.stride == 0
    assert all(name in step.reason for name in coarse)


def test_resolve_one_scale_where_a_model_is_asked_for() -> None:
    assert _resolve(25, Options(model="mdrn-2b-gray-20-35")).steps[0].coarse == ()


REFINER = Descriptor(
    **{
        **dataclasses.asdict(_descriptor(1, 6.5, 90, "refiner")),
        "name": "nonlocal-gray-7-90",
        "architecture": "non-local",
        "halo": 44,
        "default_halo": 20,
    }
)


def _refined(sigma: float, means: str = "kernel", profile: NoiseProfile | None = None, **wish: Any) -> Plan:
    zoo = dataclasses.replace(ZOO, descriptors=(*ZOO.descriptors, REFINER))
    machine = dataclasses.replace(MACHINE, non_local=means)
    profile = profile or NoiseProfile((sigma / 255,))
    return resolve(_facts(), (profile,), Options(**wish), zoo, machine)


def test_resolve_best_looks_at_what_the_picture_repeats() -> None:
    for quality in ("best", "best+"):
        plan = _refined(25, quality=quality)
        step = plan.steps[0]
        assert step.refinement == Refinement("nonlocal-gray-7-90", REFINER.sha256, "kernel")
        assert step.model == "mdrn-2b-gray-20-35"
        assert step.halo == 64 + 32  # that of two scales, and 20 on a grid of 16
        assert "what the picture repeats" in plan.explain()
        assert not plan.notes
    named = _refined(25, quality="best", model="mdrn-2b-gray-20-35").steps[0]
    assert named.refinement == step.refinement
    assert named.coarse == ()
    exact = _refined(25, quality="best", exact=True).steps[0].halo
    assert 0 <= exact - (_resolve(25, Options(quality="best", exact=True)).steps[0].halo + 44) < 16


def test_resolve_what_the_picture_repeats_is_left_aside() -> None:
    curve = NoiseCurve("constant", 0.0, 0.0, mean=(25 / 255) ** 2)
    correlated = NoiseProfile((25 / 255,), curves=(curve,), correlation=(0.6, 0.6), spectra=(SPECTRUM,))
    assert _refined(25).steps[0].refinement is None
    assert _refined(25, quality="fast").steps[0].refinement is None
    assert _refined(4, quality="best").steps[0].refinement is None
    assert _refined(25, model="mdrn-2b-gray-20-35").steps[0].refinement is None
    assert _refined(25, quality="best", profile=correlated).steps[0].refinement is None
    plan = _refined(25, "", quality="best")
    assert plan.steps[0].refinement is None
    assert any("needs the compiled kernel" in note for note in plan.notes)
    assert any("'best'" in note for note in plan.notes)


def test_resolve_a_refiner_is_no_model_to_ask_for() -> None:
    with pytest.raises(BadOption, match="nonlocal-gray-7-90: corrects what other models return"):
        _refined(25, model="nonlocal-gray-7-90")


def test_resolve_missing_tier_falls_back_and_says_so() -> None:
    plan = _resolve(25, Options(quality="best"))
    assert plan.steps[0].model == "mdrn-2b-gray-20-35"
    assert any("'best'" in note for note in plan.notes)


def test_resolve_tier_without_the_band_falls_back_where_it_has_none() -> None:
    zoo = dataclasses.replace(ZOO, descriptors=(*ZOO.descriptors, _descriptor(1, 20, 35, "best")))

    def plan(sigma: float) -> Plan:
        return resolve(_facts(), (NoiseProfile((sigma / 255,)),), Options(quality="best"), zoo, MACHINE)

    assert plan(25).steps[0].model == "mdrn-8b-gray-20-35"
    assert not any("'best'" in note for note in plan(25).notes)
    for sigma, model in ((15, "mdrn-2b-gray-10-20"), (50, "mdrn-2b-gray-35-60"), (99, "mdrn-2b-gray-60-90")):
        assert plan(sigma).steps[0].model == model
        assert any("'best' for this noise" in note for note in plan(sigma).notes)


def test_resolve_best_plus_is_an_ensemble_of_eight() -> None:
    assert _resolve(25, Options(quality="best+")).ensemble == 8
    assert _resolve(25, Options(quality="best")).ensemble == 1


def test_resolve_named_model_is_obeyed_with_a_warning_outside_its_range() -> None:
    plan = _resolve(50, Options(model="mdrn-2b-gray-0-10"))
    assert plan.steps[0].model == "mdrn-2b-gray-0-10"
    assert any("trained on noise 0 to 12" in doubt for doubt in plan.doubts)


def test_resolve_unknown_model_lists_those_there_are() -> None:
    with pytest.raises(UnknownModel, match="mdrn-2b-gray-20-35"):
        _resolve(25, Options(model="dncnn"))


def test_resolve_gray_model_on_colour_picture_works_colour_by_colour() -> None:
    plan = _resolve(25, Options(model="mdrn-2b-gray-20-35"), colours=3, samples_joint=True)
    assert not plan.joint


def test_resolve_colour_model_on_gray_picture_is_refused() -> None:
    with pytest.raises(BadOption, match="colour"):
        _resolve(25, Options(model="mdrn-2b-colour-20-35"))


def test_resolve_doubts_of_the_estimate_reach_the_plan() -> None:
    profile = NoiseProfile((25 / 255,), doubt="the noise is correlated")
    plan = resolve(_facts(), (profile,), Options(), ZOO, MACHINE)
    assert plan.doubts == ("the noise is correlated",)


def test_resolve_12_bit_saturates_at_its_white() -> None:
    facts = _facts(range=ValueRange(0.0, 4095.0, ""), dtype="uint16", spread=((0.0, 4000.0),))
    assert resolve(facts, (NoiseProfile((0.1,)),), Options(), ZOO, MACHINE).saturate == (0, 4095)
    assert _resolve(25).saturate is None


def test_resolve_same_input_same_plan_and_explain_names_what_matters() -> None:
    assert _resolve(25) == _resolve(25)
    text = _resolve(25, Options(quality="best+", strength=0.5)).explain()
    for word in (
        "mdrn-2b-gray-20-35",
        "25.0/255",
        "1024 px",
        "8 symmetries",
        "strength 0.5",
        "bf16",
        "2 threads",
    ):
        assert word in text
    assert len(text.splitlines()) <= 5


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("auto", None, "255"), (" 25 ", 25, "255"), ("12.5dn", 12.5, "dn"), ("0", 0, "255")],
)
def test_parse_noise(text: str, value: float | None, unit: str) -> None:
    wish = parse_noise(text)
    assert (wish.value, wish.unit) == (value, unit)


@pytest.mark.parametrize("text", ["", "a lot", "-3", "nan", "inf", "25 dB"])
def test_parse_noise_nonsense_says_what_is_expected(text: str) -> None:
    with pytest.raises(BadOption, match="expected auto"):
        parse_noise(text)


@pytest.mark.parametrize(
    ("text", "law", "unit"),
    [
        ("0.01,0.0004", (0.01, 0.0004), "1"),
        (" 2.5, 30DN ", (2.5, 30.0), "dn"),
        ("24,-280dn", (24.0, -280.0), "dn"),
    ],
)
def test_parse_noise_gain_and_offset(text: str, law: tuple[float, float], unit: str) -> None:
    wish = parse_noise(text)
    assert (wish.value, wish.law, wish.unit) == (None, law, unit)


@pytest.mark.parametrize("text", ["0,1", "-1,2", "1,2,3", "1,", "nan,1", "1;2"])
def test_parse_noise_impossible_law_says_what_is_expected(text: str) -> None:
    with pytest.raises(BadOption, match="gain and offset"):
        parse_noise(text)


@pytest.mark.parametrize(
    "wish",
    [
        {"quality": "ultra"},
        {"strength": 1.5},
        {"strength": -0.1},
        {"tile": 100},
        {"tile": 16},
        {"threads": 0},
    ],
)
def test_options_impossible_value_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=str(next(iter(wish)))):
        Options(**wish)


def test_plan_is_plain_data() -> None:
    import json

    assert json.loads(json.dumps(_resolve(25).as_dict()))["steps"][0]["model"] == "mdrn-2b-gray-20-35"
    assert np.isfinite(_resolve(25).steps[0].gain)


# Twice the power in the lower half of the frequencies.
SPECTRUM = tuple(tuple(1.33 if i + j < 16 else 0.67 for i in range(16)) for j in range(16))
PHOTO_ZOO = Zoo(Path(), (*ZOO.descriptors, _descriptor(3, 0, 20, "photo")))


def _photograph(
    options: Options | None = None, correlated: bool = True, sigma: float = 0.04, **changes: Any
) -> Plan:
    facts = _facts(range=ValueRange(0.0, 255.0, ""), dtype="uint8", spread=((0.0, 255.0),))
    facts = dataclasses.replace(facts, **{"colours": 3, "samples_joint": True, **changes})
    curve = NoiseCurve("constant", 0.0, 0.0, mean=sigma**2)
    profile = NoiseProfile(
        (sigma,) * 3,
        curves=(curve,) * 3,
        correlation=(0.5, 0.5),
        spectra=(SPECTRUM,) * 3 if correlated else (),
    )
    return resolve(facts, (profile,), options or Options(), PHOTO_ZOO, MACHINE)


def test_resolve_finished_photograph_goes_as_it_is_to_the_model_for_them() -> None:
    step = _photograph().steps[0]
    assert step.model == "mdrn-photo-colour-0-20"
    assert (step.black, step.gain, step.curves, step.spectra) == (0.0, 1 / 255, (), ())
    assert "photograph" in step.route


def test_resolve_photograph_with_noise_is_seen_at_half_the_size_too() -> None:
    (coarse,) = _photograph().steps[0].coarse
    assert coarse.model == "mdrn-photo-colour-0-20"
    assert _photograph(jpeg=True, sigma=0.5 / 255).steps[0].coarse == ()
    assert _photograph(Options(model="mdrn-photo-colour-0-20")).steps[0].coarse == ()


def test_resolve_jpeg_goes_to_the_model_for_photographs_whatever_its_noise() -> None:
    step = _photograph(correlated=False, jpeg=True).steps[0]
    assert step.model == "mdrn-photo-colour-0-20"
    assert "JPEG" in step.route


def test_resolve_jpeg_without_noise_in_flat_areas_is_not_passed_through() -> None:
    """There the compression took it away, as in nine of PolyU's 13 pictures that were looked at."""
    assert _photograph(correlated=False, jpeg=True, sigma=0.0).steps[0].model == "mdrn-photo-colour-0-20"
    assert _photograph(correlated=False, sigma=0.0).steps[0].model is None
    assert _photograph(Options(strength=0), jpeg=True, sigma=0.0).steps[0].model is None


@pytest.mark.parametrize(
    "plan",
    [
        lambda: _photograph(correlated=False),
        lambda: _photograph(dtype="uint16"),
        lambda: _photograph(colours=1, samples_joint=False),
        lambda: _photograph(Options(noise_model="gaussian")),
        lambda: _photograph(Options(noise_model="correlated")),
    ],
    ids=["white noise", "16 bit", "gray", "told gaussian", "told correlated"],
)
def test_resolve_other_pictures_do_not(plan: Any) -> None:
    assert plan().steps[0].model != "mdrn-photo-colour-0-20"


MICRO_ZOO = Zoo(
    Path(),
    (
        *ZOO.descriptors,
        _descriptor(1, 10, 90, "micro"),
        dataclasses.replace(_descriptor(1, 60, 90, "photons"), trained_255=(9, 92)),
    ),
)


def _cells(options: Options | None = None, gain: float = 0.05, smooth: bool = True, **changes: Any) -> Plan:
    facts = dataclasses.replace(_facts(), **{"smooth": (smooth,), **changes})
    curve = NoiseCurve("line", gain, 0.0, mean=gain / 4, span=(0.0, 1.0))
    return resolve(
        facts, (NoiseProfile((gain**0.5 / 2,), curves=(curve,)),), options or Options(), MICRO_ZOO, MACHINE
    )


def test_resolve_stabilised_noise_without_fine_detail_goes_to_the_model_for_microscopy() -> None:
    step = _cells().steps[0]
    assert step.model == "mdrn-micro-gray-10-90"
    assert "microscopy" in step.reason
    assert step.curves


@pytest.mark.parametrize("smooth", [True, False])
def test_resolve_few_photons_go_to_the_model_for_them(smooth: bool) -> None:
    step = _cells(gain=0.6, smooth=smooth).steps[0]
    assert step.model == "mdrn-photons-gray-60-90"
    assert "photons" in step.reason
    assert _cells(Options(quality="fast"), gain=0.6).steps[0].model != step.model


def test_resolve_dim_pictures_with_fine_detail_go_to_the_model_for_few_photons() -> None:
    step = _cells(smooth=False, dim=(True,)).steps[0]
    assert step.model == "mdrn-photons-gray-60-90"
    assert "less than a photon" in step.reason
    assert _cells(dim=(True,)).steps[0].model == "mdrn-micro-gray-10-90"  # smooth ones do not
    assert _cells(gain=1e-4, smooth=False, dim=(True,)).steps[0].model != step.model  # hardly any noise
    assert _cells(Options(quality="fast"), smooth=False, dim=(True,)).steps[0].model != step.model


@pytest.mark.parametrize(
    "plan",
    [
        lambda: _cells(smooth=False),
        lambda: _cells(gain=1e-4),
        lambda: _cells(Options(quality="fast")),
        lambda: _cells(Options(noise_model="gaussian")),
        lambda: _cells(Options(model="mdrn-2b-gray-0-90")),
    ],
    ids=["fine detail", "hardly any noise", "fast", "told gaussian", "another model"],
)
def test_resolve_other_stabilised_pictures_do_not(plan: Any) -> None:
    assert plan().steps[0].model != "mdrn-micro-gray-10-90"


def test_resolve_photo_model_asked_for_is_given_any_colour_picture_unscaled() -> None:
    step = _photograph(Options(model="mdrn-photo-colour-0-20"), correlated=False, dtype="uint16").steps[0]
    assert (step.model, step.gain, step.curves) == ("mdrn-photo-colour-0-20", 1 / 255, ())
    with pytest.raises(BadOption, match="colour pictures"):
        _photograph(Options(model="mdrn-photo-colour-0-20"), colours=1, samples_joint=False)


def test_models_that_a_runtime_cannot_run_are_left_to_torch() -> None:
    other = dataclasses.replace(ZOO.descriptors[0], architecture="dbsn")
    zoo = dataclasses.replace(ZOO, descriptors=(other, *ZOO.descriptors[1:]))
    machine = dataclasses.replace(MACHINE, backend="onnxruntime", precision="fp32")
    facts, profiles = _facts(), (NoiseProfile((25 / 255,)),)
    left = resolve(facts, profiles, Options(model=other.name), zoo, machine)
    assert left.steps[0].backend == "torch"
    assert any(other.name in note and "onnxruntime" in note for note in left.notes)
    taken = resolve(facts, profiles, Options(model=ZOO.descriptors[0].name), ZOO, machine)
    assert taken.steps[0].backend == "onnxruntime"
    assert taken.steps[0].tile < left.steps[0].tile
    assert not taken.notes
