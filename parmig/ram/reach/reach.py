# SPDX-License-Identifier: Apache-2.0
"""What the page path asks of the memory of a block, wherever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from parmig.ram.bits import Bits, Index, Mask, Runs
from parmig.ram.blocks import Pages, RamBlock


class Reach(ABC):
    """The memory of one block, for one worker.

    Pages are numbered from the block's first. *index* is page numbers, ascending; *runs* are first and past-the-last
    page numbers, shape (runs, 2), ascending.

    A page **exists** when memory or swap holds it. Other pages read as zero and are never read here, so that
    looking at a guest allocates nothing.

    Attributes:
        block: which block.
        reads_to_look: whether :meth:`zero_mask` copies the pages, so that :meth:`exchange` should follow at once.
    """

    block: RamBlock
    reads_to_look = False

    # -- which pages exist ----------------------------------------------------------------------

    @abstractmethod
    def allocated(self, first_page: int, pages: int, among: Mask | None = None, *, tables: Mask | None = None) -> Mask:
        """Which of the pages ``[first_page, first_page + pages)`` exist. The caller may change the mask.

        Entries may be set for pages that do not exist, but are never missing for pages that do. Under write tracking,
        the owner's page tables hold a marker for each page that does not exist, which looks like a page in swap.

        Args:
            among: the entries that matter; the others need not be right. None: all.
            tables: if known, the pages that the page tables of the owner had before they were armed.
        """

    @abstractmethod
    def next_data(self, first_page: int, end_page: int) -> int | None:
        """The first of the pages ``[first_page, end_page)`` that exists; None: none of them does."""

    def has_data(self, first_page: int, pages: int) -> bool:
        """Whether any page of the range exists."""
        return self.next_data(first_page, first_page + pages) is not None

    # -- reading --------------------------------------------------------------------------------

    def views(self, runs: Runs) -> list[memoryview] | None:
        """The pages of *runs* where they are: one view for each run, valid until close(). None: they must be read."""
        return None

    @abstractmethod
    def read(self, index: Index, target: Pages) -> None:
        """Copy the pages *index*, which exist, to *target*, shape (pages, 4096).

        They are as they are now, or as they were when the last :meth:`zero_mask` looked at them.

        Raises:
            GuestError: the process that has them is gone.
        """

    def exchange(self, index: Index, buffer: Pages) -> Pages:
        """As :meth:`read`, into memory that belongs to the caller: *buffer*, or as much memory in exchange for it.

        Returns:
            memory of the shape of *buffer* or longer; the pages *index* are its first. If it is not *buffer*, that
            belongs to this object now.

        Raises:
            GuestError: the process that has them is gone.
        """
        self.read(index, buffer[: len(index)])
        return buffer

    @abstractmethod
    def look(self, index: Index) -> Pages:
        """The pages *index* as they are now, to be looked at once: a view of them or a copy."""

    @abstractmethod
    def zero_mask(self, index: Index) -> Mask:
        """Which of the pages *index*, which exist, hold only zero bytes."""

    @abstractmethod
    def read_span(self, first_page: int, target: memoryview, *, sent: Mask | None = None) -> None:
        """Copy whole pages from *first_page* on to *target*; those that do not exist are zero there.

        Args:
            sent: (under write tracking, when all was sent) which of the pages were sent as data. A page that seems to
                be in swap is read only then: else it is a marker, and reading it could allocate it.
        """

    # -- writing --------------------------------------------------------------------------------

    def targets(self, runs: Runs, *, exist: bool) -> list[memoryview]:
        """Where the pages of *runs* can be stored directly: one piece for each run. Huge pages are allocated for it.

        Empty: they cannot; use :meth:`write` or :meth:`write_run`.

        Args:
            exist: whether all of them are known to exist.

        Raises:
            MemoryFullError: as :meth:`write`.
        """
        return []

    @abstractmethod
    def write(self, runs: Runs, pages: memoryview, existing: Bits) -> None:
        """Write *pages*, which follow one another, to *runs*.

        Args:
            existing: which pages of the block are known to exist, one bit a page.

        Raises:
            MemoryFullError: no memory is left for a page that did not exist.
        """

    @abstractmethod
    def write_run(self, first_page: int, pages: memoryview) -> None:
        """Write *pages* from page *first_page* on, whether they exist or not. It is for long runs.

        Raises:
            MemoryFullError: as :meth:`write`.
        """

    @abstractmethod
    def clear(self, index: Index) -> Index:
        """Make the pages *index*, all of which exist, zero. Returns those that do not exist any more."""

    def provide(self, runs: Runs) -> bool:
        """Make transparent huge pages where most of one will be written by *runs*, if the host gives them.

        Returns:
            whether all pages of *runs* exist now. If not, nothing is known of any of them.
        """
        return False

    @property
    def huge_bytes(self) -> int:
        """How much memory was provided in huge pages, of hugetlbfs or transparent ones, for what was written here."""
        return 0

    def drop_tables(self) -> None:
        """Give back the page tables with which this process maps the block, if it maps it. The pages stay.

        Views stay valid: a page is mapped again when it is used.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Release everything. Views that were handed out must be gone."""
