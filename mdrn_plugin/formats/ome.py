"""OME-XML: checked before it is trusted, changed only where it would be wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from mdrn_plugin.errors import CannotRead, NotSupported
from mdrn_plugin.formats.sniffing import shown

_TIFF_DATA = re.compile(r"<(?P<p>[\w.-]+:)?TiffData\b[^>]*?(?:/>|>.*?</(?P=p)?TiffData\s*>)", re.S)
_TIFF_DATA_PLAIN = re.compile(r"<TiffData\b[^>]*?(?:/>|>.*?</TiffData\s*>)", re.S)


def is_ome(text: str) -> bool:
    """Whether an image description is OME-XML."""
    return text.rstrip("\0 \r\n\t").endswith("OME>") and "<" in text[:200]


def check(text: str, path: Path) -> None:
    """Refuse XML that declares entities, points outside the folder, or names a missing part.

    Raises
    ------
    CannotRead
        Damaged, or a part is missing.
    NotSupported
        The pixels are somewhere else.
    """
    name = shown(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CannotRead(
            f"{name}: its OME-XML declares entities, which no instrument writes; get an intact copy"
        )
    try:
        root = ElementTree.fromstring(text.rstrip("\0 \r\n\t").encode())
    except ElementTree.ParseError as error:
        raise CannotRead(f"{name}: its OME-XML is damaged ({error}); get an intact copy") from error
    if any(_local(e.tag) == "BinaryOnly" for e in root):
        raise NotSupported(
            f"{name}: its description is in another file (BinaryOnly); export it as one OME-TIFF file"
        )
    own = root.get("UUID")
    folder = os.path.realpath(path.parent)
    for element in root.iter():
        if _local(element.tag) != "UUID" or element.text == own:
            continue
        part = element.get("FileName")
        if part is None:
            continue
        if own is None and part.lower() == path.name.lower():
            own = element.text
            continue
        if part in ("", ".", "..") or part != os.path.basename(part) or "\\" in part or "\0" in part:
            raise CannotRead(
                f"{name}: points to {part!r}, expected parts in its own folder; put all parts in one folder"
            )
        target = os.path.realpath(path.parent / part)
        if os.path.dirname(target) != folder:
            raise CannotRead(
                f"{name}: its part {part!r} leads out of the folder; put all parts in one folder"
            )
        if not os.path.isfile(target):
            raise CannotRead(f"{name}: its part {part!r} is missing; put all parts in one folder")


def significant_bits(text: str) -> int | None:
    """Return the SignificantBits that the XML states."""
    found = re.search(r'\bSignificantBits="(\d{1,2})"', text)
    return int(found.group(1)) if found else None


def for_one_file(text: str, planes: int) -> str:
    """Point all planes of the first image at the pages of one file, in order.

    Parameters
    ----------
    text : str
        OME-XML of one image.
    planes : int
        Pages of the file that will be written, in the order that DimensionOrder means.
    """
    blocks = list(_TIFF_DATA.finditer(text)) or list(_TIFF_DATA_PLAIN.finditer(text))
    if not blocks:
        return text
    first = blocks[0].group(0)
    simple = (
        len(blocks) == 1
        and "UUID" not in first
        and not re.search(r'\bFirst[ZCT]="[1-9]', first)
        and re.search(r'\bIFD="(\d+)"', first + ' IFD="0"').group(1) == "0"  # type: ignore[union-attr]
        and re.search(r'\bPlaneCount="(\d+)"', first + f' PlaneCount="{planes}"').group(1) == str(planes)  # type: ignore[union-attr]
        and (planes == 1 or "IFD=" not in first or "PlaneCount=" in first)
    )
    if simple:
        return text
    prefix = re.match(r"<([\w.-]+:)?", first)
    mark = (prefix.group(1) or "") if prefix else ""
    one = f'<{mark}TiffData IFD="0" FirstZ="0" FirstC="0" FirstT="0" PlaneCount="{planes}"/>'
    pieces, last = [text[: blocks[0].start()], one], blocks[0].end()
    for block in blocks[1:]:
        pieces.append(text[last : block.start()])
        last = block.end()
    return "".join([*pieces, text[last:]])


def with_provenance(text: str, provenance: str) -> str:
    """Add a comment annotation of ours, in place of an earlier one."""
    text = re.sub(
        r'<(?P<p>[\w.-]+:)?CommentAnnotation ID="Annotation:mdrn:0".*?</(?:[\w.-]+:)?CommentAnnotation>',
        "",
        text,
        flags=re.S,
    )
    empty = re.search(r"<((?:[\w.-]+:)?)StructuredAnnotations\b([^>]*)/>", text)
    if empty:
        text = (
            text[: empty.start()]
            + f"<{empty.group(1)}StructuredAnnotations{empty.group(2)}>"
            + f"</{empty.group(1)}StructuredAnnotations>"
            + text[empty.end() :]
        )
    closing = re.search(r"</((?:[\w.-]+:)?)StructuredAnnotations\s*>", text)
    if closing:
        return text[: closing.start()] + _comment(closing.group(1), provenance) + text[closing.start() :]
    ends = list(re.finditer(r"</((?:[\w.-]+:)?)Image\s*>", text))
    if not ends:
        return text
    prefix, at = ends[-1].group(1), ends[-1].end()
    block = f"<{prefix}StructuredAnnotations>{_comment(prefix, provenance)}</{prefix}StructuredAnnotations>"
    return text[:at] + block + text[at:]


def _comment(prefix: str, provenance: str) -> str:
    return (
        f'<{prefix}CommentAnnotation ID="Annotation:mdrn:0" Namespace="mdrn"><{prefix}Value>'
        f"{escape(provenance)}</{prefix}Value></{prefix}CommentAnnotation>"
    )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
