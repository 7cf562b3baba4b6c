"""Learning from noisy pictures alone: the way from files to a model by name, and what SURE decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file

import mdrn_plugin
from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks.dbsn import DBSN, posterior
from mdrn_plugin.training import own, selfsupervised, stage
from mdrn_plugin.training.bayes import bayes, sure
from mdrn_plugin.training.command import main
from mdrn_plugin.training.own import train_on
from mdrn_plugin.training.selfsupervised import Learnt
from mdrn_plugin.zoo import available, shipped

QUICK = {"steps": (3, 2, 2), "channels": 8, "blocks": 1, "batch": 4, "patch": 32}


def _clean(seed: int, side: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / 16
    a, b, c = rng.uniform(0.3, 1.5, 3)
    return (0.5 + 0.2 * np.sin(a * x + y) + 0.15 * np.sign(np.sin(b * y - c * x))).astype(np.float32)


@pytest.fixture
def noisy(tmp_path: Path) -> list[Path]:
    rng, paths = np.random.default_rng(1), []
    for k in range(3):
        pixels = _clean(k) + rng.normal(0, 25 / 255, (128, 128)).astype(np.float32)
        paths.append(tmp_path / f"noisy{k}.tif")
        tifffile.imwrite(paths[-1], pixels)
    return paths


def test_sure_estimates_the_error_without_the_clean_picture() -> None:
    sigma, generator = 0.1, torch.Generator().manual_seed(0)
    clean = torch.from_numpy(_clean(0, 256))[None, None]
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    for width in (1, 3, 5):
        kernel = torch.full((1, 1, width, width), 1 / width**2)

        def smooth(x: torch.Tensor, kernel: torch.Tensor = kernel) -> torch.Tensor:
            return torch.nn.functional.conv2d(x, kernel, padding="same")

        true = float((smooth(noisy) - clean).square().mean())
        assert sure([noisy], smooth, sigma) == pytest.approx(true, rel=0.05), width


def test_bayes_in_tiles_is_that_of_the_whole_picture() -> None:
    network = DBSN(1, channels=8, blocks=2)
    x = torch.rand(1, 250, 333)
    level = 0.1
    with torch.no_grad():
        prediction = network(x[None])
        noise = torch.full((1, 1, 1, 1, 1), level**2)
        whole = posterior(x[None], type(prediction)(prediction.mean, prediction.mean_covariance, noise))[0]
    torch.testing.assert_close(bayes(network, x, level, bf16=False), whole, atol=1e-5, rtol=1e-4)


def test_bayes_with_measured_trust_is_better_than_prediction_and_picture() -> None:
    torch.manual_seed(0)
    network, level = DBSN(1, channels=8, blocks=1), 0.1
    with torch.no_grad():  # the prediction is good on the left, and the network sure of nothing
        network.backbone.tail[-1].weight.zero_()
        network.backbone.tail[-1].bias.fill_(0.5)
        network.mean_net[-1].weight.mul_(0.1)
        network.mean_net[-1].bias.fill_(1.0)
    clean = torch.full((1, 128, 128), 0.5)
    clean[:, :, 64:] += 0.3 * torch.randint(0, 2, (1, 128, 64)) - 0.15
    noisy = clean + level * torch.randn(clean.shape)

    def error(x: torch.Tensor) -> float:
        return float((x - clean).square().mean())

    trust = selfsupervised.calibrate(network, [noisy[None]])
    assert torch.all(trust.residual.diff() >= 0)
    assert torch.all(trust.spread.diff() >= 0)
    calibrated = error(bayes(network, noisy, level, trust, bf16=False))
    assert calibrated < 0.9 * min(error(noisy), error(torch.full_like(clean, 0.5)))
    assert calibrated < 0.9 * error(bayes(network, noisy, level, bf16=False))


def test_train_on_makes_a_model_that_denoises_by_name(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDRN_MODELS", str(tmp_path / "models"))
    seen: list[tuple[str, int, int]] = []
    learnt = train_on(noisy, "mine", progress=lambda *a: seen.append(a), **QUICK)
    assert learnt.sigma_255 == pytest.approx(25, rel=0.1)
    assert learnt.sure_after >= learnt.sure_before  # SURE keeps what is better, or the shipped model
    assert [stage for stage, step, total in seen if step == total] == ["mean", "noise", "student"]
    assert (tmp_path / "models/mine.run/preview-0.png").stat().st_size > 1000
    model = available().get("mine")
    # The Bayes results of two steps are worse than the shipped model: they taught nothing.
    assert (model.tier, model.teacher) == ("own", None)
    assert model.band_255[0] < 25 < model.band_255[1]
    image = tifffile.imread(noisy[0])
    denoised = mdrn_plugin.denoise(image, model="mine")
    before, after = (float(np.mean((x - _clean(0)) ** 2)) for x in (image, denoised))
    assert 10 * np.log10(before / after) > 5
    unasked = mdrn_plugin.denoise(image, return_result=True).plan
    assert [step.model for step in unasked.steps] == ["mdrn-2b-gray-20-35"]
    assert "mine" in [m.name for m in mdrn_plugin.models()]


def test_train_on_again_goes_on_from_what_is_done(noisy: list[Path], tmp_path: Path) -> None:
    first = train_on(noisy, "mine", folder=tmp_path, **QUICK)
    lines = (tmp_path / "mine.run/log.jsonl").read_text().splitlines()
    again = train_on(noisy, "mine", folder=tmp_path, **QUICK)
    assert (tmp_path / "mine.run/log.jsonl").read_text().splitlines() == lines  # nothing was trained
    assert all(torch.equal(first.weights[k], again.weights[k]) for k in first.weights)


def test_minutes_are_kept_when_the_machine_slows_down(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, each = 0.0, 0.2
    rates: list[float] = []

    def clock() -> float:
        nonlocal now
        now += each
        return now

    class Recording(selfsupervised.MuonAdam):
        def step(self, muon_rate: float, adam_rate: float) -> None:
            nonlocal each
            each = 0.2 if now < 10 else 0.6
            rates.append(muon_rate)
            super().step(muon_rate, adam_rate)

    monkeypatch.setattr(selfsupervised, "MuonAdam", Recording)
    monkeypatch.setattr(selfsupervised, "_HOPELESS", ())
    monkeypatch.setattr(stage.time, "monotonic", clock)
    train_on(noisy, "mine", folder=tmp_path, minutes=1.0, **(QUICK | {"steps": None}))
    lines = [json.loads(line) for line in (tmp_path / "mine.run/log.jsonl").read_text().splitlines()]
    ends = {line["stage"]: line for line in lines}
    assert ends["mean"]["seconds"] == pytest.approx(15, abs=2)
    assert ends["noise"]["seconds"] == pytest.approx(9, abs=2)
    assert ends["student"]["seconds"] == pytest.approx(36, abs=2)
    mean = rates[: ends["mean"]["step"]]
    assert max(mean) == 0.01
    assert mean[-1] < 0.002  # as low as if the speed had been known


def test_run_that_was_broken_off_goes_on(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_on(noisy, "whole", folder=tmp_path, **QUICK)
    monkeypatch.setattr(stage, "_SAVE_EVERY", -1.0)

    def stop(stage: str, step: int, _: int) -> None:
        if (stage, step) == ("noise", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(noisy, "mine", folder=tmp_path, progress=stop, **QUICK)
    seen: list[tuple[str, int, int]] = []
    mine = train_on(noisy, "mine", folder=tmp_path, progress=lambda *a: seen.append(a), **QUICK)
    assert seen[0] == ("noise", 2, 2)  # step 1 was saved
    assert mine.sure_after == whole.sure_after
    assert all(torch.equal(whole.weights[k], mine.weights[k]) for k in whole.weights)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([(200, 180)] * 9, (2, 1, 126, 126)),  # as many pixels as 8 patches of 64 px
        ([(200, 180)] * 8 + [(130, 70)], (8, 1, 66, 66)),  # no larger than the smallest picture
        ([(200, 180)], (2, 1, 126, 126)),
    ],
)
def test_blind_spot_network_learns_from_larger_patches(
    sides: list[tuple[int, int]], expected: tuple[int, ...]
) -> None:
    planes = [torch.rand(1, *side) for side in sides]
    planes.append(planes.pop(0))  # the first and the ninth are held back
    data = selfsupervised._Data(planes, selfsupervised.SelfOptions(name="x"))
    assert data.large(0).shape == expected
    assert torch.equal(data.large(3), data.large(3))
    assert not torch.equal(data.large(3), data.large(4))


@pytest.mark.parametrize("noise", ["poisson-gaussian", "multivariate"])
def test_blind_spot_network_learns_other_laws_and_goes_on(noise: str, tmp_path: Path) -> None:
    colours = 3 if noise == "multivariate" else 1
    rng = np.random.default_rng(3)
    planes = [rng.random((colours, 96, 96)).astype(np.float32) for _ in range(2)]
    options = selfsupervised.SelfOptions(name="x", **QUICK)
    first = selfsupervised.learn_blind_spot(planes, 0.1, noise, tmp_path, options)
    assert first.noise == noise
    log = (tmp_path / "log.jsonl").read_text()
    assert {json.loads(line)["stage"] for line in log.splitlines()} == {"mean", "noise"}
    again = selfsupervised.learn_blind_spot(planes, 0.1, noise, tmp_path, options)
    assert (tmp_path / "log.jsonl").read_text() == log  # nothing was learnt twice
    states = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_what_is_kept_is_an_average_over_steps(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learnt(folder: Path) -> torch.Tensor:
        train_on(noisy, "mine", folder=folder, **QUICK)
        state = load_file(folder / "mine.run" / "mean.safetensors")
        return state["best/backbone.head.weight"] - state["weights/backbone.head.weight"]

    assert learnt(tmp_path / "a").abs().max() > 1e-5
    monkeypatch.setattr(stage, "_AVERAGE", 0.0)
    monkeypatch.setattr(stage, "_CHECKS", 1)  # looked at after the last step alone
    assert learnt(tmp_path / "b").abs().max() == 0


def test_many_pictures_are_denoised_only_as_far_as_the_student_needs(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def count(_: DBSN, x: torch.Tensor, *__: Any) -> torch.Tensor:
        sizes.append(x[0].numel())
        return x

    risks = iter([0.02, 0.01, 0.02, 0.03])  # the model before, Bayes results, the same model, the student
    monkeypatch.setattr(selfsupervised, "bayes", count)
    monkeypatch.setattr(selfsupervised, "_DENOISED", 2 * 128 * 128)
    monkeypatch.setattr(selfsupervised, "sure", lambda *_: next(risks, 0.03))
    assert train_on(noisy, "mine", folder=tmp_path, **QUICK).taught
    assert len(sizes) == 2
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["models"][0]["teacher"] == "D-BSN"


def test_bayes_results_worse_than_the_model_teach_nothing(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paired(*_: Any) -> None:
        raise AssertionError("pairs with Bayes results were asked for")

    monkeypatch.setattr(selfsupervised, "_pairs", paired)
    learnt = train_on(noisy, "mine", folder=tmp_path, **QUICK)
    assert learnt.sure_teacher < learnt.sure_before
    assert not learnt.taught
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["models"][0]["teacher"] is None


def test_recorrupted_pictures_have_independent_noise() -> None:
    rng, level = np.random.default_rng(0), 0.1
    planes = [torch.from_numpy(0.5 + level * rng.standard_normal((1, 300, 300)).astype(np.float32))]
    options = selfsupervised.SelfOptions(name="x", batch=16)
    data = selfsupervised._Data(planes, options)
    pairs = [selfsupervised._recorrupted(data, level, options, step) for step in range(20)]
    noisy, target = (torch.cat(x).flatten() - 0.5 for x in zip(*pairs, strict=True))
    assert float(noisy.std()) == pytest.approx(level * 1.25**0.5, rel=0.02)
    assert float(target.std()) == pytest.approx(level * 5**0.5, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([noisy, target]))[0, 1])) < 0.01
    assert torch.equal(pairs[3][0], selfsupervised._recorrupted(data, level, options, 3)[0])
    assert not torch.equal(pairs[3][0], pairs[4][0])
    plus, minus = pairs[3][0].chunk(2)  # each patch with the added noise and with its opposite
    assert float((plus - minus).std()) == pytest.approx(level, rel=0.02)
    assert torch.allclose((plus + minus) / 2, data.recorrupt(3, options), atol=1e-6)


@pytest.mark.parametrize(("last", "kept"), [(False, 1.0), (True, 2.0)])
@pytest.mark.parametrize("worse", [False, True])
def test_last_weights_are_kept_only_if_better_than_at_first(
    last: bool, kept: float, worse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is 0.5 at first, 0.1 at a weight of 1, 0.3 (or 0.7) at 2, where the stage ends."""
    monkeypatch.setattr(stage, "_AVERAGE", 0.0)
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.zero_()

    class Counting:
        def step(self, *_: float) -> None:
            network.weight.data.add_(1)

        def state(self) -> dict[str, torch.Tensor]:
            return {}

    done = stage.Stage(
        "student",
        network,
        Counting(),  # type: ignore[arg-type]
        (0.1, 0.1),
        lambda _: network.weight.sum() * 0,
        lambda: {0.0: 0.5, 1.0: 0.1, 2.0: 0.7 if worse else 0.3}[network.weight.item()],
        "",
        last=last,
    )
    options = selfsupervised.SelfOptions(name="x", steps=(1, 1, 2))
    score = done.run(tmp_path, options, stage.Log(tmp_path, None), best=0.5)
    assert network.weight.item() == (1.0 if worse else kept)
    assert score == (0.3 if last and not worse else 0.1)


def test_blind_spot_network_with_nothing_to_teach_is_given_up(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of a few steps on three pictures; the student has all of its time, and of the noise's."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.2
        return now

    monkeypatch.setattr(stage.time, "monotonic", clock)
    how = QUICK | {"steps": None}
    learnt = train_on(noisy, "mine", folder=tmp_path, minutes=0.5, **how)
    assert learnt.sure_teacher is None
    assert not learnt.taught
    entry = json.loads((tmp_path / "manifest.json").read_text())["models"][0]
    assert entry["training"]["sure"]["teacher"] is None
    lines = [json.loads(line) for line in (tmp_path / "mine.run/log.jsonl").read_text().splitlines()]
    ends = {line["stage"]: line for line in lines}
    assert set(ends) == {"mean", "student"}
    assert ends["mean"]["seconds"] == pytest.approx(0.2 * 0.25 * 30, abs=0.8)
    assert ends["mean"]["seconds"] + ends["student"]["seconds"] == pytest.approx(30, abs=1.5)
    seen: list[str] = []
    again = train_on(
        noisy, "mine", folder=tmp_path, minutes=0.5, progress=lambda *a: seen.append(a[0]), **how
    )
    assert seen == []  # all of it is done
    assert again.sure_after == learnt.sure_after


def test_blind_spot_network_is_not_given_up_where_it_may_teach(
    noisy: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfsupervised, "_HOPELESS", ())  # the shipped model may be right to the last digit
    learnt = train_on(noisy, "mine", folder=tmp_path, minutes=0.1, **(QUICK | {"steps": None}))
    assert learnt.sure_teacher is not None


def test_model_adapts_to_what_a_single_noisy_picture_holds(tmp_path: Path) -> None:
    """A texture that repeats itself: the picture alone says more of it than all photographs."""
    y, x = np.mgrid[:256, :256]
    clean = 0.5 + 0.25 * np.sign(np.sin(1.1 * x + 0.7 * y) * np.sin(0.9 * x - 1.3 * y))
    noisy = (clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape)).astype(np.float32)
    network = shipped().load_plain("mdrn-2b-gray-20-35")
    options = selfsupervised.SelfOptions(name="x", **(QUICK | {"steps": (2, 2, 7)}))
    learnt = selfsupervised.learn([noisy[None]], 25 / 255, dict(network.state_dict()), tmp_path, options)
    errors = []
    for weights in (network.state_dict(), learnt.weights):
        network.load_state_dict(weights)
        with torch.no_grad():
            out = network(torch.from_numpy(noisy)[None, None])[0, 0].numpy()
        errors.append(float(np.mean((out - clean) ** 2)))
    gain = 10 * np.log10(errors[0] / errors[1])
    assert learnt.kept
    assert gain > 0.4  # dB
    assert learnt.sure_after - learnt.sure_before == pytest.approx(gain, abs=0.3)


def test_learn_refuses_noise_that_is_not_of_one_level(tmp_path: Path) -> None:
    """As stabilised values of few photons have it: the darker, the less noise."""
    network = shipped().load_plain("mdrn-2b-gray-20-35")
    clean = _clean(0, 160)
    noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
    options = selfsupervised.SelfOptions(name="x", **QUICK)
    weaker = (clean + noise * np.where(clean < 0.5, 0.5, 1)).astype(np.float32)
    with pytest.raises(BadOption, match=r"not of one level: .* has (53|54)% .* shipped models"):
        selfsupervised.learn([weaker[None]], 25 / 255, dict(network.state_dict()), tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_train_on_other_pictures_under_the_same_name_begins_anew(noisy: list[Path], tmp_path: Path) -> None:
    train_on(noisy[:1], "mine", folder=tmp_path, **QUICK)
    lines = (tmp_path / "mine.run/log.jsonl").read_text().splitlines()
    train_on(noisy[1:2], "mine", folder=tmp_path, **QUICK)
    assert len((tmp_path / "mine.run/log.jsonl").read_text().splitlines()) == 2 * len(lines)


def test_train_on_colour_with_clean_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    colour = np.stack([_clean(k, 96) for k in range(3)], -1)
    shot = np.clip(255 * (colour + rng.normal(0, 0.1, colour.shape)), 0, 255).astype(np.uint8)
    for name, pixels in (("noisy", shot), ("clean", np.uint8(255 * colour))):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb")
    learnt = train_on(
        [tmp_path / "noisy.tif"], "colours", clean=[tmp_path / "clean.tif"], folder=tmp_path / "m", **QUICK
    )
    assert learnt.weights["head.weight"].shape[1] == 3


def test_clean_pictures_too_small_to_learn_from_are_not_ignored(tmp_path: Path) -> None:
    init = dict(shipped().load_plain("mdrn-2b-gray-20-35").state_dict())
    options = selfsupervised.SelfOptions(name="x", **QUICK)
    small = np.zeros((1, 40, 31), np.float32)
    with pytest.raises(BadOption, match="no clean picture of at least 32x32 pixels"):
        selfsupervised.learn([_clean(0)[None]], 0.1, init, tmp_path / "run", options, clean=[small])
    assert not (tmp_path / "run").exists()


def test_train_on_refuses_what_it_cannot_learn_from(noisy: list[Path], tmp_path: Path) -> None:
    for name in ("Mine", "../x", "mdrn-2b-gray-20-35", ""):
        with pytest.raises(BadOption, match="choose another --name"):
            train_on(noisy, name, folder=tmp_path)
    with pytest.raises(BadOption, match="there is none"):
        train_on([], "mine", folder=tmp_path)
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, np.random.default_rng(0).normal(0.5, 0.1, (40, 40)).astype(np.float32))
    with pytest.raises(BadOption, match="larger pictures"):
        train_on([small], "mine", folder=tmp_path)


def test_train_on_refuses_correlated_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(0, 0.12, (259, 259))
    blurred = sum(np.roll(white, (i, j), (0, 1)) for i in range(3) for j in range(3)) / 3
    path = tmp_path / "correlated.tif"
    tifffile.imwrite(path, (_clean(0, 256) + blurred[:256, :256]).astype(np.float32))
    with pytest.raises(BadOption, match="correlated from pixel to pixel"):
        train_on([path], "mine", folder=tmp_path)


def test_self_command(noisy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["self", *map(str, noisy), "--name", "mine", "--models", str(tmp_path / "m")]
    assert main([*command[:1], str(tmp_path / "none"), *command[-4:]]) == 2
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_self_command_says_what_came_out(
    kept: bool,
    noisy: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def learn(sources: list[Path], name: str, **how: Any) -> Learnt:
        asked.update(how, sources=sources, name=name)
        return Learnt({}, 25.04, 29.0, 29.5 if kept else 29.0, 28.0, kept, False)

    monkeypatch.setattr(own, "train_on", learn)
    (tmp_path / "notes.txt").touch()  # a folder is searched for pictures only
    command = ["self", str(tmp_path), "--name", "mine", "--minutes", "7", "--clean", str(noisy[0])]
    assert main([*command, "--models", str(tmp_path / "m"), "--reference"]) == 0
    assert asked["sources"] == noisy
    assert (asked["name"], asked["minutes"], asked["clean"]) == ("mine", 7, noisy[:1])
    assert (asked["channels"], asked["blocks"], asked["folder"]) == (96, 8, tmp_path / "m")
    told = capsys.readouterr().out
    assert "noise 25.0/255" in told
    assert ("+0.50 dB against the shipped model; use it with --model mine" in told) == kept
    assert ("no better than the shipped model" in told) != kept


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
def test_self_training_learns_the_noise_and_gains(data_folder: Path, tmp_path: Path) -> None:
    """Five minutes on twelve noisy pictures: a level within 5 %, a student not below its teacher."""
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    for k, file in enumerate(sorted((data_folder / "train").rglob("*.jpg"))[:12]):
        pixels = np.asarray(Image.open(file).convert("L"), np.float32)[:320, :320] / 255
        paths.append(tmp_path / f"{k}.tif")
        tifffile.imwrite(paths[-1], pixels + rng.normal(0, 25 / 255, pixels.shape).astype(np.float32))
    learnt = train_on(paths, "mine", minutes=5, folder=tmp_path / "m")
    assert learnt.sigma_255 == pytest.approx(25, rel=0.05)
    assert learnt.sure_after >= max(learnt.sure_teacher, learnt.sure_before)
