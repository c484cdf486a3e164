# SPDX-License-Identifier: Apache-2.0
"""A digest of all RAM, computed by many workers. It is equal on both sides if every byte is equal.

It is built in three steps: xxh3-64 of each 2 MiB chunk of a region, xxh3-64 of those for the region, and xxh3-128
over all regions in order. Pages that do not exist are not read, so nothing is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import xxhash

from parmig.ram.bits import Bits, mask_of_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region
from parmig.units import MIB

_CHUNK_PAGES = 2 * MIB // PAGE_BYTES


class RegionDigester:
    """Computes the digests of regions; holds one chunk of scratch memory."""

    def __init__(self) -> None:
        self._scratch = bytearray(2 * MIB)
        self._zero_chunk = xxhash.xxh3_64_digest(self._scratch)

    def digest(self, reach: Reach, region: Region, sent: Bits | None = None) -> int:
        """The digest of one region of *reach*.

        Args:
            sent: (source) once everything was sent: the pages of the block that were sent as data, one bit a page.
        """
        chunks = [
            self._chunk(reach, first, min(_CHUNK_PAGES, region.end_page - first), sent)
            for first in range(region.first_page, region.end_page, _CHUNK_PAGES)
        ]
        return xxhash.xxh3_64_intdigest(b"".join(chunks))

    def _chunk(self, reach: Reach, first_page: int, pages: int, sent: Bits | None) -> bytes:
        if pages == _CHUNK_PAGES and not reach.has_data(first_page, pages):
            return self._zero_chunk
        view = memoryview(self._scratch)[: pages * PAGE_BYTES]
        reach.read_span(first_page, view, sent=None if sent is None else mask_of_bits(sent, first_page, pages))
        return xxhash.xxh3_64_digest(view)


def combine(digests: Mapping[int, int], regions: int) -> str:
    """The digest of all RAM as hexadecimal text, from the digests of regions ``0 .. regions - 1``."""
    packed = b"".join(struct.pack(">Q", digests[number]) for number in range(regions))
    return xxhash.xxh3_128_hexdigest(packed)
