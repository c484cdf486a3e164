# SPDX-License-Identifier: Apache-2.0
"""Memory that a file holds and this process maps."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import numpy.typing as npt

from parmig.errors import GuestRefusedError, MemoryFullError
from parmig.linux import files
from parmig.ram.bits import Bits, Index, Mask, Runs, index_of_runs, is_one_run, test_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, Pages
from parmig.ram.reach.extents import BlockFile, allocated_mask, has_data
from parmig.ram.reach.reach import Reach
from parmig.ram.zero import zero_mask

WRITE_RUN_PAGES = 8
"""Runs of at least this many pages are placed with pwrite(2). Shorter ones are stored together through the mapping, if
their pages exist. In fresh tmpfs memory, pwrite reaches 2.3 GiB/s (the kernel allocates as it copies), and a store
1.1 GiB/s (a page fault each). On pages that exist both only copy, and the system call costs as much as 2 pages."""

MAX_TARGETS = 64
"""Most runs of a batch that are stored in their places as they arrive. With more, one piece for each run costs as much
as the copy."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


class BlockMapping(Reach):
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
        file_bytes = os.fstat(memory.fd).st_size
        if file_bytes < end:
            raise GuestRefusedError(
                f"the memory file of block {self.block.name!r} has {file_bytes} bytes, expected {end}; "
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
        self._file = BlockFile(self.block, self.fd, self.file_offset_bytes, self.pages.ctypes.data)

    # -- which pages exist ----------------------------------------------------------------------

    def allocated(self, first_page: int, pages: int, among: Mask | None = None, *, tables: Mask | None = None) -> Mask:
        """As :meth:`Reach.allocated`. The kernel is not asked about pages of *tables*: 0.1 instead of 26 ms per GiB."""
        if tables is None:
            return allocated_mask(self._file, first_page, pages, among)
        unknown = ~tables if among is None else among & ~tables
        return tables | allocated_mask(self._file, first_page, pages, unknown) if unknown.any() else tables.copy()

    def has_data(self, first_page: int, pages: int) -> bool:
        return has_data(self._file, first_page, pages)

    # -- reading --------------------------------------------------------------------------------

    def views(self, runs: Runs) -> list[memoryview]:
        return [self.buffer[first * PAGE_BYTES : end * PAGE_BYTES] for first, end in runs.tolist()]

    def read(self, index: Index, target: Pages) -> None:
        # mode="clip" writes straight into the target; the default would go through a buffer (38 against 121 µs)
        np.take(self.pages, index, axis=0, out=target, mode="clip")

    def look(self, index: Index) -> Pages:
        together = len(index) and is_one_run(index)
        return self.pages[index[0] : index[-1] + 1] if together else self.pages[index]

    def zero_mask(self, index: Index) -> Mask:
        return zero_mask(self.words, index)

    def read_span(self, first_page: int, target: memoryview, *, sent: Mask | None = None) -> None:
        at = first_page * PAGE_BYTES
        try:
            read = os.preadv(self.fd, [target], self.file_offset_bytes + at)
        except OSError:  # odd file systems cannot read(2): through the mapping instead, which allocates
            read = 0
        if read != len(target):
            target[:] = self.buffer[at : at + len(target)]

    # -- writing --------------------------------------------------------------------------------

    def targets(self, runs: Runs) -> list[memoryview]:
        return self.views(runs) if len(runs) <= MAX_TARGETS else []

    def write(self, runs: Runs, pages: memoryview, existing: Bits) -> None:
        """As :meth:`Reach.write`: short runs that exist all at once, others one by one.

        Only pages that exist are stored to through the mapping. The others are written, or allocated before: where
        there is no room for one, a system call reports it, while a store would be a SIGBUS.
        """
        lengths = runs[:, 1] - runs[:, 0]
        starts = np.cumsum(lengths) - lengths
        together = lengths < WRITE_RUN_PAGES
        if together.any():
            exists = test_bits(existing, index_of_runs(runs))
            together &= np.logical_and.reduceat(exists, starts)
        alone = ~together
        for (first, end), at in zip(runs[alone].tolist(), starts[alone].tolist(), strict=True):
            self._write_run(first, pages[at * PAGE_BYTES : (at + end - first) * PAGE_BYTES])
        if together.any():
            source = index_of_runs(np.stack((starts[together], starts[together] + lengths[together]), axis=1))
            array = np.frombuffer(pages, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            self.pages[index_of_runs(runs[together])] = array[source]

    def _write_run(self, first_page: int, view: memoryview) -> None:
        at = self.file_offset_bytes + first_page * PAGE_BYTES
        try:
            if self.block.unit_pages > 1:  # hugetlbfs has no write(2)
                self._allocate(at, len(view))
                self.buffer[first_page * PAGE_BYTES : first_page * PAGE_BYTES + len(view)] = view
                return
            while view:
                written = os.pwrite(self.fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise MemoryFullError(
                f"the memory file of block {self.block.name!r} has no space left at byte {at} ({error.strerror}), "
                f"expected room for {self.block.size_bytes} bytes; free space on its file system"
            ) from error

    def _allocate(self, offset_bytes: int, size_bytes: int) -> None:
        """Allocate the huge pages in which these bytes of the file lie, where they are not there yet."""
        page_bytes = self.block.page_size_bytes
        begin = offset_bytes // page_bytes * page_bytes
        end = -(-(offset_bytes + size_bytes) // page_bytes) * page_bytes
        files.allocate(self.fd, begin, end - begin)

    def clear(self, index: Index) -> None:
        self.pages[index] = 0

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
