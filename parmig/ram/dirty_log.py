# SPDX-License-Identifier: Apache-2.0
"""The description of a guest's dirty log for the workers."""

from __future__ import annotations

import msgspec

from parmig.ram.blocks import Segment

__all__ = ["SETTLED_BY_STOP", "DirtyLog", "Segment"]

SETTLED_BY_STOP = "stop"
"""Value of :attr:`DirtyLog.settle` for a guest that stops for a moment to settle."""


class DirtyLog(msgspec.Struct, frozen=True):
    """How workers read the dirty log that a guest started. Serialised to the workers.

    Attributes:
        kind: ``pagemap``, ``bitmap`` or ``digest``: the name of the tracker that reads it; ``none``: nothing is copied.
        pid: (pagemap) the process whose page tables are the log.
        segments: (pagemap) for each block, in the order of ``memory()``, where that process maps it.
        reason: why this kind was chosen, for the report.
        rearm: (bitmap) name of the socket at which the log's owner re-arms a slice (``ram.rearm``); empty: what is
            added to the bitmap is already re-armed.
        settle: how the guest settles (``Guest.settle``) between the scan and the read of each round, for the report;
            empty: the log misses no write, so nothing has to settle.
    """

    kind: str
    pid: int = 0
    segments: tuple[tuple[Segment, ...], ...] = ()
    reason: str = ""
    rearm: str = ""
    settle: str = ""
