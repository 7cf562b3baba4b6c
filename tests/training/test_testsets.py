"""Nobody trains on a test set: its pictures are known in whatever form they come, and stay out of packs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.training import testsets
from mdrn_plugin.training.command import main
from mdrn_plugin.training.data import open_pack
from mdrn_plugin.training.testsets import find_test_set, fingerprint


def _jpeg(image: Image.Image) -> Image.Image:
    memory = io.BytesIO()
    image.convert("RGB").save(memory, "JPEG", quality=50)
    return Image.open(memory)


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "colour": lambda image: image.convert("RGB"),
    "gray": lambda image: image.convert("L"),
    "JPEG": _jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def _picture(seed: int) -> Image.Image:
    """Return a picture with large and small structure, 240 x 160, in colour."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    return small.resize((240, 160), Image.Resampling.BICUBIC)


@pytest.fixture
def known_picture(monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    picture = _picture(1)
    known = ["Made"], fingerprint(picture)[None]
    monkeypatch.setattr(testsets, "_known", lambda: known)
    return picture


@pytest.mark.parametrize("form", FORMS)
def test_find_test_set_a_known_picture_in_any_form_names_its_set(
    known_picture: Image.Image, form: str
) -> None:
    assert find_test_set(FORMS[form](known_picture)) == "Made"


def test_find_test_set_other_pictures_is_none(known_picture: Image.Image) -> None:
    assert [find_test_set(_picture(seed)) for seed in range(2, 40)] == [None] * 38


def test_open_pack_leaves_known_pictures_out_and_is_other_data(
    pictures: Path, known_picture: Image.Image, tmp_path: Path
) -> None:
    clean = open_pack(pictures, tmp_path / "cache")
    assert clean.left_out == ()
    known_picture.convert("L").save(pictures / "photos" / "holiday.png")
    pack = open_pack(pictures, tmp_path / "cache")
    assert pack.left_out == ("photos/holiday.png (Made)",)
    assert [e.name for e in pack.entries] == [e.name for e in clean.entries]
    assert pack.pixels.tobytes() == clean.pixels.tobytes()
    assert pack.digest != clean.digest


def test_open_pack_only_test_pictures_is_refused(known_picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    known_picture.save(tmp_path / "bench" / "1.png")
    with pytest.raises(BadOption, match="only those of the test sets"):
        open_pack(tmp_path / "bench", tmp_path / "cache")


def test_open_pack_of_an_older_version_is_made_again_or_refused(pictures: Path, tmp_path: Path) -> None:
    folder = open_pack(pictures, tmp_path / "cache").folder
    index = json.loads((folder / "pack.json").read_text())
    del index["left_out"]
    (folder / "pack.json").write_text(json.dumps(index))
    with pytest.raises(CannotRead, match=r"never looked through .* mdrn-train data"):
        open_pack(folder, tmp_path / "cache")
    assert open_pack(pictures, tmp_path / "cache").left_out == ()
    assert "left_out" in json.loads((folder / "pack.json").read_text())


def test_data_command_says_what_it_left_out(
    pictures: Path,
    known_picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_picture.save(pictures / "photos" / "holiday.png")
    monkeypatch.setattr(sys, "argv", ["mdrn-train"])
    assert main(["data", str(pictures), "--cache", str(tmp_path / "cache")]) == 0
    out, err = capsys.readouterr()
    assert "1 pictures of the test sets are left out" in err
    assert "photos/holiday.png (Made)" in err
    named = Path(out.split(":")[0])
    assert (named / "pack.json").is_file()
    assert "6 pictures" in out


@pytest.mark.data
def test_find_test_set_every_picture_of_the_test_sets(data_folder: Path) -> None:
    for name, folder in (("Set12", "Set12"), ("BSD68", "BSD68"), ("BSD68", "CBSD68"), ("Kodak24", "Kodak24")):
        for path in sorted((data_folder / "bench" / folder).glob("*.png")):
            with Image.open(path) as image:
                assert find_test_set(_jpeg(image)) == name, path


@pytest.mark.data
def test_find_test_set_training_pictures_is_none(data_folder: Path) -> None:
    for path in sorted((data_folder / "train").rglob("*.jpg"))[::8]:
        with Image.open(path) as image:
            assert find_test_set(image) is None, path


# What the weights that ship have learnt from: its digest, and the number of pictures.
# 247 photographs, BSDS500 train and test, and the DIV2K crops that validate; looked through for pictures
# of the test sets, and none found.
CLEAN = {"e6e7dc9059c81a6f90149bdddb1a1d536cf58e291853577e73d138acce583f0d": 747}


def test_weights_that_ship_have_seen_no_known_picture(root: Path) -> None:
    models = json.loads((root / "weights" / "manifest.json").read_text())["models"]
    assert models
    for model in models:
        training = model["training"]
        assert CLEAN.get(training["data_digest"]) == training["pictures"], model["name"]
