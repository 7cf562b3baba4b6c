"""Open pictures with what they know of themselves: scale, units, channels, value range.

For what `mdrn_plugin.formats` reads better than napari: 16-bit colour PNG, TIFF with the metadata
of ImageJ or OME. Camera RAW comes later.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from mdrn_plugin.formats.tiff import TiffMetadata
    from mdrn_plugin.picture import Picture

LayerData = tuple[Any, dict[str, Any], str]

_LUTS, _RANGES = 0x6C757473, 0x72616E67  # "luts", "rang": items of ImageJ's metadata block
_UNITS = {
    "micron": "um",
    "microns": "um",
    "micrometer": "um",
    "\\u00b5m": "um",
    "µm": "um",
    "μm": "um",
    "sec": "s",
    "inch": "inch",
    "pixel": "pixel",
}
_KNOWN_UNITS = {"pm", "nm", "um", "mm", "cm", "m", "km", "inch", "ns", "us", "ms", "s", "min", "h", "pixel"}


@dataclasses.dataclass(slots=True)
class _Facts:
    """What a file says beyond its pixels."""

    step: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)  # axis: (scale, unit)
    channels: list[str] = dataclasses.field(default_factory=list)  # names
    colours: list[Any] = dataclasses.field(default_factory=list)  # per channel: array (N, 4) of 0..1
    limits: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # per channel


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return the reader of one file of a kind that `mdrn_plugin.formats` knows, else None."""
    from mdrn_plugin import formats
    from mdrn_plugin.errors import MdrnError

    if not isinstance(path, str | os.PathLike) or os.path.isdir(path):
        return None
    try:
        kind = formats.sniff(path)
    except (MdrnError, OSError):
        return None
    return read if kind in ("tiff", "png", "webp", "bmp") else None


def read(path: str | list[str]) -> list[LayerData]:
    """Read a file as one layer per channel.

    Raises
    ------
    MdrnError
        Damaged, or of a kind that neither we nor napari read.
    """
    from mdrn_plugin import formats
    from mdrn_plugin.errors import NotSupported

    where = path[0] if isinstance(path, list) else path
    try:
        picture = formats.read(where)
    except NotSupported as error:
        return _read_by_napari(where, error)
    return as_layers(picture, os.path.splitext(os.path.basename(where))[0])


def _read_by_napari(path: str, error: Exception) -> list[LayerData]:
    """Let napari try what we refuse, such as a TIFF of several series."""
    from napari.utils.notifications import show_warning

    reader: Any = importlib.import_module("napari_builtins.io").napari_get_reader(path)
    if reader is None:
        raise error
    show_warning(f"MDRN: {error}. Opened by napari instead.")
    found: list[LayerData] = reader(path)
    return found


def as_layers(picture: Picture, name: str) -> list[LayerData]:
    """Return the layers of a picture; channels become layers, samples one RGB layer."""
    from mdrn_plugin.viewer.layers import RANGE

    pixels, axes = np.asarray(picture.pixels), picture.axes
    facts = _facts(picture)
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
        axes = axes.replace("S", "") + "S"
        if pixels.shape[-1] == 2:  # gray and opacity, which napari cannot show together
            pixels, axes = pixels[..., 0], axes[:-1]
    order = [axes.index(a) for a in "TZCYXS" if a in axes]
    pixels, axes = pixels.transpose(order), "".join(axes[k] for k in order)
    black, white, reason = picture.range.black, picture.range.white, picture.range.reason
    common: dict[str, Any] = {
        "metadata": {RANGE: (black, white, reason)},
        "rgb": "S" in axes,
    }
    if picture.metadata.note:
        common["metadata"]["note"] = picture.metadata.note
    shown = axes.replace("S", "").replace("C", "")
    common["axis_labels"] = tuple(a.lower() for a in shown)
    steps = [facts.step.get(a, (1.0, "pixel")) for a in shown]
    if any(unit != "pixel" or scale != 1 for scale, unit in steps):
        common["scale"] = tuple(scale for scale, _ in steps)
        common["units"] = tuple(unit for _, unit in steps)
    if "C" not in axes:
        return [(pixels, {"name": name, **common, **_look(facts, 0, rgb="S" in axes)}, "image")]
    count = pixels.shape[axes.index("C")]
    layers: list[LayerData] = []
    for k in range(count):
        channel = facts.channels[k] if k < len(facts.channels) else f"channel {k}"
        look = {"blending": "additive" if k else "translucent_no_depth", **_look(facts, k, rgb=False)}
        if "colormap" not in look and count > 1:
            look["colormap"] = ("magenta", "green", "cyan", "yellow", "red", "blue")[k % 6]
        own = np.take(pixels, k, axis=axes.index("C"))
        layers.append((own, {"name": f"{name} {channel}", **common, **look}, "image"))
    return layers


def _look(facts: _Facts, k: int, *, rgb: bool) -> dict[str, Any]:
    look: dict[str, Any] = {}
    if not rgb and k < len(facts.limits) and facts.limits[k][0] < facts.limits[k][1]:
        look["contrast_limits"] = facts.limits[k]
    if not rgb and k < len(facts.colours) and facts.colours[k] is not None:
        look["colormap"] = facts.colours[k]
    return look


def _facts(picture: Picture) -> _Facts:
    from mdrn_plugin.formats import ifd
    from mdrn_plugin.formats.tiff import TiffMetadata

    metadata = picture.metadata
    if not isinstance(metadata, TiffMetadata) or not metadata.pages:
        return _Facts()
    description = ifd.text_of(metadata.pages[0].get(270))
    if metadata.kind == "ome":
        return _ome(description)
    if metadata.kind == "imagej":
        return _imagej(metadata, description)
    return _Facts()


def _ome(text: str) -> _Facts:
    facts = _Facts()
    try:
        root = ElementTree.fromstring(text.rstrip("\0 \r\n\t").encode())
    except ElementTree.ParseError:
        return facts
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return facts
    for axis, key, usual in (
        ("X", "PhysicalSizeX", "um"),
        ("Y", "PhysicalSizeY", "um"),
        ("Z", "PhysicalSizeZ", "um"),
        ("T", "TimeIncrement", "s"),
    ):
        _put(facts, axis, pixels.get(key), pixels.get(f"{key}Unit", usual))
    for k, channel in enumerate(e for e in pixels if e.tag.rpartition("}")[2] == "Channel"):
        facts.channels.append(channel.get("Name") or f"channel {k}")
        facts.colours.append(_ome_colour(channel.get("Color")))
    return facts


def _ome_colour(text: str | None) -> Any:
    """Return black to the colour of a channel: a signed integer, RGBA from high to low."""
    try:
        value = int(text or "") & 0xFFFFFFFF
    except ValueError:
        return None
    colour = [((value >> shift) & 255) / 255 for shift in (24, 16, 8)]
    return np.array([[0, 0, 0, 1], [*colour, 1]], np.float32) if any(colour) else None


def _imagej(metadata: TiffMetadata, description: str) -> _Facts:
    from mdrn_plugin.formats.imagej import split_block

    facts = _Facts()
    page, order = metadata.pages[0], metadata.order
    lines = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)
    unit = lines.get("unit", "pixel")
    for axis, tag in (("X", 282), ("Y", 283)):
        entry = page.get(tag)
        per_unit = entry.number(order) if entry is not None else None
        _put(facts, axis, str(1 / per_unit) if per_unit else None, unit)
    _put(facts, "Z", lines.get("spacing"), unit)
    _put(facts, "T", lines.get("finterval"), lines.get("tunit", "s"))
    items = split_block(page, order)
    for kind, data in items:
        if kind == _LUTS and len(data) == 768:
            table = np.frombuffer(data, np.uint8).reshape(3, 256).T / 255
            facts.colours.append(np.concatenate([table, np.ones((256, 1))], axis=1).astype(np.float32))
        elif kind == _RANGES:
            values = np.frombuffer(data, f"{order}f8")
            facts.limits = [(float(a), float(b)) for a, b in zip(values[::2], values[1::2], strict=False)]
    if not facts.limits:
        try:
            facts.limits = [(float(lines["min"]), float(lines["max"]))]
        except (KeyError, ValueError):
            facts.limits = []
    return facts


def _put(facts: _Facts, axis: str, value: str | None, unit: str) -> None:
    """Note the step along an axis if it is a size that napari understands."""
    try:
        size = abs(float(value or ""))
    except ValueError:
        return
    plain = re.sub(r"\s+", "", unit).lower()
    plain = _UNITS.get(plain, plain)
    if 0 < size < float("inf") and plain in _KNOWN_UNITS:
        facts.step[axis] = (size, plain)
