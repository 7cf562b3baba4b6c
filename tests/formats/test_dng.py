"""DNG out: what readers see is what was meant, and the specification is kept."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import rawpy
from dng_rules import broken_rules
from raw_samples import BALANCE, BAYER, KINDS, WHITE, raw_picture, write_dng

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotHold, CannotRead
from mdrn_plugin.formats import ljpeg
from mdrn_plugin.formats.raw import RawMetadata
from mdrn_plugin.mosaic import X_TRANS


@pytest.mark.parametrize("kind", KINDS)
def test_dng_of_every_sensor_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.dng"
    meant = write_dng(path, kind, told=(1e-4, 1e-6))
    found = formats.read(path)
    assert np.array_equal(found.pixels, meant.pixels)
    assert found.axes == meant.axes
    if meant.mosaic is not None:
        assert found.mosaic is not None
        assert found.mosaic.pattern == meant.mosaic.pattern
        assert found.mosaic.black == meant.mosaic.black
        assert found.mosaic.white == meant.mosaic.white
        assert found.mosaic.balance == pytest.approx(BALANCE, rel=1e-4)
        assert np.allclose(found.mosaic.noise, meant.mosaic.noise, rtol=1e-6)
    assert found.range.black == meant.range.black
    assert found.range.white == meant.range.white
    about = found.metadata
    assert isinstance(about, RawMetadata)
    assert about.camera == "Maker One"
    assert (about.iso, about.exposure_s, about.aperture, about.focal_mm) == (1600, 0.004, 2.8, 35)
    assert about.lens == "Lens 35mm F2"
    assert about.date == "2024:05:06 07:08:09"


@pytest.mark.parametrize("kind", KINDS)
def test_dng_keeps_the_rules_of_the_specification(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.dng"
    picture = raw_picture(kind, told=(1e-4, 1e-6))
    formats.write(path, picture, provenance='{"a": 1}')
    assert broken_rules(path) == []


@pytest.mark.parametrize("kind", [*BAYER, "X-Trans"])
def test_dng_is_the_same_to_librarw_itself(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.dng"
    meant = write_dng(path, kind, orientation=6)
    assert meant.mosaic is not None
    with rawpy.imread(str(path)) as raw:
        assert np.array_equal(raw.raw_image_visible, meant.pixels)
        letters = raw.color_desc.decode()
        period = meant.mosaic.period
        pattern = [[letters[raw.raw_color(y, x)] for x in range(period)] for y in range(period)]
        rows = X_TRANS.split("/") if period == 6 else [kind[:2], kind[2:]]
        assert ["".join(row) for row in pattern] == rows
        assert raw.black_level_per_channel[:3] == [512, 512, 512]
        assert raw.white_level == WHITE
        balance = np.array(raw.camera_whitebalance[:3])
        assert balance / balance[1] == pytest.approx(BALANCE, rel=1e-4)
        assert raw.sizes.flip == 6


def test_dng_with_another_black_at_every_place_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    meant = write_dng(path, "GBRG", blacks=(500.0, 510.5, 520.0, 530.0))
    found = formats.read(path)
    assert meant.mosaic is not None
    assert found.mosaic is not None
    assert found.mosaic.black == ((500.0, 510.5), (520.0, 530.0))
    assert broken_rules(path) == []


def test_dng_of_a_dng_keeps_what_it_said_and_tells_what_was_done(tmp_path: Path) -> None:
    first, second = tmp_path / "a.dng", tmp_path / "b.dng"
    write_dng(first, "BGGR", told=(1e-4, 1e-6), orientation=8)
    picture = formats.read(first)
    assert isinstance(picture.metadata, RawMetadata)
    done = dataclasses.replace(picture, metadata=dataclasses.replace(picture.metadata, denoised=1.0))
    formats.write(second, done, provenance='{"program": "mdrn-plugin"}')
    found = formats.read(second)
    assert broken_rules(second) == []
    assert isinstance(found.metadata, RawMetadata)
    assert found.metadata.orientation == 8
    assert found.metadata.matrices == picture.metadata.matrices
    assert found.metadata.tags.text(305) == 'Firmware 2; mdrn {"program": "mdrn-plugin"}'
    assert found.metadata.noise is not None
    assert found.metadata.noise[0][0] < 0.05 * 1e-4  # of the noise, that little is left
    assert found.metadata.tags.number(50935) == 1


def test_dng_of_an_unchanged_picture_says_the_noise_it_had(tmp_path: Path) -> None:
    write_dng(tmp_path / "a.dng", told=(1e-4, 1e-6))
    about = formats.read(tmp_path / "a.dng").metadata
    assert isinstance(about, RawMetadata)
    assert np.allclose(about.noise, [(1e-4, 1e-6)] * 3, rtol=1e-6)


def test_dng_rendered_by_libraw_shows_the_scene(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    write_dng(path, "RGGB", size=(128, 128))
    with rawpy.imread(str(path)) as raw:
        rendered = raw.postprocess(use_camera_wb=True, half_size=True)
        preview = raw.extract_thumb()
    assert rendered.std() > 20
    assert preview.format == rawpy.ThumbFormat.JPEG
    from PIL import Image

    small = np.asarray(Image.open(io.BytesIO(preview.data)), float)
    assert small.shape == (64, 64, 3)
    both = np.corrcoef(small.ravel(), rendered.astype(float).ravel())[0, 1]
    assert both > 0.95  # LibRaw's curve is another one


@pytest.mark.parametrize("size", [(22, 22), (23, 37), (513, 31), (31, 515), (64, 64)])
@pytest.mark.parametrize("kind", ["GBRG", "linear"])
def test_dng_of_odd_sizes_comes_back(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    path = tmp_path / "a.dng"
    picture = write_dng(path, kind, size=size)
    assert np.array_equal(formats.read(path).pixels, picture.pixels)


def test_dng_smaller_than_libraw_reads_is_refused_before_computing(tmp_path: Path) -> None:
    with pytest.raises(CannotHold, match="at least 22"):
        write_dng(tmp_path / "a.dng", size=(21, 40))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_dng_cut_short_fails_cleanly(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.dng"
    write_dng(path, "RGGB")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CannotRead):
        formats.read(path)


def test_dng_is_refused_for_other_pictures(tmp_path: Path) -> None:
    from mdrn_plugin.picture import Picture, decide_range

    pixels = np.zeros((8, 8), np.uint16)
    with pytest.raises(CannotHold, match="RAW file only"):
        formats.write(tmp_path / "a.dng", Picture(pixels, "YX", decide_range(pixels)))
    floats = dataclasses.replace(raw_picture(), pixels=raw_picture().pixels.astype(np.float32))
    with pytest.raises(CannotHold, match="16-bit"):
        formats.write(tmp_path / "a.dng", floats)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png"])
def test_raw_written_as_another_format_is_developed_and_upright(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    picture = raw_picture("GRBG", size=(96, 132), orientation=6)
    formats.check_can_hold(
        path, shape=picture.shape, axes="YX", dtype="uint16", source_metadata=picture.metadata
    )
    formats.write(path, picture)
    found = formats.read(path)
    assert found.shape == (132, 96, 3)
    assert found.pixels.dtype == (np.uint8 if suffix == ".jpg" else np.uint16)
    assert found.pixels.std() > 0.05 * np.iinfo(found.pixels.dtype).max


# --- lossless JPEG ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (5, 7, 1), (64, 64, 2), (33, 17, 3)])
@pytest.mark.parametrize("content", ["any", "flat", "smooth", "half", "extremes"])
def test_lossless_jpeg_comes_back(shape: tuple[int, int, int], content: str) -> None:
    import imagecodecs

    rng = np.random.default_rng(3)
    tile = {
        "any": lambda: rng.integers(0, 65536, shape),
        "flat": lambda: np.full(shape, 7),
        "smooth": lambda: rng.normal(4000, 50, shape),
        "half": lambda: np.where(rng.random(shape) < 0.5, 0, 32768),
        "extremes": lambda: rng.choice([0, 65535], shape),
    }[content]().astype(np.uint16)
    found = np.asarray(imagecodecs.jpegsof3_decode(ljpeg.encode(tile))).reshape(shape)
    assert np.array_equal(found, tile)
