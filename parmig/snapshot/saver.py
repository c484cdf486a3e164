# SPDX-License-Identifier: Apache-2.0
"""Saves a running guest to a file: rounds, a short pause, and the rest of the file while the guest runs again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parmig.config import DEFAULT_BATCH_BYTES, GUARDIAN_PROGRAM, SNAPSHOT_PROGRAMS
from parmig.engine.guest_thread import GuestThread
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting.report import Progress, Report, SnapshotReport
from parmig.engine.source.source import SourceSide
from parmig.engine.work.policy import limits_of
from parmig.engine.worker_setups import memory_for_workers
from parmig.guests.guest import Guest
from parmig.processes import warm_up
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea
from parmig.snapshot.compose import SnapshotWriter
from parmig.snapshot.pending_file import PendingFile
from parmig.snapshot.plan import SnapshotPlan
from parmig.snapshot.save_run import SaveRun, trailer
from parmig.snapshot.snapshot_config import SaveConfig
from parmig.snapshot.state import StateFile
from parmig.snapshot.worker_setup import SaveSetup
from parmig.version import __version__

DISK_LIMIT_S = 60.0
"""How long to wait for the disk once everything else has ended."""


class SnapshotSaver(SourceSide):
    """Saves *guest* to a file; the guest runs afterwards.

    Args:
        guest: opened by the caller, who also closes it.
        path: name of the file, which appears once it is complete.
        config: how to save.
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
        self._snapshot_report = SnapshotReport(file=str(path), format=config.format)
        self._report.snapshot = self._snapshot_report

    # -- before the guest is touched ------------------------------------------------------------

    def _prepare(self) -> SaveRun:
        config = self._config
        config.check()
        warm_up(SNAPSHOT_PROGRAMS[0], GUARDIAN_PROGRAM)
        info, memory = self._look_at_guest()
        trailer(info.kind, 0, "0" * 32, running=True)  # raises now if a trailer cannot name this kind of guest
        self._tell_progress(Progress(status="setup", message=f"saving to {self._path}"))
        file = PendingFile(self._path, replace=config.replace)
        self._opened.callback(file.close)
        state = StateFile(file.path.parent)
        self._opened.callback(state.close)
        blocks = tuple(part.block for part in memory)
        writer = SnapshotWriter(
            file.fd,
            str(self._path),
            info.machine,
            blocks,
            self._thread.call(self._guest.state_blocks),
            mapped=config.format == "mapped-ram",
        )
        region_pages = region_pages_for(blocks, config.workers)
        regions = cut(blocks, region_pages)
        shared = SharedArea(-1, workers=config.workers, blocks=blocks, regions=len(regions))
        self._opened.callback(shared.close)
        shared.set_rate(config.max_bandwidth_bytes_per_s)
        shared.begin_file(writer.parts_offset_bytes)
        places, descriptors = memory_for_workers(memory)
        for worker in range(config.workers):
            self._paths.append(str(self._path))
            setup = SaveSetup(
                worker=worker,
                workers=config.workers,
                blocks=blocks,
                memory=places,
                region_pages=region_pages,
                batch_bytes=DEFAULT_BATCH_BYTES,
                file=str(self._path),
                mapped=bool(writer.pages_offsets_bytes),
                pages_offsets_bytes=tuple(writer.pages_offsets_bytes),
            )
            self._pool.start(setup, [shared.fd, file.fd, *descriptors])
        plan = SnapshotPlan(regions, config.workers, limits_of(config))
        disk = GuestThread()
        self._opened.callback(self._close_disk, disk)
        return SaveRun(self._means, plan, memory, shared, state, disk, file, writer, self._snapshot_report)

    def _close_disk(self, disk: GuestThread) -> None:
        if not disk.close(DISK_LIMIT_S):
            self._opened.pop_all()  # a call that hangs still uses the files; nameless, they end with this process
