"""Lossless JPEG (process 14, ITU-T T.81 annex H), as DNG holds it: an encoder for whole tiles.

Predictor 1 (the sample to the left of the same component) and nothing else: the one that every
program that opens DNG can decode. Two components per row make it the left neighbour of the same
colour in a Bayer mosaic.
"""

from __future__ import annotations

import heapq
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISION = 16
_CATEGORIES = 17  # of differences: their length in bits, 0 to 16 (T.81 table H.2)
_LONGEST = 16  # bits of a Huffman code


def encode(tile_HWC: NDArray[np.uint16]) -> bytes:
    """Return a lossless JPEG stream of one tile, 16 bit.

    Parameters
    ----------
    tile_HWC : ndarray, uint16, (height, width, components)
        1 to 4 components, at most 65,535 px a side.
    """
    height, width, components = tile_HWC.shape
    wide = tile_HWC.astype(np.int32)
    difference = np.empty_like(wide)
    difference[:, 1:] = wide[:, 1:] - wide[:, :-1]
    # H.1.2.1: the first sample of a line is predicted from the line above, the very first from the middle.
    difference[1:, 0] = wide[1:, 0] - wide[:-1, 0]
    difference[0, 0] = wide[0, 0] - (1 << (PRECISION - 1))
    # Differences are modulo 65,536; -32,768 stands for 32,768, category 16 without further bits.
    index = (difference.ravel() & 0xFFFF).astype(np.uint16)
    counts = np.bincount(_CATEGORY[index], minlength=_CATEGORIES)
    lengths = _code_lengths(counts)
    order = sorted((k for k in range(_CATEGORIES) if lengths[k]), key=lambda k: (lengths[k], k))
    table = bytes(sum(lengths[k] == n for k in order) for n in range(1, _LONGEST + 1)) + bytes(order)
    head = b"\xff\xd8" + _segment(0xC4, b"\0" + table)
    frame = struct.pack(">BHHB", PRECISION, height, width, components)
    head += _segment(0xC3, frame + b"".join(bytes((c, 0x11, 0)) for c in range(components)))
    scan = bytes((components,)) + b"".join(bytes((c, 0)) for c in range(components)) + bytes((1, 0, 0))
    return head + _segment(0xDA, scan) + _pack(index, _canonical(lengths, order), lengths) + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _categories() -> NDArray[np.uint8]:
    """Return the category of each difference, by its value modulo 65,536."""
    signed = np.arange(1 << 16)
    size = np.minimum(signed, (1 << 16) - signed)
    return np.asarray(np.ceil(np.log2(size + 1)), np.uint8)


_CATEGORY = _categories()


def _code_lengths(counts: NDArray[np.int64]) -> list[int]:
    """Return the Huffman code length of each category, 0 if it does not occur.

    A pretended category with the least weight takes the code of ones only, which JPEG forbids (T.81
    annex K.2). Of 18 codes none is longer than 17 bits; should that happen, the counts are flattened.
    """
    weights = [int(c) for c in counts]
    while True:
        lengths = _huffman([*weights, 1 if sum(weights) else 0])
        # The pretended one must be among the longest: last in the order of equal lengths.
        if max(lengths) <= _LONGEST:
            longest = max(lengths)
            swap = next((k for k in range(_CATEGORIES) if lengths[k] == longest), None)
            if lengths[-1] < longest and swap is not None:
                lengths[swap], lengths[-1] = lengths[-1], longest
            return lengths[:-1]
        weights = [(w + 1) // 2 for w in weights]


def _huffman(weights: list[int]) -> list[int]:
    heap: list[tuple[int, int, tuple[int, ...]]] = [(w, k, (k,)) for k, w in enumerate(weights) if w]
    heapq.heapify(heap)
    lengths = [0] * len(weights)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        for k in a[2] + b[2]:
            lengths[k] += 1
        heapq.heappush(heap, (a[0] + b[0], len(weights) + b[1], a[2] + b[2]))
    return lengths


def _canonical(lengths: list[int], order: list[int]) -> list[int]:
    """Return the codes in the order that the lengths imply (T.81 annex C)."""
    codes, code, before = [0] * len(lengths), 0, 0
    for k in order:
        code <<= lengths[k] - before
        codes[k], before = code, lengths[k]
        code += 1
    return codes


def _pack(index: NDArray[np.uint16], codes: list[int], lengths: list[int]) -> bytes:
    """Write code and further bits of all differences, one behind the other, with stuffing."""
    # For each value of a difference: what is written, and how many bits.
    signed = np.arange(1 << 16, dtype=np.int64)
    signed = np.where(signed >= 1 << 15, signed - (1 << 16), signed)
    category = _CATEGORY.astype(np.int64)
    further = np.where(category == _LONGEST, 0, category)
    extra = np.where(signed < 0, signed + (1 << category) - 1, signed)
    extra = np.where(category == _LONGEST, 0, extra)
    bits_of = (np.array(codes, np.int64)[category] << further) | extra
    length_of = np.array(lengths, np.int64)[category] + further
    bits, length = bits_of[index].astype(np.uint64), length_of[index]
    end = np.cumsum(length)
    start = end - length
    total = int(end[-1])
    # At most 32 bits each: they touch one word of 32 bits or two. No two share a bit, so sums are ORs,
    # and sums below 2**53 are exact in the floats that bincount makes.
    shifted = bits << (64 - (start & 31) - length).astype(np.uint64)
    word = start >> 5
    count = total // 32 + 2
    packed = np.bincount(word, (shifted >> np.uint64(32)).astype(np.float64), count)
    packed[1:] += np.bincount(word, (shifted & np.uint64(0xFFFFFFFF)).astype(np.float64), count)[:-1]
    data = packed.astype(np.uint32).astype(">u4").view(np.uint8)[: -(-total // 8)].copy()
    if total % 8:
        data[-1] |= (1 << (8 - total % 8)) - 1  # the rest of the last byte is ones (T.81 F.1.2.3)
    return _stuffed(data)


def _stuffed(data: NDArray[np.uint8]) -> bytes:
    """Put a zero behind every 255."""
    at = np.flatnonzero(data == 0xFF)
    out: NDArray[Any] = np.insert(data, at + 1, 0) if len(at) else data
    return out.tobytes()
