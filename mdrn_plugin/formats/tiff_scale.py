"""Pixel sizes, intervals and channels that a TIFF file states, for formats that keep them elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from mdrn_plugin.formats import ifd, ome

if TYPE_CHECKING:
    from mdrn_plugin.formats.tiff import TiffMetadata

# Names of units as OME-Zarr has them (UDUNITS-2).
_UNITS = {
    "µm": "micrometer", "μm": "micrometer", "um": "micrometer", "micron": "micrometer",
    "\\u00B5m": "micrometer",
    "microns": "micrometer", "nm": "nanometer", "mm": "millimeter", "cm": "centimeter", "m": "meter",
    "pm": "picometer", "Å": "angstrom", "inch": "inch", "s": "second", "sec": "second", "ms": "millisecond",
    "µs": "microsecond", "min": "minute", "h": "hour",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Placing:
    """What is stated: size of a step along an axis and its unit, and the names of the channels."""

    steps: dict[str, tuple[float, str]]
    channels: tuple[str, ...] = ()


def placing(metadata: TiffMetadata) -> Placing:
    """Return what the description of the first page says; nothing where it says nothing."""
    if not metadata.pages:
        return Placing({})
    text = ifd.text_of(metadata.pages[0].get(270))
    if metadata.kind == "ome" and ome.is_ome(text):
        return _of_ome(text)
    return _of_imagej(text, metadata) if metadata.kind == "imagej" else Placing({})


def _of_ome(text: str) -> Placing:
    try:
        root = ElementTree.fromstring(text.rstrip("\0 \r\n\t").encode())
    except ElementTree.ParseError:
        return Placing({})
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return Placing({})
    steps: dict[str, tuple[float, str]] = {}
    for axis in "XYZ":
        _add(steps, axis, pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    _add(steps, "T", pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    names = [e.get("Name", "") for e in pixels if e.tag.rpartition("}")[2] == "Channel"]
    return Placing(steps, tuple(names) if any(names) else ())


def _of_imagej(text: str, metadata: TiffMetadata) -> Placing:
    said = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    unit = said.get("unit", "").strip()
    steps: dict[str, tuple[float, str]] = {}
    for axis, tag in (("X", 282), ("Y", 283)):
        entry = metadata.pages[0].get(tag)
        per_unit = entry.number(metadata.order) if entry is not None else None
        if per_unit and unit and unit != "pixel":
            _add(steps, axis, str(1 / per_unit), unit)
    if unit and unit != "pixel":
        _add(steps, "Z", said.get("spacing"), unit)
    _add(steps, "T", said.get("finterval"), "s")
    return Placing(steps)


def _add(steps: dict[str, tuple[float, str]], axis: str, value: Any, unit: str) -> None:
    with contextlib.suppress(TypeError, ValueError):
        step = float(value)
        if 0 < step < 1e12:
            steps[axis] = (step, _UNITS.get(unit, ""))
