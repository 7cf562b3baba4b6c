"""The door to all file formats: `read`, `write`, and what can be said before either.

Libraries that decode are imported when a file is opened, not when this package is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin.errors import CannotHold, CannotRead, MdrnError, NotSupported, OutputUnusable
from mdrn_plugin.files import write_atomic, write_folder_atomic
from mdrn_plugin.formats.limits import DEFAULT_MAX_PIXELS, stream_bytes
from mdrn_plugin.formats.sniffing import is_zarr, open_regular, shown, sniff, sniff_open

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from mdrn_plugin.picture import Metadata, Picture

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "RAW_SUFFIXES",
    "READABLE_SUFFIXES",
    "check_can_hold",
    "format_of_suffix",
    "is_zarr",
    "open_lazily",
    "read",
    "sniff",
    "suffix_for",
    "write",
]

_SUFFIXES = {
    "tiff": (".tif", ".tiff", ".tf2", ".tf8", ".btf"),
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "webp": (".webp",),
    "bmp": (".bmp", ".dib"),
    "zarr": (".zarr",),
}
READABLE_SUFFIXES = frozenset(s for several in _SUFFIXES.values() for s in several)
# What cameras call their files; folders are searched for them. Taken for RAW by content only.
RAW_SUFFIXES = frozenset(
    {".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".raf", ".rw2", ".orf", ".pef"}
    | {".srw", ".kdc", ".dcr", ".k25", ".mrw", ".3fr", ".fff", ".iiq", ".mef", ".mos", ".erf", ".rwl", ".x3f"}
    | {".gpr", ".raw"}
)

# Recognised by content, not read: what the user can do.
_REFUSED = {
    "gif": "GIF has 256 colours and often several frames; save it as PNG or a TIFF stack",
    "czi": "Zeiss CZI; export it as OME-TIFF (ZEN, or Fiji with Bio-Formats)",
    "nd2": "Nikon ND2; export it as OME-TIFF (NIS-Elements, or Fiji with Bio-Formats)",
    "lif": "Leica LIF; export it as OME-TIFF (LAS X, or Fiji with Bio-Formats)",
    "oib": "an OLE file (Olympus OIB, Zeiss ZVI, ...); export it as OME-TIFF (Fiji with Bio-Formats)",
    "heic": "HEIC; export it as JPEG, PNG or TIFF",
    "avif": "AVIF; export it as PNG or TIFF",
    "jp2": "JPEG 2000; convert it to TIFF or PNG",
    "jxl": "JPEG XL; convert it to TIFF or PNG",
    "psd": "a Photoshop document; export it as TIFF or PNG",
    "hdf5": "HDF5; export the picture as OME-TIFF",
    "fits": "FITS; convert it to 32-bit TIFF",
    "exr": "OpenEXR; convert it to 32-bit TIFF",
    "hdr": "Radiance HDR; convert it to 32-bit TIFF",
    "nrrd": "NRRD; convert it to TIFF",
    "dicom": "DICOM; export the picture as TIFF",
    "npy": "a numpy array; load it and pass it to the Python interface",
    "pnm": "a portable any-map; convert it to PNG or TIFF",
}
# Recognised, and no picture at all.
_NO_PICTURE = {
    "html": "a web page (HTML)",
    "xml": "an XML file",
    "text": "a text file",
    "pdf": "a PDF document",
    "zip": "a ZIP archive",
}


def read(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Picture:
    """Read a picture or a stack, whatever its name says it is.

    Parameters
    ----------
    path : path-like
        The file.
    max_pixels : int, optional
        Largest number of pixels over all planes, samples not counted; `DEFAULT_MAX_PIXELS` if
        not given. Compared with the header before anything is decoded.

    Returns
    -------
    Picture
        Pixels as they are stored: orientation is not applied, integers keep their type, alpha is
        the last sample. Palettes and fewer than 8 bit become 8 bit, which `metadata.note` says. Of RAW
        files the undeveloped pixels, see `mdrn_plugin.formats.raw`.

    Raises
    ------
    CannotRead
        Missing, forbidden, damaged, cut short, or not a picture.
    NotSupported
        A sound file that this program does not read, or one above the limit.
    """
    where = Path(path)
    name = shown(where)
    with _reading(name):
        if where.is_dir() and is_zarr(where):
            from mdrn_plugin.formats import zarr

            return zarr.read(where, max_pixels)
        with open_regular(where) as file:
            size = os.fstat(file.fileno()).st_size
            kind = sniff_open(file)
        if kind == "tiff":
            from mdrn_plugin.formats import tiff

            return tiff.read(where, max_pixels)
        if kind == "png":
            from mdrn_plugin.formats import png

            return png.read(where, max_pixels)
        if kind in ("jpeg", "webp", "bmp"):
            from mdrn_plugin.formats import photo

            reader = {"jpeg": photo.read_jpeg, "webp": photo.read_webp, "bmp": photo.read_bmp}[kind]
            return reader(where, max_pixels)
        if kind in ("raw", "dng"):
            from mdrn_plugin.formats import raw

            return raw.read(where, max_pixels)
    if size == 0:
        raise CannotRead(f"{name}: is empty (0 bytes); get an intact copy")
    if kind in _REFUSED:
        raise NotSupported(f"{name}: is {_REFUSED[kind]}")
    words = _NO_PICTURE.get(kind or "", "no format known here")
    raise CannotRead(f"{name}: expected a picture, got {words}; use {', '.join(sorted(READABLE_SUFFIXES))}")


def open_lazily(path: str | os.PathLike[str]) -> Picture:
    """Open a picture without reading its pixels: OME-Zarr, and TIFF of plain gray or colour.

    Returns
    -------
    Picture
        ``pixels`` is sliced like numpy and read when it is sliced. The range of integers is that of
        their type, of floats 0 to 1: nothing was looked at.

    Raises
    ------
    CannotRead, NotSupported
        As of `read`; also a file that can only be read as a whole.
    """
    where = Path(path)
    name = shown(where)
    with _reading(name):
        if where.is_dir() and is_zarr(where):
            from mdrn_plugin.formats import zarr

            return zarr.open_lazily(where)
        with open_regular(where) as file:
            kind = sniff_open(file)
        if kind == "tiff":
            from mdrn_plugin.formats import tiff_lazy

            return tiff_lazy.open_lazily(where)
    raise NotSupported(f"{name}: cannot be read in parts; use TIFF or OME-Zarr")


def open_streamed(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Picture | None:
    """Open a large TIFF file as `read` does, but leave its pixels in the file; None for any other.

    Parameters
    ----------
    path, max_pixels
        As of `read`.

    Returns
    -------
    Picture or None
        ``pixels`` is a `mdrn_plugin.picture.Streamed`; all else is as `read` says. None: `read` it. How large
        is large: `mdrn_plugin.formats.limits.stream_bytes`.

    Raises
    ------
    CannotRead, NotSupported
        As of `read`.
    """
    where = Path(path)
    beyond = stream_bytes()
    # Of a small file that unpacks to a large picture most is constant: it is not worth it.
    if not where.is_file() or os.stat(where).st_size < beyond // 64:
        return None
    with _reading(shown(where)):
        with open_regular(where) as file:
            kind = sniff_open(file)
        if kind != "tiff":
            return None
        from mdrn_plugin.formats import tiff

        return tiff.open_streamed(where, max_pixels, beyond)


def read_or_stream(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Picture:
    """Read a picture; the pixels of a large TIFF stay in the file, see `open_streamed`."""
    picture = open_streamed(path, max_pixels=max_pixels)
    return read(path, max_pixels=max_pixels) if picture is None else picture


def scratch_like(picture: Picture, target: str | os.PathLike[str]) -> Any:
    """Return pixels of a picture's shape and dtype to write to, in a nameless file where `target` will be.

    Raises
    ------
    OutputUnusable
        Its folder cannot be written, or the disk has no room.
    """
    from mdrn_plugin.formats import streamed

    return streamed.scratch(
        Path(target), picture.shape, np.dtype(picture.pixels.dtype), samples=picture.axes.endswith("S")
    )


def write(
    path: str | os.PathLike[str],
    picture: Picture,
    *,
    provenance: str | None = None,
    overwrite: bool = False,
    quality: int | None = None,
    verify: bool = False,
) -> None:
    """Write a picture in the format of its suffix, all metadata that the format can hold included.

    Parameters
    ----------
    path : path-like
        The final name; see `mdrn_plugin.files.write_atomic` for how it gets there.
    picture : Picture
        Written back in the manner of its source if `picture.metadata` is of the same format.
    provenance : str, optional
        A short JSON text, stored where the format has a place for it (BMP has none).
    overwrite : bool
        Replace an existing file.
    quality : int, optional
        1 to 100, for JPEG and WebP; otherwise as the source was, or 95.
    verify : bool
        Decode the finished file before it takes its name, and compare the pixels: bit by bit, or
        within what the coding loses for JPEG and lossy WebP. Without it, structure, page count
        and size are checked. DNG is always decoded.

    Raises
    ------
    CannotHold
        The format cannot store this picture; see `check_can_hold`.
    OutputExists, OutputUnusable
        From writing.
    BadOption
        `quality` is out of range.
    """
    where = Path(path)
    check_can_hold(
        where,
        shape=picture.shape,
        axes=picture.axes,
        dtype=picture.pixels.dtype,
        alpha=picture.alpha,
        source_metadata=picture.metadata,
    )
    kind = format_of_suffix(where)
    if kind == "dng":
        from mdrn_plugin.formats import dng

        with write_atomic(
            where, check=_checked(where, lambda part: dng.verify(part, picture)), overwrite=overwrite
        ) as file:
            dng.write(file, picture, provenance)
        return
    if _is_raw(picture.metadata):
        from mdrn_plugin.formats import developing

        picture = developing.develop(picture, _developed_dtype(str(kind)))

    def checked(structure: Callable[[Path], None]) -> Callable[[Path], None]:
        def check(part: Path) -> None:
            structure(part)
            if verify and kind == "zarr":
                from mdrn_plugin.formats import zarr_write

                zarr_write.compare(part, picture)
            elif verify:
                _compare(part, picture, str(kind))

        return _checked(where, check)

    if kind == "tiff":
        from mdrn_plugin.formats import tiff_write

        count = 0
        with write_atomic(
            where,
            check=checked(lambda part: tiff_write.verify(part, picture, count)),
            overwrite=overwrite,
        ) as file:
            count = tiff_write.write(file, where, picture, provenance)
        return
    if kind == "zarr":
        from mdrn_plugin.formats import zarr_write

        complete = checked(lambda part: zarr_write.verify(part, picture.shape, picture.axes))
        with write_folder_atomic(where, check=complete, overwrite=overwrite) as folder:
            zarr_write.write(folder, picture, provenance)
        return
    pixels = _one_plane(picture)
    if kind == "png":
        from mdrn_plugin.formats import png

        with write_atomic(
            where, check=checked(lambda part: png.verify(part, pixels.shape)), overwrite=overwrite
        ) as file:
            png.write(file, pixels, picture.metadata, provenance)
        return
    from mdrn_plugin.formats import photo

    photo.check_quality(quality)
    structure = {"jpeg": photo.verify_jpeg, "webp": photo.verify_webp, "bmp": photo.verify_bmp}[str(kind)]
    with write_atomic(
        where, check=checked(lambda part: structure(part, pixels.shape)), overwrite=overwrite
    ) as file:
        if kind == "jpeg":
            photo.write_jpeg(file, pixels, picture.metadata, provenance, quality)
        elif kind == "webp":
            photo.write_webp(file, pixels, picture.metadata, provenance, quality)
        else:
            photo.write_bmp(file, pixels, picture.metadata)


def check_can_hold(
    suffix_or_path: str | os.PathLike[str],
    *,
    shape: tuple[int, ...],
    axes: str,
    dtype: DTypeLike,
    alpha: bool = False,
    source_metadata: Metadata | None = None,
) -> None:
    """Say before any computing whether a format can store such a picture.

    Parameters
    ----------
    suffix_or_path : path-like
        ``".png"`` or a whole path; only the suffix counts.
    shape, axes, dtype, alpha
        As of the `Picture` that will be written.
    source_metadata : Metadata, optional
        Where the picture came from.

    Raises
    ------
    CannotHold
        It cannot; the message says why and what can.
    """
    name = shown(Path(suffix_or_path))
    kind = format_of_suffix(suffix_or_path)
    if kind is None:
        raise CannotHold(
            f"{name}: no format to write has this suffix; use {', '.join(sorted(READABLE_SUFFIXES))}"
        )
    if 0 in shape:
        raise CannotHold(f"{name}: expected at least one pixel, got shape {shape}")
    known = np.dtype(dtype)
    if kind == "dng":
        from mdrn_plugin.formats import dng

        dng.check(name, shape, axes, known, source_metadata)
        return
    if _is_raw(source_metadata):  # it will be developed
        shape, axes, known = (*shape[:2], 3), "YXS", np.dtype(_developed_dtype(kind))
    if kind == "tiff":
        from mdrn_plugin.formats import tiff_write

        tiff_write.check(name, known, axes)
    elif kind == "zarr":
        from mdrn_plugin.formats import zarr, zarr_write

        zarr.library()
        zarr_write.check(name, known, axes, alpha)
    elif kind == "png":
        from mdrn_plugin.formats import png

        png.check(name, shape, axes, known, alpha)
    else:
        from mdrn_plugin.formats import photo

        checks = {"jpeg": photo.check_jpeg, "webp": photo.check_webp, "bmp": photo.check_bmp}
        checks[kind](name, shape, axes, known, alpha)


def _is_raw(metadata: Metadata | None) -> bool:
    if metadata is None or metadata.format not in ("raw", "dng"):
        return False
    from mdrn_plugin.formats.raw import RawMetadata

    return isinstance(metadata, RawMetadata)


def _developed_dtype(kind: str) -> str:
    return "uint16" if kind in ("tiff", "png") else "uint8"


def format_of_suffix(suffix_or_path: str | os.PathLike[str]) -> str | None:
    """Return the name of the format that a suffix or path stands for, None if unknown."""
    name = Path(suffix_or_path).name.lower()
    suffix = "." + name.rpartition(".")[2] if "." in name else ""
    if suffix == ".dng":
        return "dng"
    return next((kind for kind, several in _SUFFIXES.items() if suffix in several), None)


def suffix_for(format: str) -> str:
    """Return the usual suffix of a format that can be written.

    Raises
    ------
    CannotHold
        No such format.
    """
    if format == "dng":
        return ".dng"
    if format not in _SUFFIXES:
        raise CannotHold(f"format {format!r}: expected one of {', '.join(_SUFFIXES)}")
    return _SUFFIXES[format][0]


def _one_plane(picture: Picture) -> Any:
    """Return rows x columns [x samples] of a picture that has one plane."""
    index = next(picture.planes())
    pixels = np.asarray(picture.pixels[index])
    here = picture.plane_axes
    pixels = pixels.transpose([here.index(a) for a in "YXS" if a in here])
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


# What JPEG and lossy WebP may change, as a share of white: a block of 8 x 8 as a whole (the coarsest
# step of a block's mean is 255/8 at quality 10; measured below 0.04 for noise at quality 30), and a
# pixel on average (0.10 for noise at quality 30). A lost or displaced block differs by far more.
_LOSSY_BLOCK = 0.15
_LOSSY_MEAN = 0.20


def _compare(part: Path, picture: Picture, kind: str) -> None:
    """Raise `ValueError` unless the file decodes to the pixels that were meant."""
    back = read_or_stream(part, max_pixels=max(1, int(np.prod(picture.shape))))
    if kind != "tiff":
        meant, found = _one_plane(picture), _one_plane(back)
    else:
        meant, found = picture.pixels, back.pixels
        if back.axes != picture.axes:  # an axis without a letter in the file comes back as another
            found = np.asarray(found).reshape(picture.shape)
    if kind == "webp" and meant.ndim == 2 and found.ndim == 3:
        meant = np.repeat(meant[..., None], 3, axis=2)
    if meant.dtype.kind == "b" and found.dtype != meant.dtype:
        meant = meant.astype(found.dtype) * 255
    if meant.shape != found.shape:
        raise ValueError(f"decodes to shape {found.shape}, expected {meant.shape}")
    lossless = kind not in ("jpeg", "webp") or (kind == "webp" and getattr(back.metadata, "lossless", False))
    if lossless:
        for index in picture.bands() if kind == "tiff" else [...]:
            one, other = np.asarray(meant[index]), np.asarray(found[index])
            if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
                raise ValueError("decodes to other pixel values than were written")
        return
    difference = found.astype(np.float32) - meant
    height, width = difference.shape[0] // 8, difference.shape[1] // 8
    samples = difference.size // (difference.shape[0] * difference.shape[1])
    whole = difference[: height * 8, : width * 8]
    blocks = whole.reshape(height, 8, width, 8, samples).mean(axis=(1, 3))
    if np.abs(difference).mean() > _LOSSY_MEAN * 255 or np.abs(blocks).max(initial=0) > _LOSSY_BLOCK * 255:
        raise ValueError("decodes to a picture that differs by more than its coding loses")


def _checked(where: Path, verify: Callable[[Path], None]) -> Callable[[Path], None]:
    """Make a check of the temporary file speak of the final one."""

    def check(part: Path) -> None:
        try:
            verify(part)
        except (CannotRead, ValueError, IndexError, struct.error) as error:
            reason = str(error).removeprefix(f"{part.name}: ").partition(";")[0]
            raise OutputUnusable(
                f"{shown(where)}: was not written completely ({reason}); check the disk and its free space"
            ) from error

    return check


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into `CannotRead`."""
    try:
        yield
    except MdrnError:
        raise
    except MemoryError as error:
        raise CannotRead(
            f"{name}: needs more memory than there is; lower the limit on pixels or split it"
        ) from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CannotRead(f"{name}: is damaged or not what it seems ({reason}); get an intact copy") from error
