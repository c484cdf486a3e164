# SPDX-License-Identifier: Apache-2.0
"""zstd compression of a whole batch: one frame, whose header has the size of the pages."""

from __future__ import annotations

import zstandard

from parmig.errors import ProtocolError
from parmig.ram.bits import Index
from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageDecoder, PageEncoder, ReadPages
from parmig.units import MIB

_MAX_WINDOW_BYTES = 8 * MIB
"""The most memory that a frame may make the decoder use. Level 19 needs this much, and no batch is larger."""


class ZstdEncoder(PageEncoder):
    """Compresses batches at *level*.

    On 4 MiB of Python sources, level 1 compresses 440 MiB/s to 22 %, level 3 280 MiB/s to 20 %; lz4 compresses
    570 MiB/s to 34 % (one core of an AMD EPYC).
    """

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)

    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | None:
        packed = self._compressor.compress(raw)
        return packed if len(packed) < len(raw) else None


class ZstdDecoder(PageDecoder):
    """Decompresses frames of exactly the announced size."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)

    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        try:
            size_bytes = zstandard.frame_content_size(payload)
            if size_bytes != raw_bytes:  # before memory of that size is allocated; -1: the frame has no size
                raise ProtocolError(f"a zstd frame announces {size_bytes} bytes, expected {raw_bytes} as in its header")
            raw = self._decompressor.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ProtocolError(f"a batch of {len(payload)} bytes is not zstd: {error}") from error
        if len(raw) != raw_bytes:
            raise ProtocolError(f"a batch decompressed to {len(raw)} bytes, expected {raw_bytes} as in its header")
        return memoryview(raw)


class ZstdCodec(PageCodec):
    """zstd, per batch."""

    name = "zstd"
    number = 2

    def encoder(self, settings: CodecSettings) -> PageEncoder | None:
        return ZstdEncoder(settings.zstd_level)

    def decoder(self, read: ReadPages) -> PageDecoder | None:
        return ZstdDecoder()
