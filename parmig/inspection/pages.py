# SPDX-License-Identifier: Apache-2.0
"""How many pages of each block a stream has, by kind."""

from __future__ import annotations

import errno
import os

import numpy as np
import numpy.typing as npt

from parmig.errors import SnapshotError, StreamDataError
from parmig.inspection.inspection_report import BlockInspection
from parmig.stream.mapped_ram import bitmap_bytes
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_words import EncodedPage, Encoding, PageRun, ZeroRun
from parmig.units import MIB

MOST_MARKED_PAGES = 1 << 28
"""Up to this many pages of a stream (1 TiB), one bit a page (32 MiB) records which pages came before."""

_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)


class BlockTally:
    """Counts the words about one block.

    Args:
        marked: count its distinct pages, too.
    """

    def __init__(self, entry: BlockEntry, *, marked: bool) -> None:
        self._normal = self._zero = self._xbzrle = self._compressed = 0
        # The kernel gives memory only to those parts that are written to.
        self._marks: npt.NDArray[np.uint8] | None = np.zeros(-(-entry.pages // 8), np.uint8) if marked else None

    def add(self, run: PageRun | ZeroRun | EncodedPage) -> None:
        """Count what was read."""
        marks = self._marks
        if isinstance(run, EncodedPage):
            self._xbzrle += run.kind is Encoding.XBZRLE
            self._compressed += run.kind is Encoding.COMPRESS
            if marks is not None:
                marks[run.page >> 3] |= _BITS[run.page & 7]
            return
        if isinstance(run, PageRun):
            self._normal += len(run.index)
        else:
            self._zero += len(run.index)
        if marks is not None:
            np.bitwise_or.at(marks, run.index >> 3, _BITS[run.index & 7])

    def fill_in(self, block: BlockInspection) -> None:
        """Write what was counted into *block*."""
        block.pages_normal, block.pages_zero = self._normal, self._zero
        block.pages_xbzrle, block.pages_compressed = self._xbzrle, self._compressed
        block.pages_distinct = None if self._marks is None else int(np.bitwise_count(self._marks).sum())


def count_mapped(fd: int, entry: BlockEntry, block: BlockInspection) -> None:
    """Count in *block* the stored pages and the zero pages of its bitmap in the file *fd*.

    Raises:
        StreamDataError: the bitmap has pages that the block does not have.
        SnapshotError: the file cannot be read.
    """
    assert entry.mapped is not None
    offset_bytes, size_bytes = entry.mapped.bitmap_offset_bytes, bitmap_bytes(entry.size_bytes)
    try:
        last_word = os.pread(fd, 8, offset_bytes + size_bytes - 8) if size_bytes else b""
        stored = _count_bits(fd, offset_bytes, offset_bytes + size_bytes)
    except OSError as error:
        raise SnapshotError(f"the bitmap of block {entry.name!r} cannot be read: {error.strerror}") from error
    if entry.pages % 64 and int.from_bytes(last_word, "little") >> entry.pages % 64:
        raise StreamDataError(
            f"the bitmap of block {entry.name!r} has more pages than the block, expected no more", offset_bytes
        )
    block.pages_normal, block.pages_zero, block.pages_distinct = stored, entry.pages - stored, entry.pages


def _count_bits(fd: int, offset_bytes: int, end_bytes: int) -> int:
    """Count the set bits in a range of a file. It skips holes, so that a false size does not cost hours."""
    count = 0
    while offset_bytes < end_bytes:
        try:
            offset_bytes = os.lseek(fd, offset_bytes, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole up to the end
                break
        piece = os.pread(fd, max(0, min(MIB, end_bytes - offset_bytes)), offset_bytes)
        if not piece:
            break
        count += int(np.bitwise_count(np.frombuffer(piece, np.uint8)).sum())
        offset_bytes += len(piece)
    return count
