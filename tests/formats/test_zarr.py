"""OME-Zarr 0.4 and 0.5: what comes in goes out, and what is wrong is said."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotHold, CannotRead, MdrnError, NotSupported, OutputExists, OutputUnusable
from mdrn_plugin.formats import zarr_write
from mdrn_plugin.formats.zarr import ZarrMetadata
from mdrn_plugin.picture import Picture, ValueRange

zarr = pytest.importorskip("zarr")
from zarr_samples import edit, make_store, noisy, tree  # noqa: E402

RANGE = ValueRange(0, 255, "")
KINDS = [("0.4", None), ("0.5", None), ("0.5", (1, 1, 128, 128))]


@pytest.fixture(params=KINDS, ids=["0.4", "0.5", "0.5 in shards"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    version, shards = request.param
    return make_store(tmp_path / "in.zarr", noisy((2, 3, 150, 130)), "czyx", version, shards=shards, levels=2)


# --- round trips --------------------------------------------------------------------------------------


def test_store_as_it_comes_goes_out_the_same(store: Path, tmp_path: Path) -> None:
    picture = formats.read(store)
    formats.write(tmp_path / "out.zarr", picture, provenance='{"program": "mdrn-plugin"}', verify=True)
    back = formats.read(tmp_path / "out.zarr")
    np.testing.assert_array_equal(picture.pixels, noisy((2, 3, 150, 130)))
    np.testing.assert_array_equal(back.pixels, picture.pixels)
    assert back.metadata == picture.metadata
    assert back.axes == picture.axes == "CZYX"
    assert isinstance(back.metadata, ZarrMetadata)
    assert back.metadata.scale == (1.0, 2.0, 0.25, 0.25)
    assert back.metadata.units == ("", "micrometer", "micrometer", "micrometer")
    kept = json.loads(back.metadata.attributes)
    assert kept["lab"] == {"dish": 5}
    assert kept.get("ome", kept)["omero"]["channels"][0]["label"] == "DAPI"


def test_provenance_lies_in_the_attributes_and_is_not_kept_twice(store: Path, tmp_path: Path) -> None:
    formats.write(tmp_path / "a.zarr", formats.read(store), provenance='{"program": "one"}')
    formats.write(tmp_path / "b.zarr", formats.read(tmp_path / "a.zarr"), provenance='{"program": "two"}')
    attributes = dict(zarr.open_group(str(tmp_path / "b.zarr"), mode="r").attrs)
    assert attributes["mdrn"] == {"program": "two"}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "tyx", "tcyx", "czyx", "tzyx", "tczyx"])
def test_every_subset_of_axes_is_kept(axes: str, version: str, tmp_path: Path) -> None:
    lengths = {"t": 2, "c": 3, "z": 2, "y": 33, "x": 20}
    pixels = noisy(tuple(lengths[a] for a in axes), np.uint8)
    picture = formats.read(make_store(tmp_path / "in.zarr", pixels, axes, version))
    assert picture.axes == axes.upper()
    formats.write(tmp_path / "out.zarr", picture, verify=True)
    back = formats.read(tmp_path / "out.zarr")
    np.testing.assert_array_equal(back.pixels, pixels)
    assert (back.axes, back.metadata) == (picture.axes, picture.metadata)


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">u2", ">f4"]
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_type_is_kept(dtype: str, version: str, tmp_path: Path) -> None:
    native = np.dtype(dtype).newbyteorder("=")
    kind = np.uint8 if dtype == "bool" else native
    pixels = (noisy((33, 20), kind) > 120) if dtype == "bool" else noisy((33, 20), kind)
    picture = Picture(pixels.astype(dtype), "YX", RANGE)
    picture = dataclasses.replace(picture, metadata=ZarrMetadata(version=version, axes="YX"))
    layout = zarr_write.lay_out(Picture(picture.pixels, "YX", RANGE), version)
    zarr_write.create(tmp_path / "made.zarr", layout, None)
    zarr_write.open_level(tmp_path / "made.zarr", 0, layout)[...] = pixels
    back = formats.read(tmp_path / "made.zarr")
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.pixels.dtype == native


def test_big_endian_store_is_read(tmp_path: Path) -> None:
    pixels = noisy((40, 30)).astype(">u2")
    back = formats.read(make_store(tmp_path / "in.zarr", pixels, "yx", "0.4"))
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.pixels.dtype == np.uint16


def test_colour_picture_becomes_channels_with_names(tmp_path: Path) -> None:
    pixels = np.stack([noisy((40, 30), np.uint8, k) for k in range(3)], -1)
    formats.write(tmp_path / "rgb.zarr", Picture(pixels, "YXS", RANGE), verify=True)
    back = formats.read(tmp_path / "rgb.zarr")
    assert back.axes == "CYX"
    np.testing.assert_array_equal(back.pixels, np.moveaxis(pixels, -1, 0))
    channels = json.loads(back.metadata.attributes)["ome"]["omero"]["channels"]  # type: ignore[attr-defined]
    assert [c["label"] for c in channels] == ["red", "green", "blue"]


def test_axes_in_another_order_are_put_into_that_of_the_standard(tmp_path: Path) -> None:
    pixels = noisy((2, 3, 40, 30), np.uint8)
    formats.write(tmp_path / "a.zarr", Picture(pixels, "ZCYX", RANGE), verify=True)
    back = formats.read(tmp_path / "a.zarr")
    assert back.axes == "CZYX"
    np.testing.assert_array_equal(back.pixels, pixels.swapaxes(0, 1))


def test_size_of_pixels_of_an_ome_tiff_is_kept(tmp_path: Path) -> None:
    import tifffile

    said = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0}
    said |= {"PhysicalSizeXUnit": "nm", "Channel": {"Name": ["DAPI"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", noisy((3, 40, 30)), metadata=said)
    formats.write(tmp_path / "a.zarr", formats.read(tmp_path / "a.ome.tif"))
    metadata = formats.read(tmp_path / "a.zarr").metadata
    assert isinstance(metadata, ZarrMetadata)
    assert metadata.scale == (2.0, 0.25, 0.5)
    assert metadata.units == ("micrometer", "micrometer", "nanometer")
    assert "DAPI" in metadata.attributes


# --- pyramid --------------------------------------------------------------------------------------------


def test_pyramid_is_rebuilt_with_scale_and_place(store: Path, tmp_path: Path) -> None:
    picture = formats.read(store)
    changed = dataclasses.replace(picture, pixels=picture.pixels // 2)
    formats.write(tmp_path / "out.zarr", changed)
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    full, half = np.asarray(group["0"]), np.asarray(group["1"])
    assert half.shape == (2, 3, 75, 65)
    means = full.astype(float).reshape(2, 3, 75, 2, 65, 2).mean((3, 5))
    assert np.abs(half - means).max() <= 0.5
    attributes = dict(group.attrs)
    levels = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
    assert levels[1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 2.0, 0.5, 0.5]},
        {"type": "translation", "translation": [0.0, 0.0, 0.125, 0.125]},
    ]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int64, np.uint64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    )
)
def test_halved_is_the_rounded_mean_of_what_is_there(values: Any) -> None:
    made = zarr_write.halved(values, 0, 1)
    assert made.dtype == values.dtype
    for (row, column), found in np.ndenumerate(made):
        box = [int(v) for v in values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flat]
        assert int(found) == (2 * sum(box) + len(box)) // (2 * len(box))


def test_halved_floats_and_booleans() -> None:
    values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]], np.float16)
    np.testing.assert_array_equal(zarr_write.halved(values, 0, 1), np.array([[1.5, 6.0]], np.float16))
    flags = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(zarr_write.halved(flags, 0, 1), [[True, False]])


def test_pyramid_of_large_picture_without_one_is_made(tmp_path: Path) -> None:
    layout = zarr_write.lay_out(Picture(np.broadcast_to(np.uint8(0), (5000, 3000)), "YX", RANGE))
    assert [level.shape for level in layout.levels] == [(5000, 3000), (2500, 1500), (1250, 750), (625, 375)]
    assert all(s % c == 0 for level in layout.levels for s, c in zip(level.shards, level.chunks, strict=True))


# --- what is wrong ------------------------------------------------------------------------------------


def _first_chunk(store: Path) -> Path:
    return next(p for p in sorted((store / "0").rglob("*")) if p.is_file() and p.name.isdigit())


def test_missing_chunk_is_the_fill_value_and_said(store: Path) -> None:
    whole = formats.read(store).pixels
    chunk = _first_chunk(store)
    chunk.unlink()
    picture = formats.read(store)
    assert "1 of " in picture.metadata.note
    assert "fill value 7" in picture.metadata.note
    lost = picture.pixels != whole
    assert lost.any()
    assert (picture.pixels[lost] == 7).all()


def test_missing_chunk_without_a_fill_value_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "in.zarr", noisy((130, 130)), "yx", "0.4")
    node = json.loads((store / "0" / ".zarray").read_text())
    node["fill_value"] = None
    (store / "0" / ".zarray").write_text(json.dumps(node))
    formats.read(store)
    _first_chunk(store).unlink()
    with pytest.raises(CannotRead, match=r"1 chunks are missing.*no fill value"):
        formats.read(store)


def test_truncated_chunk_is_an_error(store: Path) -> None:
    chunk = _first_chunk(store)
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(CannotRead, match=r"in\.zarr.*chunk is damaged"):
        formats.read(store)


def test_empty_chunk_is_an_error(store: Path) -> None:
    _first_chunk(store).write_bytes(b"")
    with pytest.raises(CannotRead):
        formats.read(store)


def test_chunk_with_more_bytes_than_pixels_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path / "in.zarr", noisy((130, 130)), "yx")
    chunk = _first_chunk(store)
    chunk.write_bytes(chunk.read_bytes() + bytes(200_000))
    with pytest.raises(CannotRead, match="more bytes than its pixels"):
        formats.read(store)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_a_picture_or_an_error(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    version, shards = KINDS[seed % 3]
    store = make_store(
        tmp_path / "in.zarr", noisy((1, 1, 130, 130), np.uint8), "czyx", version, shards=shards
    )
    files = [p for p in sorted(store.rglob("*")) if p.is_file()]
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    for at in rng.integers(0, len(data), 5):
        data[at] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    try:
        assert formats.read(store).pixels.size
    except MdrnError as error:
        assert "in.zarr" in str(error)


def _other_version(ome: Any) -> None:
    ome["version"] = "0.3"
    ome["multiscales"][0]["version"] = "0.3"


WRONG = {
    "version": (_other_version, CannotRead, r"expected OME-Zarr 0\.4 .*0\.5 .*got version 0\.3"),
    "no multiscales": (lambda ome: ome.pop("multiscales"), CannotRead, "no multiscales"),
    "no axes": (lambda ome: ome["multiscales"][0].pop("axes"), CannotRead, "no axes y and x"),
    "strange axis": (
        lambda ome: ome["multiscales"][0]["axes"][1].update(name="angle"),
        NotSupported,
        "angle",
    ),
    "no level": (lambda ome: ome["multiscales"][0].update(datasets=[]), CannotRead, "names no level"),
    "level outside": (
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../other.zarr/0"),
        CannotRead,
        "expected levels inside the store",
    ),
    "level missing": (
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="9"),
        CannotRead,
        "level '9' is missing",
    ),
    "scale of other length": (
        lambda ome: ome["multiscales"][0]["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [1, 2]}]
        ),
        CannotRead,
        "scale or translation of 4 numbers",
    ),
    "two pictures": (
        lambda ome: ome["multiscales"].append(ome["multiscales"][0]),
        NotSupported,
        "2 multiscales",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_metadata_is_said(what: str, store: Path) -> None:
    change, error, words = WRONG[what]
    edit(store, change)
    with pytest.raises(error, match=words):
        formats.read(store)


def test_missing_metadata_is_said(store: Path) -> None:
    for name in ("zarr.json", ".zattrs"):
        (store / name).unlink(missing_ok=True)
    with pytest.raises(CannotRead):
        formats.read(store)
    with pytest.raises(CannotRead, match="expected OME-Zarr"):
        formats.read(store / "0")


def test_damaged_metadata_are_said(store: Path) -> None:
    file = store / ("zarr.json" if (store / "zarr.json").exists() else ".zattrs")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(CannotRead, match="metadata are damaged"):
        formats.read(store)


def test_codec_that_runs_code_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "in.zarr", noisy((130, 130)), "yx", "0.4")
    node = json.loads((store / "0" / ".zarray").read_text())
    node["filters"] = [{"id": "pickle", "protocol": 5}]
    (store / "0" / ".zarray").write_text(json.dumps(node))
    with pytest.raises(NotSupported, match="pickle"):
        formats.read(store)


def test_other_numbers_of_dimensions_and_plates_are_said(tmp_path: Path) -> None:
    store = make_store(tmp_path / "in.zarr", noisy((130, 130)), "yx")
    edit(store, lambda ome: ome["multiscales"][0]["axes"].insert(0, {"name": "z", "type": "space"}))
    with pytest.raises(CannotRead, match="expected 3 dimensions"):
        formats.read(store)
    plate = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=3)
    plate.attrs.put({"ome": {"version": "0.5", "plate": {}}})
    with pytest.raises(NotSupported, match="plate"):
        formats.read(tmp_path / "plate.zarr")


def test_limit_on_pixels_holds_before_anything_is_decoded(store: Path) -> None:
    with pytest.raises(NotSupported, match="--max-pixels"):
        formats.read(store, max_pixels=100_000)


def test_labels_are_left_out_and_said(store: Path, tmp_path: Path) -> None:
    (store / "labels").mkdir()
    assert "labels" in formats.read(store).metadata.note


def test_without_the_library_the_extra_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(NotSupported, match=r"pip install 'mdrn-plugin\[zarr\]'"):
        formats.read(store)


def test_other_folder_is_no_picture(tmp_path: Path) -> None:
    assert formats.sniff(tmp_path) is None
    with pytest.raises(CannotRead, match="folder"):
        formats.read(tmp_path)


# --- writing ------------------------------------------------------------------------------------------


def test_store_cannot_hold_is_said_before_computing(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    for more, words in (
        ({"axes": "YXS", "shape": (4, 4, 4), "alpha": True}, "opacity"),
        ({"axes": "CYXS", "shape": (2, 4, 4, 3)}, "one axis"),
        ({"axes": "YX", "shape": (4, 4), "dtype": np.complex64}, "complex64"),
    ):
        facts: Any = {"dtype": np.uint8, **more}
        with pytest.raises(CannotHold, match=words):
            formats.check_can_hold(target, **facts)


def test_existing_store_is_replaced_only_if_asked(store: Path, tmp_path: Path) -> None:
    picture = formats.read(store)
    target = tmp_path / "out.zarr"
    formats.write(target, picture)
    before = tree(target)
    other = dataclasses.replace(picture, pixels=picture.pixels + 1)
    with pytest.raises(OutputExists):
        formats.write(target, other)
    assert tree(target) == before
    formats.write(target, other, overwrite=True)
    np.testing.assert_array_equal(formats.read(target).pixels, other.pixels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


def test_failed_write_leaves_the_old_store(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = formats.read(store)
    target = tmp_path / "out.zarr"
    formats.write(target, picture)
    before = tree(target)

    def lose(folder: Path, number: int, layout: Any, region: Any) -> None:
        """The last level is not written."""

    monkeypatch.setattr(zarr_write, "build_region", lose)
    _first_chunk_lost(monkeypatch)
    with pytest.raises(OutputUnusable, match="not written completely"):
        formats.write(target, dataclasses.replace(picture, pixels=picture.pixels + 1), overwrite=True)
    assert tree(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


def _first_chunk_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zarr_write.write

    def write(folder: Path, picture: Picture, provenance: str | None) -> None:
        whole(folder, picture, provenance)
        _first_chunk(folder).unlink()

    monkeypatch.setattr(zarr_write, "write", write)


def test_verify_notices_other_pixels(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = formats.read(store)
    whole = zarr_write.write

    def write(folder: Path, meant: Picture, provenance: str | None) -> None:
        whole(folder, dataclasses.replace(meant, pixels=meant.pixels + 1), provenance)

    monkeypatch.setattr(zarr_write, "write", write)
    with pytest.raises(OutputUnusable, match="other pixel values"):
        formats.write(tmp_path / "out.zarr", picture, verify=True)


def test_same_picture_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    picture = formats.read(store)
    for name in ("a.zarr", "b.zarr"):
        formats.write(tmp_path / name, picture, provenance="{}")
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


# --- lazily -------------------------------------------------------------------------------------------


def test_lazy_pixels_are_those_of_the_whole(store: Path) -> None:
    lazy, whole = formats.open_lazily(store), formats.read(store)
    assert not isinstance(lazy.pixels, np.ndarray)
    assert (lazy.shape, lazy.axes) == (whole.shape, whole.axes)
    np.testing.assert_array_equal(lazy.pixels[1, :, 40:90, 7:65], whole.pixels[1, :, 40:90, 7:65])
    np.testing.assert_array_equal(np.asarray(lazy.pixels), whole.pixels)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bigtiff": True},
        {"tile": (32, 32), "compression": "zlib"},
        {"rowsperstrip": 7, "compression": "zlib"},
        {"byteorder": ">"},
    ],
    ids=["plain", "big", "tiled", "strips", "big-endian"],
)
def test_lazy_tiff_is_the_whole_tiff(how: dict[str, Any], tmp_path: Path) -> None:
    import tifffile

    pixels = noisy((2, 3, 70, 50))
    file = tmp_path / "a.ome.tif"
    tifffile.imwrite(file, pixels, ome=True, metadata={"axes": "CZYX"}, **how)
    lazy, whole = formats.open_lazily(file), formats.read(file)
    assert (lazy.axes, lazy.shape) == (whole.axes, whole.shape)
    np.testing.assert_array_equal(lazy.pixels[1, 2], whole.pixels[1, 2])
    np.testing.assert_array_equal(lazy.pixels[:, 1:3, 5:60, 11:40], whole.pixels[:, 1:3, 5:60, 11:40])
    assert lazy.pixels[0, 0, 3:4, 1:2].dtype == np.uint16


def test_lazy_colour_tiff_and_those_that_are_left_to_the_whole_reader(tmp_path: Path) -> None:
    import tifffile

    rgb = np.stack([noisy((70, 50), np.uint8, k) for k in range(3)], -1)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    lazy = formats.open_lazily(tmp_path / "rgb.tif")
    assert lazy.axes == "YXS"
    np.testing.assert_array_equal(lazy.pixels[3:9, 40:50], rgb[3:9, 40:50])
    tifffile.imwrite(tmp_path / "white.tif", rgb[..., 0], photometric="miniswhite")
    with pytest.raises(NotSupported, match="in parts"):
        formats.open_lazily(tmp_path / "white.tif")
    data = (tmp_path / "rgb.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(CannotRead):
        formats.open_lazily(tmp_path / "cut.tif")


def test_stale_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    from mdrn_plugin.files import remove_stale_parts, write_folder_atomic

    stale = tmp_path / ".mdrn-1-0.mdrn-part"
    shutil.copytree(make_store(tmp_path / "in.zarr", noisy((20, 20)), "yx"), stale)
    with write_folder_atomic(tmp_path / "out.zarr") as part:
        (part / "x").write_text("held")
        assert remove_stale_parts(tmp_path) == [stale]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


# Forks before zarr is loaded: its threads would not survive it.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mdrn_plugin import files, formats
from mdrn_plugin.files import remove_stale_parts
from mdrn_plugin.picture import Picture, ValueRange

work = Path(sys.argv[1])
first, second = (Picture(np.full((2, 40, 40), k, np.uint8), "ZYX", ValueRange(0, 255, "")) for k in (1, 2))

def forked(task):
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def killed_at(point):
    reached = 0
    def guard(place, name):
        real = getattr(place, name)
        def step(*args, **rest):
            nonlocal reached
            reached += 1
            if reached == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **rest)
        setattr(place, name, step)
    for name in ("replace", "rename", "mkdir", "fsync"):
        guard(os, name)
    guard(files, "_renameat2")
    guard(files.shutil, "rmtree")
    formats.write(work / "a.zarr", second, overwrite=True)

def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

assert forked(lambda: formats.write(work / "old.zarr", first)) == 0
assert forked(lambda: formats.write(work / "new.zarr", second)) == 0
old, new = tree(work / "old.zarr"), tree(work / "new.zarr")
os.rename(work / "old.zarr", work / "a.zarr")
point = 0
while True:
    point += 1
    status = forked(lambda: killed_at(point))
    there = tree(work / "a.zarr")
    assert there in (old, new), f"point {point}: half a store"
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
    remove_stale_parts(work)
    assert sorted(p.name for p in work.iterdir()) == ["a.zarr", "new.zarr"], point
    if there == new:
        assert forked(lambda: formats.write(work / "a.zarr", first, overwrite=True)) == 0
assert tree(work / "a.zarr") == new
print(point - 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="exchanging two names in one step is Linux's")
def test_killed_at_every_touch_of_the_disk_leaves_the_old_store_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
