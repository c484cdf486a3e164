# SPDX-License-Identifier: Apache-2.0
"""Memory that a file holds and this process maps."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import numpy.typing as npt

from parmig.errors import GuestRefusedError, MemoryFullError
from parmig.linux import files, uffd
from parmig.linux.huge_pages import HUGE_PAGE_BYTES
from parmig.ram.bits import (
    NO_INDEX,
    Bits,
    Index,
    Mask,
    Runs,
    index_of_runs,
    is_one_run,
    long_and_short,
    runs_of_index,
    test_bits,
)
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, Pages
from parmig.ram.reach.extents import BlockFile, all_in_memory, allocated_mask, check_page_size, next_data
from parmig.ram.reach.huge_extents import HugeExtents, open_extents
from parmig.ram.reach.reach import Reach
from parmig.ram.zero import zero_mask

WRITE_RUN_PAGES = 8
"""Runs of at least this many pages are placed by a system call. Shorter ones are stored together through the mapping,
if their pages exist. In fresh tmpfs memory, pwrite(2) and UFFDIO_COPY reach 2.3 GiB/s, and a store 1.1 GiB/s (a page
fault each). On pages that exist they only copy, and the system call costs as much as 2 pages."""

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
        self._writable = writable
        end = memory.file_offset_bytes + memory.block.size_bytes
        file_bytes = os.fstat(memory.fd).st_size
        if file_bytes < end:
            raise GuestRefusedError(
                f"the memory file of block {self.block.name!r} has {file_bytes} bytes, expected {end}; "
                "give the memory backend the guest's full size"
            )
        check_page_size(memory)
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
        self._address = int(self.pages.ctypes.data)
        files.pass_through(self._address, self.block.size_bytes)
        self._file = BlockFile(self.block, self.fd, self.file_offset_bytes, self._address)
        self._filler_fd: int | None = None  # made when it is first needed
        self._extents = self._open_extents()
        self._units: Mask = np.zeros(self.block.pages // self.block.unit_pages, dtype=np.bool_)  # (hugetlb) provided
        self._provided = 0  # how many of them: a sum over all, for each batch, would take longer in a large block

    # -- which pages exist ----------------------------------------------------------------------

    def allocated(self, first_page: int, pages: int, among: Mask | None = None, *, tables: Mask | None = None) -> Mask:
        """As :meth:`Reach.allocated`. The kernel is not asked about pages of *tables*: 0.1 instead of 26 ms per GiB."""
        if tables is None:
            return allocated_mask(self._file, first_page, pages, among)
        unknown = ~tables if among is None else among & ~tables
        return tables | allocated_mask(self._file, first_page, pages, unknown) if unknown.any() else tables.copy()

    def next_data(self, first_page: int, end_page: int) -> int | None:
        return next_data(self._file, first_page, end_page)

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

    def targets(self, runs: Runs, *, exist: bool) -> list[memoryview]:
        if not exist and self.block.unit_pages > 1:
            for first, end in runs.tolist():
                self._allocate(first, end - first)
            exist = True
        if len(runs) > MAX_TARGETS:
            return []
        return self.views(runs) if exist or self.provide(runs) or self._map_existing(runs) else []

    def _map_existing(self, runs: Runs) -> bool:
        """Map the pages of *runs* if all of them exist, though nobody has noted that. Returns whether they do.

        So a destination whose memory was allocated before is filled in place: 3350 MiB/s with 2 pairs of processes,
        where pwrite(2) reached 2910 and stores 2290, one page fault each (medians of 5; 4240 without storing).
        """
        if not all_in_memory(self._file, runs):
            return False
        for first, end in runs.tolist():
            files.map_pages(self._address + first * PAGE_BYTES, (end - first) * PAGE_BYTES)
        return True

    def write(self, runs: Runs, pages: memoryview, existing: Bits) -> None:
        """As :meth:`Reach.write`: short runs that exist all at once, others one by one.

        Only pages that exist are stored to through the mapping. The others are written, or allocated before: where
        there is no room for one, a system call reports it, while a store would be a SIGBUS.
        """
        lengths = runs[:, 1] - runs[:, 0]
        starts = np.cumsum(lengths) - lengths
        self.provide(runs)
        together = lengths < WRITE_RUN_PAGES
        if together.any():
            exists = test_bits(existing, index_of_runs(runs))
            together &= np.logical_and.reduceat(exists, starts)
        alone = ~together
        for (first, end), at in zip(runs[alone].tolist(), starts[alone].tolist(), strict=True):
            self.write_run(first, pages[at * PAGE_BYTES : (at + end - first) * PAGE_BYTES])
        if together.any():
            source = index_of_runs(np.stack((starts[together], starts[together] + lengths[together]), axis=1))
            array = np.frombuffer(pages, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            self.pages[index_of_runs(runs[together])] = array[source]

    def write_run(self, first_page: int, pages: memoryview) -> None:
        """As :meth:`Reach.write_run`: absent pages by UFFDIO_COPY where it is allowed, others by pwrite(2).

        pwrite(2) holds the lock of the file, so N workers place no faster than one. UFFDIO_COPY does not, and clears no
        page first: 2 pairs of processes reached 1420 instead of 1120 MiB/s (medians of 2; with memory that the host had
        taken back, 657 instead of 563).
        """
        end_page = first_page + len(pages) // PAGE_BYTES
        exist = self._extents is not None and self.provide(np.array([[first_page, end_page]]))
        if self.block.unit_pages > 1:  # hugetlbfs has no write(2)
            self._allocate(first_page, end_page - first_page)
            exist = True
        if exist:
            self.buffer[first_page * PAGE_BYTES : first_page * PAGE_BYTES + len(pages)] = pages
            return
        at = self.file_offset_bytes + first_page * PAGE_BYTES
        try:
            view = pages[self._fill(first_page, pages) :]
            while view:
                view = view[os.pwrite(self.fd, view, at + len(pages) - len(view)) :]
        except OSError as error:
            raise self._explained(error, at) from error

    def _fill(self, first_page: int, pages: memoryview) -> int:
        """Make absent pages by UFFDIO_COPY. Returns how many bytes it placed: up to a page that exists."""
        if self._extents is not None and self._extents.gives:
            return 0  # a userfaultfd would keep huge pages out
        if self._filler_fd is None:
            try:
                self._filler_fd = uffd.create_filler(self._address, self.block.size_bytes)
            except OSError:  # userfaultfd is not allowed here, or this is a file on a disk
                self._filler_fd = -1
        if self._filler_fd < 0:
            return 0
        # .ctypes.data has the same number, but takes 47 µs where the caches are cold
        source: int = np.frombuffer(pages, dtype=np.uint8).__array_interface__["data"][0]
        return uffd.copy_absent(self._filler_fd, self._address + first_page * PAGE_BYTES, source, len(pages))

    def _open_extents(self) -> HugeExtents | None:
        if not self._writable or self.block.unit_pages > 1:
            return None
        return open_extents(self.fd, self.file_offset_bytes, self._address, self.block.pages)

    def provide(self, runs: Runs) -> bool:
        return self._extents is not None and self._extents.provide(runs)

    @property
    def huge_bytes(self) -> int:
        if self.block.unit_pages > 1:
            return self._provided * self.block.page_size_bytes
        return 0 if self._extents is None else self._extents.made * HUGE_PAGE_BYTES

    def _allocate(self, first_page: int, pages: int) -> None:
        """Allocate the huge pages in which these pages lie, where they are not there yet."""
        page_bytes = self.block.page_size_bytes
        at = self.file_offset_bytes + first_page * PAGE_BYTES
        begin = at // page_bytes * page_bytes
        end = -(-(at + pages * PAGE_BYTES) // page_bytes) * page_bytes
        try:
            files.allocate(self.fd, begin, end - begin)
        except OSError as error:
            raise self._explained(error, at) from error
        first, past = ((border - self.file_offset_bytes) // page_bytes for border in (begin, end))
        self._provided += int(np.count_nonzero(~self._units[first:past]))
        self._units[first:past] = True

    def _explained(self, error: OSError, at: int) -> OSError | MemoryFullError:
        """A MemoryFullError if *error* is what the kernel reports when there is no room at byte *at* of the file."""
        if error.errno not in _FULL:
            return error
        return MemoryFullError(
            f"the memory file of block {self.block.name!r} has no space left at byte {at} ({error.strerror}), "
            f"expected room for {self.block.size_bytes} bytes; free space on its file system"
        )

    def clear(self, index: Index) -> Index:
        """As :meth:`Reach.clear`. Long runs are given back. Huge pages stay: other programs may wait to take them."""
        if self.block.unit_pages > 1:
            self.pages[index] = 0
            return NO_INDEX
        long, short = long_and_short(runs_of_index(index))
        self.pages[index_of_runs(short)] = 0
        try:
            for first, end in long.tolist():
                files.punch_hole(self.fd, self.file_offset_bytes + first * PAGE_BYTES, (end - first) * PAGE_BYTES)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            for first, end in long.tolist():
                self.pages[first:end] = 0
            return NO_INDEX
        return index_of_runs(long)

    def drop_tables(self) -> None:
        """As :meth:`Reach.drop_tables`. Those of huge pages stay: they take 4 KiB per GiB."""
        if self.block.unit_pages > 1:
            return
        files.map_again(self.fd, self.file_offset_bytes, self._address, self.block.size_bytes, writable=self._writable)
        files.pass_through(self._address, self.block.size_bytes)
        if self._filler_fd is not None and self._filler_fd >= 0:
            os.close(self._filler_fd)
            self._filler_fd = None  # it was for the old mapping
        if self._extents is not None:
            self._extents.advise()

    def close(self) -> None:
        """Unmap. Views handed out must be gone; those still held keep the mapping until they go."""
        del self.pages, self.words
        if self._filler_fd is not None and self._filler_fd >= 0:
            os.close(self._filler_fd)
        self._filler_fd = -1
        if self._extents is not None:
            self._extents.close()
            self._extents = None
        try:
            self.buffer.release()
            self._map.close()
        except BufferError:
            # A frame that ZeroMQ has not let go of still points in here; it goes with the process.
            pass
