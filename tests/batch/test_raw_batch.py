"""RAW files in a folder: what they become, what lies beside them, what fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
from dng_rules import broken_rules
from PIL import Image
from raw_samples import write_dng

from mdrn_plugin import cli, formats
from mdrn_plugin.batch.jobs import collect
from mdrn_plugin.batch.sidecars import copy_sidecars
from mdrn_plugin.errors import BadOption
from mdrn_plugin.formats import RAW_SUFFIXES, READABLE_SUFFIXES
from mdrn_plugin.formats.raw import RawMetadata

NOISE = (2e-3, 1e-5)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mdrn-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_dng(folder / "a.dng", "BGGR", noise=NOISE, told=NOISE, size=(64, 80))
    (folder / "a.dng").rename(folder / "a.NEF")
    (folder / "a.xmp").write_text("<lightroom/>")
    (folder / "a.NEF.xmp").write_text("<darktable/>")
    (folder / "cut.dng").write_bytes((folder / "a.NEF").read_bytes()[:-500])
    (folder / "empty.cr3").touch()
    (folder / "text.arw").write_text("no picture")
    Image.fromarray(np.full((24, 24), 7, np.uint8)).save(folder / "b.png")
    return folder


def _names(out: Path) -> set[str]:
    return {p.name for p in out.iterdir() if p.is_file()}


@pytest.mark.parametrize("isolate", ["--isolate", "--no-isolate"])
def test_folder_of_raw_gives_dng_and_lists_what_is_damaged(
    folder: Path, tmp_path: Path, command: Command, isolate: str
) -> None:
    out = tmp_path / "out"
    code, _, told = command("denoise", folder, "-o", out, "--threads", 1, isolate)
    assert code == 3
    assert _names(out) == {"a.dng", "a.xmp", "a.dng.xmp", "b.png"}
    for name in ("cut.dng", "empty.cr3", "text.arw"):
        assert sum(name in line and "failed" in line.split(" ")[0] for line in told.splitlines()) == 1
    assert (out / "a.xmp").read_text() == "<lightroom/>"
    assert (out / "a.dng.xmp").read_text() == "<darktable/>"
    assert broken_rules(out / "a.dng") == []
    with rawpy.imread(str(out / "a.dng")) as after, rawpy.imread(str(folder / "a.NEF")) as before:
        assert after.raw_image_visible.shape == before.raw_image_visible.shape
        assert after.camera_whitebalance == before.camera_whitebalance
        difference = after.raw_image_visible.astype(float) - before.raw_image_visible
    assert 100 < difference.std() < 700
    about = formats.read(out / "a.dng").metadata
    assert isinstance(about, RawMetadata)
    assert '"mosaic": "network"' in about.tags.text(305)
    code, _, told = command("denoise", folder / "a.NEF", folder / "b.png", "-o", out, "--threads", 1)
    assert code == 0
    assert "2 done before" in told


@pytest.mark.parametrize(
    ("kind", "suffix", "bits"), [("tiff", ".tif", np.uint16), ("jpeg", ".jpg", np.uint8)]
)
def test_raw_output_developed(
    folder: Path, tmp_path: Path, command: Command, kind: str, suffix: str, bits: Any
) -> None:
    out = tmp_path / "out"
    code, _, _ = command("denoise", folder / "a.NEF", "-o", out, "--raw-output", kind, "--threads", 1)
    assert code == 0
    found = formats.read(out / f"a{suffix}")
    assert found.shape == (64, 80, 3)
    assert found.pixels.dtype == bits


def test_info_of_raw_says_camera_levels_and_noise(folder: Path, command: Command) -> None:
    code, out, _ = command("info", folder / "a.NEF", "--threads", 1)
    assert code == 0
    for part in (
        "Maker One",
        "ISO 1600",
        "1/250 s",
        "BGGR",
        "black 512",
        "white 15000",
        "in the file: variance",
    ):
        assert part in out
    assert "as the file says" in out
    code, out, _ = command("info", folder / "a.NEF", "--json", "--threads", 1)
    raw = json.loads(out)["raw"]
    assert (raw["camera"], raw["iso"], raw["pattern"]) == ("Maker One", 1600, "BGGR")
    code, out, _ = command("info", folder / "b.png", "--json", "--threads", 1)
    assert json.loads(out)["raw"] is None


def test_levels_and_strengths_given_by_the_user_count(folder: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    wishes = ("--range", "500,14000", "--strength", 0.5, "--chroma-strength", 1, "--threads", 1)
    code, _, _ = command("denoise", folder / "a.NEF", "-o", out, *wishes)
    assert code == 0
    found = formats.read(out / "a.dng")
    assert found.mosaic is not None
    assert {b for row in found.mosaic.black for b in row} == {500}
    assert found.mosaic.white == 14000
    assert broken_rules(out / "a.dng") == []
    assert command("denoise", folder / "a.NEF", "-o", out, "--chroma-strength", 2)[0] == 2


def test_report_of_raw_shows_colours(folder: Path, tmp_path: Path, command: Command) -> None:
    page = tmp_path / "r.html"
    code, _, _ = command("denoise", folder / "a.NEF", "-o", tmp_path / "o", "--report", page, "--threads", 1)
    assert code == 0
    assert "a.NEF" in page.read_text()


def test_two_raw_files_for_one_dng_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cut.dng").rename(folder / "a.dng")
    with pytest.raises(BadOption, match="both would be written"):
        collect([str(folder)], tmp_path / "out", suffixes=READABLE_SUFFIXES | RAW_SUFFIXES)


def test_sidecar_that_is_there_stays_unless_overwriting(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.xmp").write_text("new")
    target = tmp_path / "out" / "a.dng"
    (tmp_path / "out" / "a.xmp").write_text("old")
    assert copy_sidecars(tmp_path / "a.CR3", target, overwrite=False) == []
    assert (tmp_path / "out" / "a.xmp").read_text() == "old"
    assert copy_sidecars(tmp_path / "a.CR3", target, overwrite=True) == [tmp_path / "out" / "a.xmp"]
    assert (tmp_path / "out" / "a.xmp").read_text() == "new"
