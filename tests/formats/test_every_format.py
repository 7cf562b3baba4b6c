"""One suite over all formats: damage, limits, round trip of pixels."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from format_samples import SAMPLES, write_sample

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotHold, CannotRead, MdrnError, NotSupported, OutputExists, OutputUnusable
from mdrn_plugin.picture import Picture, decide_range

NAMES = sorted(SAMPLES)
LOSSY = {"rgb.jpg", "progressive.jpg", "gray.jpg", "lossy.webp"}


@pytest.mark.parametrize("name", NAMES)
def test_read_then_write_unchanged_keeps_every_value(tmp_path: Path, name: str) -> None:
    first = formats.read(write_sample(tmp_path, name))
    target = tmp_path / f"out-{name}"
    formats.write(target, first, provenance='{"mdrn": "1"}')
    second = formats.read(target)
    assert (second.axes, second.shape, second.alpha) == (first.axes, first.shape, first.alpha)
    assert second.pixels.dtype == first.pixels.dtype
    assert second.range == first.range
    if name in LOSSY:
        difference = np.abs(first.pixels.astype(float) - second.pixels)
        assert difference.mean() < 12  # recoded noise; shape and order of samples are right
    else:
        np.testing.assert_array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("name", NAMES)
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    picture = formats.read(write_sample(tmp_path, name))
    for target in ("1", "2"):
        (tmp_path / target).mkdir()
        formats.write(tmp_path / target / name, picture, provenance="{}")
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_verify_reads_back_what_was_written(tmp_path: Path, name: str) -> None:
    picture = formats.read(write_sample(tmp_path, name))
    formats.write(tmp_path / f"out-{name}", picture, provenance="{}", verify=True)
    assert (tmp_path / f"out-{name}").is_file()


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 130), (64, 48, 3)])
def test_verify_takes_arrays_of_every_shape(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    formats.write(
        tmp_path / f"x{suffix}", Picture(pixels, "YXS"[: len(shape)], decide_range(pixels)), verify=True
    )


@pytest.mark.parametrize(
    "name", ["gray.tif", "stack.tif", "rgba.png", "rgb.jpg", "lossless.webp", "lossy.webp", "rgb.bmp"]
)
def test_verify_finds_an_encoder_that_wrote_other_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The file is whole and of the right size, but a corner of the picture is not what was meant."""
    from mdrn_plugin.formats import photo, png, tiff_write

    picture = formats.read(write_sample(tmp_path, name))

    def spoil(module: object, attribute: str, place: int) -> None:
        real = getattr(module, attribute)

        def other(*args: object, **settings: object) -> object:
            changed = list(args)
            given = changed[place]
            pixels = np.array(given.pixels if isinstance(given, Picture) else given)
            index = tuple(slice(0, 16) if n > 16 else slice(None) for n in pixels.shape)
            pixels[index] = np.where(pixels[index] > 128, 0, 255)
            changed[place] = (
                dataclasses.replace(given, pixels=pixels) if isinstance(given, Picture) else pixels
            )
            return real(*changed, **settings)

        monkeypatch.setattr(module, attribute, other)

    spoil(tiff_write, "write", 2)
    spoil(png, "write", 1)
    for writer in ("write_jpeg", "write_webp", "write_bmp"):
        spoil(photo, writer, 1)
    formats.write(tmp_path / f"unnoticed-{name}", picture)
    with pytest.raises(OutputUnusable, match="not written completely"):
        formats.write(tmp_path / f"out-{name}", picture, verify=True)
    assert not (tmp_path / f"out-{name}").exists()


@pytest.mark.parametrize("percent", [0, 10, 50, 90, 99])
@pytest.mark.parametrize("name", NAMES)
def test_truncated_file_fails_cleanly(tmp_path: Path, name: str, percent: int) -> None:
    path = write_sample(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    with pytest.raises(CannotRead) as caught:
        formats.read(path)
    assert path.name in str(caught.value)
    assert "; " in str(caught.value)  # what to do about it


@pytest.mark.parametrize("name", NAMES)
def test_last_byte_missing_never_gives_other_pixels(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path, name)
    whole = formats.read(path)
    path.write_bytes(path.read_bytes()[:-1])
    try:
        short = formats.read(path)
    except CannotRead:
        return
    np.testing.assert_array_equal(short.pixels, whole.pixels)


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits_give_picture_or_clean_failure(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path, name)
    data = path.read_bytes()
    random = np.random.default_rng(sum(name.encode()))
    for trial in range(60):
        bad = bytearray(data)
        # Half of the flips go into the first 400 bytes, where the structure is.
        top = len(data) if trial % 2 else min(len(data), 400)
        for at in random.integers(0, top, 1 + trial % 3):
            bad[at] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        try:
            assert isinstance(formats.read(path, max_pixels=10_000_000), Picture)
        except MdrnError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_extension_is_read_by_content(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path, name)
    kind = formats.sniff(path)
    wrong = path.rename(tmp_path / "x.png" if kind != "png" else tmp_path / "x.tif")
    assert formats.sniff(wrong) == kind
    assert formats.read(wrong).metadata.format == kind


@pytest.mark.parametrize("name", NAMES)
def test_limit_on_pixels_is_checked(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path, name)
    pixels = formats.read(path)
    count = int(np.prod([pixels.length(a) for a in "TZCYX"]))
    formats.read(path, max_pixels=count)
    with pytest.raises(NotSupported, match="max-pixels"):
        formats.read(path, max_pixels=count - 1)


@pytest.mark.parametrize("name", NAMES)
def test_existing_output_is_left_alone(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path, name)
    picture = formats.read(path)
    target = tmp_path / f"there-{name}"
    target.write_bytes(b"old")
    with pytest.raises(OutputExists):
        formats.write(target, picture)
    assert target.read_bytes() == b"old"
    formats.write(target, picture, overwrite=True)
    assert target.read_bytes() != b"old"


@pytest.mark.parametrize("suffix", sorted(formats.READABLE_SUFFIXES))
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 17), (13, 17, 3)])
def test_small_arrays_go_to_every_suffix(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    picture = Picture(pixels, "YXS"[: len(shape)], decide_range(pixels))
    path = tmp_path / f"x{suffix}"
    formats.write(path, picture)
    back = formats.read(path)
    if suffix == ".webp" and len(shape) == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if suffix == ".zarr" and len(shape) == 3:  # colours are channels there
        pixels = np.moveaxis(pixels, -1, 0)
    assert back.shape == pixels.shape
    if formats.format_of_suffix(suffix) != "jpeg":
        np.testing.assert_array_equal(back.pixels, pixels)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"just some words\n", "text file"),
        (b"%PDF-1.7 ", "PDF"),
        (bytes(range(1, 200)) * 3, "no format known"),
    ],
)
def test_no_picture_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(CannotRead, match=words):
        formats.read(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"GIF89a" + bytes(100), "gif"),
        (b"ZISRAWFILE" + bytes(100), "czi"),
        (b"\xda\xce\xbe\x0a" + bytes(100), "nd2"),
        (b"\x70\0\0\0\x20\0\0\0\x2a" + bytes(100), "lif"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "heic"),
        (b"\0\0\0\x18ftypavif" + bytes(100), "avif"),
        (b"\0\0\0\x18ftypcrx " + bytes(100), "raw"),
        (b"FUJIFILMCCD-RAW " + bytes(100), "raw"),
    ],
)
def test_foreign_format_is_refused_with_a_remedy(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    assert formats.sniff(path) == kind
    with pytest.raises(NotSupported, match=r"export|convert|develop|save"):
        formats.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_folder_device_and_missing_file_fail_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.tif").mkdir()
    results: list[tuple[type, str]] = []

    def attempt() -> None:
        for path in (tmp_path / "pipe.tif", tmp_path / "folder.tif", Path(os.devnull), tmp_path / "none.tif"):
            try:
                formats.read(path)
            except MdrnError as error:
                results.append((type(error), str(error).partition(": ")[2].partition(",")[0]))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert [kind for kind, _ in results] == [CannotRead] * 4
    words = [reason for _, reason in results]
    assert words[:3] == ["is a pipe or device", "is a folder", "is a pipe or device"]
    assert formats.sniff(tmp_path / "folder.tif") is None


def test_forbidden_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path, "gray.png")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CannotRead, match="Permission denied"):
        formats.read(path)


@pytest.mark.parametrize("raised", [RuntimeError, ZeroDivisionError, KeyError, RecursionError, MemoryError])
def test_whatever_a_decoder_raises_becomes_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    import imagecodecs

    def explode(*_: object) -> None:
        raise raised("inside the decoder")

    monkeypatch.setattr(imagecodecs, "png_decode", explode)
    with pytest.raises(CannotRead, match=r"gray\.png"):
        formats.read(write_sample(tmp_path, "gray.png"))


@pytest.mark.parametrize("name", ["gray.tif", "gray.png", "gray.jpg", "lossless.webp", "gray.bmp"])
def test_failing_encoder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from mdrn_plugin.formats import photo, png, segments

    picture = formats.read(write_sample(tmp_path, name))
    (tmp_path / name).unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments.PageWriter, "add", full)
    monkeypatch.setattr(png, "write", full)
    for writer in ("write_jpeg", "write_webp", "write_bmp"):
        monkeypatch.setattr(photo, writer, full)
    with pytest.raises(MdrnError, match="No space"):
        formats.write(tmp_path / name, picture)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["gray.tif", "gray.png", "gray.jpg", "lossless.webp", "gray.bmp"])
def test_encoder_that_stops_early_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The file is complete for the writer, but its last bytes never reach the disk."""
    from mdrn_plugin.formats import photo, png, segments

    picture = formats.read(write_sample(tmp_path, name))

    def short(module: object, attribute: str) -> None:
        real = getattr(module, attribute)

        def cut(*args: object, **settings: object) -> None:
            real(*args, **settings)
            file = args[0].file if isinstance(args[0], segments.PageWriter) else args[0]
            file.truncate(file.seek(0, 2) - 9)  # type: ignore[attr-defined]

        monkeypatch.setattr(module, attribute, cut)

    short(segments.PageWriter, "close")
    short(png, "write")
    for writer in ("write_jpeg", "write_webp", "write_bmp"):
        short(photo, writer)
    with pytest.raises(OutputUnusable, match="not written completely"):
        formats.write(tmp_path / f"out-{name}", picture)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("suffix", "shape", "axes", "dtype", "alpha"),
    [
        (".jpg", (10, 65_536), "YX", "u1", False),
        (".jpg", (10, 10), "YX", "u2", False),
        (".jpg", (10, 10), "YX", "f4", False),
        (".jpg", (10, 10, 4), "YXS", "u1", True),
        (".webp", (16_384, 10), "YX", "u1", False),
        (".webp", (10, 10), "YX", "u2", False),
        (".bmp", (10, 10), "YX", "u2", False),
        (".bmp", (10, 10, 2), "YXS", "u1", True),
        (".png", (2, 10, 10), "ZYX", "u1", False),
        (".jpg", (2, 10, 10), "CYX", "u1", False),
        (".png", (10, 10), "YX", "f4", False),
        (".png", (10, 10), "YX", "u4", False),
        (".png", (10, 10, 4), "YXS", "u1", False),
        (".tif", (10, 10), "YX", "c8", False),
        (".tif", (0, 10), "YX", "u1", False),
        (".xyz", (10, 10), "YX", "u1", False),
        ("name", (10, 10), "YX", "u1", False),
    ],
)
def test_what_a_format_cannot_hold_is_said_before_computing(
    suffix: str, shape: tuple[int, ...], axes: str, dtype: str, alpha: bool
) -> None:
    with pytest.raises(CannotHold):
        formats.check_can_hold(suffix, shape=shape, axes=axes, dtype=dtype, alpha=alpha, source_metadata=None)


def test_import_of_the_door_loads_no_decoder() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mdrn_plugin.formats; "
        "print(sorted({'tifffile', 'PIL', 'imagecodecs', 'imageio', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_suffix_for_names_every_format() -> None:
    assert {
        formats.suffix_for(k) for k in ("tiff", "png", "jpeg", "webp", "bmp")
    } <= formats.READABLE_SUFFIXES
    with pytest.raises(CannotHold):
        formats.suffix_for("gif")
