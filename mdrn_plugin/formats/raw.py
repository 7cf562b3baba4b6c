"""Reading undeveloped camera files: LibRaw decodes the sensor's pixels, the rest is read here.

What comes out is the visible area of the sensor, undeveloped: a mosaic (YX) with a
`mdrn_plugin.mosaic.Mosaic`, one plane of a sensor without filters, or three samples per pixel (YXS)
of a linear DNG. Frames of masked pixels around it are left out.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mdrn_plugin.errors import BadOption, CannotRead, NotSupported
from mdrn_plugin.formats import ifd
from mdrn_plugin.formats.ifd import EXIF_IFD, Directory, Entry
from mdrn_plugin.formats.limits import MAX_WHOLE_BYTES, check_pixels, check_ratio
from mdrn_plugin.formats.raw_tags import (
    Tags,
    maker_note_is_safe,
    read_tags,
    tags_of_jpeg,
    without_maker_notes,
)
from mdrn_plugin.formats.sniffing import open_regular, shown
from mdrn_plugin.mosaic import Mosaic, check_pattern
from mdrn_plugin.picture import Metadata, Picture, ValueRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLIPS = {0: 1, 3: 3, 5: 8, 6: 6}  # LibRaw's code to TIFF's Orientation
D65 = 21  # CalibrationIlluminant: what LibRaw's own matrices are for
_UNKNOWN_ISO = 65535  # EXIF: "too large for this tag"


@dataclasses.dataclass(frozen=True, slots=True)
class RawMetadata(Metadata):
    """What a RAW file says of camera and exposure, and what it takes to write a DNG.

    Attributes
    ----------
    tags : Tags
        Directories to copy from.
    make, model : str
        As the camera calls itself; empty if the file does not say.
    orientation : int
        TIFF's Orientation, 1 to 8; pixels are as they are stored.
    crop : tuple of int
        Left, top, width, height in the visible area: the part that is meant to be seen, px.
    levels : triple of float
        Black of each sample of a picture without mosaic; unused otherwise.
    balance : triple of float, optional
        Multipliers of red, green, blue for the light of the scene, green 1.
    matrices : tuple of (int, tuple of float)
        Illuminant and 3 x 3 matrix from XYZ to the camera's colours, row by row; empty if unknown.
    noise : tuple of pairs of float, optional
        As of `Mosaic.noise`.
    iso, exposure_s, aperture, focal_mm : float, optional
        None if the file does not say.
    lens, date : str
        Empty if the file does not say.
    denoised : float, optional
        Strength that the pixels were denoised with, since they were read; None: not at all.
    """

    tags: Tags = dataclasses.field(default_factory=Tags)
    make: str = ""
    model: str = ""
    orientation: int = 1
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    levels: tuple[float, float, float] = (0.0, 0.0, 0.0)
    balance: tuple[float, float, float] | None = None
    matrices: tuple[tuple[int, tuple[float, ...]], ...] = ()
    noise: tuple[tuple[float, float], ...] | None = None
    iso: float | None = None
    exposure_s: float | None = None
    aperture: float | None = None
    focal_mm: float | None = None
    lens: str = ""
    date: str = ""
    denoised: float | None = None

    @property
    def camera(self) -> str:
        """Make and model, the make once."""
        if not self.model.lower().startswith(self.make.lower().split(" ")[0] or "?"):
            return f"{self.make} {self.model}".strip()
        return self.model


def read(path: Path, max_pixels: int | None) -> Picture:
    """Read a RAW or DNG file; see `mdrn_plugin.formats.read` for what it raises."""
    name = shown(path)
    with open_regular(path) as file:
        return read_open(name, file, max_pixels)


def read_open(name: str, file: BinaryIO, max_pixels: int | None) -> Picture:
    """Read an open RAW or DNG file; `name` is for messages."""
    import rawpy

    size = file.seek(0, 2)
    if size == 0:
        raise CannotRead(f"{name}: is empty (0 bytes); get an intact copy")
    if size > MAX_WHOLE_BYTES:
        raise NotSupported(f"{name}: expected at most {MAX_WHOLE_BYTES} bytes of RAW, got {size}")
    read_tags(name, file)  # a file that was cut short is told before anything is decoded
    file.seek(0)
    with rawpy.RawPy() as raw:
        try:
            raw.open_buffer(file)
            s = raw.sizes
            check_pixels(name, s.raw_width, s.raw_height, 1, max_pixels)
            check_ratio(name, size, s.raw_width * s.raw_height * 2)
            tags = read_tags(name, file, (s.raw_width, s.raw_height))
            if tags.number(339) == 3:
                raise NotSupported(f"{name}: floating point DNG; convert it to an integer DNG or 32-bit TIFF")
            raw.unpack()
            return _picture(name, raw, tags)
        except (rawpy.LibRawFileUnsupportedError, rawpy.LibRawNotImplementedError) as error:
            raise NotSupported(
                f"{name}: is RAW of a kind (or encryption) that LibRaw {_version(rawpy.libraw_version)} "
                "does not read; convert it with the maker's program or to DNG"
            ) from error
        except rawpy.LibRawError as error:
            raise CannotRead(
                f"{name}: is damaged or cut short ({_words(error)}); get an intact copy"
            ) from error


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _words(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode("ascii", "replace") if isinstance(first, bytes) else str(first)


def _picture(name: str, raw: Any, tags: Tags) -> Picture:
    pixels = raw.raw_image_visible
    if pixels is None:
        raise NotSupported(f"{name}: LibRaw decodes no sensor data of it; convert it to DNG")
    pixels = np.array(pixels)  # LibRaw's own memory ends with the file
    tags = _with_embedded_exif(raw, tags)
    metadata = _metadata(raw, tags, pixels.shape)
    white = float(raw.white_level or 0)
    if not white > 0:
        raise CannotRead(f"{name}: expected a white level above 0, got {white:g}; get an intact copy")
    if pixels.ndim == 3:
        if pixels.shape[2] not in (3, 4) or raw.num_colors != 3:
            raise NotSupported(f"{name}: {raw.num_colors} colours per pixel, expected 3; convert it to TIFF")
        levels = _levels(raw, tags)
        metadata = dataclasses.replace(metadata, levels=levels)
        found = _range(sum(levels) / 3, white)
        return Picture(np.ascontiguousarray(pixels[..., :3]), "YXS", found, metadata=metadata)
    if raw.num_colors == 1 or raw.raw_pattern is None:
        black = float(_levels(raw, tags)[0])
        metadata = dataclasses.replace(metadata, levels=(black,) * 3)
        return Picture(pixels, "YX", _range(black, white), metadata=metadata)
    mosaic = _mosaic(name, raw, tags, white, metadata)
    return Picture(pixels, "YX", _range(mosaic.floor, white), metadata=metadata, mosaic=mosaic)


_GRID = frozenset({50713, 50714, 50715, 50716, 50719, 50720})  # tags that count from the active area


def _shift(raw: Any, tags: Tags) -> tuple[int, int]:
    """Return by how much LibRaw's visible area begins behind that of a DNG: it starts at even places."""
    area = tags.numbers(50829) if tags.dng else ()
    if len(area) != 4:
        return 0, 0
    return raw.sizes.top_margin - int(area[0]), raw.sizes.left_margin - int(area[1])


def _range(black: float, white: float) -> ValueRange:
    return ValueRange(black, white, "levels of the sensor, as the file says")


def _mosaic(name: str, raw: Any, tags: Tags, white: float, metadata: RawMetadata) -> Mosaic:
    letters = raw.color_desc.decode("ascii", "replace")
    period = 6 if raw.raw_pattern.shape[0] == 6 else 2
    s = raw.sizes
    places = range(period)
    index = [[raw.raw_color(s.top_margin + y, s.left_margin + x) for x in places] for y in places]
    colours = [[letters[k] if k < len(letters) else "?" for k in row] for row in index]
    if not {c for row in colours for c in row} == {"R", "G", "B"} or raw.raw_pattern.shape[0] not in (2, 6):
        raise NotSupported(
            f"{name}: colour filters {letters!r}: expected red, green and blue; convert it to TIFF"
        )
    table = black_table(tags, period)
    if table is not None:
        down, across = _shift(raw, tags)
        table = tuple(
            tuple(table[(y + down) % period][(x + across) % period] for x in places) for y in places
        )
    if table is None:
        each = [float(b) for b in raw.black_level_per_channel]
        table = tuple(tuple(each[k] for k in row) for row in index)
    pattern = tuple(tuple("RGB".index(c) for c in row) for row in colours)
    mosaic = Mosaic(pattern, table, white, metadata.balance, metadata.noise)
    if not max(map(max, table)) < white:
        raise CannotRead(f"{name}: expected black below white, got {table} and {white:g}; get an intact copy")
    try:
        check_pattern(mosaic)
    except BadOption as error:
        raise NotSupported(f"{name}: {error}") from error
    return mosaic


def black_table(tags: Tags, period: int) -> tuple[tuple[float, ...], ...] | None:
    """Return the black levels of a DNG at each place of the pattern (DNG 1.4, BlackLevel)."""
    values = tags.numbers(50714) if tags.dng else ()
    if not values or tags.find(50715) or tags.find(50716):  # with levels of rows or columns, LibRaw's mean
        return None
    shape = tags.numbers(50713) or (1.0, 1.0)
    rows, columns = int(shape[0]), int(shape[1])
    if rows < 1 or columns < 1 or rows * columns != len(values) or period % rows or period % columns:
        return None
    return tuple(
        tuple(values[y % rows * columns + x % columns] for x in range(period)) for y in range(period)
    )


def _levels(raw: Any, tags: Tags) -> tuple[float, float, float]:
    values = tags.numbers(50714) if tags.dng else ()
    if len(values) in (1, 3) and not (tags.find(50715) or tags.find(50716)):
        return (values[0], values[len(values) // 2], values[-1])
    each = [float(b) for b in raw.black_level_per_channel]
    return each[0], each[1], each[2]


def _metadata(raw: Any, tags: Tags, shape: tuple[int, ...]) -> RawMetadata:
    s = raw.sizes
    orientation = tags.number(274) if tags.main.get(274) is not None else None
    if orientation is None or not 1 <= orientation <= 8:
        orientation = _FLIPS.get(s.flip, 1)
    iso = next((v for t in (34855, 34867, 34866) if (v := tags.number(t)) and v != _UNKNOWN_ISO), None)
    shot, lens = raw.other, raw.lens
    main = without_maker_notes(tags.main, (1,) if maker_note_is_safe(tags) else ())
    shift = _shift(raw, tags)
    kept = tags.raw if shift == (0, 0) else tags.raw.without(_GRID)
    return RawMetadata(
        format="dng" if tags.dng else "raw",
        exif=_exif_block(main, tags.order),
        xmp=(found.data if (found := tags.main.get(700)) is not None else None),
        tags=dataclasses.replace(tags, main=main, raw=kept),
        make=tags.text(271),
        model=tags.text(272) or tags.text(50708),
        orientation=int(orientation),
        crop=_crop(tags, s, shape, shift),
        balance=_balance(raw),
        matrices=_matrices(raw, tags),
        noise=_noise(tags),
        iso=iso or _positive(shot.iso_speed),
        exposure_s=_shot(tags, 33434, shot.shutter_speed),
        aperture=_shot(tags, 33437, shot.aperture),
        focal_mm=_shot(tags, 37386, shot.focal_length),
        lens=tags.text(42036) or (lens.model or "").strip(),
        date=tags.text(36867) or tags.text(306),
        note=_note(tags),
    )


def _shot(tags: Tags, tag: int, found: float) -> float | None:
    """Return what EXIF says; LibRaw, which has 1 for "unknown", is asked only where EXIF has no such tag."""
    return _positive(found if tags.find(tag) is None else tags.number(tag))


def _note(tags: Tags) -> str:
    return (
        "masked pixels around the picture, embedded previews and maker's notes are left out"
        if (not tags.dng)
        else "masked pixels around the picture and embedded previews are left out"
    )


def _positive(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _with_embedded_exif(raw: Any, tags: Tags) -> Tags:
    """Return the EXIF of the preview where the file has none of its own, else what LibRaw found."""
    import rawpy

    if tags.main.entries:
        return tags
    try:
        thumbnail = raw.extract_thumb()
    except rawpy.LibRawError:
        thumbnail = None
    if thumbnail is not None and thumbnail.format == rawpy.ThumbFormat.JPEG:
        found = tags_of_jpeg(thumbnail.data)
        if found.main.entries:
            return found
    shot, order = raw.other, "<"
    entries = []
    if value := _positive(shot.shutter_speed):
        scale = 1_000_000 if value < 4000 else 1
        entries.append(_fraction(33434, value, scale))
    if value := _positive(shot.aperture):
        entries.append(_fraction(33437, value, 100))
    if value := _positive(shot.iso_speed):
        entries.append(Entry.of(34855, 3, [min(_UNKNOWN_ISO, round(value))], order))
    if shot.timestamp is not None and shot.timestamp.year > 1970:
        entries.append(Entry.raw(36867, 2, shot.timestamp.strftime("%Y:%m:%d %H:%M:%S").encode()))
    if value := _positive(shot.focal_length):
        entries.append(_fraction(37386, value, 100))
    if raw.lens.model:
        entries.append(Entry.raw(42036, 2, raw.lens.model.encode()))
    children = ((EXIF_IFD, Directory(tuple(entries))),) if entries else ()
    return Tags(Directory((), children), order=order)


def _fraction(tag: int, value: float, scale: int) -> Entry:
    import struct

    return Entry(tag, 5, 1, struct.pack("<2I", round(value * scale), scale))


def _exif_block(main: Directory, order: str) -> bytes | None:
    """Return an EXIF block for formats other than DNG: what speaks of camera and exposure."""
    kept = main.only({270, 271, 272, 306, 315, 33432, EXIF_IFD, ifd.GPS_IFD})
    return ifd.pack_block(kept, order) if kept.entries or kept.children else None


def _crop(tags: Tags, s: Any, shape: tuple[int, ...], shift: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    origin, size = tags.numbers(50719), tags.numbers(50720)
    if tags.dng:
        if len(origin) != 2 or len(size) != 2:
            return 0, 0, width, height
        found = (*(round(v) if math.isfinite(v) else 0 for v in (*origin, *size)),)
        left, top, wide, high = found[0] - shift[1], found[1] - shift[0], found[2], found[3]
        left, top, wide, high = max(left, 0), max(top, 0), min(wide, width), min(high, height)
    else:
        left, top = s.crop_left_margin - s.left_margin, s.crop_top_margin - s.top_margin
        wide, high = s.crop_width, s.crop_height
    inside = left >= 0 and top >= 0 and wide > 0 and high > 0
    if not inside or left + wide > width or top + high > height:
        return 0, 0, width, height
    return int(left), int(top), int(wide), int(high)


def _balance(raw: Any) -> tuple[float, float, float] | None:
    values = [float(v) for v in raw.camera_whitebalance[:3]]
    if not all(math.isfinite(v) and v > 0 for v in values):
        return None
    return values[0] / values[1], 1.0, values[2] / values[1]


def _matrices(raw: Any, tags: Tags) -> tuple[tuple[int, tuple[float, ...]], ...]:
    found = []
    if tags.dng:
        for matrix, illuminant in ((50721, 50778), (50722, 50779)):
            values = tags.numbers(matrix)
            if len(values) in (3, 9) and any(values) and all(map(math.isfinite, values)):
                found.append((int(tags.number(illuminant) or 0), values))
        return tuple(found)
    table = np.asarray(raw.rgb_xyz_matrix, float)[:3].ravel()
    return ((D65, tuple(float(v) for v in table)),) if np.any(table) else ()


def _noise(tags: Tags) -> tuple[tuple[float, float], ...] | None:
    """Return DNG's NoiseProfile (1.4, tag 51041) for each of three colours."""
    values = tags.numbers(51041)
    pairs = list(zip(values[::2], values[1::2], strict=False))
    if len(values) not in (2, 6) or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return None
    if not all(a >= 0 and b >= 0 and a + b > 0 for a, b in pairs):
        return None
    return tuple(pairs) * (3 // len(pairs))


def visible_rows(picture: Picture) -> NDArray[Any]:
    """Return the pixels of a RAW picture as rows, columns, samples."""
    pixels = np.asarray(picture.pixels)
    return pixels if pixels.ndim == 3 else pixels[..., None]
