# SPDX-License-Identifier: Apache-2.0
"""What a running engine answers when it is asked how far it is.

The field names are a contract, like those of the report: names may be added, never renamed.
"""

from __future__ import annotations

import msgspec

from parmig.engine.reporting.change import ChangeReport
from parmig.engine.reporting.report import GuestReport, Progress
from parmig.ram.blocks import PAGE_BYTES


class LimitsStatus(msgspec.Struct, kw_only=True):
    """The limits in force; 0: no limit."""

    max_bandwidth_bytes_per_s: int = 0
    downtime_limit_ms: float = 0.0
    max_downtime_ms: float = 0.0
    timeout_ms: float = 0.0
    auto_converge: bool = False


class RamStatus(msgspec.Struct, kw_only=True):
    """How RAM moves: QEMU's ``query-migrate`` has ``transferred_bytes`` as ``transferred``, ``remaining_bytes`` as
    ``remaining``, ``sent_pages`` as ``normal``, ``zero_pages`` as ``duplicate``, and the round as ``dirty-sync-count``.

    ``handled_bytes`` of ``total_bytes`` need nothing more in this round. ``rate_bytes_per_s`` is that of handling them.
    ``dirty_bytes_per_s`` is how fast the guest wrote to new pages in the last round; null before the first has ended.
    """

    total_bytes: int = 0
    handled_bytes: int = 0
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    skipped_pages: int = 0
    rate_bytes_per_s: float = 0.0
    dirty_bytes_per_s: float | None = None


class WorkerStatus(msgspec.Struct, kw_only=True):
    """What one worker sends, and has sent."""

    worker: int
    path: str = ""
    rate_bytes_per_s: float = 0.0
    wire_bytes: int = 0


class EngineStatus(msgspec.Struct, kw_only=True):
    """How far a running command is.

    ``command`` is ``send``, ``receive`` or ``save``, and ``process`` its process. ``peer`` is the other host's address,
    or the file. ``step`` says what it waits for. ``expected_downtime_ms`` is how long a pause would take now, by the
    last round. ``time_left_ms`` is how long it takes until the pause, and ``predicted_downtime_ms`` how long that is;
    both are predicted from the rounds so far. ``converges``: whether a pause is expected. ``guest_bytes_per_s`` is how
    fast the guest writes by its own count. All of these are null when unknown.
    """

    parmig: str
    name: str = ""
    command: str = ""
    process: int = 0
    guest: GuestReport = msgspec.field(default_factory=GuestReport)
    peer: str = ""
    status: str = "setup"
    step: str = ""
    round: int = 0
    total_time_ms: float = 0.0
    setup_time_ms: float | None = None
    expected_downtime_ms: float | None = None
    time_left_ms: float | None = None
    converges: bool | None = None
    predicted_downtime_ms: float | None = None
    throttle_percent: int = 0
    guest_bytes_per_s: float | None = None
    ram: RamStatus = msgspec.field(default_factory=RamStatus)
    limits: LimitsStatus = msgspec.field(default_factory=LimitsStatus)
    per_worker: list[WorkerStatus] = []
    rate_by_path_bytes_per_s: dict[str, float] = {}
    interrupted: list[str] = []
    changes: list[ChangeReport] = []


def with_progress(status: EngineStatus, progress: Progress) -> EngineStatus:
    """*status* with the figures of *progress*."""
    ram = msgspec.structs.replace(
        status.ram,
        handled_bytes=progress.handled_pages * PAGE_BYTES,
        remaining_bytes=progress.remaining_bytes,
        rate_bytes_per_s=progress.rate_bytes_per_s,
    )
    return msgspec.structs.replace(
        status,
        status=progress.status,
        round=progress.round,
        time_left_ms=progress.time_left_ms,
        converges=progress.converges,
        predicted_downtime_ms=progress.predicted_downtime_ms,
        throttle_percent=progress.throttle_percent,
        ram=ram,
        rate_by_path_bytes_per_s=progress.path_rates_bytes_per_s,
        interrupted=list(progress.interrupted),
    )


def progress_of(status: EngineStatus) -> Progress:
    """What the command itself would show as its progress."""
    return Progress(
        status=status.status,
        round=status.round,
        total_pages=status.ram.total_bytes // PAGE_BYTES,
        handled_pages=status.ram.handled_bytes // PAGE_BYTES,
        remaining_bytes=status.ram.remaining_bytes,
        rate_bytes_per_s=status.ram.rate_bytes_per_s,
        worker_rates_bytes_per_s=tuple(one.rate_bytes_per_s for one in status.per_worker),
        path_rates_bytes_per_s=status.rate_by_path_bytes_per_s,
        time_left_ms=status.time_left_ms,
        converges=status.converges,
        predicted_downtime_ms=status.predicted_downtime_ms,
        throttle_percent=status.throttle_percent,
        interrupted=tuple(status.interrupted),
    )
