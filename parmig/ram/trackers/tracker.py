# SPDX-License-Identifier: Apache-2.0
"""What a dirty tracker promises to the worker that reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from parmig.ram.bits import Index, Mask
from parmig.ram.blocks import Pages
from parmig.ram.regions import Region


class Scan(NamedTuple):
    """What a scan of a span found; both masks count from the span's first page.

    Attributes:
        dirty: pages written since they were last armed.
        unmapped: pages of which the tracker does not know whether they still exist: a hole punched
            there is not in *dirty*. The caller asks the memory file.
    """

    dirty: Mask
    unmapped: Mask


class DirtyTracker(ABC):
    """Reads the slices of one worker from a dirty log that the guest started.

    The order is arm, then read pages; later scan with ``rearm``, then read pages. A write that
    happens while pages are read is therefore reported by the next scan. Exactly one worker scans a
    page in a round: scanning consumes.
    """

    name: str
    """What ``--tracker`` and the report call it."""

    reads_page_tables = False
    """Whether the log is the page tables of the guest's process, so that :meth:`arm` sees which pages they have."""

    needs_copy = False
    """Whether pages must be copied before they are sent, because :meth:`sent` looks at the copy."""

    @abstractmethod
    def arm(self, span: Region) -> Mask | None:
        """Begin: forget what was written so far; from now on writes to *span* are recorded.

        Returns:
            (``reads_page_tables``) the pages of *span* that the page tables of the guest's process had until then;
            else None.
        """

    @abstractmethod
    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        """What was written since the last arm or scan, re-armed in the same step.

        Args:
            holes: also report unmapped pages that are not dirty; a tracker may do so anyway.

        Returns:
            None when nothing was written and nothing is unmapped.
        """

    @abstractmethod
    def count(self, span: Region) -> int:
        """How many pages a scan would report as dirty, without consuming them.

        A tracker for which looking costs as much as scanning may repeat what its last scan found.
        """

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        """Pages *index* of *block* were sent as *copies*, or as zero pages when that is None."""

    def close(self) -> None:
        """Give back what the tracker holds. The log itself belongs to the guest."""
