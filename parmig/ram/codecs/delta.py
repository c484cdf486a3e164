# SPDX-License-Identifier: Apache-2.0
"""delta: what changed in pages since they were last sent on this channel, compressed with zstd.

Big-endian; *n* pages::

    u64 xxh3-64 of the pages    (n + 7) / 8 bytes: which pages are XORed (as ``ram.bits``)    one zstd frame

The frame has the pages in order. An XORed page is combined with what the destination's memory holds for it, and this is
what the sender has a copy of: the page was placed from this channel, and nobody has written it since. So only the
sender needs a cache. The digest finds a destination whose memory was written by somebody else.
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash

from parmig.errors import ProtocolError
from parmig.ram.bits import Index, Mask, mask_of_bits
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageDecoder, PageEncoder, ReadPages
from parmig.ram.codecs.sent_pages import SentPages
from parmig.ram.codecs.zstd import ZstdDecoder, ZstdEncoder

_DIGEST = struct.Struct(">Q")


def _pages_of(raw: memoryview) -> Pages:
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)


def _xor(pages: Pages, known: Mask, others: Pages) -> Pages:
    """A copy of *pages*, in which those that *known* has are XORed with *others*, one after the other."""
    if known.all():
        return pages ^ others
    result = pages.copy()
    result[known] ^= others
    return result


class DeltaEncoder(PageEncoder):
    """Encodes batches of which some pages are known."""

    def __init__(self, settings: CodecSettings) -> None:
        self._cache = SentPages(settings.delta_cache_bytes)
        self._zstd = ZstdEncoder(settings.zstd_level)

    def knows(self, block: int, index: Index) -> bool:
        return bool(2 * np.count_nonzero(self._cache.known(block, index)) >= len(index))

    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | None:
        """As :meth:`PageEncoder.encode`. None also if no page is known."""
        known = self._cache.known(block, index)
        if not known.any():
            return None
        changes = _xor(_pages_of(raw), known, self._cache.read(block, index[known]))
        packed = self._zstd.encode(block, index, memoryview(changes.data).cast("B"))
        if packed is None:
            return None
        head = _DIGEST.pack(xxhash.xxh3_64_intdigest(raw)) + np.packbits(known, bitorder="little").tobytes()
        return head + packed if len(head) + len(packed) < len(raw) else None

    def sent(self, block: int, round_: int, index: Index, raw: memoryview) -> None:
        self._cache.remember(block, round_, index, _pages_of(raw))

    def forget(self, block: int, index: Index) -> None:
        self._cache.forget(block, index)


class DeltaDecoder(PageDecoder):
    """Combines batches with the pages that *read* returns."""

    def __init__(self, read: ReadPages) -> None:
        self._read = read
        self._zstd = ZstdDecoder()

    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        head_bytes = _DIGEST.size + (len(index) + 7) // 8
        if len(payload) <= head_bytes:
            raise ProtocolError(f"a delta batch has {len(payload)} bytes, expected more than {head_bytes}")
        bits = np.frombuffer(payload[_DIGEST.size : head_bytes], dtype=np.uint8)
        known = mask_of_bits(bits, 0, len(index))
        changes = _pages_of(self._zstd.decode(block, index, payload[head_bytes:], raw_bytes))
        pages = _xor(changes, known, self._read(block, index[known]))
        raw = memoryview(pages.data).cast("B")
        if xxhash.xxh3_64_intdigest(raw) != _DIGEST.unpack_from(payload)[0]:
            raise ProtocolError(
                "a delta batch does not give the pages that were sent, expected memory that only parmig writes; "
                "if another program writes to it, migrate with --compress zstd"
            )
        return raw


class DeltaCodec(PageCodec):
    """Changes since the page was last sent, per batch."""

    name = "delta"
    number = 3

    def encoder(self, settings: CodecSettings) -> PageEncoder | None:
        return DeltaEncoder(settings)

    def decoder(self, read: ReadPages) -> PageDecoder | None:
        return DeltaDecoder(read)
