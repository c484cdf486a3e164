# SPDX-License-Identifier: Apache-2.0
"""lz4 block compression of a whole batch, used only if the result is shorter."""

from __future__ import annotations

import lz4.block

from parmig.errors import ProtocolError
from parmig.ram.bits import Index
from parmig.ram.codecs.codec import PageCodec, PageDecoder, PageEncoder

_SKIP_AFTER_MISSES = 4
"""After this many batches in a row that did not shrink, the encoder tries only one batch in this many. Random data then
costs one compression in four (lz4 reaches about 0.7 GiB/s a core on it)."""


class Lz4Encoder(PageEncoder):
    """Compresses batches. If they do not shrink, it tries only some of them."""

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
