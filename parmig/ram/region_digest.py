# SPDX-License-Identifier: Apache-2.0
"""A digest of all RAM, made by many workers, equal on both sides when every byte is.

xxh3-64 of each 2 MiB chunk of a region; xxh3-64 of those for the region; xxh3-128 over all regions in
order. Memory is read from the file, not through the mapping: reading a hole through a mapping allocates.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

import xxhash

from parmig.ram.blocks import PAGE_BYTES, BlockMapping
from parmig.ram.extents import has_data
from parmig.ram.regions import Region
from parmig.units import MIB

_CHUNK_PAGES = 2 * MIB // PAGE_BYTES


class RegionDigester:
    """Computes the digests of regions; holds one chunk of scratch memory."""

    def __init__(self) -> None:
        self._scratch = bytearray(2 * MIB)
        self._zero_chunk = xxhash.xxh3_64_digest(self._scratch)

    def digest(self, mapping: BlockMapping, region: Region) -> int:
        """The digest of one region of *mapping*."""
        chunks = [
            self._chunk(mapping, first, min(_CHUNK_PAGES, region.end_page - first))
            for first in range(region.first_page, region.end_page, _CHUNK_PAGES)
        ]
        return xxhash.xxh3_64_intdigest(b"".join(chunks))

    def _chunk(self, mapping: BlockMapping, first_page: int, pages: int) -> bytes:
        if pages == _CHUNK_PAGES and not has_data(mapping, first_page, pages):
            return self._zero_chunk
        at = first_page * PAGE_BYTES
        view = memoryview(self._scratch)[: pages * PAGE_BYTES]
        try:
            read = os.preadv(mapping.fd, [view], mapping.file_offset_bytes + at)
        except OSError:  # hugetlbfs before Linux 2.6.x and odd file systems cannot read(2): map instead
            read = 0
        if read != len(view):
            return xxhash.xxh3_64_digest(mapping.buffer[at : at + len(view)])
        return xxhash.xxh3_64_digest(view)


def combine(digests: Mapping[int, int], regions: int) -> str:
    """The digest of all RAM as hexadecimal text, from the digests of regions ``0 .. regions - 1``."""
    packed = b"".join(struct.pack(">Q", digests[number]) for number in range(regions))
    return xxhash.xxh3_128_hexdigest(packed)
