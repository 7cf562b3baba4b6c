"""PNG: every depth and colour type, chunks compared byte by byte, damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from format_samples import (
    GRAY,
    GRAY16,
    ICC,
    RGB,
    RGB16,
    RGBA,
    XMP,
    encoded,
    exif_block,
    png16,
    png_chunk,
    png_text,
    tiff,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotRead, NotSupported

NOTE = '{"model": "m"}'


def save(folder: Path, data: bytes, name: str = "in.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def again(path: Path) -> Path:
    target = path.parent / "out.png"
    formats.write(target, formats.read(path), provenance=NOTE, overwrite=True)
    return target


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, found = 8, []
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


@pytest.mark.parametrize(
    "pixels",
    [GRAY16, RGB16, np.dstack([RGB16, GRAY16]), np.dstack([GRAY16, GRAY16[::-1]])],
    ids=["gray", "rgb", "rgba", "gray+alpha"],
)
def test_16_bit_stays_16_bit(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path, png16(pixels))
    picture = formats.read(path)
    assert picture.pixels.dtype == np.uint16
    assert picture.alpha == (pixels.ndim == 3 and pixels.shape[2] in (2, 4))
    target = again(path)
    # Independent of libpng: our rows are decoded by hand.
    found = dict(chunks(target.read_bytes()))
    assert found[b"IHDR"][8] == 16
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(formats.read(target).pixels, pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_8_bit_modes_agree_with_pillow(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGBA, "RGBA").convert(mode)
    out = io.BytesIO()
    image.save(out, "PNG")
    path = save(tmp_path, out.getvalue())
    picture = formats.read(path)
    expected = np.array(image.convert("L") if mode == "1" else image)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.alpha == mode.endswith("A")
    assert bool(picture.metadata.note) == (mode == "1")
    with Image.open(again(path)) as back:
        np.testing.assert_array_equal(np.array(back), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("gray", [False, True])
def test_palette_becomes_gray_or_colour(tmp_path: Path, bits: int, gray: bool) -> None:
    rng = np.random.default_rng(bits)
    index = rng.integers(0, 2**bits, (9, 12), dtype=np.uint8)
    table = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    if gray:
        table[:] = table[:, :1]
    image = Image.fromarray(index, "P")
    image.putpalette(table.tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", bits=bits)
    picture = formats.read(save(tmp_path, out.getvalue()))
    assert "palette" in picture.metadata.note
    np.testing.assert_array_equal(picture.pixels, table[index][..., 0] if gray else table[index])
    np.testing.assert_array_equal(formats.read(again(tmp_path / "in.png")).pixels, picture.pixels)


def test_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    path = save(tmp_path, encoded(RGB, "PNG", transparency=tuple(int(v) for v in RGB[3, 4])))
    picture = formats.read(path)
    assert picture.alpha and picture.pixels[3, 4, 3] == 0 and (picture.pixels[..., 3] == 255).sum() > 1900
    target = again(path)
    assert b"tRNS" not in dict(chunks(target.read_bytes()))
    np.testing.assert_array_equal(formats.read(target).pixels, picture.pixels)


def test_every_chunk_around_the_pixels_is_kept(tmp_path: Path) -> None:
    info = png_text()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    data = encoded(RGB, "PNG", pnginfo=info, dpi=(300, 200), icc_profile=ICC, exif=exif_block(5))
    extra = png_chunk(b"gAMA", struct.pack(">I", 45455)) + png_chunk(b"tIME", bytes([7, 232, 5, 6, 7, 8, 9]))
    extra += (
        png_chunk(b"sBIT", b"\x05\x06\x05") + png_chunk(b"prVt", b"private") + png_chunk(b"prVT", b"unsafe")
    )
    data = data[:33] + extra + data[33:-12] + png_chunk(b"tEXt", b"Last\0word") + data[-12:]
    path = save(tmp_path, data)
    picture = formats.read(path)
    assert picture.metadata.icc == ICC
    assert picture.metadata.exif == exif_block(5)
    assert picture.metadata.xmp == XMP
    assert picture.metadata.dpi == pytest.approx((300, 200), abs=0.02)
    skip = {b"IDAT", b"prVT"}
    before = [c for c in chunks(data) if c[0] not in skip]
    after = [c for c in chunks(again(path).read_bytes()) if c[0] not in skip]
    note = (b"iTXt", b"mdrn\0\0\0\0\0" + NOTE.encode())
    assert [c for c in after if c != note] == before
    assert after.count(note) == 1
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        assert image.text["mdrn"] == NOTE and image.text["Autor"] == "Müller" and image.text["Last"] == "word"
    (tmp_path / "out.png").rename(path)
    assert [c for c in chunks(again(path).read_bytes()) if c[0] not in skip].count(note) == 1


def test_significant_bits_count_only_for_unscaled_samples(tmp_path: Path) -> None:
    dim = (GRAY16 >> 8).astype(np.uint16) + 700
    path = save(tmp_path, png16(dim, [(b"sBIT", b"\x0c")]))
    assert formats.read(path).range.white == 4095
    scaled = (GRAY16 >> 12) << 4  # 12 bit moved to the top as the standard wants, a dark picture
    path = save(tmp_path, png16(scaled, [(b"sBIT", b"\x0c")]))
    assert formats.read(path).range.white == 65535


def test_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]
    frames[0].save(tmp_path / "in.png", save_all=True, append_images=frames[1:])
    with pytest.raises(NotSupported, match="animation"):
        formats.read(tmp_path / "in.png")


def test_text_bomb_is_copied_without_being_inflated(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    data = encoded(GRAY, "PNG")
    extra = png_chunk(b"zTXt", b"Bomb\0\0" + bomb) + png_chunk(b"iCCP", b"icc\0\0" + bomb)
    path = save(tmp_path, data[:33] + extra + data[33:])
    import tracemalloc

    tracemalloc.start()
    try:
        picture = formats.read(path)
    except CannotRead:
        picture = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert picture is None or picture.metadata.icc is None


def test_pixel_bomb_fails_from_the_header(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    path = save(tmp_path, data + png_chunk(b"IEND", b""))
    with pytest.raises(NotSupported, match="max-pixels"):
        formats.read(path)
    with pytest.raises(CannotRead, match="exhaust memory"):
        formats.read(path, max_pixels=10**10)


def test_wrong_checksum_fails(tmp_path: Path) -> None:
    data = bytearray(encoded(GRAY, "PNG"))
    data[-20] ^= 1
    with pytest.raises(CannotRead, match="checksum"):
        formats.read(save(tmp_path, bytes(data)))


def test_pixels_that_end_early_inside_valid_chunks_fail(tmp_path: Path) -> None:
    raw = b"".join(b"\0" + row.tobytes() for row in GRAY[:20])
    header = struct.pack(">IIBBBBB", 53, 37, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(raw))
    with pytest.raises(CannotRead):
        formats.read(save(tmp_path, data + png_chunk(b"IEND", b"")))


def test_common_metadata_comes_from_and_goes_to_other_formats(tmp_path: Path) -> None:
    data = tiff(
        GRAY16,
        resolution=(300, 150),
        resolutionunit="inch",
        iccprofile=ICC,
        extratags=[(700, 1, len(XMP), XMP, True)],
    )
    formats.write(tmp_path / "x.png", formats.read(save(tmp_path, data, "in.tif")), provenance=NOTE)
    with Image.open(tmp_path / "x.png") as image:
        image.load()
        assert image.info["icc_profile"] == ICC
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)
        assert image.info["XML:com.adobe.xmp"] == XMP.decode()
    formats.write(tmp_path / "back.tif", formats.read(tmp_path / "x.png"))
    back = formats.read(tmp_path / "back.tif")
    assert (back.metadata.icc, back.metadata.xmp) == (ICC, XMP)
    assert back.metadata.dpi == pytest.approx((300, 150), abs=0.02)
    np.testing.assert_array_equal(back.pixels, GRAY16)


def test_bool_array_is_written_as_black_and_white(tmp_path: Path) -> None:
    from mdrn_plugin.picture import Picture, decide_range

    mask = GRAY > 127
    formats.write(tmp_path / "x.png", Picture(mask, "YX", decide_range(mask)))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "x.png")), mask * np.uint8(255))


def test_text_of_pillow_survives(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Software", "someone")
    path = save(tmp_path, encoded(GRAY, "PNG", pnginfo=info))
    with Image.open(again(path)) as image:
        assert image.info["Software"] == "someone"
