# SPDX-License-Identifier: Apache-2.0
"""The dirty log in the guest's process: a userfaultfd of its own, or a bitmap that it updates on request."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from parmig.config import TRACKERS
from parmig.errors import HostRefusedError
from parmig.guests.guest import DirtyLog, Segment
from parmig.guests.spawned.log_choice import AUTO, wanted_log
from parmig.guests.spawned.write_tracking import track_own_writes
from parmig.guests.synthetic.ledger import Marker, PageNumbers
from parmig.linux import uffd
from parmig.ram.bits import Bits, bits_for
from parmig.ram.reach.mapped import BlockMapping


def choose_log(kind: str, preferred: str) -> tuple[str, str]:
    """The dirty log to start, and why, if the engine asks for *kind* and the guest's options for *preferred*.

    Raises:
        HostRefusedError: ``pagemap`` on a host that cannot track writes.
        GuestRefusedError: there is no such log.
    """
    kind, reason = wanted_log("a synthetic guest", kind, preferred, TRACKERS)
    if kind not in (AUTO, "pagemap"):
        return kind, reason
    missing = uffd.probe_write_tracking()
    if kind == AUTO:
        return ("bitmap", missing) if missing else ("pagemap", "the kernel tracks the guest's writes")
    if missing:
        raise HostRefusedError(f"dirty log pagemap cannot be used: {missing}; choose bitmap")
    return kind, reason


class DirtyRecorder:
    """Records writes to the blocks while a log is on.

    Args:
        mappings: the blocks, in the order of the log; not owned.
        bitmap_fd: the shared bitmap; not owned.
    """

    def __init__(self, mappings: Sequence[BlockMapping], bitmap_fd: int) -> None:
        self._mappings = mappings
        borders = np.cumsum([0, *(bits_for(mapping.block.pages) for mapping in mappings)])
        self._starts = borders * 8
        self._shared: Bits = np.frombuffer(mmap.mmap(bitmap_fd, int(borders[-1])), np.uint8)
        self._written: npt.NDArray[np.bool_] | None = None
        self._uffd: int | None = None

    def marker(self, index: int) -> Marker:
        """The function that marks pages of block *index* as written."""
        start = int(self._starts[index])

        def mark(pages: PageNumbers | slice) -> None:
            if self._written is not None:
                where = slice(start + pages.start, start + pages.stop) if isinstance(pages, slice) else pages + start
                self._written[where] = True

        return mark

    def start(self, kind: str, preferred: str) -> DirtyLog:
        """Begin with nothing recorded. A log that is on ends first.

        Args:
            kind: what the engine asks for.
            preferred: what ``auto`` stands for.

        Raises:
            HostRefusedError: the kernel does not let this process track its writes.
            GuestRefusedError: there is no such log.
        """
        kind, reason = choose_log(kind, preferred)
        self.stop()
        if kind == "pagemap":
            return DirtyLog(kind, os.getpid(), self._start_pagemap(), reason)
        if kind == "bitmap":
            self._shared[:] = 0
            self._written = np.zeros(int(self._starts[-1]), dtype=np.bool_)
        return DirtyLog(kind, reason=reason)

    def sync(self) -> None:
        """Add what was written since the last call to the shared bitmap."""
        if self._written is not None:
            self._shared |= np.packbits(self._written, bitorder="little")
            self._written[:] = False

    def stop(self) -> None:
        """End the log and leave nothing registered."""
        self._written = None
        if self._uffd is not None:
            os.close(self._uffd)  # the kernel then drops all registrations and all protection
            self._uffd = None

    def _start_pagemap(self) -> tuple[tuple[Segment, ...], ...]:
        self._uffd = track_own_writes(
            (mapping.pages.ctypes.data, mapping.block.size_bytes) for mapping in self._mappings
        )
        return tuple((Segment(0, item.block.pages, item.pages.ctypes.data),) for item in self._mappings)
