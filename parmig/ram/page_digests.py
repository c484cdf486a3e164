# SPDX-License-Identifier: Apache-2.0
"""Digests of single pages, 8 bytes each: for a comparison of both memories after the guest has moved.

The destination keeps the digest of each page as it was placed (:class:`PlacedDigests`); the source computes those of
its frozen memory later (:class:`MemoryDigests`). A region is summed up by the xxh3-64 of the digests of its pages.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from parmig.ram.bits import Bits, Index, mask_of_bits
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.units import MIB

Digests = npt.NDArray[np.uint64]
"""One digest a page. That of a page of zeros, or of one that does not exist, is 0."""

DIGEST_BYTES = 8

_WORDS = PAGE_BYTES // 8
_PORTION_PAGES = 64
"""256 KiB at a time, which stay in the cache: 170 ms per GiB; with 4 MiB at a time 250."""

_CHUNK_PAGES = 2 * MIB // PAGE_BYTES
_HALF = np.uint64(32)


def _keys(seed: int) -> Digests:
    """512 odd numbers that look random: the outputs of splitmix64 (Steele, Lea and Flood, 2014) from *seed* on."""
    z = np.uint64(seed) + np.arange(1, _WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


_WORD_KEYS, _HALF_KEYS = _keys(1), _keys(2)


def digest_pages(pages: Pages) -> Digests:
    """The digest of each of *pages*, shape (pages, 4096): a sum of its 32-bit halves times 64-bit keys, modulo 2**64.

    Two pages that differ in one half always have different digests. Others that do not depend on the keys have the
    same digest with a probability of at most 2**-32, and random ones with 2**-64. So it finds accidental damage; it is
    no protection from somebody who knows the keys.

    170 ms per GiB on one core. xxh3-64 of each page, in a loop, takes as long; of 64 KiB at a time it takes 60 ms, but
    one written page would cost the digest of 16.
    """
    words = pages.view(np.uint64)
    digests: Digests = np.empty(len(words), dtype=np.uint64)
    for first in range(0, len(words), _PORTION_PAGES):
        part = words[first : first + _PORTION_PAGES]
        # word * key covers both halves, the upper one times 2**32; the second sum gives that a key of its own.
        digests[first : first + len(part)] = np.einsum("ij,j->i", part, _WORD_KEYS)
        digests[first : first + len(part)] += np.einsum("ij,j->i", part >> _HALF, _HALF_KEYS)
    return digests


def digest_region(digests: Digests) -> int:
    """The digest of a region, from those of its pages."""
    return xxhash.xxh3_64_intdigest(pack(digests))


@functools.cache
def _empty_region(pages: int) -> int:
    return digest_region(np.zeros(pages, dtype=np.uint64))


def pack(digests: Digests) -> bytes:
    """*digests* as bytes, for the peer."""
    return digests.astype("<u8", copy=False).tobytes()


def unpack(packed: bytes) -> Digests:
    """What :func:`pack` has packed; the caller has checked the length."""
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64, copy=False)


class PageDigests(ABC):
    """The digests of all pages of a guest, on one side."""

    @abstractmethod
    def of_pages(self, block: int, first_page: int, pages: int) -> Digests:
        """The digests of the pages ``[first_page, first_page + pages)`` of a block."""

    def of_region(self, block: int, first_page: int, pages: int) -> int:
        """The digest of a region."""
        return digest_region(self.of_pages(block, first_page, pages))


class PlacedDigests(PageDigests):
    """What was placed at the destination, as the memory held it right after.

    Args:
        shared: has the table.
        blocks: the blocks, by number.
    """

    def __init__(self, shared: SharedArea, blocks: Sequence[Reach]) -> None:
        self._shared = shared
        self._blocks = blocks

    def note(self, block: int, index: Index) -> None:
        """Read the pages *index* (ascending), which exist, back from the memory, and keep their digests."""
        table = self._shared.page_digests[block]
        for first in range(0, len(index), _PORTION_PAGES):
            part = index[first : first + _PORTION_PAGES]
            table[part] = digest_pages(self._blocks[block].look(part))

    def forget(self, block: int, index: Index) -> None:
        """Note that the pages *index* do not exist any more."""
        self._shared.page_digests[block][index] = 0

    def of_pages(self, block: int, first_page: int, pages: int) -> Digests:
        return self._shared.read_page_digests(block, first_page, pages)


class MemoryDigests(PageDigests):
    """The memory of the source, which nothing writes any more. Pages that do not exist are not read.

    Args:
        blocks: the blocks, by number.
        sent: for each block, the pages that were sent as data, one bit a page.
    """

    def __init__(self, blocks: Sequence[Reach], sent: Sequence[Bits]) -> None:
        self._blocks = blocks
        self._sent = sent
        self._scratch = np.empty((_CHUNK_PAGES, PAGE_BYTES), dtype=np.uint8)

    def of_pages(self, block: int, first_page: int, pages: int) -> Digests:
        digests: Digests = np.zeros(pages, dtype=np.uint64)
        reach = self._blocks[block]
        for first in range(first_page, first_page + pages, _CHUNK_PAGES):
            count = min(_CHUNK_PAGES, first_page + pages - first)
            if reach.has_data(first, count):
                chunk = self._scratch[:count]
                sent = mask_of_bits(self._sent[block], first, count)
                reach.read_span(first, chunk.reshape(-1).data, sent=sent)
                digests[first - first_page : first - first_page + count] = digest_pages(chunk)
        return digests

    def of_region(self, block: int, first_page: int, pages: int) -> int:
        if not self._blocks[block].has_data(first_page, pages):
            return _empty_region(pages)
        return super().of_region(block, first_page, pages)
