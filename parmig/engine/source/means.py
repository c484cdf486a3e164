# SPDX-License-Identifier: Apache-2.0
"""What a running source is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from parmig.engine.custody.custody import Custody
from parmig.engine.guest_thread import GuestThread
from parmig.engine.hooks import Hooks
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting.report import Progress, Report
from parmig.engine.steering.desk import Desk
from parmig.guests.guest import Guest, StateSink


class CountingSink(StateSink, Protocol):
    """Where device state goes, and what went there so far."""

    size_bytes: int

    @property
    def digest(self) -> str:
        """xxh3-128 of everything written so far."""

    def abort(self) -> None:
        """Make a waiting write fail."""


@dataclass(frozen=True)
class Means:
    """What a source has from the beginning, before it knows what its guest is.

    Attributes:
        tracker: kind of dirty log to ask the guest for.
        report: to be filled in.
        show: shows progress; it may raise.
        hooks: programs of the user.
        desk: where others ask how far it is, and leave their wishes.
        paths: the path of each worker; empty where there are none.
        cpus: the processors that each worker is kept to; filled when the workers are started.
    """

    guest: Guest
    thread: GuestThread
    custody: Custody
    pool: WorkerPool
    tracker: str
    report: Report
    show: Callable[[Progress], None]
    desk: Desk
    hooks: Hooks
    paths: Sequence[str] = ()
    cpus: Sequence[Sequence[int]] = ()
