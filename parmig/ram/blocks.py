# SPDX-License-Identifier: Apache-2.0
"""RAM blocks: what they are called, where they lie in the guest, and how a process maps them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.errors import GuestRefusedError
from parmig.linux import files

PAGE_BYTES = 4096
"""The unit of dirty tracking and transfer. Blocks of huge pages are tracked in these units too."""

WORD_PAGES = 64
"""Pages that one 64-bit word of a dirty bitmap covers; regions are cut on its borders."""

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


class BlockMapping:
    """A block mapped into this process.

    Args:
        memory: the block and its descriptor; the descriptor is used, not owned.
        writable: whether it may be written through this mapping.

    Attributes:
        pages: the block's memory, shape (pages, 4096), dtype uint8. A view; valid until close().
        words: the same as 64-bit words, shape (pages, 512).

    Raises:
        GuestRefusedError: the file is shorter than the block, has pages of another size, or cannot be mapped.
    """

    def __init__(self, memory: BlockMemory, *, writable: bool = True) -> None:
        self.block = memory.block
        self.fd = memory.fd
        self.file_offset_bytes = memory.file_offset_bytes
        end = memory.file_offset_bytes + memory.block.size_bytes
        found = os.fstat(memory.fd).st_size
        if found < end:
            raise GuestRefusedError(
                f"the memory file of block {self.block.name!r} has {found} bytes, expected {end}; "
                "give the memory backend the guest's full size"
            )
        _check_page_size(memory)
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        try:
            self._map = mmap.mmap(memory.fd, memory.block.size_bytes, offset=memory.file_offset_bytes, access=access)
        except OSError as error:
            raise GuestRefusedError(
                f"the memory file of block {self.block.name!r} cannot be mapped: {error.strerror}; mapping reserves "
                f"huge pages, so provide {memory.block.size_bytes} bytes of them on this host"
            ) from error
        self.buffer = memoryview(self._map)
        self.pages: Pages = np.frombuffer(self._map, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        self.words: npt.NDArray[np.uint64] = self.pages.view(np.uint64)

    def close(self) -> None:
        """Unmap. Views handed out must be gone; those still held keep the mapping until they go."""
        del self.pages, self.words
        try:
            self.buffer.release()
            self._map.close()
        except BufferError:
            # A frame that ZeroMQ has not let go of still points in here; it goes with the process.
            pass


def _check_page_size(memory: BlockMemory) -> None:
    """Nothing is done with huge pages by accident: they are re-armed, allocated and looked for in other ways."""
    block = memory.block
    found = os.fstatvfs(memory.fd).f_bsize if files.is_hugetlbfs(memory.fd) else PAGE_BYTES
    if block.page_size_bytes != found or block.size_bytes % found or memory.file_offset_bytes % found:
        raise GuestRefusedError(
            f"block {block.name!r} has {block.size_bytes} bytes in pages of {block.page_size_bytes}, from byte "
            f"{memory.file_offset_bytes} of its file on, expected pages of {found} bytes as in the file; "
            "give the block that page size, and let it begin and end on page borders"
        )


def check_mappable(memory: Iterable[BlockMemory]) -> None:
    """Map each block of *memory* once, so that one that cannot be mapped is refused here, by its name.

    Raises:
        GuestRefusedError: as of :class:`BlockMapping`.
    """
    for one in memory:
        BlockMapping(one).close()
