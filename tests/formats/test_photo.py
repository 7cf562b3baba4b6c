"""JPEG, WebP, BMP: metadata and coding choices compared with Pillow, damage that libjpeg forgives."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import ICC, RGB, RGBA, SMOOTH, XMP, encoded, exif_block
from PIL import Image, ImageFile, JpegImagePlugin

from mdrn_plugin import formats
from mdrn_plugin.errors import BadOption, CannotHold, CannotRead, NotSupported

NOTE = '{"model": "m"}'
COLOUR = np.dstack([SMOOTH, SMOOTH[::-1], np.flip(SMOOTH, 1)])


def save(folder: Path, data: bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def again(path: Path, **settings: Any) -> Path:
    target = path.parent / f"out{path.suffix}"
    formats.write(target, formats.read(path), provenance=NOTE, overwrite=True, **settings)
    return target


@pytest.mark.parametrize("quality", [30, 75, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_coded_like_its_source(
    tmp_path: Path, quality: int, subsampling: int, progressive: bool
) -> None:
    path = save(
        tmp_path,
        encoded(COLOUR, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive),
        "in.jpg",
    )
    with Image.open(path) as before, Image.open(again(path)) as after:
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling
        assert bool(after.info.get("progressive")) == progressive
        # The same coding of an unchanged smooth picture is nearly the same picture.
        assert np.abs(np.asarray(after).astype(int) - np.asarray(before)).mean() < 1.5


@pytest.mark.parametrize("progressive", [False, True])
def test_noise_at_the_best_quality_fits(tmp_path: Path, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG", quality=100, subsampling=0)
    path = save(tmp_path, data, "in.jpg")
    picture = formats.read(path)
    metadata = dataclasses.replace(picture.metadata, progressive=progressive)  # type: ignore[call-arg]
    formats.write(tmp_path / "out.jpg", dataclasses.replace(picture, metadata=metadata))
    assert np.abs(formats.read(tmp_path / "out.jpg").pixels.astype(int) - noise).mean() < 2


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_huge_sparse_file_is_not_read_into_memory(tmp_path: Path, magic: bytes) -> None:
    with open(tmp_path / "in.jpg", "wb") as file:
        file.write(magic)
        file.truncate(2**40)
    with pytest.raises(NotSupported, match="at most"):
        formats.read(tmp_path / "in.jpg")


def test_jpeg_quality_can_be_chosen(tmp_path: Path) -> None:
    path = save(tmp_path, encoded(COLOUR, "JPEG", quality=30), "in.jpg")
    high = again(path, quality=98).read_bytes()
    assert len(high) > len(again(path).read_bytes())
    for bad in (0, 101):
        with pytest.raises(BadOption, match="quality"):
            again(path, quality=bad)


def test_gray_jpeg_keeps_its_table_and_kind(tmp_path: Path) -> None:
    path = save(tmp_path, encoded(SMOOTH, "JPEG", quality=60), "in.jpg")
    with Image.open(path) as before, Image.open(again(path)) as after:
        assert (after.mode, after.quantization) == ("L", before.quantization)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_metadata_is_kept_and_pixels_are_not_turned(tmp_path: Path, orientation: int) -> None:
    data = encoded(
        RGB,
        "JPEG",
        exif=exif_block(orientation),
        icc_profile=ICC * 150,
        xmp=XMP,
        dpi=(300, 150),
        comment=b"hello",
    )
    path = save(tmp_path, data, "in.jpg")
    picture = formats.read(path)
    assert picture.shape == RGB.shape
    assert picture.metadata.dpi == (300, 150)
    assert (picture.metadata.icc, picture.metadata.xmp) == (ICC * 150, XMP)
    target = again(path)
    with Image.open(path) as before, Image.open(target) as after:
        for key in ("exif", "icc_profile", "xmp", "dpi", "jfif_density", "jfif_unit", "jfif_version"):
            assert after.info[key] == before.info[key], key
        assert after.getexif()[274] == orientation
        comments = [d for k, d in after.applist if k == "COM"]
    assert comments == [b"hello", b"mdrn " + NOTE.encode()]
    target.rename(path)
    with Image.open(again(path)) as after:
        assert [d for k, d in after.applist if k == "COM"] == comments


def test_jpeg_without_jfif_does_not_get_one(tmp_path: Path) -> None:
    data = encoded(RGB, "JPEG", exif=exif_block())
    assert data[2:4] == b"\xff\xe0"
    bare = data[:2] + data[4 + struct.unpack(">H", data[4:6])[0] :]
    with Image.open(again(save(tmp_path, bare, "in.jpg"))) as image:
        assert "jfif" not in image.info and image.mode == "RGB"


def test_cmyk_jpeg_keeps_its_inks(tmp_path: Path) -> None:
    inks = np.dstack([COLOUR, SMOOTH // 2])
    path = save(tmp_path, encoded(inks, "JPEG", "CMYK", quality=95), "in.jpg")
    picture = formats.read(path)
    assert (picture.colours, picture.alpha) == (4, False)
    assert np.abs(picture.pixels.astype(int) - inks).mean() < 3
    with Image.open(again(path)) as image:
        assert image.mode == "CMYK"
        assert np.abs(np.asarray(image).astype(int) - inks).mean() < 4


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("percent", [60, 90, 98])
def test_truncated_jpeg_is_no_gray_picture(tmp_path: Path, percent: int, progressive: bool) -> None:
    data = encoded(RGB, "JPEG", progressive=progressive)
    path = save(tmp_path, data[: len(data) * percent // 100], "in.jpg")
    with pytest.raises(CannotRead, match="cut short"):
        formats.read(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_truncated_jpeg_fails_even_if_someone_allowed_truncated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(RGB, "JPEG")
    with pytest.raises(CannotRead, match="end mark"):
        formats.read(save(tmp_path, data[:-300], "in.jpg"))


def test_bytes_behind_the_end_mark_are_no_damage(tmp_path: Path) -> None:
    path = save(tmp_path, encoded(RGB, "JPEG") + b"motion photo", "in.jpg")
    assert formats.read(path).shape == RGB.shape


def test_jpeg_with_huge_header_fails_before_decoding(tmp_path: Path) -> None:
    data = bytearray(encoded(RGB, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(NotSupported, match="max-pixels"):
        formats.read(save(tmp_path, bytes(data), "in.jpg"))


@pytest.mark.parametrize("pixels", [RGB, RGBA], ids=["rgb", "rgba"])
def test_lossless_webp_stays_lossless(tmp_path: Path, pixels: np.ndarray) -> None:
    data = encoded(pixels, "WEBP", lossless=True, exact=True, exif=exif_block(3), icc_profile=ICC, xmp=XMP)
    path = save(tmp_path, data, "in.webp")
    picture = formats.read(path)
    np.testing.assert_array_equal(picture.pixels, pixels)
    target = again(path)
    assert b"VP8L" in target.read_bytes()
    with Image.open(target) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert (image.info["icc_profile"], image.info["xmp"]) == (ICC, XMP)
        exif = image.getexif()
        assert (exif[274], exif[271], exif[305]) == (3, "Maker", f"Firmware 2; mdrn {NOTE}")
        assert exif.get_ifd(34665)[33434] == pytest.approx(0.004)
        assert exif.get_ifd(34853)[1] == "N"
    assert b"VP8L" not in again(path, quality=50).read_bytes()


def test_lossy_webp_keeps_alpha_to_the_bit(tmp_path: Path) -> None:
    pixels = np.dstack([COLOUR, np.where(SMOOTH > 60, 255, SMOOTH)]).astype(np.uint8)
    path = save(tmp_path, encoded(pixels, "WEBP", quality=90), "in.webp")
    picture = formats.read(path)
    target = again(path)
    assert b"VP8L" not in target.read_bytes()[:40]
    np.testing.assert_array_equal(formats.read(target).pixels[..., 3], picture.pixels[..., 3])


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_animation_is_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    path = tmp_path / f"in.{kind.lower()}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(NotSupported):
        formats.read(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_modes_agree_with_pillow(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    path = tmp_path / "in.bmp"
    image.save(path, dpi=(100, 120))
    picture = formats.read(path)
    np.testing.assert_array_equal(
        picture.pixels, np.array(image.convert({"1": "L", "P": "RGB"}.get(mode, mode)))
    )
    assert bool(picture.metadata.note) == (mode in "1P")
    with Image.open(again(path)) as back:
        np.testing.assert_array_equal(np.array(back), picture.pixels)
        assert back.info["dpi"] == pytest.approx((100, 120), abs=0.02)


def test_bmp_keeps_alpha(tmp_path: Path) -> None:
    formats.write(tmp_path / "in.bmp", formats.read(save(tmp_path, encoded(RGBA, "PNG"), "x.png")))
    picture = formats.read(tmp_path / "in.bmp")
    assert picture.alpha
    np.testing.assert_array_equal(picture.pixels, RGBA)
    with Image.open(tmp_path / "in.bmp") as image:
        np.testing.assert_array_equal(np.array(image), RGBA)


def test_alpha_is_never_dropped_silently(tmp_path: Path) -> None:
    picture = formats.read(save(tmp_path, encoded(RGBA, "PNG"), "x.png"))
    with pytest.raises(CannotHold, match="alpha"):
        formats.write(tmp_path / "x.jpg", picture)


def test_jpeg_metadata_goes_to_png_and_tiff(tmp_path: Path) -> None:
    path = save(
        tmp_path, encoded(RGB, "JPEG", exif=exif_block(6), icc_profile=ICC, xmp=XMP, dpi=(72, 72)), "in.jpg"
    )
    picture = formats.read(path)
    for name in ("x.png", "x.tif", "x.webp"):
        formats.write(tmp_path / name, picture, provenance=NOTE)
        with Image.open(tmp_path / name) as image:
            assert image.getexif()[274] == 6, name
            assert image.getexif().get_ifd(34665)[36867] == "2024:05:06 07:08:09", name
            assert image.info["icc_profile"] == ICC
        back = formats.read(tmp_path / name).metadata
        assert back.xmp == XMP, name
        if name != "x.webp":
            assert back.dpi == pytest.approx((72, 72), abs=0.02)
