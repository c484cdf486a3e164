# SPDX-License-Identifier: Apache-2.0
"""Pages of RAM in the single stream: words of eight bytes, each with an offset and what it is about.

A word is the offset in its block with flags in the bits below a page. A word without CONTINUE is followed by the
block's name. A word with it is about the same block as the word before it, even across sections. Runs of equal
words are read and written by numpy, never page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from parmig.errors import StreamDataError
from parmig.stream import xbzrle
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import (
    MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE,
    MIGRATION_RAM_SAVE_FLAG_CONTINUE,
    MIGRATION_RAM_SAVE_FLAG_EOS,
    MIGRATION_RAM_SAVE_FLAG_HOOK,
    MIGRATION_RAM_SAVE_FLAG_MULTIFD_FLUSH,
    MIGRATION_RAM_SAVE_FLAG_PAGE,
    MIGRATION_RAM_SAVE_FLAG_XBZRLE,
    MIGRATION_RAM_SAVE_FLAG_ZERO,
    PAGE_MASK,
    TARGET_PAGE_BITS,
    TARGET_PAGE_BYTES,
)
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_encode import (
    PAGE_NEXT,
    PAGE_STEP_BYTES,
    WORD_BYTES,
    ZERO_NEXT,
    ZERO_STEP_BYTES,
    Index,
    Pages,
)
from parmig.transport.transport import Buffer
from parmig.units import KIB

LEAST_RUN_PAGES, MOST_RUN_BYTES = 8, 512 * KIB
"""How far the reader looks for the end of a run: a few pages at first, doubled while runs are longer, up to this many
bytes. Each page that it looks at after the end of a run costs a cache miss."""


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages as they are.

    Attributes:
        block: name.
        index: the pages' numbers in the block, in the order of the stream.
        pages: their bytes, shape (n, 4096), read-only; not contiguous. They stay valid while referenced.
    """

    block: str
    index: Index
    pages: Pages


@dataclass(frozen=True, slots=True)
class ZeroRun:
    """Pages of zeros; the attributes are those of PageRun."""

    block: str
    index: Index


class Encoding(IntEnum):
    """How a page is encoded; the numbers are the flags."""

    XBZRLE = MIGRATION_RAM_SAVE_FLAG_XBZRLE
    COMPRESS = MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """One page that the stream has in encoded form.

    Attributes:
        page: its number in the block.
        offset_bytes: of its word in the stream.
    """

    block: str
    page: int
    kind: Encoding
    payload: bytes
    offset_bytes: int

    def decode(self, old: Buffer) -> bytes:
        """The 4096 bytes of the page; *old* are those that it had before.

        Raises:
            StreamDataError: the payload is not what its encoder would write; the message names the fault.
        """
        if self.kind is Encoding.XBZRLE:
            return xbzrle.decode(self.payload, old, self.offset_bytes)
        return xbzrle.inflate(self.payload, self.offset_bytes)


class RamWordReader:
    """Reads the words of RAM's sections in *data*. Use one reader for all sections of a stream.

    Args:
        blocks: the list that opened RAM.
    """

    def __init__(self, data: MigrationDataFile, blocks: Iterable[BlockEntry]) -> None:
        self._data = data
        self._blocks = {entry.name: entry.pages for entry in blocks}
        self._block: str | None = None
        self._block_pages = 0
        self._look_pages = {PAGE_STEP_BYTES: LEAST_RUN_PAGES, ZERO_STEP_BYTES: LEAST_RUN_PAGES}

    def read_section(self) -> Iterator[PageRun | ZeroRun | EncodedPage]:
        """The words of one section, up to and with its EOS; iterate to the end, then the footer comes.

        Raises:
            StreamDataError: a word, a name, a page number or a length that makes no sense.
            StreamTruncatedError: the stream ends before the section does.
        """
        data = self._data
        while True:
            offset_bytes = data.position_bytes
            word = data.get_be64()
            flags = word & PAGE_MASK
            kind = flags & ~MIGRATION_RAM_SAVE_FLAG_CONTINUE
            if kind in (MIGRATION_RAM_SAVE_FLAG_PAGE, MIGRATION_RAM_SAVE_FLAG_ZERO):
                page = self._page(word, offset_bytes)
                yield self._pages(page) if kind == MIGRATION_RAM_SAVE_FLAG_PAGE else self._zeros(page)
            elif flags == MIGRATION_RAM_SAVE_FLAG_EOS:
                return
            elif kind in (MIGRATION_RAM_SAVE_FLAG_XBZRLE, MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE):
                page = self._page(word, offset_bytes)
                yield EncodedPage(str(self._block), page, Encoding(kind), self._payload(kind), offset_bytes)
            elif flags != MIGRATION_RAM_SAVE_FLAG_MULTIFD_FLUSH:
                reason = "is for RDMA only" if flags & MIGRATION_RAM_SAVE_FLAG_HOOK else "is not known"
                raise data.error(StreamDataError, f"word {word:#x} of RAM {reason}", offset_bytes)

    def _page(self, word: int, offset_bytes: int) -> int:
        """The page that *word* is about, after its block's name if there is one."""
        if not word & MIGRATION_RAM_SAVE_FLAG_CONTINUE:
            name = self._data.get_counted_string()
            if name not in self._blocks:
                raise self._data.error(
                    StreamDataError, f"a word names block {name!r}, expected one from the list of blocks", offset_bytes
                )
            self._block, self._block_pages = name, self._blocks[name]
        elif self._block is None:
            raise self._data.error(
                StreamDataError, f"word {word:#x} continues a block, expected the name of a block first", offset_bytes
            )
        page = word >> TARGET_PAGE_BITS
        self._check(page, offset_bytes)
        return page

    def _check(self, page: int, offset_bytes: int) -> None:
        if page >= self._block_pages:
            raise self._data.error(
                StreamDataError,
                f"a word names page {page} of block {self._block!r}, expected a page below {self._block_pages}",
                offset_bytes,
            )

    def _pages(self, page: int) -> PageRun:
        index, view = self._run(page, PAGE_NEXT, TARGET_PAGE_BYTES, PAGE_STEP_BYTES)
        pages: Pages = np.ndarray((len(index), TARGET_PAGE_BYTES), np.uint8, view, strides=(PAGE_STEP_BYTES, 1))
        return PageRun(str(self._block), index, pages)

    def _zeros(self, page: int) -> ZeroRun:
        offset_bytes = self._data.position_bytes
        index, view = self._run(page, ZERO_NEXT, 1, ZERO_STEP_BYTES)
        fills = np.ndarray((len(index),), np.uint8, view, strides=(ZERO_STEP_BYTES,))
        if fills.any():
            bad = int(np.flatnonzero(fills)[0])
            raise self._data.error(
                StreamDataError,
                f"page {index[bad]} of block {self._block!r} is filled with {fills[bad]:#04x}, expected 0, a zero page",
                offset_bytes + bad * ZERO_STEP_BYTES,
            )
        return ZeroRun(str(self._block), index)

    def _run(self, first: int, flags: int, body_bytes: int, step_bytes: int) -> tuple[Index, memoryview]:
        """The page *first*, whose body comes next, and those after it whose words have just *flags*.

        Returns:
            Their numbers, and the bytes from the first body on; bodies are *step_bytes* apart.
        """
        data, look = self._data, self._look_pages[step_bytes]
        view = data.peek_view(body_bytes, look * step_bytes - WORD_BYTES)
        whole = (len(view) - body_bytes) // step_bytes
        if not whole or view[body_bytes + WORD_BYTES - 1] != flags:  # a single page: this takes less than half the time
            data.advance(body_bytes)
            return np.array((first,), dtype=np.int64), view
        offset_bytes = data.position_bytes
        words: npt.NDArray[Any] = np.ndarray((whole,), ">u8", view, body_bytes, (step_bytes,))
        more = _leading((words & PAGE_MASK) == flags)
        index = np.empty(more + 1, dtype=np.int64)
        index[0] = first
        index[1:] = words[:more] >> TARGET_PAGE_BITS
        worst = int(index.argmax())
        self._check(int(index[worst]), offset_bytes + worst * step_bytes - WORD_BYTES)
        data.advance(body_bytes + more * step_bytes)
        if more < whole:
            self._look_pages[step_bytes] = max(LEAST_RUN_PAGES, more + 1)
        elif more + 1 == look:
            self._look_pages[step_bytes] = min(2 * look, MOST_RUN_BYTES // step_bytes)
        return index, view

    def _payload(self, kind: int) -> bytes:
        data, offset_bytes = self._data, self._data.position_bytes
        if kind == MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE:
            size_bytes, most_bytes = data.get_be32(), xbzrle.MAX_COMPRESSED_BYTES
        else:
            mark, size_bytes, most_bytes = data.get_byte(), data.get_be16(), TARGET_PAGE_BYTES
            if mark != xbzrle.MARK:
                raise data.error(
                    StreamDataError, f"an XBZRLE page begins with {mark:#x}, expected {xbzrle.MARK:#x}", offset_bytes
                )
        if not 0 < size_bytes <= most_bytes:
            raise data.error(
                StreamDataError, f"an encoded page has {size_bytes} bytes, expected 1 to {most_bytes}", offset_bytes
            )
        return data.get_buffer(size_bytes)


def _leading(mask: npt.NDArray[np.bool_]) -> int:
    """How many entries are set before the first that is not."""
    if not len(mask):
        return 0
    first = int(mask.argmin())
    return len(mask) if mask[first] else first
