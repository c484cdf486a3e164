# SPDX-License-Identifier: Apache-2.0
"""RAM blocks: what they are called, where they lie in the guest, and what holds their bytes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096
"""The unit of dirty tracking and transfer. Blocks of huge pages are tracked in these units too."""

WORD_PAGES = 64
"""Pages that one 64-bit word of a dirty bitmap covers; regions are cut on its borders."""

EXTENT_PAGES = 512
"""Pages of a huge page of 2 MiB."""

Pages = npt.NDArray[np.uint8]
"""A view of memory, shape (pages, 4096)."""


class GuestRange(msgspec.Struct, frozen=True):
    """A piece of a block as the guest sees it: ``size_bytes`` at guest physical address ``gpa``."""

    gpa: int
    offset_bytes: int
    size_bytes: int


class RamBlock(msgspec.Struct, frozen=True):
    """One RAM block of the guest; both sides must agree on every field.

    Attributes:
        name: QEMU's ``idstr``, or the VMM's own name.
        size_bytes: a multiple of 4 KiB.
        page_size_bytes: of the backing memory (4 KiB, or the huge page size).
        ranges: where the guest sees the block, in order of guest physical address.
    """

    name: str
    size_bytes: int
    page_size_bytes: int = PAGE_BYTES
    ranges: tuple[GuestRange, ...] = ()

    @property
    def pages(self) -> int:
        """How many 4 KiB pages the block has."""
        return self.size_bytes // PAGE_BYTES

    @property
    def unit_pages(self) -> int:
        """How many 4 KiB pages are allocated and tracked together: 1, or those of a huge page."""
        return self.page_size_bytes // PAGE_BYTES


class Segment(msgspec.Struct, frozen=True):
    """A run of a block's pages in a process: page *first_page* of the block is at *address*, the rest follows."""

    first_page: int
    pages: int
    address: int


class BlockMemory(msgspec.Struct, frozen=True):
    """A block together with what holds its bytes: a shared memory file, or the memory of a process.

    Attributes:
        block: which block.
        fd: (pid is 0) descriptor of the shared memory file, readable and writable; (pid is not 0) descriptor of the
            file that the process maps privately, readable: pages that the process never wrote have its content; -1:
            no file, such pages are zero. The guest object owns it and closes it, others duplicate it.
        file_offset_bytes: where the block begins in that file.
        pid: the process that has the memory; 0: the file has it.
        segments: (pid is not 0) where the process maps the block, by page number, without gaps.
    """

    block: RamBlock
    fd: int = -1
    file_offset_bytes: int = 0
    pid: int = 0
    segments: tuple[Segment, ...] = ()


def page_size_of_memory(blocks: Iterable[RamBlock]) -> int:
    """The page size of the largest of *blocks*, which is the guest's RAM; ROMs beside it have small pages."""
    return max(blocks, key=lambda block: block.size_bytes).page_size_bytes
