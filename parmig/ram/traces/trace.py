# SPDX-License-Identifier: Apache-2.0
"""A trace in memory. It knows nothing of files and guests."""

from __future__ import annotations

import msgspec

from parmig.ram.bits import Index
from parmig.ram.blocks import PAGE_BYTES


class TraceBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A RAM block of the guest: its name, how many pages of 4 KiB it has, and the size of the pages behind it."""

    name: str
    pages: int
    page_size_bytes: int = PAGE_BYTES


class TraceSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace comes from.

    Attributes:
        kind: of the guest: ``qemu``, ``kvm``, ``synthetic``; empty: it was not recorded from a guest.
        machine: the guest's machine type.
        monitor: the guest's monitor and its version.
        tracker: which dirty log was read.
        recorded: when the recording began, in UTC: ``2026-11-30T20:15:00Z``.
        parmig: version of the recorder.
        blocks: the guest's memory; the pages are numbered over all blocks, in this order.
    """

    kind: str = ""
    machine: str = ""
    monitor: str = ""
    tracker: str = ""
    recorded: str = ""
    parmig: str = ""
    blocks: tuple[TraceBlock, ...] = ()


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Which pages were written in which interval.

    Attributes:
        interval_ns: length of each interval.
        page_size_bytes: size of the pages that the numbers count: always 4096.
        memory_pages: how many pages the guest has; page numbers are below this.
        written: for each interval, the pages that were written in it: ascending numbers, each once.
        scanned_ns: for each interval, when its scan ended, since the recording began; empty: unknown. A scan that took
            longer than an interval covers several: its pages are in the first of them, the others are empty and have
            the same instant.
        source: where the trace comes from.
        digest: of the file that it was read from; 0: of none.
    """

    interval_ns: int
    page_size_bytes: int = PAGE_BYTES
    memory_pages: int
    written: list[Index]
    scanned_ns: list[int] = []
    source: TraceSource = TraceSource()
    digest: int = 0

    @property
    def duration_ns(self) -> int:
        """Length of all intervals together."""
        return self.interval_ns * len(self.written)

    @property
    def memory_bytes(self) -> int:
        """Size of the guest's memory."""
        return self.memory_pages * self.page_size_bytes

    @property
    def late_intervals(self) -> int:
        """How many intervals have no pages of their own, because a scan took too long."""
        return sum(now == before for before, now in zip(self.scanned_ns, self.scanned_ns[1:], strict=False))
