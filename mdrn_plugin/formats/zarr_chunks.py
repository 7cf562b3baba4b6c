"""The files of a zarr array looked at before the library decodes them.

Other codecs notice for themselves what is wrong. The decoder of blosc believes the header of what it
is given: numcodecs hands it a chunk that is cut short, and it reads what lies behind in memory. So the
headers are compared with what is there.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_HEADER = struct.Struct("<4B3I")  # two versions, flags, type size; bytes decoded, of a block, coded
_SPARE = 2**16  # bytes of headers and index
_NOTHING = 2**64 - 1  # offset and length of a chunk that a shard does not have


class ChunkFiles:
    """The files of an array.

    Parameters
    ----------
    folder : Path
        Of the array.
    array : zarr.Array
    shape, shards, chunks : tuple of int
        Of the array; `shards` as `chunks` if there are none.
    """

    def __init__(self, folder: Path, array: Any, shards: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self._folder, self._key = folder, array.metadata.encode_chunk_key
        self._shards, self._inner = shards, math.prod(s // c for s, c in zip(shards, chunks, strict=True))
        self._bytes = math.prod(chunks) * np.dtype(array.dtype).itemsize
        codecs: Any = getattr(array.metadata, "codecs", None)
        self._index_first: bool | None = None  # None: no shards
        if codecs is None:  # zarr 2
            last = array.metadata.compressor
            self._blosc = last is not None and getattr(last, "codec_id", "") == "blosc"
            self._blosc = self._blosc or type(last).__name__ == "BloscCodec"
            return
        if type(codecs[0]).__name__ == "ShardingCodec":
            self._index_first = (
                getattr(codecs[0].index_location, "value", codecs[0].index_location) == "start"
            )
            codecs = codecs[0].codecs
        self._blosc = type(codecs[-1]).__name__ in ("BloscCodec", "Blosc")

    def check(self, region: tuple[slice, ...]) -> None:
        """Raise `ValueError` if a file that a region needs is not what its header says."""
        spans = [range(s.start // n, -(-s.stop // n)) for s, n in zip(region, self._shards, strict=True)]
        for place in itertools.product(*spans):
            try:
                file = open(self._folder / self._key(place), "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:
                continue  # the fill value; counted when the array was opened
            with file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:  # the library takes an empty shard for one that is not there
                    raise ValueError("a file is empty")
                # No codec makes pixels much larger; what claims to may decode to anything.
                if size > 2 * self._bytes * self._inner + _SPARE:
                    raise ValueError("a file has more bytes than its pixels")
                if not self._blosc:
                    continue
                if self._index_first is None:
                    self._check_chunk(file, 0, size)
                else:
                    self._check_shard(file, size)

    def _check_shard(self, file: BinaryIO, size: int) -> None:
        length = 16 * self._inner + 4  # offset and length of each chunk, then a checksum
        file.seek(0 if self._index_first else max(0, size - length))
        index = np.frombuffer(file.read(length)[:-4], "<u8")
        if index.size != 2 * self._inner:
            raise ValueError("a shard is cut short")
        for offset, count in index.reshape(-1, 2).tolist():
            if (offset, count) != (_NOTHING, _NOTHING):
                if offset + count > size:
                    raise ValueError("a shard names bytes that it does not have")
                self._check_chunk(file, offset, count)

    def _check_chunk(self, file: BinaryIO, offset: int, count: int) -> None:
        file.seek(offset)
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise ValueError("a chunk is cut short")
        *_, decoded, block, coded = _HEADER.unpack(head)
        if coded != count:
            raise ValueError(f"a chunk has {count} bytes, its header says {coded}")
        if decoded != self._bytes or not 0 < block <= max(decoded, 1):
            raise ValueError(f"a chunk decodes to {decoded} bytes, expected {self._bytes}")
