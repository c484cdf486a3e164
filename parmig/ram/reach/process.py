# SPDX-License-Identifier: Apache-2.0
"""Memory of another process that no file shares: private memory of a monitor that was started without a thought of us.

It is read by process_vm_readv(2) and written by process_vm_writev(2), up to 1024 ranges a call. Which pages exist is
what the page tables of that process say; where it maps a file privately, pages that it never wrote are the file's.

Rates of one core (Linux 6.18, batches of 4 MiB): reading 4.5 GiB/s, of transparent huge pages 6.6; writing pages that
exist 5.7 and 8.0; fresh ones 2.5, and 5.8 where the monitor asked for transparent huge pages, as QEMU does. UFFDIO_COPY
fills fresh memory at 3.5 GiB/s, but always with small pages, so the guest would lose its huge ones; it is not used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np

from parmig.errors import GuestError, HostRefusedError, MemoryFullError
from parmig.linux import pagemap, process_memory
from parmig.ram.bits import NO_INDEX, Bits, Index, Mask, Runs, runs_of_index, runs_of_mask
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, Pages
from parmig.ram.reach.extents import BlockFile, allocated_mask, next_data
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.reach.reach import Reach
from parmig.ram.zero import zero_mask

_ZERO_PAGES = 1024
"""Zero pages that one call writes."""

_ZEROS: Pages = np.zeros((_ZERO_PAGES, PAGE_BYTES), dtype=np.uint8)


class ProcessReach(Reach):
    """A block in the memory of process ``memory.pid``.

    Args:
        memory: the block and where that process maps it. A descriptor is used, not owned.

    Raises:
        HostRefusedError: the page tables of the process may not be read.
        GuestError: the process is gone.
    """

    reads_to_look = True

    def __init__(self, memory: BlockMemory) -> None:
        self.block = memory.block
        self._pid = memory.pid
        self._segments = memory.segments
        self._firsts = np.array([segment.first_page for segment in memory.segments], dtype=np.int64)
        self._addresses = np.array([segment.address for segment in memory.segments], dtype=np.int64)
        self._looked: tuple[Index, Pages] = (NO_INDEX, np.empty((0, PAGE_BYTES), dtype=np.uint8))
        self._scratch: Pages = np.empty((0, PAGE_BYTES), dtype=np.uint8)
        self._mapping: BlockMapping | None = None
        self._file: BlockFile | None = None
        try:
            self._pagemap_fd = os.open(f"/proc/{memory.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from error
        self._check_access()
        if memory.fd >= 0:
            self._open_file(memory)

    def _check_access(self) -> None:
        """Have the kernel check the permission: it does so before it finds that nothing is mapped at address 0."""
        try:
            process_memory.read(self._pid, np.array([[0, 1]], dtype=np.uint64), np.zeros(1, dtype=np.uint8))
        except OSError as error:
            if error.errno != errno.EFAULT:
                os.close(self._pagemap_fd)
                raise self._refused(error) from error

    def _open_file(self, memory: BlockMemory) -> None:
        if memory.block.unit_pages > 1:  # a mapping would reserve huge pages
            self._file = BlockFile(memory.block, memory.fd, memory.file_offset_bytes, 0)
            return
        shared = BlockMemory(memory.block, memory.fd, memory.file_offset_bytes)
        self._mapping = BlockMapping(shared, writable=False)
        address = int(self._mapping.pages.ctypes.data)
        self._file = BlockFile(memory.block, memory.fd, memory.file_offset_bytes, address)

    # -- which pages exist ----------------------------------------------------------------------

    def allocated(self, first_page: int, pages: int, among: Mask | None = None, *, tables: Mask | None = None) -> Mask:
        if tables is None:
            existing = self._in_tables(first_page, pages)
            exists: Mask = existing.present | existing.swapped
        else:
            exists = tables.copy()
        if self._file is not None:
            unknown = ~exists if among is None else among & ~exists
            if unknown.any():
                exists |= unknown & allocated_mask(self._file, first_page, pages, unknown)
        return exists

    def _in_tables(self, first_page: int, pages: int) -> pagemap.Existing:
        existing = pagemap.Existing(np.zeros(pages, dtype=np.bool_), np.zeros(pages, dtype=np.bool_))
        for first, end, address in self._overlapping(first_page, first_page + pages):
            try:
                part = pagemap.existing(self._pagemap_fd, address, address + (end - first) * PAGE_BYTES)
            except OSError as error:
                raise self._refused(error) from error
            existing.present[first - first_page : end - first_page] = part.present
            existing.swapped[first - first_page : end - first_page] = part.swapped
        return existing

    def next_data(self, first_page: int, end_page: int) -> int | None:
        in_file = None if self._file is None else next_data(self._file, first_page, end_page)
        try:
            for first, end, address in self._overlapping(first_page, end_page if in_file is None else in_file):
                at = pagemap.first_existing(self._pagemap_fd, address, address + (end - first) * PAGE_BYTES)
                if at is not None:
                    return first + (at - address) // PAGE_BYTES
        except OSError as error:
            raise self._refused(error) from error
        return in_file

    # -- reading --------------------------------------------------------------------------------

    def read(self, index: Index, target: Pages) -> None:
        looked, pages = self._looked
        if len(looked) and len(index):
            places = np.searchsorted(looked, index)
            if places[-1] < len(looked) and bool((looked[places] == index).all()):
                np.take(pages, places, axis=0, out=target, mode="clip")
                return
        self._read(runs_of_index(index), target)

    def exchange(self, index: Index, buffer: Pages) -> Pages:
        """As :meth:`Reach.exchange`: what :meth:`zero_mask` has just read of *index* is handed over, not copied."""
        pages = self._scratch
        if len(pages) < len(buffer) or not np.array_equal(self._looked[0], index):
            return super().exchange(index, buffer)
        self._looked = (NO_INDEX, buffer[:0])
        self._scratch = buffer
        return pages

    def zero_mask(self, index: Index) -> Mask:
        """As :meth:`Reach.zero_mask`. The pages are kept for :meth:`read` and :meth:`exchange`, which follow.

        So each page is read once, after the scan that reported it: reading only the first word of each would take as
        long as reading all of it.
        """
        if len(self._scratch) < len(index):
            self._scratch = np.empty((len(index), PAGE_BYTES), dtype=np.uint8)
        pages = self._scratch[: len(index)]
        self._looked = (NO_INDEX, pages)
        self._read(runs_of_index(index), pages)
        self._looked = (index, pages)
        return zero_mask(pages.view(np.uint64), np.arange(len(index)))

    def look(self, index: Index) -> Pages:
        copies: Pages = np.empty((len(index), PAGE_BYTES), dtype=np.uint8)
        self._read(runs_of_index(index), copies)
        return copies

    def read_span(self, first_page: int, target: memoryview, *, sent: Mask | None = None) -> None:
        pages = np.frombuffer(target, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        existing = self._in_tables(first_page, len(pages))
        tables = existing.present | (existing.swapped if sent is None else existing.swapped & sent)
        exists = self.allocated(first_page, len(pages), tables=tables)
        if not exists.all():
            pages[~exists] = 0
        for first, end in runs_of_mask(exists).tolist():  # a call for each run
            self._read(np.array([[first, end]]) + first_page, pages[first:end])

    def _read(self, runs: Runs, target: Pages) -> None:
        try:
            process_memory.read(self._pid, self._pieces(runs), target.reshape(-1))
        except OSError as error:
            raise self._refused(error) from error

    # -- writing --------------------------------------------------------------------------------

    def write(self, runs: Runs, pages: memoryview, existing: Bits) -> None:
        self._write(runs, np.frombuffer(pages, dtype=np.uint8))

    def write_run(self, first_page: int, pages: memoryview) -> None:
        self._write(np.array([[first_page, first_page + len(pages) // PAGE_BYTES]]), np.frombuffer(pages, np.uint8))

    def clear(self, index: Index) -> Index:
        for first in range(0, len(index), _ZERO_PAGES):
            part = index[first : first + _ZERO_PAGES]
            self._write(runs_of_index(part), _ZEROS[: len(part)].reshape(-1))
        return NO_INDEX

    def _write(self, runs: Runs, source: np.ndarray) -> None:
        try:
            process_memory.write(self._pid, self._pieces(runs), source)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EFAULT) and os.path.exists(f"/proc/{self._pid}"):
                raise MemoryFullError(
                    f"block {self.block.name!r} in the memory of process {self._pid} cannot be written: "
                    f"{error.strerror}; expected memory for {self.block.size_bytes} bytes in pages of "
                    f"{self.block.page_size_bytes}; free some on this host, or raise the limit of its cgroup"
                ) from error
            raise self._refused(error) from error

    # -- where it is ----------------------------------------------------------------------------

    def _pieces(self, runs: Runs) -> process_memory.Pieces:
        """The address and size of each run in the process."""
        if len(self._segments) > 1:
            runs = _cut(runs, self._firsts)
        which = np.searchsorted(self._firsts, runs[:, 0], side="right") - 1
        pieces = np.empty((len(runs), 2), dtype=np.uint64)
        pieces[:, 0] = self._addresses[which] + (runs[:, 0] - self._firsts[which]) * PAGE_BYTES
        pieces[:, 1] = (runs[:, 1] - runs[:, 0]) * PAGE_BYTES
        return pieces

    def _overlapping(self, first_page: int, end_page: int) -> Iterator[tuple[int, int, int]]:
        """Parts of the range that lie together: first page, past-the-last page, address of the first."""
        for segment in self._segments:
            first = max(first_page, segment.first_page)
            end = min(end_page, segment.first_page + segment.pages)
            if first < end:
                yield first, end, segment.address + (first - segment.first_page) * PAGE_BYTES

    def _refused(self, error: OSError) -> GuestError | HostRefusedError:
        if error.errno in (errno.EPERM, errno.EACCES):
            return HostRefusedError(
                f"the memory of process {self._pid} (block {self.block.name!r}) may not be read or written; "
                "run parmig with CAP_SYS_PTRACE, or as that process's own user with Yama's ptrace_scope 0"
            )
        return GuestError(
            f"block {self.block.name!r} is no longer in the memory of process {self._pid}: {error.strerror}; "
            "expected memory that stays mapped until the migration has ended"
        )

    def close(self) -> None:
        fd, self._pagemap_fd = self._pagemap_fd, -1
        if fd >= 0:
            os.close(fd)
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


def _cut(runs: Runs, borders: Index) -> Runs:
    """*runs*, cut where a page of *borders* (ascending) is inside one."""
    if not len(runs):
        return runs
    inside = np.searchsorted(runs[:, 0], borders, side="left") - 1
    cuts = borders[(inside >= 0) & (borders < runs[np.maximum(inside, 0), 1])]
    if not len(cuts):
        return runs
    return np.stack((np.sort(np.append(runs[:, 0], cuts)), np.sort(np.append(runs[:, 1], cuts))), axis=1)
