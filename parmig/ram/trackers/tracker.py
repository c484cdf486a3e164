# SPDX-License-Identifier: Apache-2.0
"""The interface of dirty trackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from parmig.ram.bits import Index, Mask
from parmig.ram.blocks import Pages
from parmig.ram.regions import Region


class Scan(NamedTuple):
    """The result of scanning a span; both masks count from the span's first page.

    Attributes:
        dirty: pages written since they were last armed.
        unmapped: pages of which the tracker does not know whether they still exist: a hole punched
            there is not in *dirty*. The caller finds that out from :meth:`.Reach.allocated`.
    """

    dirty: Mask
    unmapped: Mask


class DirtyTracker(ABC):
    """Reads the slices of one worker from a dirty log that the guest started.

    The order is: arm, then read pages; later scan, which re-arms, then read pages. The next scan therefore reports a
    write that happens while pages are read. Exactly one worker scans a page in a round, because scanning consumes.
    """

    name: str
    """What ``--tracker`` and the report call it."""

    reads_page_tables = False
    """Whether the log is the page tables of the guest's process, so that :meth:`arm` sees which pages they have."""

    needs_copy = False
    """Whether pages must be copied before they are sent, because :meth:`sent` looks at the copy."""

    @abstractmethod
    def arm(self, span: Region) -> Mask | None:
        """Begin: forget all earlier writes, and record writes to *span* from now on.

        Returns:
            (``reads_page_tables``) the pages of *span* that the page tables of the guest's process had until then;
            else None.
        """

    @abstractmethod
    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        """The pages written since the last arm or scan, which are re-armed in the same step.

        Args:
            holes: also report unmapped pages that are not dirty; a tracker may do so anyway.

        Returns:
            None when nothing was written and nothing is unmapped.
        """

    @abstractmethod
    def count(self, span: Region) -> int:
        """How many pages a scan would report as dirty, without consuming them.

        A tracker for which counting costs as much as scanning may return the number that its last scan found.
        """

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        """Pages *index* of *block* were sent as *copies*, or as zero pages when that is None."""

    def close(self) -> None:
        """Release what the tracker holds. The log itself belongs to the guest."""
