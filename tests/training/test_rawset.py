"""`mdrn-train make-raw`: what is written is what the file of parameters says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mdrn_plugin.training.command import main
from mdrn_plugin.training.mosaic import colour_of_sites
from mdrn_plugin.training.rawset import load_pair


def _make(pictures: Path, out: Path, *more: str) -> int:
    return main(["make-raw", str(out), "--data", str(pictures), "--cache", str(out.parent / "cache"), *more])


def test_make_raw_writes_pairs_with_the_noise_it_names(pictures: Path, tmp_path: Path) -> None:
    (pictures / "LICENCE.txt").write_text("public domain")
    assert _make(pictures, tmp_path / "set", "--count", "8", "--sigma", "4", "12", "--size", "64") == 0
    about = json.loads((tmp_path / "set/set.json").read_text())
    assert len(about["pairs"]) == 8
    assert {p["pattern"] for p in about["pairs"]} == {"RGGB", "BGGR", "GRBG", "GBRG"}
    for pair in about["pairs"]:
        noisy, clean = load_pair(tmp_path / "set", pair["name"])
        assert noisy.shape == clean.shape == (1, 1, 64, 64)
        inside = clean < 0.7  # brighter values saturate
        variance = (pair["gain"] * clean + pair["offset"])[inside]
        ratio = float(((noisy - clean)[inside].square() / variance).mean())
        assert ratio == pytest.approx(1, abs=0.15)
        assert 4 <= pair["mid_grey_sigma_255"] <= 12.01
        torch.testing.assert_close((noisy * 16383).round() / 16383, noisy)
        sites = colour_of_sites(pair["pattern"], 2, 2)
        assert sites.tolist() == pair["tile"]
    text = (tmp_path / "set/SOURCES.txt").read_text()
    assert "public domain" in text
    assert all(pair["source"] in text for pair in about["pairs"])


def test_make_raw_is_reproducible_and_xtrans_works(pictures: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert _make(pictures, tmp_path / name, "--count", "1", "--pattern", "xtrans", "--bits", "0") == 0
    a, b = ((tmp_path / name / "00001_noisy.npy").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--pattern", "RGBW"), "expected RGGB"),
        (("--line", "moon"), "expected dnd, sidd"),
        (("--sigma", "5", "2"), "the lower first"),
    ],
)
def test_make_raw_refuses_kindly(
    more: tuple[str, ...],
    message: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _make(pictures, tmp_path / "set", *more) == 2
    assert message in capsys.readouterr().err
