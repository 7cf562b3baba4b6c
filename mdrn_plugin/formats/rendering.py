"""A small picture of undeveloped pixels, for the preview that a DNG carries. Quick, not fine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.formats.raw import RawMetadata, visible_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture

PREVIEW_PX = 1024  # longest side; what file managers show
# Linear sRGB to XYZ (D65), IEC 61966-2-1.
_XYZ_FROM_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# Brightened until the brightest hundredth is white, as developing programs do, by at most three stops.
_BRIGHT_SHARE, _GAIN_MAX = 99.0, 8.0


def preview(
    picture: Picture, longest_px: int = PREVIEW_PX, *, like: Picture | None = None
) -> NDArray[np.uint8]:
    """Return a RAW picture as sRGB, uint8, (height, width, 3), not turned.

    Parameters
    ----------
    picture : Picture
        With `RawMetadata`; YX or YXS, integers.
    longest_px : int
        The longer side at most, px.
    like : Picture, optional
        As bright as this one, of the same camera and size, would be shown.
    """
    linear_HWC = _balanced(picture, longest_px)
    guide_HWC = linear_HWC if like is None else _balanced(like, longest_px)
    bright = float(np.percentile(guide_HWC.max(axis=2), _BRIGHT_SHARE))
    gain = min(_GAIN_MAX, max(1.0, 1 / max(bright, 1e-6)))
    values = np.clip(linear_HWC * gain, 0.0, 1.0)
    coded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    found = np.rint(coded * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(found, 3 // found.shape[2], axis=2))


def _balanced(picture: Picture, longest_px: int) -> NDArray[np.float64]:
    """Return small linear sRGB with the camera's white balance, (height, width, colours)."""
    metadata = picture.metadata
    assert isinstance(metadata, RawMetadata)
    linear_HWC = _small_linear(picture, metadata, longest_px)
    if linear_HWC.shape[2] == 3:
        balance = np.array(metadata.balance or (1.0, 1.0, 1.0))
        # Clipped channels are white, whatever their multiplier.
        linear_HWC = np.minimum(linear_HWC * (balance / balance.min()), 1.0)
        linear_HWC = linear_HWC @ camera_to_srgb(metadata).T
    return linear_HWC


def camera_to_srgb(metadata: RawMetadata) -> NDArray[np.float64]:
    """Return the matrix from balanced camera colours to linear sRGB, 3 x 3; white stays white."""
    if not metadata.matrices or len(metadata.matrices[-1][1]) != 9:
        return np.eye(3)
    camera_from_srgb = np.array(metadata.matrices[-1][1]).reshape(3, 3) @ _XYZ_FROM_SRGB
    sums = camera_from_srgb.sum(axis=1, keepdims=True)
    if not np.all(sums > 0):
        return np.eye(3)
    try:
        return np.asarray(np.linalg.inv(camera_from_srgb / sums))
    except np.linalg.LinAlgError:
        return np.eye(3)


def _small_linear(picture: Picture, metadata: RawMetadata, longest_px: int) -> NDArray[np.float64]:
    """Return black-subtracted means of blocks, 0..1, (height, width, colours)."""
    rows = visible_rows(picture)
    height, width = rows.shape[:2]
    cell = picture.mosaic.cell if picture.mosaic is not None else 1
    side = cell * max(1, -(-max(height, width) // (longest_px * cell)))
    if min(height, width) < side:
        side = cell = 1
    high, wide = height // side, width // side
    white = picture.range.white
    if picture.mosaic is None or cell == 1:
        levels: Any = np.array(metadata.levels[: rows.shape[2]])
        if picture.mosaic is not None:
            levels = np.array([picture.mosaic.floor])
        means = _block_means(rows[: high * side, : wide * side].astype(np.float32), side)
        return np.asarray((means - levels) / (white - levels), np.float64)
    found = np.empty((high, wide, 3))
    mosaic = picture.mosaic
    for y in range(high):  # one row of blocks at a time
        strip = rows[y * side : (y + 1) * side, : wide * side, 0].astype(np.float32)
        black = mosaic.blacks_at(y * side, 0, *strip.shape)
        values = ((strip - black) / (white - black)).reshape(side, wide, side)
        colours = mosaic.colours_at(y * side, 0, *strip.shape).reshape(side, wide, side)
        for k in range(3):
            chosen = colours == k
            found[y, :, k] = (values * chosen).sum(axis=(0, 2)) / np.maximum(chosen.sum(axis=(0, 2)), 1)
    return found


def _block_means(rows_HWS: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    height, width, samples = rows_HWS.shape
    blocks = rows_HWS.reshape(height // side, side, width // side, side, samples)
    return np.asarray(blocks.mean(axis=(1, 3)))
