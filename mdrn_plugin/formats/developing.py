"""From undeveloped pixels to a finished picture, by LibRaw, from the DNG that would be written."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.formats import dng, ifd
from mdrn_plugin.formats.ifd import EXIF_IFD, Directory, Entry
from mdrn_plugin.formats.raw import RawMetadata
from mdrn_plugin.picture import Metadata, Picture, ValueRange

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_COLOUR_SPACE = 40961  # EXIF: 1 is sRGB
_SIZE = frozenset({40962, 40963})  # EXIF: of the picture in the camera


def develop(picture: Picture, dtype: DTypeLike) -> Picture:
    """Return a RAW picture as sRGB (YXS), upright, with the camera's white balance.

    Parameters
    ----------
    picture : Picture
        With `RawMetadata`.
    dtype : dtype
        uint8 or uint16.

    Notes
    -----
    LibRaw's settings are its own but for the white balance: AHD demosaicing (X-Trans: three passes
    of its own), brightened until 1 % of the pixels are white, gamma of BT.709.
    """
    import rawpy

    metadata = picture.metadata
    assert isinstance(metadata, RawMetadata)
    data = io.BytesIO()
    dng.write(data, picture, None)
    data.seek(0)
    kind = np.dtype(dtype)
    with rawpy.imread(data) as raw:
        gray = raw.num_colors == 1
        pixels = raw.postprocess(use_camera_wb=metadata.balance is not None, output_bps=8 * kind.itemsize)
    if gray and pixels.ndim == 3:
        pixels = pixels[..., 0]
    white = float(np.iinfo(kind).max)
    about = Metadata(format="raw", exif=_exif(metadata), xmp=metadata.xmp, note=metadata.note)
    developed = ValueRange(0.0, white, "developed")
    return Picture(
        np.ascontiguousarray(pixels), "YXS" if pixels.ndim == 3 else "YX", developed, metadata=about
    )


def _exif(metadata: RawMetadata) -> bytes | None:
    if metadata.exif is None:
        return None
    with contextlib.suppress(ifd.BadDirectory):
        main, order = ifd.parse_block(metadata.exif)
        children: list[tuple[int, Any]] = []
        for tag, child in main.children:
            if tag == EXIF_IFD:
                child = child.without(_SIZE).replace(Entry.of(_COLOUR_SPACE, 3, [1], order))
            children.append((tag, child))
        return ifd.pack_block(Directory(main.entries, tuple(children)), order)
    return None
