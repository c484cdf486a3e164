# SPDX-License-Identifier: Apache-2.0
"""Which pages of a memory file exist at all: the rest read as zero and cost nothing to move.

A page in the page cache exists; mincore(2) reports many pages in one call. For the others, lseek(2) with SEEK_DATA
finds those that were swapped out, with one call for each of them. SEEK_HOLE is never used: it walks to the next hole
each time, which is the end of a fully used file. tmpfs and memfd record holes by page. The look-up never allocates,
unlike reading through a file.

Huge pages (hugetlbfs) are looked for in the file's page cache by UFFDIO_CONTINUE. Where userfaultfd is not allowed all
of them count as existing, as SEEK_DATA reports.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

import numpy as np

from parmig.errors import GuestRefusedError
from parmig.linux import files
from parmig.ram.bits import Mask, Runs, runs_of_mask
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock

_PAGES_A_CALL = 256
"""A system call costs as much as looking at so many pages, which take 5 ns each, or 100 ns where this process has not
mapped them."""


class BlockFile(NamedTuple):
    """The part of a memory file that holds a block.

    Attributes:
        fd: of the file.
        file_offset_bytes: where the block begins in it.
        address: where this process maps the block; not needed for huge pages.
    """

    block: RamBlock
    fd: int
    file_offset_bytes: int
    address: int


def allocated_mask(file: BlockFile, first_page: int, pages: int, among: Mask | None = None) -> Mask:
    """Which of the block's pages ``[first_page, first_page + pages)`` exist. The caller may change the mask.

    Args:
        among: the entries that matter; the others need not be right. None: all.

    It takes about 5 ns for a page that this process has mapped, 100 ns for others, and 1 µs for each run of pages that
    do not exist, each page that was swapped out, and each huge page.
    """
    if file.block.unit_pages > 1:
        return _huge_mask(file, first_page, pages, among)
    present: Mask = np.zeros(pages, dtype=np.bool_)
    address = file.address + first_page * PAGE_BYTES
    for begin, end in _calls(pages, among):
        present[begin:end] = files.mincore(address + begin * PAGE_BYTES, end - begin)
    absent = ~present if among is None else among & ~present
    for begin, end in runs_of_mask(absent).tolist() if absent.any() else ():  # extents, only those not in memory
        page = next_data(file, first_page + begin, first_page + end)
        while page is not None:
            present[page - first_page] = True
            page = next_data(file, page + 1, first_page + end)
    return present


def all_in_memory(file: BlockFile, runs: Runs) -> bool:
    """Whether all pages of *runs* are known to be in memory and have room there. It takes one system call a run."""
    for first, end in runs.tolist():  # most memory is new: one call finds that out
        if files.cachestat(file.fd, _offset(file, first), (end - first) * PAGE_BYTES) != end - first:
            return False
    return files.is_tmpfs(file.fd)  # elsewhere a page may be in memory and have no room in the file


def _calls(pages: int, among: Mask | None) -> list[list[int]]:
    """What to ask the kernel about: each run by itself, or if there are many, all from the first to the last."""
    if among is None or among.all():
        return [[0, pages]]
    runs = runs_of_mask(among)
    if len(runs) * _PAGES_A_CALL <= pages:
        return list(runs.tolist())
    return [[int(runs[0, 0]), int(runs[-1, 1])]]


def _huge_mask(file: BlockFile, first_page: int, pages: int, among: Mask | None) -> Mask:
    block = file.block
    begin = first_page // block.unit_pages
    end = -(-(first_page + pages) // block.unit_pages)
    wanted = np.zeros((end - begin, block.unit_pages), dtype=np.bool_)
    before = first_page - begin * block.unit_pages
    wanted.reshape(-1)[before : before + pages] = np.ones(pages, dtype=np.bool_) if among is None else among
    asked: Mask = np.logical_or.reduce(wanted, axis=1)
    offset = file.file_offset_bytes + begin * block.page_size_bytes
    try:
        exists = files.hugetlb_pages(file.fd, offset, block.page_size_bytes, asked)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        exists = asked
    return np.repeat(exists, block.unit_pages)[before : before + pages]


def next_data(file: BlockFile, first_page: int, end_page: int) -> int | None:
    """The first of the pages that exists; None when none does. One system call, except for huge pages."""
    if first_page >= end_page:
        return None
    if file.block.unit_pages > 1:
        exists = np.flatnonzero(_huge_mask(file, first_page, end_page - first_page, None))
        return first_page + int(exists[0]) if len(exists) else None
    end = _offset(file, end_page)
    try:
        data = os.lseek(file.fd, _offset(file, first_page), os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but hole follows
            return None
        raise
    return (data - file.file_offset_bytes) // PAGE_BYTES if data < end else None


def _offset(file: BlockFile, page: int) -> int:
    return file.file_offset_bytes + page * PAGE_BYTES


def check_page_size(memory: BlockMemory) -> None:
    """Do nothing with huge pages by accident: they are re-armed, allocated and looked for in other ways.

    Raises:
        GuestRefusedError: the block does not have the pages that its file has.
    """
    block = memory.block
    page_bytes = os.fstatvfs(memory.fd).f_bsize if files.is_hugetlbfs(memory.fd) else PAGE_BYTES
    if block.page_size_bytes != page_bytes or block.size_bytes % page_bytes or memory.file_offset_bytes % page_bytes:
        raise GuestRefusedError(
            f"block {block.name!r} has {block.size_bytes} bytes in pages of {block.page_size_bytes}, from byte "
            f"{memory.file_offset_bytes} of its file on, expected pages of {page_bytes} bytes as in the file; "
            "give the block that page size, and let it begin and end on page borders"
        )
