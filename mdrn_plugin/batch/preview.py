"""Small pictures of before and after, for the report: the whole, and crops at full resolution."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.picture import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture

# A pair of thumbnails and two pairs of crops take about 30 kB: a thousand files make 40 MB of HTML.
WHOLE_PX = 288  # longest side
CROP_PX = 96
_QUALITY = {"whole": 70, "crop": 80}  # of WebP
_WINDOWS = 12  # per side: where to look for the crops
_BAND_VALUES = 4_000_000  # read at a time while a picture is reduced


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """The same part before and after, as WebP."""

    label: str
    before: bytes
    after: bytes
    width: int  # px
    height: int


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """What the report shows of one picture; of a stack, its middle plane."""

    whole: Pair
    crops: tuple[Pair, ...]


def make(noisy: Picture, result: Picture) -> Preview:
    """Return small pictures of a picture and its result, in the same brightness.

    Parameters
    ----------
    noisy, result : Picture
        Of the same shape and axes.
    """
    if noisy.metadata.format in ("raw", "dng"):
        noisy, result = _rendered(noisy, noisy), _rendered(result, noisy)
    planes = list(noisy.planes())
    index = planes[len(planes) // 2]
    before, after = noisy.plane(index), result.plane(index)
    low, high = _limits(noisy, after)
    turn = _orientation(noisy)

    def pair(label: str, kind: str, one: NDArray[Any], other: NDArray[Any]) -> Pair:
        shown = [_fitted(_turned(_as_bytes(part, low, high), turn)) for part in (one, other)]
        coded = [_webp(part, _QUALITY[kind]) for part in shown]
        return Pair(label, coded[0], coded[1], shown[0].shape[1], shown[0].shape[0])

    step = max(1, max(before.shape[:2]) // WHOLE_PX)
    whole = pair("whole picture", "whole", _reduced(before, step), _reduced(after, step))
    crops = tuple(
        pair(label, "crop", before[rows, columns], after[rows, columns])
        for label, rows, columns in _places(before, after)
    )
    return Preview(whole, crops)


def _rendered(picture: Picture, like: Picture) -> Picture:
    """Return a RAW picture as colours to look at, one pixel for each that sees all of them."""
    from mdrn_plugin.formats.rendering import preview
    from mdrn_plugin.picture import decide_range

    side = picture.mosaic.cell if picture.mosaic is not None else 1
    pixels = preview(picture, max(1, max(picture.shape[:2]) // side), like=like)
    return dataclasses.replace(picture, pixels=pixels, axes="YXS", range=decide_range(pixels), mosaic=None)


def _limits(noisy: Picture, after: Any) -> tuple[float, float]:
    """Return what is shown black and white: 8 bit as it is, all else by its quantiles."""
    if np.dtype(noisy.pixels.dtype) == np.uint8:
        return 0.0, 255.0
    values = sample(after, 200_000).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, (0.2, 99.8))) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _places(before: Any, after: Any) -> list[tuple[str, slice, slice]]:
    """Return where the result has most detail, and where most was removed."""
    height, width = before.shape[:2]
    side_y, side_x = min(CROP_PX, height), min(CROP_PX, width)
    ys = np.unique(np.linspace(0, height - side_y, _WINDOWS).astype(int))
    xs = np.unique(np.linspace(0, width - side_x, _WINDOWS).astype(int))
    scored = []
    for y in ys:
        for x in xs:
            place = slice(y, y + side_y), slice(x, x + side_x)
            one, other = (np.nan_to_num(p[place].astype(np.float32)) for p in (before, after))
            scored.append((float(other.std()), float((one - other).std()), place))
    detail = max(scored, key=lambda s: s[0])[2]
    places = [("most detail", *detail)]
    if len(scored) > 1:
        removed = max((s for s in scored if s[2] != detail), key=lambda s: s[1])[2]
        places.append(("most removed", *removed))
    return places


def _reduced(plane: Any, step: int) -> NDArray[Any]:
    """Return means over blocks of step x step; what does not fill a block is left out."""
    if step == 1:
        return np.asarray(plane)
    # A strip narrower than a block is one block wide.
    high, wide = min(step, plane.shape[0]), min(step, plane.shape[1])
    rows, columns, samples = plane.shape[0] // high, plane.shape[1] // wide, plane.shape[2]
    reduced = np.empty((rows, columns, samples), np.float32)
    many = max(1, _BAND_VALUES // (high * plane.shape[1] * samples))
    for start in range(0, rows, many):
        end = min(rows, start + many)
        band = plane[start * high : end * high, : columns * wide].astype(np.float32)
        reduced[start:end] = band.reshape(end - start, high, columns, wide, samples).mean(axis=(1, 3))
    return reduced


def _as_bytes(part: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (np.nan_to_num(part.astype(np.float64)) - low) * (255 / (high - low))
    bytes_ = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if bytes_.shape[2] == 4:  # CMYK, roughly
        ink = 255 - bytes_.astype(np.uint16)
        return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)
    return bytes_ if bytes_.shape[2] == 3 else np.repeat(bytes_[..., :1], 3, axis=2)


def _orientation(picture: Picture) -> int:
    """Return the EXIF orientation, 1 if there is none."""
    stated = getattr(picture.metadata, "orientation", None)  # of RAW files
    if isinstance(stated, int):
        return stated
    from PIL import Image

    if not picture.metadata.exif:
        return 1
    exif = Image.Exif()
    try:
        exif.load(b"Exif\0\0" + picture.metadata.exif)
        found = exif.get(274, 1)
    except (ValueError, OSError, SyntaxError, KeyError, TypeError, IndexError):
        return 1  # a damaged block is carried along; the preview need not understand it
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(part: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn as EXIF says a viewer must."""
    if orientation in (5, 6, 7, 8):
        part = part.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        part = part[::-1]
    if orientation in (2, 3, 6, 7):
        part = part[:, ::-1]
    return part


def _fitted(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce the longest side to `WHOLE_PX` if it is longer still."""
    from PIL import Image

    share = WHOLE_PX / max(part.shape[:2])
    if share >= 1:
        return part
    size = max(1, round(part.shape[1] * share)), max(1, round(part.shape[0] * share))
    image = Image.fromarray(np.ascontiguousarray(part), "RGB")
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _webp(part: NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part), "RGB").save(out, "WEBP", quality=quality, method=2)
    return out.getvalue()
