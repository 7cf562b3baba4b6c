"""TIFF: every type and layout, metadata compared with tifffile and Pillow, damage that libraries forgive."""

from __future__ import annotations

import dataclasses
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from format_samples import GRAY, GRAY16, ICC, RGB, RGB16, RGBA, STACK, XMP, exif_object, tiff
from PIL import Image

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotRead, MdrnError, NotSupported
from mdrn_plugin.formats import segments
from mdrn_plugin.formats.ifd import DirectoryReader
from mdrn_plugin.formats.tiff import TiffMetadata
from mdrn_plugin.picture import Picture, decide_range

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1"]
NOTE = '{"model": "m"}'


def save(folder: Path, pixels: Any, name: str = "in.tif", **settings: Any) -> Path:
    path = folder / name
    path.write_bytes(tiff(pixels, **settings))
    return path


def again(path: Path, name: str = "out.tif", note: str | None = NOTE) -> Path:
    """Read and write; what comes out is checked with tifffile."""
    target = path.parent / name
    formats.write(target, formats.read(path), provenance=note, overwrite=True)
    return target


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(3)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind == "f":
        return rng.normal(0, 100, shape).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_and_byte_order_are_kept(tmp_path: Path, dtype: str, order: str) -> None:
    pixels = values(dtype, (19, 23))
    path = save(tmp_path, pixels, byteorder=order, photometric="minisblack")
    target = again(path)
    with tifffile.TiffFile(target) as tif:
        assert tif.byteorder == order
        back = tif.asarray()
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)
    assert formats.read(target).pixels.dtype.isnative


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "f4", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
def test_lossless_compression_is_kept(
    tmp_path: Path, dtype: str, compression: str | None, predictor: bool
) -> None:
    if predictor and (compression in (None, "packbits") or dtype == "u8"):
        pytest.skip("no such combination")
    pixels = values(dtype, (20, 24, 3))
    path = save(
        tmp_path, pixels, compression=compression, predictor=predictor, photometric="rgb", rowsperstrip=7
    )
    with tifffile.TiffFile(again(path)) as tif, tifffile.TiffFile(path) as source:
        np.testing.assert_array_equal(tif.asarray(), pixels)
        for field in ("compression", "predictor", "rowsperstrip", "photometric", "planarconfig"):
            assert getattr(tif.pages[0], field) == getattr(source.pages[0], field), field


def test_predictor_works_on_values_whatever_order_they_come_in(tmp_path: Path) -> None:
    picture = formats.read(save(tmp_path, GRAY16, compression="zlib", predictor=True))
    turned = dataclasses.replace(picture, pixels=GRAY16.astype(">u2"))
    formats.write(tmp_path / "out.tif", turned)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), GRAY16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("big", [False, True])
def test_planes_tiles_and_bigtiff_are_kept(
    tmp_path: Path, order: str, planar: str, tile: Any, big: bool
) -> None:
    pixels = RGB16 if planar == "contig" else np.moveaxis(RGB16, -1, 0)
    path = save(
        tmp_path,
        pixels,
        byteorder=order,
        planarconfig=planar,
        tile=tile,
        bigtiff=big,
        photometric="rgb",
        compression="zlib",
    )
    picture = formats.read(path)
    assert picture.axes == "YXS"
    np.testing.assert_array_equal(picture.pixels, RGB16)
    with tifffile.TiffFile(again(path)) as tif:
        page = tif.pages[0]
        assert (tif.is_bigtiff, page.is_tiled, tif.byteorder) == (big, tile is not None, order)
        assert page.planarconfig.name.lower() == planar
        np.testing.assert_array_equal(tif.asarray(), pixels)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "b1"])
def test_min_is_white_is_turned_for_reading_and_back_for_writing(tmp_path: Path, dtype: str) -> None:
    pixels = values(dtype, (9, 11))
    path = save(tmp_path, pixels, photometric="miniswhite")
    np.testing.assert_array_equal(formats.read(path).pixels, ~pixels)
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.pages[0].photometric == 0
        np.testing.assert_array_equal(tif.asarray(), pixels)


def test_jpeg_compressed_tiff_becomes_deflate(tmp_path: Path) -> None:
    path = save(tmp_path, RGB, compression="jpeg", photometric="rgb")
    decoded = tifffile.imread(path)
    with tifffile.TiffFile(again(path)) as tif:
        assert (tif.pages[0].compression, tif.pages[0].photometric) == (8, 2)
        assert not {347, 530, 532} & set(tif.pages[0].tags.keys())
        np.testing.assert_array_equal(tif.asarray(), decoded)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_alpha_is_marked_and_kept(tmp_path: Path, alpha: str) -> None:
    path = save(tmp_path, RGBA, photometric="rgb", extrasamples=[alpha])
    picture = formats.read(path)
    assert (picture.alpha, picture.colours) == (True, 3)
    with tifffile.TiffFile(again(path)) as tif:
        assert [e.name.lower() for e in tif.pages[0].extrasamples] == [alpha]
        np.testing.assert_array_equal(tif.asarray(), RGBA)


def test_gray_with_alpha_and_cmyk(tmp_path: Path) -> None:
    two = RGBA[..., :2].copy()
    path = save(tmp_path, two, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    picture = formats.read(path)
    assert (picture.axes, picture.alpha, picture.colours) == ("YXS", True, 1)
    np.testing.assert_array_equal(tifffile.imread(again(path)), two)
    path = save(tmp_path, RGBA, "cmyk.tif", photometric="separated")
    picture = formats.read(path)
    assert (picture.alpha, picture.colours) == (False, 4)
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.pages[0].photometric == 5
        np.testing.assert_array_equal(tif.asarray(), RGBA)


def test_many_samples_are_channels_and_go_back_as_samples(tmp_path: Path) -> None:
    pixels = values("u2", (12, 14, 7))
    path = save(tmp_path, pixels, photometric="minisblack", planarconfig="contig")
    picture = formats.read(path)
    assert (picture.axes, picture.shape, picture.alpha) == ("CYX", (7, 12, 14), False)
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.pages[0].samplesperpixel == 7
        np.testing.assert_array_equal(tif.asarray(), pixels)


def test_coarse_palette_becomes_colour_and_smooth_palette_stays_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 65536, (3, 256), dtype=np.uint16)
    path = save(tmp_path, GRAY, photometric="palette", colormap=coarse)
    picture = formats.read(path)
    assert "palette" in picture.metadata.note
    np.testing.assert_array_equal(picture.pixels, (coarse >> 8).astype(np.uint8).T[GRAY])
    np.testing.assert_array_equal(tifffile.imread(again(path)), picture.pixels)
    ramp = np.zeros((3, 256), np.uint16)
    ramp[1] = np.arange(256) * 257
    path = save(tmp_path, GRAY, photometric="palette", colormap=ramp)
    assert formats.read(path).axes == "YX"
    with tifffile.TiffFile(again(path)) as tif:
        np.testing.assert_array_equal(tif.pages[0].colormap, ramp)
        np.testing.assert_array_equal(tif.asarray(), GRAY)


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_packed_bits(tmp_path: Path, bits: int) -> None:
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (15, 18)).astype("u1" if bits < 8 else "u2")
    path = save(tmp_path, pixels, bitspersample=bits, photometric="minisblack")
    picture = formats.read(path)
    if bits < 8:
        np.testing.assert_array_equal(picture.pixels, pixels * (255 // (2**bits - 1)))
        assert "8 bit" in picture.metadata.note
    else:
        assert picture.range.white == 2**bits - 1
        back = formats.read(again(path))
        assert back.range.white == 2**bits - 1  # said in the file, not guessed
        np.testing.assert_array_equal(back.pixels, pixels)


def test_depth_stated_in_the_file_is_believed_unless_a_value_contradicts(tmp_path: Path) -> None:
    dim = np.full((8, 8), 300, np.uint16)
    path = save(tmp_path, dim, extratags=[(281, 3, 1, 4095, True)])
    assert formats.read(path).range.white == 4095
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.pages[0].tags[281].value == 4095
    path = save(tmp_path, dim + 5000, extratags=[(281, 3, 1, 4095, True)])
    assert formats.read(path).range.white == 65535


@pytest.mark.parametrize("photometric", [8, 9, 32845])
def test_lab_and_log_colours_are_refused(tmp_path: Path, photometric: int) -> None:
    path = save(tmp_path, RGB, photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[0].tags[262].valueoffset
    data[at : at + 2] = struct.pack("<H", photometric)
    path.write_bytes(data)
    with pytest.raises(NotSupported, match="RGB"):
        formats.read(path)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="complex"):
        formats.read(save(tmp_path, np.ones((4, 4), np.complex64)))


@pytest.mark.parametrize("offset", [2**63 + 5, 2**62, 2**64 - 1])
def test_directory_beyond_what_any_file_has_is_damage(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II\x2b\0\x08\0\0\0" + struct.pack("<Q", offset) + bytes(64))
    assert formats.sniff(path) == "tiff"
    with pytest.raises(CannotRead, match=r"x\.tif"):
        formats.read(path)


@pytest.mark.parametrize("photometric", ["cfa", "linear_raw"])
def test_sensor_data_is_never_its_thumbnail(tmp_path: Path, photometric: str) -> None:
    path = tmp_path / "x.nef"
    with tifffile.TiffWriter(path) as tif:
        tif.write(RGB, photometric="rgb", subifds=1, subfiletype=1)
        sensor = GRAY16 if photometric == "cfa" else RGB16
        tif.write(sensor, photometric=photometric)
    assert formats.sniff(path) == "raw"
    if photometric == "cfa":  # LibRaw knows it
        picture = formats.read(path)
        assert picture.mosaic is not None
        np.testing.assert_array_equal(picture.pixels, GRAY16)
    else:
        with pytest.raises(NotSupported, match="RAW"):
            formats.read(path)
    path = save(tmp_path, RGB, "x.dng", photometric="rgb", extratags=[(50706, 1, 4, b"\1\4\0\0", True)])
    assert formats.sniff(path) == "dng"
    with pytest.raises(NotSupported, match="DNG"):
        formats.read(path)


# --------------------------------------------------------------------------------------- metadata


def tags_of(path: Path, page: int = 0) -> dict[int, Any]:
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[page].tags
        return {t.code: t.value for t in tags if t.code not in {256, 257, 273, 278, 279, 284, 305, 339}}


@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_are_kept_to_the_bit(tmp_path: Path, order: str) -> None:
    extra = [
        (270, 2, 0, "a field of view", True),
        (271, 2, 0, "Maker", True),
        (274, 3, 1, 6, True),
        (306, 2, 0, "2024:05:06 07:08:09", True),
        (315, 2, 0, "Jemand", True),
        (700, 1, len(XMP), XMP, True),
        (33432, 2, 0, "all rights", True),
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (42113, 2, 0, "-9999", True),
        (65000, 4, 3, (1, 2, 70000), True),
    ]
    path = save(
        tmp_path, GRAY16, byteorder=order, metadata=None, resolution=(1234.5678, 600),
        resolutionunit="centimeter",
        iccprofile=ICC, extratags=extra, software="Scanner 3",
    )  # fmt: skip
    target = again(path)
    assert tags_of(target) == tags_of(path)
    with tifffile.TiffFile(target) as tif:
        assert tif.pages[0].tags[305].value == f"Scanner 3; mdrn {NOTE}"
    picture = formats.read(path)
    assert picture.metadata.icc == ICC
    assert picture.metadata.xmp == XMP
    assert picture.metadata.dpi == pytest.approx((1234.5678 * 2.54, 600 * 2.54), rel=1e-5)
    twice = again(target, "twice.tif")
    with tifffile.TiffFile(twice) as tif:
        assert tif.pages[0].tags[305].value == f"Scanner 3; mdrn {NOTE}"


def test_exif_and_gps_directories_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    Image.fromarray(RGB).save(path, exif=exif_object(8).tobytes())
    with Image.open(path) as image:
        before = image.getexif()
        wanted = (dict(before.get_ifd(34665)), dict(before.get_ifd(34853)), before[274])
    assert wanted[0] and wanted[1] and wanted[2] == 8
    with Image.open(again(path)) as image:
        after = image.getexif()
        assert (dict(after.get_ifd(34665)), dict(after.get_ifd(34853)), after[274]) == wanted
    formats.write(tmp_path / "x.jpg", formats.read(path))
    with Image.open(tmp_path / "x.jpg") as image:
        assert dict(image.getexif().get_ifd(34665)) == wanted[0]
    formats.write(tmp_path / "x2.tif", formats.read(tmp_path / "x.jpg"))
    with Image.open(tmp_path / "x2.tif") as image:
        after = image.getexif()
        assert (dict(after.get_ifd(34665)), dict(after.get_ifd(34853)), after[274]) == wanted


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("axes", "shape", "dtype"),
    [
        ("TZCYX", (2, 3, 2, 11, 13), "u2"),
        ("ZYX", (4, 11, 13), "f4"),
        ("CYX", (3, 11, 13), "u1"),
        ("ZYXS", (3, 11, 13, 3), "u1"),
    ],
)
def test_imagej_hyperstack_is_kept(
    tmp_path: Path, axes: str, shape: tuple[int, ...], dtype: str, order: str
) -> None:
    pixels = values(dtype, shape)
    table = np.zeros((3, 256), np.uint8)
    table[0] = np.arange(256)
    channels = shape[axes.index("C")] if "C" in axes else 1
    metadata = {
        "axes": axes, "spacing": 0.3, "unit": "um", "finterval": 1.5, "fps": 2.0,
        "Info": "Objective 63x\nline 2",
        "Labels": [f"slice {i}" for i in range(int(np.prod(shape[: axes.index("Y")])))],
        "LUTs": [table] * channels, "Ranges": (1.0, 200.0) * channels, "mode": "composite",
        "Overlays": [b"Iout" + bytes(60)], "min": 1.0, "max": 200.0,
    }  # fmt: skip
    path = save(tmp_path, pixels, imagej=True, byteorder=order, metadata=metadata, resolution=(9.6, 9.6))
    picture = formats.read(path)
    assert (picture.axes, picture.shape) == (axes, shape)
    target = again(path)
    with tifffile.TiffFile(path) as a, tifffile.TiffFile(target) as b:
        before, after = a.imagej_metadata, b.imagej_metadata
        assert before is not None and after is not None
        assert after.pop("Info") == f"Objective 63x\nline 2\nmdrn: {NOTE}\n"
        before.pop("Info")
        luts = before.pop("LUTs"), after.pop("LUTs")
        np.testing.assert_array_equal(*luts)
        assert after == before
        assert b.series[0].axes == a.series[0].axes
        assert b.pages[0].tags["XResolution"].value == a.pages[0].tags["XResolution"].value
        assert b.pages[0].description == a.pages[0].description
        np.testing.assert_array_equal(b.asarray(), pixels)
        # ImageJ reads the whole stack from the first offset on and ignores the other directories.
        start = b.pages[0].dataoffsets[0]
        raw = target.read_bytes()[start : start + pixels.nbytes]
    np.testing.assert_array_equal(np.frombuffer(raw, np.dtype(order + dtype)).reshape(shape), pixels)
    assert again(target, "twice.tif").read_bytes() == target.read_bytes()


def test_imagej_stack_beyond_classic_size_has_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, STACK, imagej=True, metadata={"axes": "ZYX"})
    monkeypatch.setattr(segments, "CLASSIC_LIMIT", 5000)
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.is_imagej and not tif.is_bigtiff and len(tif.pages) == 1
        np.testing.assert_array_equal(tif.asarray(), STACK)
    path = save(tmp_path, STACK, "plain.tif", photometric="minisblack")
    with tifffile.TiffFile(again(path)) as tif:
        assert tif.is_bigtiff
        np.testing.assert_array_equal(tif.asarray(), STACK)


def test_imagej_claims_more_images_than_there_are(tmp_path: Path) -> None:
    path = save(tmp_path, STACK, imagej=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes().replace(b"images=6\nslices=6", b"images=9\nslices=9"))
    with pytest.raises(CannotRead):
        formats.read(path)


def test_imagej_total_beyond_the_pages_fails(tmp_path: Path) -> None:
    text = "ImageJ=1.54f\nimages=9\n"
    path = save(
        tmp_path, STACK, description=text, metadata=None, photometric="minisblack", compression="zlib"
    )
    with pytest.raises(CannotRead, match="expected 9 images"):
        formats.read(path)


def test_ome_plane_without_a_page_is_never_filled_with_zeros(tmp_path: Path) -> None:
    path = save(tmp_path, STACK, "in.ome.tif", ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        xml = tif.pages[0].description
    one = xml[xml.index("<TiffData") : xml.index("/>", xml.index("<TiffData")) + 2]
    gap = '<TiffData IFD="0" FirstZ="0" PlaneCount="2"/><TiffData IFD="2" FirstZ="4" PlaneCount="2"/>'
    save(
        tmp_path,
        STACK[:4],
        "in.ome.tif",
        description=xml.replace(one, gap),
        metadata=None,
        photometric="minisblack",
    )
    with pytest.raises(CannotRead, match="expected 6 planes, got 4"):
        formats.read(path)


@pytest.mark.parametrize("axes", ["TCZYX", "CZTYX", "ZYX", "YX"])
def test_ome_xml_is_kept(tmp_path: Path, axes: str) -> None:
    pixels = values("u2", tuple({"T": 2, "C": 2, "Z": 3, "Y": 11, "X": 13}[a] for a in axes))
    metadata = {
        "axes": axes, "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 0.4,
        "TimeIncrement": 2.5, "Description": "a & b <c>",
    }  # fmt: skip
    if "C" in axes:
        metadata["Channel"] = {"Name": ["DAPI", "GFP"]}
    path = save(tmp_path, pixels, "in.ome.tif", ome=True, photometric="minisblack", metadata=metadata)
    target = again(path, "out.ome.tif")
    with tifffile.TiffFile(path) as a, tifffile.TiffFile(target) as b:
        assert b.is_ome
        before, after = a.ome_metadata, b.ome_metadata
        assert before is not None and after is not None
        start, end = after.index("<StructuredAnnotations>"), after.index("</StructuredAnnotations>") + 24
        assert '"model": "m"' in after[start:end]
        assert after[:start] + after[end:] == before
        assert b.series[0].axes == a.series[0].axes
        np.testing.assert_array_equal(b.asarray(), a.asarray())
    twice = again(target, "twice.ome.tif")
    with tifffile.TiffFile(twice) as c:
        assert c.ome_metadata == after


def parts_of_ome(folder: Path) -> Path:
    """Write a stack of two files that name each other."""
    pixels = STACK[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:a"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
        'SizeX="53" SizeY="37" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="p0.ome.tif">urn:uuid:a</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="p1.ome.tif">urn:uuid:b</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    for number, text in enumerate((xml, xml.replace('UUID="urn:uuid:a"><Image', 'UUID="urn:uuid:b"><Image'))):
        save(folder, pixels[number], f"p{number}.ome.tif", description=text, metadata=None)
    return folder / "p0.ome.tif"


def test_ome_in_several_files_is_read_whole_and_written_as_one(tmp_path: Path) -> None:
    path = parts_of_ome(tmp_path)
    picture = formats.read(path)
    assert picture.axes == "ZYX"
    np.testing.assert_array_equal(picture.pixels, STACK[:2])
    (tmp_path / "o").mkdir()
    formats.write(tmp_path / "o" / "x.ome.tif", picture)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o" / "x.ome.tif"), STACK[:2])
    np.testing.assert_array_equal(formats.read(tmp_path / "o" / "x.ome.tif").pixels, STACK[:2])


def test_ome_with_a_missing_part_fails(tmp_path: Path) -> None:
    path = parts_of_ome(tmp_path)
    (tmp_path / "p1.ome.tif").unlink()
    with pytest.raises(CannotRead, match=r"p1\.ome\.tif.*missing"):
        formats.read(path)


@pytest.mark.parametrize("part", ["../p1.ome.tif", "/etc/passwd", "a\\b.tif", ".."])
def test_ome_that_points_out_of_its_folder_fails(tmp_path: Path, part: str) -> None:
    (tmp_path / "in").mkdir()
    path = parts_of_ome(tmp_path / "in")
    (tmp_path / "in" / "p1.ome.tif").rename(tmp_path / "p1.ome.tif")
    with tifffile.TiffFile(path) as tif:
        xml = tif.pages[0].description
    save(tmp_path / "in", STACK[0], "p0.ome.tif", description=xml.replace("p1.ome.tif", part), metadata=None)
    with pytest.raises(CannotRead, match="folder"):
        formats.read(path)


def test_ome_part_that_is_a_link_out_of_the_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = parts_of_ome(tmp_path / "in")
    (tmp_path / "in" / "p1.ome.tif").rename(tmp_path / "secret.tif")
    (tmp_path / "in" / "p1.ome.tif").symlink_to(tmp_path / "secret.tif")
    with pytest.raises(CannotRead, match="leads out"):
        formats.read(path)


def test_ome_with_entities_fails(tmp_path: Path) -> None:
    xml = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "b">]><OME>&a;</OME>'
    with pytest.raises(CannotRead, match="entities"):
        formats.read(save(tmp_path, GRAY, description=xml, metadata=None))


def test_ome_that_declares_more_planes_than_pages_fails(tmp_path: Path) -> None:
    path = save(tmp_path, STACK, "in.ome.tif", ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    path.write_bytes(
        path.read_bytes().replace(b'SizeZ="6"', b'SizeZ="9"').replace(b'PlaneCount="6"', b'PlaneCount="9"')
    )
    with pytest.raises(MdrnError):
        formats.read(path)


def test_every_page_keeps_its_own_tags(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    with tifffile.TiffWriter(path) as tif:
        for number, plane in enumerate(STACK):
            tif.write(
                plane, photometric="minisblack", description=f"page {number}", metadata=None,
                extratags=[(285, 2, 0, f"name {number}", True), (51123, 2, 0, f'{{"ms": {number}}}', True)],
                resolution=(100 + number, 100),
            )  # fmt: skip
    target = again(path)
    for number in range(len(STACK)):
        before, after = tags_of(path, number), tags_of(target, number)
        assert {k: after[k] for k in (270, 282, 285, 51123)} == {k: before[k] for k in (270, 282, 285, 51123)}


def test_stack_axes_of_tifffile_are_kept(tmp_path: Path) -> None:
    pixels = values("u2", (2, 3, 11, 13))
    for truncate in (False, True):
        path = save(tmp_path, pixels, photometric="minisblack", metadata={"axes": "TZYX"}, truncate=truncate)
        picture = formats.read(path)
        assert picture.axes == "TZYX"
        with tifffile.TiffFile(again(path)) as tif:
            assert tif.series[0].axes == "TZYX"
            np.testing.assert_array_equal(tif.asarray(), pixels)


def test_pages_of_different_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(GRAY, metadata=None)
        tif.write(GRAY[:10], metadata=None)
    with pytest.raises(NotSupported, match="2 pictures"):
        formats.read(path)


def test_pyramid_is_rebuilt_from_the_new_pixels(tmp_path: Path) -> None:
    base = np.random.default_rng(8).integers(0, 9000, (256, 320), dtype=np.uint16)
    path = tmp_path / "in.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        settings: dict[str, Any] = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack"}
        tif.write(base, subifds=2, **settings)
        tif.write(base[::2, ::2], subfiletype=1, **settings)
        tif.write(base[::4, ::4], subfiletype=1, **settings)
    picture = formats.read(path)
    brighter = dataclasses.replace(picture, pixels=picture.pixels + np.uint16(1000))
    formats.write(tmp_path / "out.ome.tif", brighter)
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tif:
        levels = [level.asarray() for level in tif.series[0].levels]
        assert [level.shape for level in levels] == [(256, 320), (128, 160), (64, 80)]
    for factor, level in zip((1, 2, 4), levels, strict=True):
        exact = (base + 1000.0).reshape(256 // factor, factor, 320 // factor, factor).mean((1, 3))
        assert np.abs(level - exact).max() <= 1  # rounded twice at most
        assert abs((level - exact).mean()) < 0.1


# ----------------------------------------------------------------------------- damage and malice


def test_compressed_stack_without_its_last_page_fails(tmp_path: Path) -> None:
    """Libraries log this and return the pages that are left."""
    path = save(tmp_path, STACK, compression="zlib", photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tif:
        last = tif.pages[-1].offset
    path.write_bytes(path.read_bytes()[:last])
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) < 6
    with pytest.raises(CannotRead, match="directory"):
        formats.read(path)


def test_directory_loop_fails(tmp_path: Path) -> None:
    path = save(tmp_path, STACK[:2], photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        first, last = tif.pages[0].offset, tif.pages[1].offset
    count = struct.unpack("<H", data[last : last + 2])[0]
    data[last + 2 + 12 * count : last + 6 + 12 * count] = struct.pack("<I", first)
    path.write_bytes(data)
    with pytest.raises(CannotRead, match="points back"):
        formats.read(path)


def test_deflate_bomb_fails_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path, GRAY, compression="zlib")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        places = [tif.pages[0].tags[t].valueoffset for t in (256, 257, 278)]
    for side, error in ((60_000, NotSupported), (40_000, CannotRead)):
        for at in places:
            data[at : at + 4] = struct.pack("<I", side)[: 4 if at else 0]
        path.write_bytes(data)
        with pytest.raises(error):
            formats.read(path)


def test_sparse_bigtiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    tifffile.imwrite(
        path,
        shape=(30_000, 30_000),
        dtype="u1",
        tile=(4096, 4096),
        bigtiff=True,
        compression="zlib",
        data=(b"" for _ in range(64)),
    )
    with pytest.raises(CannotRead, match="without data"):
        formats.read(path)


def test_many_small_pages_are_read_in_bounded_time(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        np.arange(2000 * 6, dtype=np.uint16).reshape(2000, 2, 3),
        photometric="minisblack",
        metadata=None,
    )
    start = time.perf_counter()
    picture = formats.read(path)
    assert picture.shape == (2000, 2, 3)
    formats.write(tmp_path / "out.tif", picture)
    assert time.perf_counter() - start < 10
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), picture.pixels)


def test_too_many_directories_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, STACK, photometric="minisblack", metadata=None)
    with open(path, "rb") as file, pytest.raises(ValueError, match="more than 5"):
        DirectoryReader(file).offsets(limit=5)


def test_reading_emits_no_warning_and_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, STACK, compression="zlib", photometric="minisblack", metadata=None)
    path.write_bytes(path.read_bytes()[:-5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CannotRead):
            formats.read(path)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------- from elsewhere


@pytest.mark.parametrize(
    ("axes", "shape", "dtype", "name"),
    [
        ("YX", (9, 11), "f8", "x.tif"),
        ("CZYX", (2, 3, 9, 11), "u2", "x.tif"),
        ("ZYX", (3, 9, 11), "i4", "x.tif"),
        ("TZYXS", (2, 2, 9, 11, 3), "u1", "x.tif"),
        ("SYX", (3, 9, 11), "u2", "x.tif"),
        ("CTYX", (2, 3, 9, 11), "u2", "x.ome.tif"),
        ("ZYXS", (2, 9, 11, 3), "u1", "x.ome.tif"),
    ],
)
def test_arrays_are_written_with_their_axes(
    tmp_path: Path, axes: str, shape: tuple[int, ...], dtype: str, name: str
) -> None:
    pixels = values(dtype, shape)
    formats.write(tmp_path / name, Picture(pixels, axes, decide_range(pixels)), provenance=NOTE)
    back = formats.read(tmp_path / name)
    order = [axes.index(a) for a in back.axes]
    assert sorted(back.axes) == sorted(axes)
    np.testing.assert_array_equal(back.pixels, pixels.transpose(order))
    assert NOTE in (tmp_path / name).read_bytes().replace(b"\0", b"").decode("latin1").replace("&quot;", '"')


def test_changed_shape_or_type_is_written_without_stale_metadata(tmp_path: Path) -> None:
    path = save(tmp_path, STACK, imagej=True, metadata={"axes": "ZYX", "Labels": list("abcdef")})
    picture = formats.read(path)
    assert isinstance(picture.metadata, TiffMetadata)
    half = dataclasses.replace(picture, pixels=picture.pixels[:3].astype(np.float32))
    formats.write(tmp_path / "out.tif", half)
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.imagej_metadata is not None and tif.imagej_metadata["slices"] == 3
        assert tif.asarray().dtype == np.float32


def test_pixels_that_are_no_numpy_array_are_written_plane_by_plane(tmp_path: Path) -> None:
    class Lazy:
        shape, dtype, ndim = STACK.shape, STACK.dtype, 3
        largest = 0

        def __getitem__(self, index: Any) -> np.ndarray:
            part = STACK[index]
            Lazy.largest = max(Lazy.largest, part.nbytes)
            return part

    picture = Picture(Lazy(), "ZYX", decide_range(STACK))
    formats.write(tmp_path / "x.tif", picture)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), STACK)
    assert Lazy.largest == STACK[0].nbytes
