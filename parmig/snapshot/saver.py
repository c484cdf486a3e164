# SPDX-License-Identifier: Apache-2.0
"""Saves a running guest to a file: rounds, a short pause, and the rest of the file while the guest runs again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from parmig.config import DEFAULT_BATCH_BYTES, SNAPSHOT_PROGRAMS, SaveConfig
from parmig.engine import events
from parmig.engine.events import Do, Event
from parmig.engine.guest_thread import GuestThread
from parmig.engine.policy import Limits
from parmig.engine.pool import WorkerPool
from parmig.engine.progress import ProgressMeter
from parmig.engine.report import Progress, Report, SnapshotReport
from parmig.engine.source import SourceSide
from parmig.guests.guest import Guest
from parmig.processes import warm_up
from parmig.ram.blocks import BlockMemory
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea
from parmig.snapshot.compose import SnapshotWriter
from parmig.snapshot.file_digest import digest_pieces
from parmig.snapshot.pending_file import PendingFile
from parmig.snapshot.plan import SnapshotPlan
from parmig.snapshot.state import StateFile, take_apart
from parmig.snapshot.worker_setup import SaveSetup
from parmig.stream.trailer import Trailer
from parmig.transport.file import FileStream
from parmig.units import NS_PER_MS
from parmig.version import __version__

DISK_LIMIT_S = 60.0
"""For what the disk is doing when all else has ended."""


class SnapshotSaver(SourceSide):
    """Saves *guest* to a file; the guest runs afterwards.

    Args:
        guest: opened by the caller, who also closes it.
        path: name of the file, which is there only when all of it is.
        config: how.
        progress: called now and then, in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, path: Path, config: SaveConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        super().__init__(
            guest,
            WorkerPool(SNAPSHOT_PROGRAMS[0], "save worker"),
            Report(parmig=__version__, side="source", transport="file", workers=config.workers, compression="none"),
            tracker=config.tracker,
            switchover_ns=config.switchover_timeout_ns,
            progress=progress,
        )
        self._path = path
        self._config = config
        self._told = SnapshotReport(file=str(path), format=config.format)
        self._report.snapshot = self._told
        self._file: PendingFile | None = None
        self._kept: StateFile | None = None
        self._writer: SnapshotWriter | None = None
        self._block_names: frozenset[str] = frozenset()
        self._composed_ns = 0
        # The disk may take long; what is asked of the guest must not wait for it.
        self._disk = GuestThread()

    # -- before the guest is touched ------------------------------------------------------------

    def _prepare(self) -> None:
        config = self._config
        config.check()
        warm_up()
        info, memory = self._look_at_guest()
        self._trailer(0, "0" * 32)  # a kind of guest that cannot be written in it shows now
        self._tell_progress(Progress(status="setup", message=f"saving to {self._path}"))
        self._file = PendingFile(self._path, replace=config.replace)
        self._state = self._kept = StateFile(self._file.path.parent)
        blocks = tuple(one.block for one in memory)
        self._block_names = frozenset(block.name for block in blocks)
        self._writer = SnapshotWriter(
            self._file.fd,
            str(self._path),
            info.machine,
            blocks,
            self._thread.call(self._guest.state_blocks),
            mapped=config.format == "mapped-ram",
        )
        region_pages = region_pages_for(blocks, config.workers)
        regions = cut(blocks, region_pages)
        self._shared = SharedArea(-1, workers=config.workers, blocks=blocks, regions=len(regions))
        self._shared.set_rate(config.max_bandwidth_bytes_per_s)
        self._shared.begin_file(self._writer.parts_offset_bytes)
        limits = Limits(
            config.downtime_limit_ns,
            config.max_downtime_ns,
            config.timeout_ns,
            switchover_ns=config.switchover_timeout_ns,
        )
        self._plan = SnapshotPlan(regions, config.workers, limits)
        self._meter = ProgressMeter(self._plan, self._shared, config.workers)
        self._start_workers(memory, region_pages)

    def _start_workers(self, memory: list[BlockMemory], region_pages: int) -> None:
        assert self._file is not None
        assert self._writer is not None
        assert self._shared is not None
        for worker in range(self._config.workers):
            self._paths.append(str(self._path))
            setup = SaveSetup(
                worker=worker,
                workers=self._config.workers,
                blocks=tuple(one.block for one in memory),
                file_offsets_bytes=tuple(one.file_offset_bytes for one in memory),
                region_pages=region_pages,
                batch_bytes=DEFAULT_BATCH_BYTES,
                file=str(self._path),
                mapped=bool(self._writer.pages_offsets_bytes),
                pages_offsets_bytes=tuple(self._writer.pages_offsets_bytes),
            )
            self._pool.start(setup, [self._shared.fd, self._file.fd, *(one.fd for one in memory)])
        self._watch(self._disk.wake_fd)

    # -- doing ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._disk.finished()

    def _do(self, what: Do) -> None:
        match what:
            case Do.GO_ON:
                self._begin(events.WentOn, self._go_on)
            case Do.COMPOSE:
                if (watch_fd := self._guest.watch_fd()) is not None:
                    self._poller.unwatch(watch_fd)  # whatever becomes of it now, the file is as good
                self._begin_on_disk(events.Composed, self._compose)
            case Do.COMMIT:
                self._begin_on_disk(lambda _: events.Committed(), self._commit)

    def _begin_on_disk(self, then: Callable[..., Event], function: Callable[[], object]) -> None:
        self._disk.begin(lambda future: self._feed_result(then, function, future), function)

    def _go_on(self) -> int:
        """Let the guest run, untracked; returns since when it runs."""
        ran_ns = self._guest.resume_source()
        now_ns = time.monotonic_ns()
        self._custody.disarm()
        self._guest.stop_dirty_log()
        return now_ns if ran_ns is None else ran_ns

    def _compose(self) -> int:
        """Write all but the trailer; returns of how many pieces the file's digest is made."""
        assert self._kept is not None
        assert self._writer is not None
        assert self._shared is not None
        began_ns = time.monotonic_ns()
        with take_apart(self._kept, self._report.guest.machine, self._block_names) as state:
            self._told.file_bytes = self._writer.finish(state, self._shared)
        self._told.compose_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        self._composed_ns = time.monotonic_ns()
        return len(digest_pieces(str(self._path), self._told.file_bytes))

    def _commit(self) -> None:
        """Append the trailer, bring all of it to the disk, and give the file its name."""
        assert self._file is not None
        assert isinstance(self._plan, SnapshotPlan)
        began_ns = time.monotonic_ns()
        self._told.digest_ms = (began_ns - self._composed_ns) / NS_PER_MS
        self._told.digest = self._plan.file_digest
        body_bytes = self._told.file_bytes
        trailer = self._trailer(body_bytes, self._told.digest)
        FileStream(self._file.fd, str(self._path), offset_bytes=body_bytes).write([trailer])
        self._file.sync()
        if self._plan.machine.ended:  # cancelled, while the disk took its time
            return
        self._file.commit()
        self._told.file_bytes += len(trailer)
        self._told.sync_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS

    def _trailer(self, body_bytes: int, digest: str) -> bytes:
        return Trailer(
            __version__, self._report.guest.kind, body_bytes, digest, running=self._custody.ran is not False
        ).encode()

    # -- the end --------------------------------------------------------------------------------

    def _close(self) -> None:
        if not self._disk.close(DISK_LIMIT_S):
            return  # it hangs with the files in its hands; they have no name, and end with this process
        for one in (self._kept, self._file):
            if one is not None:
                one.close()
