# SPDX-License-Identifier: Apache-2.0
"""Starts a guest from a file: checks everything before it touches the guest, places pages, then loads the state."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from parmig import logs
from parmig.config import SNAPSHOT_PROGRAMS
from parmig.engine.guest_thread import GuestThread
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.report import GuestReport, Progress, RamReport, Report, SnapshotReport, WorkerReport
from parmig.errors import CancelledError, ParmigError, SnapshotError, SnapshotRefusedError, StreamError
from parmig.guests.guest import Guest
from parmig.processes import warm_up
from parmig.ram.bits import Bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, page_size_of_memory
from parmig.snapshot.fit import mismatches
from parmig.snapshot.images import BlockImages
from parmig.snapshot.opened import OpenSnapshot
from parmig.snapshot.readers import Readers
from parmig.snapshot.replay import give_state
from parmig.snapshot.snapshot_config import RestoreConfig
from parmig.units import MIB, NS_PER_MS
from parmig.version import __version__


class SnapshotRestorer:
    """Starts *guest* from a file that parmig or QEMU wrote.

    Args:
        guest: opened by the caller with ``incoming=True``; the caller also closes it.
        path: of the file.
        config: how to restore.
        progress: called now and then, in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, path: Path, config: RestoreConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._guest = guest
        self._path = path
        self._config = config
        self._progress = progress
        self._thread = GuestThread()
        self._cancelled = False
        self._touched = False
        self._status = "setup"
        self._readers: Readers | None = None
        self._snapshot_report = SnapshotReport(file=str(path))
        self._report = Report(
            parmig=__version__,
            side="destination",
            transport="file",
            workers=config.workers,
            snapshot=self._snapshot_report,
        )

    def start(self) -> Report:
        """Restore the guest. Returns the report, whatever the outcome; after a failure it never runs."""
        logs.begin_side("destination")
        began_ns = time.monotonic_ns()
        error: ParmigError | None = None
        loaded = False
        try:
            with ExitStack() as stack:
                self._restore(stack)
            loaded = True
        except ParmigError as caught:
            error = caught
        finally:
            self._tear_down(loaded=loaded)
        self._report.total_time_ms = _ms_since(began_ns)
        phase, self._status = self._status, "completed"
        if error is not None:
            self._status = "cancelled" if isinstance(error, CancelledError) else "failed"
            self._report.error = error_reports.describe_error(error, error.phase or phase)
        self._report.status = self._status
        self._tell()
        return self._report

    def cancel(self) -> None:
        """Give up. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    # -- the steps ------------------------------------------------------------------------------

    def _restore(self, stack: ExitStack) -> None:
        began_ns = time.monotonic_ns()
        self._config.check()
        warm_up(SNAPSHOT_PROGRAMS[1])
        self._tell(f"restoring from {self._path}")
        snapshot = stack.enter_context(OpenSnapshot(self._path))
        self._describe(snapshot)
        memory, images = self._match(snapshot, stack)
        self._readers = readers = stack.enter_context(
            Readers(
                snapshot,
                memory,
                self._config.workers,
                watch_fd=self._guest.watch_fd(),
                wake_fd=self._thread.wake_fd,
                turn=self._turn,
            )
        )
        readers.start()
        self._report.setup_time_ms = _ms_since(began_ns)
        self._check_content(snapshot, readers)
        self._check_cancelled()
        self._touched = True
        self._status = "active"
        self._thread.call(self._guest.prepare_restore)
        self._place(snapshot, readers)
        first = len(memory) - len(images.memory)
        self._load(snapshot, images, [readers.existing(number) for number in range(first, len(memory))])
        self._check_cancelled()
        if not self._config.paused and (snapshot.trailer is None or snapshot.trailer.running):
            self._thread.call(self._guest.resume)

    def _describe(self, snapshot: OpenSnapshot) -> None:
        self._snapshot_report.format = "mapped-ram" if snapshot.head.mapped_ram else "stream"
        self._snapshot_report.file_bytes = snapshot.file_bytes
        self._report.guest = GuestReport(
            kind=snapshot.kind,
            machine=snapshot.head.configuration.machine,
            memory_bytes=sum(block.size_bytes for block in snapshot.blocks),
        )
        if snapshot.trailer is None:
            self._snapshot_report.notes.append("QEMU wrote this file: it has no digest to check its content by")

    def _match(self, snapshot: OpenSnapshot, stack: ExitStack) -> tuple[list[BlockMemory], BlockImages]:
        """Where the pages of all blocks go: the guest's memory, and images for blocks that travel in its state.

        Raises:
            SnapshotRefusedError: the guest does not match; every mismatch is named.
        """
        info = self._thread.call(self._guest.info)
        memory = {part.block.name: part for part in self._thread.call(self._guest.memory)}
        state_blocks = self._thread.call(self._guest.state_blocks)
        self._report.guest.monitor = info.monitor
        self._report.guest.page_size_bytes = page_size_of_memory(part.block for part in memory.values())
        machine, blocks = snapshot.head.configuration.machine, [part.block for part in memory.values()]
        differences = mismatches(snapshot.kind, machine, snapshot.blocks, info, blocks, state_blocks)
        if differences:
            raise SnapshotRefusedError(f"{self._path} is of another guest: {'; '.join(differences)}")
        images = stack.enter_context(BlockImages([block for block in snapshot.blocks if block.name not in memory]))
        return [*memory.values(), *images.memory], images

    def _check_content(self, snapshot: OpenSnapshot, readers: Readers) -> None:
        """Check the content of the file as far as possible, without touching the guest.

        Raises:
            SnapshotRefusedError: the content is damaged.
        """
        began_ns = time.monotonic_ns()
        if snapshot.trailer is not None:
            digest = readers.digest()
            self._snapshot_report.digest_ms = _ms_since(began_ns)
            self._snapshot_report.digest = snapshot.trailer.digest
            self._report.verified = digest == snapshot.trailer.digest
            if not self._report.verified:
                raise SnapshotRefusedError(
                    f"{self._path} is damaged: its digest is {digest}, expected {snapshot.trailer.digest}; "
                    "use another copy of it"
                )
        elif not snapshot.head.mapped_ram:
            self._read_sequential(snapshot, readers, check_only=True)

    def _read_sequential(self, snapshot: OpenSnapshot, readers: Readers, *, check_only: bool) -> None:
        try:
            snapshot.note_devices(readers.place_sequential(check_only=check_only))
        except StreamError as error:
            kind = SnapshotRefusedError if check_only else SnapshotError
            raise kind(f"{self._path} is damaged: {error}") from error

    def _place(self, snapshot: OpenSnapshot, readers: Readers) -> None:
        began_ns = time.monotonic_ns()
        if snapshot.head.mapped_ram:
            readers.place_mapped()
        else:
            self._read_sequential(snapshot, readers, check_only=False)
        self._snapshot_report.place_ms = _ms_since(began_ns)
        total_bytes = self._report.guest.memory_bytes
        self._report.throughput_mib_per_s = total_bytes / MIB / (self._snapshot_report.place_ms / 1000)
        self._report.ram = RamReport(
            total_bytes=total_bytes,
            wire_bytes=sum(counters.wire_bytes for counters in readers.counters),
            sent_pages=sum(counters.sent_pages for counters in readers.counters),
            zero_pages=sum(counters.zero_pages for counters in readers.counters),
            huge_page_bytes=sum(counters.huge_bytes for counters in readers.counters),
        )
        self._report.per_worker = [
            WorkerReport(
                worker=worker, path=str(self._path), sent_pages=counters.sent_pages, wire_bytes=counters.wire_bytes
            )
            for worker, counters in enumerate(readers.counters)
        ]

    def _load(self, snapshot: OpenSnapshot, images: BlockImages, existing: list[Bits]) -> None:
        self._status = "device"
        self._tell()
        began_ns = time.monotonic_ns()
        self._report.state_bytes = self._thread.call(give_state, self._guest, snapshot, images, existing)
        self._thread.call(self._guest.finish_load)
        self._snapshot_report.load_ms = _ms_since(began_ns)

    # -- meanwhile ------------------------------------------------------------------------------

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; the guest was not started")

    def _turn(self) -> None:
        """Called several times a second during a wait for the workers."""
        self._thread.finished()
        self._check_cancelled()
        self._tell()

    def _tell(self, message: str = "") -> None:
        if self._progress is not None:
            total_pages = self._report.guest.memory_bytes // PAGE_BYTES
            handled_pages = 0 if self._readers is None else min(self._readers.handled_pages, total_pages)
            progress = Progress(
                status=self._status, total_pages=total_pages, handled_pages=handled_pages, message=message
            )
            self._progress(progress)

    # -- the end --------------------------------------------------------------------------------

    def _tear_down(self, *, loaded: bool) -> None:
        """End: discard a guest that was touched but not loaded, so that it never runs."""
        self._readers = None
        if self._touched and not loaded:
            try:
                self._thread.call(self._guest.discard)
            except ParmigError as error:
                self._snapshot_report.notes.append(f"while ending: {error}")
        self._thread.close()


def _ms_since(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / NS_PER_MS
