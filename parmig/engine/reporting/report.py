# SPDX-License-Identifier: Apache-2.0
"""The report of a migration, which ``--json`` prints, and the progress that is shown while it runs.

The field names are a contract: names may be added, never renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from parmig.engine.reporting.change import ChangeReport
from parmig.engine.reporting.encryption_report import EncryptionReport
from parmig.engine.reporting.guest_speed import GuestSpeedReport
from parmig.engine.reporting.mismatch import Mismatch
from parmig.errors import ParmigError, by_name

if TYPE_CHECKING:
    from parmig.ram.blocks import RamBlock


class ErrorReport(msgspec.Struct, kw_only=True):
    """Why it did not complete: the error class, its words, and the phase it happened in."""

    type: str
    message: str
    phase: str | None = None


class GuestReport(msgspec.Struct, kw_only=True):
    """Which guest it was."""

    kind: str = ""
    memory_bytes: int = 0
    page_size_bytes: int = 4096
    machine: str = ""
    monitor: str = ""


class DowntimePhases(msgspec.Struct, kw_only=True):
    """Where the downtime went, in milliseconds; the phases add up to it.

    The device state is saved beside ``final_scan`` and ``final_pages``; ``state_save`` is only the time by which saving
    outlasted both. ``post_save_scan`` is the dirty scan after that; ``verify`` is 0 but for a comparison in the pause,
    and ``hook`` but for a program of ``--before-hand-over``.
    """

    pause: float = 0.0
    final_scan: float = 0.0
    final_pages: float = 0.0
    state_save: float = 0.0
    post_save_scan: float = 0.0
    verify: float = 0.0
    state_transfer: float = 0.0
    state_load: float = 0.0
    hook: float = 0.0
    resume: float = 0.0


class RoundReport(msgspec.Struct, kw_only=True):
    """One pass over all regions, ``began_ms`` after the start of the migration.

    ``scan_ms`` is the slowest worker's time in the dirty log, and ``settle_ms`` the time between scan and read in which
    device writes that had begun were waited for. ``throttle_percent``: as long the guest was kept from running.
    """

    round: int
    began_ms: float = 0.0
    dirty_pages: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    skipped_pages: int = 0
    wire_bytes: int = 0
    scan_ms: float = 0.0
    settle_ms: float = 0.0
    duration_ms: float = 0.0
    paused: bool = False
    throttle_percent: int = 0


class RamReport(msgspec.Struct, kw_only=True):
    """All RAM: pages sent as data, sent as zero pages, and never allocated.

    ``direct`` (source): pages were copied from memory to memory, and ``wire_bytes`` did not go through a socket.
    ``in_place_blocks`` were not copied: the destination maps the memory files of the source.
    ``huge_page_bytes`` (destination): memory that parmig provided in huge pages for what it placed.
    """

    total_bytes: int = 0
    wire_bytes: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    skipped_pages: int = 0
    huge_page_bytes: int = 0
    direct: bool = False
    in_place_bytes: int = 0
    in_place_blocks: list[str] = []

    def note_in_place(self, blocks: Sequence[RamBlock]) -> None:
        """Add blocks that were not copied."""
        self.in_place_bytes = sum(block.size_bytes for block in blocks)
        self.in_place_blocks = [block.name for block in blocks]
        self.total_bytes += self.in_place_bytes


class WorkerReport(msgspec.Struct, kw_only=True):
    """What one send worker did. It was kept to the processors ``cpus``; empty: to none.

    ``node`` is the NUMA node of these processors, and ``near_percent`` the part of its memory that is there.
    Null and 0 where workers are not kept to nodes.
    """

    worker: int
    path: str = ""
    cpus: list[int] = []
    sent_pages: int = 0
    wire_bytes: int = 0
    busy_ms: float = 0.0
    waiting_ms: float = 0.0
    stolen_regions: int = 0
    node: int | None = None
    near_percent: float = 0.0


class PathReport(msgspec.Struct, kw_only=True):
    """What the workers of one path sent together, over all rounds; ``rate_mib_per_s`` is that of the rounds."""

    path: str
    workers: int = 0
    wire_bytes: int = 0
    rate_mib_per_s: float = 0.0


class OutageReport(msgspec.Struct, kw_only=True):
    """A time in which a channel had no connection.

    ``channel`` is ``worker 0``, ``control`` or ``state``. ``began_ms`` counts from the start of the migration. If the
    outage has ``ended``, the new connection came by ``route``, and ``again_bytes`` were sent again over it.
    """

    channel: str
    began_ms: float = 0.0
    lasted_ms: float = 0.0
    ended: bool = True
    reason: str = ""
    route: str = ""
    again_bytes: int = 0


class RestartReport(msgspec.Struct, kw_only=True):
    """The destination's receiver was killed, and started again.

    ``lasted_ms`` is the time without it. ``check_ms`` is how long both memories were compared. Of the pages with data,
    the digests showed that the destination holds ``proven_pages``; ``again_pages`` differed, and were sent (again).
    """

    began_ms: float = 0.0
    lasted_ms: float = 0.0
    check_ms: float = 0.0
    proven_pages: int = 0
    again_pages: int = 0


class CodecReport(msgspec.Struct, kw_only=True):
    """What one codec did. ``none`` has the batches that went as they are.

    ``raw_bytes`` less ``encoded_bytes`` is what it saved. ``busy_ms`` is what it cost: the processor time of all
    workers for encoding (source) or decoding (destination), with samples and batches that did not become shorter.
    """

    codec: str
    batches: int = 0
    raw_bytes: int = 0
    encoded_bytes: int = 0
    busy_ms: float = 0.0


class DigestReport(msgspec.Struct, kw_only=True):
    """Digest of all RAM of either side, made in the same way on both; null when not asked."""

    source: str | None = None
    destination: str | None = None


class SnapshotReport(msgspec.Struct, kw_only=True):
    """(save, restore) The file, and what was done besides carrying pages.

    ``digest`` is of all of the file but its trailer; null: it has none, QEMU wrote it.
    """

    file: str = ""
    format: str = ""
    file_bytes: int = 0
    digest: str | None = None
    compose_ms: float = 0.0
    digest_ms: float = 0.0
    sync_ms: float = 0.0
    place_ms: float = 0.0
    load_ms: float = 0.0
    notes: list[str] = []


class Report(msgspec.Struct, kw_only=True):
    """The whole report; ``side`` says who wrote it (``source`` or ``destination``).

    ``insecure``: the guest travelled between hosts without encryption.
    ``source_guest`` is what became of the guest there: ``running``, ``paused``, ``moved`` or ``unknown``.
    """

    parmig: str
    side: str
    status: str = "none"
    error: ErrorReport | None = None
    source_guest: str | None = None
    guest: GuestReport = msgspec.field(default_factory=GuestReport)
    transport: str = ""
    encryption: EncryptionReport | None = None
    insecure: bool = False
    workers: int = 0
    paths: list[str] = []
    tracker: str = ""
    tracker_reason: str = ""
    settle: str = ""
    compression: str = ""
    total_time_ms: float = 0.0
    setup_time_ms: float = 0.0
    downtime_ms: float | None = None
    downtime_without_verify_ms: float | None = None
    downtime_phases_ms: DowntimePhases = msgspec.field(default_factory=DowntimePhases)
    throughput_mib_per_s: float = 0.0
    state_bytes: int = 0
    state_save_ms: float | None = None
    rounds: list[RoundReport] = []
    max_throttle_percent: int = 0
    ram: RamReport = msgspec.field(default_factory=RamReport)
    per_worker: list[WorkerReport] = []
    per_path: list[PathReport] = []
    outages: list[OutageReport] = []
    changes: list[ChangeReport] = []
    restarts: list[RestartReport] = []
    codecs: list[CodecReport] = []
    verified: bool | None = None
    verify_ms: float | None = None
    digest: DigestReport = msgspec.field(default_factory=DigestReport)
    guest_speed: GuestSpeedReport | None = None
    snapshot: SnapshotReport | None = None
    mismatches: list[Mismatch] = []

    @property
    def exit_code(self) -> int:
        """What the command line ends with: 0, or the exit code of the error's class."""
        return 0 if self.error is None else by_name(self.error.type).exit_code

    def raise_for_status(self) -> None:
        """Raise the error that the report holds, if any, as the class it names."""
        if self.error is not None:
            error: ParmigError = by_name(self.error.type)(self.error.message)
            error.phase = self.error.phase
            raise error


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a running migration; handed to the progress callback several times a second.

    Attributes:
        status: name of the migration status (``setup``, ``active``, ``pre-switchover``, ...).
        round: number of the round under way; 0 before the first.
        total_pages: pages the round set out to handle (an estimate from round 2 on).
        handled_pages: pages of it that were handled so far.
        remaining_bytes: guest bytes known to be still dirty or unsent.
        rate_bytes_per_s: guest bytes handled per second of late.
        worker_rates_bytes_per_s: wire bytes per second of each worker.
        path_rates_bytes_per_s: the same by path, if there are several.
        time_left_ms: until the pause, predicted; in round 1 until its end. None when unknown.
        converges: whether the guest is expected to be paused; None when unknown.
        predicted_downtime_ms: how long the pages of the pause are expected to take then; None when unknown.
        throttle_percent: how far the guest is slowed down.
        interrupted: channels that have no connection now, and connect again.
        insecure: as in the report.
        message: a line for a log; empty when only the numbers changed.
    """

    status: str
    round: int = 0
    total_pages: int = 0
    handled_pages: int = 0
    remaining_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    worker_rates_bytes_per_s: tuple[float, ...] = ()
    path_rates_bytes_per_s: dict[str, float] = {}
    time_left_ms: float | None = None
    converges: bool | None = None
    predicted_downtime_ms: float | None = None
    throttle_percent: int = 0
    interrupted: tuple[str, ...] = ()
    insecure: bool = False
    message: str = ""
