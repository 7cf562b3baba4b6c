"""Pixels that stay in their file: the same values as of the file read whole, wherever they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mdrn_plugin import formats, picture
from mdrn_plugin.errors import BadOption, CannotRead, OutputUnusable
from mdrn_plugin.formats import limits, segments, streamed
from mdrn_plugin.picture import Picture, Streamed, StreamedPlane, ValueRange, sample

RNG = np.random.default_rng(5)
GRAY16 = RNG.integers(0, 65536, (61, 83), np.uint16)
RGB = RNG.integers(0, 256, (61, 83, 3), np.uint8)
RGBA = RNG.integers(0, 256, (61, 83, 4), np.uint8)
STACK = RNG.integers(0, 65536, (4, 3, 40, 50), np.uint16)
FLOATS = RNG.normal(0.5, 0.1, (61, 83)).astype(np.float32)

Save = Callable[[Path], Any]


def _one_by_one(path: Path) -> None:
    for page in STACK[0]:
        tifffile.imwrite(path, page, append=True, rowsperstrip=7, metadata=None, contiguous=False)


KINDS: dict[str, Save] = {
    "one strip": lambda p: tifffile.imwrite(p, GRAY16),
    "big endian, BigTIFF": lambda p: tifffile.imwrite(p, GRAY16, bigtiff=True, byteorder=">"),
    "strips": lambda p: tifffile.imwrite(p, GRAY16, rowsperstrip=7, compression="zlib", predictor=True),
    "tiles": lambda p: tifffile.imwrite(p, GRAY16, tile=(16, 32)),
    "big-endian tiles": lambda p: tifffile.imwrite(
        p, GRAY16, tile=(16, 32), compression="zstd", predictor=True, byteorder=">"
    ),
    "LZW": lambda p: tifffile.imwrite(p, RGB, rowsperstrip=9, compression="lzw", photometric="rgb"),
    "opacity": lambda p: tifffile.imwrite(
        p, RGBA, tile=(16, 16), compression="zlib", photometric="rgb", extrasamples=["unassalpha"]
    ),
    "floats": lambda p: tifffile.imwrite(p, FLOATS, rowsperstrip=7, compression="lzma", predictor=True),
    "ImageJ": lambda p: tifffile.imwrite(p, STACK, imagej=True, metadata={"axes": "TZYX"}),
    "OME": lambda p: tifffile.imwrite(
        p, STACK, ome=True, tile=(16, 16), compression="zlib", metadata={"axes": "TCYX"}
    ),
    "pages with their directories between": _one_by_one,
    "pages": lambda p: tifffile.imwrite(p, STACK[0], compression="packbits", photometric="minisblack"),
}


@pytest.fixture
def everything_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_STREAM_BYTES", "0")
    # So that what is small here is cut as what is large is.
    monkeypatch.setattr(streamed, "_KEPT_BYTES", 3000)
    monkeypatch.setattr(picture, "_PIECE_VALUES", 500)


def _open(path: Path) -> Picture:
    found = formats.open_streamed(path)
    assert found is not None
    assert isinstance(found.pixels, Streamed)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("everything_streams")
def test_streamed_picture_is_the_picture_read_whole(tmp_path: Path, kind: str) -> None:
    name = "a.ome.tif" if kind == "OME" else "a.tif"
    KINDS[kind](tmp_path / name)
    whole, found = formats.read(tmp_path / name), _open(tmp_path / name)
    assert (found.axes, found.range, found.alpha) == (whole.axes, whole.range, whole.alpha)
    assert found.metadata == whole.metadata
    assert (found.shape, found.pixels.dtype) == (whole.shape, whole.pixels.dtype)
    np.testing.assert_array_equal(np.asarray(found.pixels), whole.pixels)
    rng = np.random.default_rng(1)
    for _ in range(30):
        edges = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in whole.shape]
        place: list[Any] = [slice(int(a), int(b)) for a, b in edges]
        if len(place) > 2:
            place[0] = place[0].start
        np.testing.assert_array_equal(found.pixels[tuple(place)], whole.pixels[tuple(place)])


@pytest.mark.usefixtures("everything_streams")
def test_streamed_ome_in_several_files_is_the_picture_read_whole(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(STACK[:, 0], metadata={"axes": "ZYX"}, photometric="minisblack", compression="zlib")
    xml = tifffile.tiffcomment(tmp_path / "a.ome.tif")
    assert isinstance(xml, str)
    other = (
        'FirstZ="2" FirstT="0" FirstC="0" IFD="0" PlaneCount="2">'
        f'<UUID FileName="b.ome.tif">urn:uuid:{"1" * 36}'
    )
    assert xml.count("<TiffData") == 1
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    data = '<TiffData FirstZ="0" FirstT="0" FirstC="0" IFD="0" PlaneCount="2"/>'
    xml = f"{xml[:start]}{data}<TiffData {other}</UUID></TiffData>{xml[end:]}"
    for name, planes, text in (("a", STACK[:2, 0], xml), ("b", STACK[2:, 0], None)):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif",
            planes,
            description=text and text.encode(),
            metadata=None,
            photometric="minisblack",
            compression="zlib",
        )
    whole, found = formats.read(tmp_path / "a.ome.tif"), _open(tmp_path / "a.ome.tif")
    assert found.metadata == whole.metadata
    np.testing.assert_array_equal(np.asarray(found.pixels), STACK[:, 0])


WHOLE: dict[str, Save] = {
    "palette": lambda p: tifffile.imwrite(
        p, RGB[..., 0], photometric="palette", colormap=RNG.integers(0, 65536, (3, 256), np.uint16)
    ),
    "inverted": lambda p: tifffile.imwrite(p, RGB[..., 0], photometric="miniswhite"),
    "one bit": lambda p: tifffile.imwrite(p, GRAY16 > 30000),
    "planar": lambda p: tifffile.imwrite(
        p, np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"
    ),
    "JPEG": lambda p: tifffile.imwrite(p, RGB, photometric="rgb", compression="jpeg"),
    "gray JPEG": lambda p: tifffile.imwrite(p, RGB[..., 0], compression="jpeg"),
    "bands": lambda p: tifffile.imwrite(p, RGBA, photometric="minisblack", planarconfig="contig"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.usefixtures("everything_streams")
def test_file_whose_values_must_be_changed_is_read_whole(tmp_path: Path, kind: str) -> None:
    WHOLE[kind](tmp_path / "a.tif")
    assert formats.open_streamed(tmp_path / "a.tif") is None
    assert isinstance(formats.read_or_stream(tmp_path / "a.tif").pixels, np.ndarray)


def test_file_of_one_large_strip_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_STREAM_BYTES", "0")
    tifffile.imwrite(tmp_path / "a.tif", GRAY16, rowsperstrip=61, compression="zlib")
    assert formats.open_streamed(tmp_path / "a.tif") is not None
    monkeypatch.setattr(streamed, "_SEGMENT_BYTES", GRAY16.nbytes - 1)
    assert formats.open_streamed(tmp_path / "a.tif") is None


@pytest.mark.usefixtures("everything_streams")
def test_streamed_file_with_a_damaged_strip_says_so_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, rowsperstrip=10, compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[3]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    found = _open(path)
    np.testing.assert_array_equal(found.pixels[:30], RGB[:30])
    with pytest.raises(CannotRead, match=r"a\.tif: page 0 is damaged"):
        found.pixels[25:35]


@pytest.mark.usefixtures("everything_streams")
def test_streamed_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY16)
    os.truncate(tmp_path / "a.tif", GRAY16.nbytes // 2)
    with pytest.raises(CannotRead, match="intact copy"):
        formats.open_streamed(tmp_path / "a.tif")


@pytest.mark.parametrize(("told", "expected"), [("0", 0), ("12345", 12345)])
def test_stream_bytes_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, told: str, expected: int
) -> None:
    monkeypatch.setenv("MDRN_STREAM_BYTES", told)
    assert limits.stream_bytes() == expected


def test_stream_bytes_without_the_environment_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDRN_STREAM_BYTES", raising=False)
    assert 0 < limits.stream_bytes() <= limits.STREAM_BYTES


def test_stream_bytes_that_are_no_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_STREAM_BYTES", "1 GB")
    with pytest.raises(BadOption, match="MDRN_STREAM_BYTES"):
        limits.stream_bytes()


def test_small_file_is_not_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDRN_STREAM_BYTES", raising=False)
    tifffile.imwrite(tmp_path / "a.tif", GRAY16)
    assert formats.open_streamed(tmp_path / "a.tif") is None


@pytest.mark.parametrize(("shape", "axes"), [((3, 20, 30), "ZYX"), ((20, 30, 4), "YXS")])
def test_scratch_is_written_and_read_like_an_array(tmp_path: Path, shape: tuple[int, ...], axes: str) -> None:
    like = Picture(np.empty(shape, np.uint16), axes, ValueRange(0, 1, ""), alpha=axes == "YXS")
    found = formats.scratch_like(like, tmp_path / "b.tif")
    meant = np.zeros(shape, np.uint16)
    rng = np.random.default_rng(2)
    for _ in range(40):
        place = tuple(slice(*map(int, np.sort(rng.choice(n + 1, 2, replace=False)))) for n in shape)
        meant[place] = found[place] = rng.integers(0, 65536, meant[place].shape)
    np.testing.assert_array_equal(np.asarray(found), meant)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".mdrn-")] == []
    if os.name != "nt":
        assert list(tmp_path.iterdir()) == []


def test_scratch_on_a_full_disk_is_output_unusable(tmp_path: Path) -> None:
    like = Picture(np.broadcast_to(np.uint16(0), (10**8, 10**7)), "YX", ValueRange(0, 1, ""))  # 2 petabytes
    with pytest.raises(OutputUnusable, match=r"b\.tif: cannot be written"):
        formats.scratch_like(like, tmp_path / "b.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("everything_streams")
def test_plane_of_streamed_pixels_is_sliced_like_an_array(tmp_path: Path) -> None:
    KINDS["opacity"](tmp_path / "a.tif")
    found = _open(tmp_path / "a.tif")
    plane = found.plane(next(found.planes()))
    assert isinstance(plane, StreamedPlane)
    assert plane.shape == (61, 83, 3)  # no opacity
    np.testing.assert_array_equal(plane[3::7, 2::5], RGBA[3::7, 2::5, :3])
    np.testing.assert_array_equal(plane[50:], RGBA[50:, :, :3])
    np.testing.assert_array_equal(plane.samples(slice(1, 2))[:4, :9], RGBA[:4, :9, 1:2])


@pytest.mark.parametrize("shape", [(100, 37), (5, 30, 20), (2, 3, 40, 30), (1, 4000)])
def test_sample_of_streamed_pixels_is_that_of_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(picture, "_PIECE_VALUES", 700)
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    like = Picture(values, "TZYX"[-len(shape) :], ValueRange(0, 1, ""))
    found = formats.scratch_like(like, tmp_path / "b.tif")
    found[...] = values
    row = int(np.prod(shape[1:]))
    part = max(1, 700 // row) * row  # values of whole rows, a few hundred at a time
    for limit in (10, 100, 1000):
        step = max(1, values.size // limit)
        parts = [values.ravel()[k : k + part] for k in range(0, values.size, part)]
        meant = np.concatenate([p[k % step :: step] for k, p in enumerate(parts)])
        np.testing.assert_array_equal(sample(values, limit), meant if values.size > limit else values.ravel())
        np.testing.assert_array_equal(sample(found, limit), sample(values, limit))


@pytest.mark.parametrize("shape", [(16, 21), (7, 5), (1, 1), (61, 83)])
def test_reduced_copy_made_in_parts_is_that_made_at_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    class Sliced:
        def __init__(self, pixels: Any) -> None:
            self.pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

        def __getitem__(self, place: Any) -> Any:
            return self.pixels[place]

    monkeypatch.setattr(segments, "_SHRUNK_ROWS", 3)
    for pixels in (GRAY16, RGB, FLOATS):
        np.testing.assert_array_equal(
            segments.shrink(Sliced(pixels), shape), segments.shrink(pixels, shape), strict=True
        )
