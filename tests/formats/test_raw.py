"""RAW in: what is read, what is refused, and what the whole way makes of it."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
from raw_samples import BALANCE, BAYER, WHITE, raw_picture, write_dng

import mdrn_plugin
from mdrn_plugin import formats
from mdrn_plugin.errors import BadOption, CannotRead, MdrnError, NotSupported
from mdrn_plugin.formats import dng, raw_tags
from mdrn_plugin.formats.ifd import EXIF_IFD, Directory, DirectoryReader, Entry, pack_block
from mdrn_plugin.formats.isolated import Decoder
from mdrn_plugin.formats.raw import RawMetadata
from mdrn_plugin.mosaic import make_mosaic
from mdrn_plugin.options import Options
from mdrn_plugin.pipeline import denoise_picture, make_plan, measure
from mdrn_plugin.result import Result

ONE_THREAD = Options(threads=1)
NOISE = (2e-3, 1e-5)


def _error(a: Any, b: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


# --- reading ----------------------------------------------------------------------------------------


def test_read_by_content_whatever_the_name(tmp_path: Path) -> None:
    write_dng(tmp_path / "a.dng")
    (tmp_path / "a.dng").rename(tmp_path / "a.png")
    found = formats.read(tmp_path / "a.png")
    assert found.metadata.format == "dng"
    assert found.mosaic is not None


def test_read_of_empty_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.nef"
    path.touch()
    with pytest.raises(CannotRead, match=r"a\.nef: is empty"):
        formats.read(path)


def test_read_above_the_limit_is_refused(tmp_path: Path) -> None:
    write_dng(tmp_path / "a.dng")
    with pytest.raises(NotSupported, match="expected at most 1000 pixels"):
        formats.read(tmp_path / "a.dng", max_pixels=1000)


def test_read_what_libraw_does_not_know_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.raf"
    path.write_bytes(b"FUJIFILMCCD-RAW " + bytes(4000))
    with pytest.raises(MdrnError) as told:
        formats.read(path)
    assert "\n" not in str(told.value)
    assert "a.raf" in str(told.value)


def test_raw_that_is_only_a_head_fails_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x10\0\0\0CR\x02\0" + bytes(100))
    assert formats.sniff(path) == "raw"
    with pytest.raises(CannotRead, match="damaged or cut short"):
        formats.read(path)


def test_read_in_a_helper_process_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    write_dng(path, "X-Trans", told=NOISE)
    here = formats.read(path)
    decoder = Decoder()
    try:
        there = decoder.read(path)
    finally:
        decoder.close()
    assert np.array_equal(here.pixels, there.pixels)
    assert here.mosaic == there.mosaic
    assert here.metadata == there.metadata


@pytest.mark.parametrize("corner", [(0, 1), (1, 0), (3, 3)])
def test_read_of_an_active_area_finds_the_pattern_there(tmp_path: Path, corner: tuple[int, int]) -> None:
    path = tmp_path / "a.dng"
    meant = write_dng(path, "RGGB")
    data = bytearray(path.read_bytes())
    top, left = corner
    with open(path, "rb") as file:
        reader = DirectoryReader(file)
        first = reader.directory(reader.first)
        pointer = first.get(330)
        assert pointer is not None
        rows, _ = reader._rows(pointer.integers("<")[0])
        at = next(int.from_bytes(field[:4], "little") for tag, _, _, field in rows if tag == 50829)
    data[at : at + 16] = np.array([top, left, 96, 132], "<u4").tobytes()
    path.write_bytes(data)
    found = formats.read(path)
    # LibRaw begins at even places; the pattern of a DNG starts at the corner of the active area.
    y, x = top + top % 2, left + left % 2
    assert np.array_equal(found.pixels, meant.pixels[y:, x:])
    assert found.mosaic is not None
    colours = make_mosaic("RGGB", white=1.0).colours_at(y - top, x - left, 2, 2)
    assert found.mosaic.name == "".join("RGB"[k] for k in colours.ravel())
    again = tmp_path / "b.dng"
    formats.write(again, found)
    assert formats.read(again).mosaic == found.mosaic


def test_tags_of_a_jpeg_and_of_boxes_are_found() -> None:
    shot = Directory((Entry.of(34855, 3, [800], "<"), Entry.raw(37500, 7, b"note")))
    main = Directory((Entry.raw(271, 2, b"Maker"),), ((EXIF_IFD, shot),))
    block = pack_block(main, "<")
    body = b"Exif\0\0" + block
    found = raw_tags.tags_of_jpeg(
        b"\xff\xd8\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + b"\xff\xd9"
    )
    assert found.text(271) == "Maker"
    assert found.number(34855) == 800
    assert found.find(37500) is None  # the maker's note has offsets into the old file

    def box(kind: bytes, content: bytes) -> bytes:
        return (len(content) + 8).to_bytes(4, "big") + kind + content

    inner = box(b"CMT1", pack_block(Directory((Entry.raw(272, 2, b"R9"),)), "<"))
    inner += box(b"CMT2", pack_block(shot, "<"))
    whole = box(b"ftyp", b"crx \0\0\0\0") + box(b"moov", inner) + box(b"mdat", bytes(100))
    tags = raw_tags.read_tags("a.cr3", io.BytesIO(whole))
    assert (tags.text(272), tags.number(34855)) == ("R9", 800)
    with pytest.raises(CannotRead, match="cut short"):
        raw_tags.read_tags("a.cr3", io.BytesIO(whole[:-50]))


@pytest.mark.parametrize("seed", range(40))
def test_read_of_damaged_dng_is_a_picture_or_a_clean_failure(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.dng"
    data = bytearray(_sample())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), 5):
        data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
        formats.read(path)
    except MdrnError as error:
        assert "a.dng" in str(error)


def _sample(_made: list[bytes] = []) -> bytes:  # noqa: B006 - made once
    if not _made:
        file = io.BytesIO()
        dng.write(file, raw_picture("RGGB", size=(64, 64)), None)
        _made.append(file.getvalue())
    return _made[0]


# --- denoising --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RGGB", "GBRG", "X-Trans", "linear", "mono"])
def test_denoised_sensor_is_closer_to_the_scene(kind: str) -> None:
    """By the models for white noise, which serve every sensor."""
    clean, noisy = raw_picture(kind), raw_picture(kind, noise=NOISE)
    model = "mdrn-2b-colour-0-90" if kind == "linear" else "mdrn-2b-gray-0-90"
    result = denoise_picture(noisy, dataclasses.replace(ONE_THREAD, model=model))
    assert _error(result.picture.pixels, clean.pixels) * 3 < _error(noisy.pixels, clean.pixels)
    assert result.verdict == "good", result.reasons
    assert isinstance(result.picture.metadata, RawMetadata)
    assert result.picture.metadata.denoised == 1.0


@pytest.mark.parametrize("kind", BAYER)
def test_network_for_mosaics_brings_a_sensor_closer_to_the_scene(kind: str) -> None:
    clean, noisy = raw_picture(kind), raw_picture(kind, noise=NOISE)
    result = denoise_picture(noisy, ONE_THREAD)
    assert all(step.model.startswith("fan-raw") for step in result.plan.steps)
    assert _error(result.picture.pixels, clean.pixels) * 2.7 < _error(noisy.pixels, clean.pixels)
    # It leaves a little of the pattern in the residual of so small a picture: "check" with that reason.
    if result.verdict != "good":
        assert result.verdict == "check"
        assert all("periodic" in reason for reason in result.reasons), result.reasons


@pytest.mark.parametrize("kind", ["RGGB", "X-Trans"])
def test_noise_of_a_mosaic_is_measured_as_it_is(kind: str) -> None:
    noisy = raw_picture(kind, size=(240, 300), noise=NOISE)
    (profile,) = measure(noisy, ONE_THREAD)
    assert profile.source == "blind"
    assert len(profile.curves) == 3
    assert profile.curves[0].gain == pytest.approx(NOISE[0], rel=0.25)


@pytest.mark.parametrize("kind", BAYER)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_of_a_small_mosaic_grows_with_the_light(kind: str, seed: int) -> None:
    """However little of that so few pixels prove: light arrives in photons."""
    (profile,) = measure(raw_picture(kind, noise=NOISE, seed=seed), ONE_THREAD)
    assert all(c.kind == "line" for c in profile.curves)
    dark, bright = profile.curves[1].variance(np.array([0.05, 0.6]))
    assert bright / dark == pytest.approx(11, rel=0.5)


def test_noise_of_one_level_in_a_mosaic_stays_of_one_level() -> None:
    noisy = raw_picture("RGGB", noise=(1e-9, 4e-4), size=(240, 300))
    (profile,) = measure(noisy, ONE_THREAD)
    dark, bright = profile.curves[1].variance(np.array([0.05, 0.6]))
    assert bright / dark == pytest.approx(1, abs=0.2)


def test_noise_that_the_file_tells_is_used_and_named() -> None:
    noisy = raw_picture("RGGB", noise=NOISE, told=NOISE)
    (profile,) = measure(noisy, ONE_THREAD)
    assert profile.source == "file"
    assert (profile.curves[1].gain, profile.curves[1].offset) == NOISE
    plan = make_plan(noisy, (profile,), ONE_THREAD)
    assert "as the file says" in plan.explain()
    (given,) = measure(noisy, Options(noise="0.01,0.0001"))
    assert (given.source, given.curves[0].gain) == ("user", 0.01)


def test_clipped_pixels_are_kept_and_values_beyond_the_levels_survive() -> None:
    noisy = raw_picture("RGGB", noise=NOISE)
    pixels = noisy.pixels.copy()
    pixels[10:14, 20:24] = WHITE
    pixels[30, 40] = WHITE + 500
    pixels[60:80, 60:80] = 400  # under black
    noisy = dataclasses.replace(noisy, pixels=pixels)
    result = denoise_picture(noisy, ONE_THREAD)
    found = result.picture.pixels
    assert np.all(found[10:14, 20:24] == WHITE)
    assert found[30, 40] == WHITE + 500
    half = denoise_picture(noisy, Options(threads=1, strength=0.5)).picture.pixels
    assert half[65:75, 65:75].mean() < 512


def test_strength_of_zero_keeps_the_mosaic_and_half_lies_between() -> None:
    noisy = raw_picture("GRBG", noise=NOISE, told=NOISE)
    none = denoise_picture(noisy, Options(threads=1, strength=0.0)).picture.pixels
    assert np.array_equal(none, noisy.pixels)
    whole = denoise_picture(noisy, ONE_THREAD).picture.pixels.astype(float)
    half = denoise_picture(noisy, Options(threads=1, strength=0.5)).picture.pixels
    assert np.abs(half - (noisy.pixels + whole) / 2).max() <= 1


def test_chroma_strength_leaves_colour_noise_and_takes_luminance() -> None:
    clean = raw_picture("RGGB", size=(128, 128))
    noisy = raw_picture("RGGB", size=(128, 128), noise=NOISE, told=NOISE)
    found = denoise_picture(noisy, Options(threads=1, chroma_strength=0.0)).picture.pixels

    def left(pixels: Any) -> tuple[float, float]:
        r = pixels.astype(float) - clean.pixels
        a, b, c, d = r[::2, ::2], r[::2, 1::2], r[1::2, ::2], r[1::2, 1::2]
        return float((a + b + c + d).std()), float((a - d).std())

    (light, colour), (light_before, colour_before) = left(found), left(noisy.pixels)
    assert colour > 0.8 * colour_before
    assert light < 0.7 * light_before


def test_result_does_not_depend_on_the_tiles() -> None:
    noisy = raw_picture("BGGR", size=(200, 260), noise=NOISE, told=NOISE)
    whole = denoise_picture(noisy, Options(threads=1, exact=True)).picture.pixels.astype(float)
    tiled = denoise_picture(noisy, Options(threads=1, exact=True, tile=64)).picture.pixels
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 5), (23, 40)])
@pytest.mark.parametrize("pattern", ["RGGB", "X-Trans"])
def test_mosaics_of_every_size_and_kind_of_value_go_through(size: tuple[int, int], pattern: str) -> None:
    rng = np.random.default_rng(1)
    for mosaic in (rng.integers(0, 4096, size, dtype=np.uint16), rng.random(size, np.float32)):
        found = mdrn_plugin.denoise_raw(mosaic, pattern=pattern, noise=10, threads=1)
        assert found.shape == mosaic.shape
        assert found.dtype == mosaic.dtype
        assert np.isfinite(found).all()


def test_not_finite_values_stay_where_they_are() -> None:
    rng = np.random.default_rng(1)
    mosaic = rng.normal(0.4, 0.05, (64, 64)).astype(np.float32)
    mosaic[20, 20], mosaic[40, 41] = np.nan, np.inf
    found = mdrn_plugin.denoise_raw(mosaic, pattern="RGGB", white=1.0, noise=12, threads=1)
    assert np.isnan(found[20, 20])
    assert np.isinf(found[40, 41])
    assert np.isfinite(found).sum() == mosaic.size - 2


@pytest.mark.parametrize("pattern", BAYER)
def test_clean_input_renders_as_it_was(tmp_path: Path, pattern: str) -> None:
    path, out = tmp_path / "a.dng", tmp_path / "b.dng"
    write_dng(path, pattern)
    result = mdrn_plugin.denoise_raw(path, threads=1, return_result=True)
    mdrn_plugin.write(out, result.picture)
    assert _mean_delta_e(path, out) < 1


def _mean_delta_e(a: Path, b: Path) -> float:
    """Return the mean CIE76 difference of two rendered files."""
    from skimage.color import rgb2lab

    seen = []
    for path in (a, b):
        with rawpy.imread(str(path)) as raw:
            seen.append(rgb2lab(raw.postprocess(use_camera_wb=True, no_auto_bright=True)))
    return float(np.sqrt(((seen[0] - seen[1]) ** 2).sum(axis=2)).mean())


# --- the Python function ----------------------------------------------------------------------------


def test_denoise_raw_of_a_file_and_of_its_mosaic_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    write_dng(path, "GBRG", noise=NOISE)
    from_file = mdrn_plugin.denoise_raw(path, threads=1)
    noisy = raw_picture("GBRG", noise=NOISE).pixels
    from_array = mdrn_plugin.denoise_raw(noisy, pattern="gbrg", black=512, white=WHITE, threads=1)
    assert np.array_equal(from_file, from_array)
    result = mdrn_plugin.denoise_raw(str(path), threads=1, return_result=True)
    assert isinstance(result, Result)
    assert result.picture.mosaic is not None
    assert result.picture.mosaic.balance == pytest.approx(BALANCE, rel=1e-4)


def test_denoise_raw_refuses_what_it_cannot_know(tmp_path: Path) -> None:
    mosaic = np.zeros((32, 32), np.uint16)
    with pytest.raises(BadOption, match="pattern: expected RGGB"):
        mdrn_plugin.denoise_raw(mosaic)
    with pytest.raises(BadOption, match="'CMYG'"):
        mdrn_plugin.denoise_raw(mosaic, pattern="CMYG")
    with pytest.raises(BadOption, match="black below white"):
        mdrn_plugin.denoise_raw(mosaic, pattern="RGGB", black=5000, white=4000)
    with pytest.raises(BadOption, match="one value or 4"):
        make_mosaic("RGGB", black=(1.0, 2.0), white=4000)
    from PIL import Image

    Image.fromarray(mosaic.astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BadOption, match="expected a RAW file, got png"):
        mdrn_plugin.denoise_raw(tmp_path / "a.png")


# --- files of real cameras --------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "pattern", "camera"),
    [
        ("tinydng_colorchart.dng", "RGGB", "Canon EOS Kiss X4"),
        ("minhtcai_640x480_gbrg10.dng", "GBRG", ""),
        ("KODAK_DC50.KDC", "GRBG", "Eastman Kodak Company Kodak Digital Science DC50 Zoom Camera"),
    ],
)
def test_files_of_cameras_go_through(tmp_path: Path, name: str, pattern: str, camera: str) -> None:
    folder = os.environ.get("MDRN_DATA")
    if not folder:
        pytest.skip("MDRN_DATA is not set")
    source = formats.read(Path(folder) / "raw" / name)
    assert source.mosaic is not None
    assert isinstance(source.metadata, RawMetadata)
    assert source.mosaic.name == pattern
    assert source.metadata.camera == camera
    small = dataclasses.replace(
        source,
        pixels=source.pixels[:128, :128],
        metadata=dataclasses.replace(source.metadata, crop=(0, 0, 128, 128)),
    )
    out = tmp_path / "a.dng"
    formats.write(out, denoise_picture(small, ONE_THREAD).picture)
    back = formats.read(out)
    assert back.mosaic == source.mosaic
