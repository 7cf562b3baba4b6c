"""ImageJ's own metadata block (TIFF tags 50838 and 50839): split, add a line, join.

The block starts with the letters IJIJ, then pairs of a four-letter kind and a number of items,
then the items; tag 50838 holds the length of that header and of each item. Texts are UTF-16 in
the byte order of the file.
"""

from __future__ import annotations

import struct

from mdrn_plugin.formats.ifd import Directory, Entry

BYTE_COUNTS, BLOCK = 50838, 50839
_MAGIC, _INFO = 0x494A494A, 0x696E666F  # "IJIJ", "info"
_PREFIX = "mdrn: "


def split_block(directory: Directory, order: str) -> list[tuple[int, bytes]]:
    """Return (kind, data) of every item; empty if there is no block or it is damaged."""
    counts, block = directory.get(BYTE_COUNTS), directory.get(BLOCK)
    if counts is None or block is None:
        return []
    lengths = counts.integers(order)
    data = block.data
    if not lengths or lengths[0] < 4 or (lengths[0] - 4) % 8 or sum(lengths) > len(data):
        return []
    fields = struct.unpack(f"{order}{lengths[0] // 4}I", data[: lengths[0]])
    if fields[0] != _MAGIC:
        return []
    kinds = [k for k, n in zip(fields[1::2], fields[2::2], strict=True) for _ in range(min(n, len(lengths)))]
    if len(kinds) != len(lengths) - 1:
        return []
    items, start = [], lengths[0]
    for kind, length in zip(kinds, lengths[1:], strict=True):
        items.append((kind, data[start : start + length]))
        start += length
    return items


def join_block(items: list[tuple[int, bytes]], order: str) -> tuple[Entry, Entry]:
    """Return the two tags that hold `items`; items of one kind must be neighbours."""
    runs: list[list[int]] = []
    for kind, _ in items:
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    fields = [_MAGIC, *(value for run in runs for value in run)]
    head = struct.pack(f"{order}{len(fields)}I", *fields)
    lengths = [len(head), *(len(data) for _, data in items)]
    block = head + b"".join(data for _, data in items)
    return Entry.of(BYTE_COUNTS, 4, lengths, order), Entry(BLOCK, 1, len(block), block)


def with_provenance(directory: Directory, order: str, provenance: str) -> Directory:
    """Add our line to the "Info" text, in place of an earlier line of ours."""
    items = split_block(directory, order)
    if not items and directory.get(BLOCK) is not None:
        return directory  # a block we do not understand is better left alone
    codec = "utf-16-le" if order == "<" else "utf-16-be"
    old = next((data for kind, data in items if kind == _INFO), b"").decode(codec, "replace")
    lines = [line for line in old.split("\n") if not line.startswith(_PREFIX)]
    while lines and not lines[-1]:
        lines.pop()
    info = (_INFO, "\n".join([*lines, _PREFIX + provenance, ""]).encode(codec))
    rest = [item for item in items if item[0] != _INFO]
    return directory.replace(*join_block([info, *rest], order))


def description(shape: dict[str, int], *, rgb: bool) -> bytes:
    """Return the text that makes a TIFF file an ImageJ hyperstack.

    Parameters
    ----------
    shape : dict
        Lengths of T, Z, C.
    rgb : bool
        Samples of colour, which ImageJ does not count as channels.
    """
    channels, slices, frames = shape.get("C", 1), shape.get("Z", 1), shape.get("T", 1)
    lines = ["ImageJ=1.54f", f"images={channels * slices * frames}"]
    lines += [f"channels={channels}"] if channels > 1 else []
    lines += [f"slices={slices}"] if slices > 1 else []
    lines += [f"frames={frames}"] if frames > 1 else []
    lines += ["hyperstack=true"] if sum(n > 1 for n in (channels, slices, frames)) > 1 or channels > 1 else []
    lines += ["mode=composite"] if channels > 1 and not rgb else []
    return ("\n".join([*lines, "loop=false"]) + "\n").encode("ascii")


def declared_images(text: str) -> int | None:
    """Return the number after ``images=``."""
    for line in text.splitlines():
        if line.startswith("images=") and line[7:].strip().isdigit():
            return int(line[7:])
    return None
