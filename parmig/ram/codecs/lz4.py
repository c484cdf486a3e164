# SPDX-License-Identifier: Apache-2.0
"""lz4 block compression of a whole batch, kept only where it shortens."""

from __future__ import annotations

import lz4.block

from parmig.errors import ProtocolError
from parmig.ram.bits import Index
from parmig.ram.codecs.codec import PageCodec, PageDecoder, PageEncoder

_SKIP_AFTER_MISSES = 4
"""After so many batches in a row that did not shrink, only one in this many is tried: random data
costs 1 of 4 compressions (lz4 runs at about 0.7 GiB/s a core on it here) instead of all."""


class Lz4Encoder(PageEncoder):
    """Compresses a batch; gives up on data that does not shrink, and looks again now and then."""

    def __init__(self) -> None:
        self._misses = 0

    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | None:
        if self._misses >= _SKIP_AFTER_MISSES and self._misses % _SKIP_AFTER_MISSES:
            self._misses += 1
            return None
        packed: bytes = lz4.block.compress(raw, mode="fast", acceleration=1, store_size=False)
        if len(packed) >= len(raw):
            self._misses += 1
            return None
        self._misses = 0
        return packed


class Lz4Decoder(PageDecoder):
    """Decompresses into exactly the announced size."""

    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        try:
            raw: bytes = lz4.block.decompress(payload, uncompressed_size=raw_bytes)
        except lz4.block.LZ4BlockError as error:
            raise ProtocolError(f"a batch of {len(payload)} bytes is not lz4: {error}") from error
        if len(raw) != raw_bytes:
            raise ProtocolError(f"a batch decompressed to {len(raw)} bytes, expected {raw_bytes} as in its header")
        return memoryview(raw)


class Lz4Codec(PageCodec):
    """lz4, per batch."""

    name = "lz4"
    number = 1

    def encoder(self) -> PageEncoder | None:
        return Lz4Encoder()

    def decoder(self) -> PageDecoder | None:
        return Lz4Decoder()
