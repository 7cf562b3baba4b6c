"""The choice of a backend is measured when asked for, kept, shown, forgotten, and never a surprise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mdrn_plugin import doctor, pipeline, tuning
from mdrn_plugin.cli import cli
from mdrn_plugin.engine import backends
from mdrn_plugin.errors import NotSupported
from mdrn_plugin.options import Options
from mdrn_plugin.tuning import Timing, Tuning

FASTER = Tuning("onnxruntime", (Timing("m", {"torch": 2.0, "onnxruntime": 1.0}),))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDRN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: True)


@pytest.mark.parametrize(
    ("seconds", "backend"),
    [
        (((2.0, 1.0), (1.0, 0.9)), "onnxruntime"),
        (((2.0, 1.0), (1.0, 0.97)), "torch"),  # one of them hardly
        (((2.0, 3.0),), "torch"),
    ],
)
def test_choice_needs_a_clear_gain_with_every_model(
    seconds: tuple[tuple[float, float], ...], backend: str
) -> None:
    timings = tuple(Timing(str(k), {"torch": a, "onnxruntime": b}) for k, (a, b) in enumerate(seconds))
    assert tuning.choose(timings) == backend


def test_measurement_holds_for_these_threads_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.load(2) is None
    tuning.save(FASTER, 2)
    assert tuning.load(2) == FASTER
    assert tuning.load(1) is None
    tuning.save(Tuning("torch", ()), 1)
    assert tuning.load(2) == FASTER  # beside the other
    monkeypatch.setattr("mdrn_plugin.__version__", "99")
    assert tuning.load(2) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 1, "records": 3}', '{"format": 2}'])
def test_damaged_cache_is_no_cache(cache: Path, text: str) -> None:
    cache.mkdir()
    (cache / "tuning.json").write_text(text)
    assert tuning.load(1) is None
    tuning.save(FASTER, 1)
    assert tuning.load(1) == FASTER


@pytest.mark.usefixtures("installed")
def test_auto_follows_the_measurement_and_wishes_come_first() -> None:
    threads = torch.get_num_threads()
    assert pipeline.find_machine(Options()).backend == "torch"
    tuning.save(FASTER, threads)
    found = pipeline.find_machine(Options(device="cpu"))
    assert (found.backend, found.precision, found.device) == ("onnxruntime", "fp32", "cpu")
    for wish in ({"backend": "torch"}, {"precision": "fp32"}, {"exact": True}, {"threads": threads + 1}):
        assert pipeline.find_machine(Options(device="cpu", **wish)).backend == "torch"  # type: ignore[arg-type]


def test_doctor_shows_the_measurement_and_forgets_it() -> None:
    assert "not compared" in doctor._backend()[1]
    tuning.save(FASTER, torch.get_num_threads())
    assert "2.00/1.00 s" in doctor._backend()[1]
    tuning.save(FASTER, torch.get_num_threads() + 1)
    for answer in ("forgotten", "nothing was kept"):
        assert answer in CliRunner().invoke(cli, ["doctor", "--tune=clear"]).output
    assert "not compared" in doctor._backend()[1]


def test_tuning_without_another_runtime_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(NotSupported, match=r"mdrn-plugin\[onnx\]"):
        doctor.tune()
    assert not cache.exists()


@pytest.mark.skipif(not backends.is_installed("onnxruntime"), reason="the extra onnx is missing")
def test_tuning_times_all_backends_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = doctor._kinds_of_network()
    assert {(d.colours, d.settings.get("unshuffle", 1)) for d in kinds} >= {(1, 1), (1, 2), (3, 1), (3, 2)}
    fast = next(d for d in kinds if d.tier == "fast")
    monkeypatch.setattr(doctor, "_kinds_of_network", lambda: [fast])
    monkeypatch.setattr(doctor, "_SIDE", 64)
    monkeypatch.setattr(doctor, "_CHECKED", 32)
    monkeypatch.setattr(doctor, "_ROUNDS", 1)
    found = doctor.tune()
    assert tuning.load(torch.get_num_threads()) == found
    assert [t.model for t in found.timings] == [fast.name]
    assert set(found.timings[0].seconds) == {"torch", "onnxruntime"}
