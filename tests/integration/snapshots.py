# SPDX-License-Identifier: Apache-2.0
"""Snapshots for tests: a saver in a thread, and what must be true of guests and files afterwards."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from parmig.engine.reporting.report import Progress, Report
from parmig.guests.guest import Guest
from parmig.ram.blocks import PAGE_BYTES
from parmig.snapshot.restorer import SnapshotRestorer
from parmig.snapshot.saver import SnapshotSaver
from parmig.snapshot.snapshot_config import RestoreConfig, SaveConfig
from tests.integration.sides import LIMIT_S, Discard, HeldGuest, allocated_bytes, until

FORMATS = ("mapped-ram", "stream")


def save(guest: Guest, path: Path, **options: Any) -> Report:
    """Save *guest*, with these fields of SaveConfig."""
    return SnapshotSaver(guest, path, SaveConfig(**({"workers": 2} | options))).start()


def restore(guest: Guest, path: Path, **options: Any) -> Report:
    """Restore *guest*, with these fields of RestoreConfig."""
    return SnapshotRestorer(guest, path, RestoreConfig(**({"workers": 2} | options))).start()


class Saving:
    """A saver in a thread; a context manager that ends it."""

    def __init__(self, guest: HeldGuest, path: Path, **options: Any) -> None:
        self.guest = guest
        self.seen: list[Progress] = []
        self.saver = SnapshotSaver(
            guest, path, SaveConfig(**({"workers": 2} | options)), progress=lambda progress: self.seen.append(progress)
        )
        self._reports: list[Report] = []
        self._thread = threading.Thread(target=lambda: self._reports.append(self.saver.start()))

    def __enter__(self) -> Saving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.open_gates()
        self.saver.cancel()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the saver did not end"

    def at_round(self, number: int) -> None:
        """Wait until that round has written something, while the guest runs."""

        def there() -> bool:
            assert not self._reports, self._reports
            last = self.seen[-1] if self.seen else None
            return last is not None and last.status == "active" and last.round >= number and last.handled_pages > 0

        until(there, f"round {number}")

    def report(self) -> Report:
        """Its report."""
        return until(lambda: self._reports and self._reports[0], "the saver's end")


def goes_on(guest: HeldGuest) -> None:
    """It runs, and its memory is what its program left there. Pauses it."""
    assert guest.is_running()
    before = guest.stats().counter
    until(lambda: guest.stats().counter > before + 3, "the guest's next ticks")
    guest.pause(Discard())
    guest.check()


def untouched(guest: HeldGuest) -> None:
    """An incoming guest that still waits, without a page of memory."""
    assert not guest.is_running()
    assert allocated_bytes(guest) == 0


def memory_of(guest: Guest) -> list[np.ndarray]:
    """All of each block, read without allocating anything; shape (pages, 4096)."""
    return [
        np.frombuffer(os.pread(one.fd, one.block.size_bytes, one.file_offset_bytes), np.uint8).reshape(-1, PAGE_BYTES)
        for one in guest.memory()
    ]


def refused(report: Report, *words: str) -> None:
    """Restoring was refused for a reason that has these words."""
    assert report.error is not None
    assert (report.status, report.error.type, report.exit_code) == ("failed", "SnapshotRefusedError", 3), report.error
    for word in words:
        assert word in report.error.message
