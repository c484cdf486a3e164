# SPDX-License-Identifier: Apache-2.0
"""The running saver: carries out what the plan of a snapshot decides about the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from parmig.engine.guest_thread import GuestThread
from parmig.engine.plan.events import Do, Event
from parmig.engine.reporting.report import SnapshotReport
from parmig.engine.source.means import Means
from parmig.engine.source.source_run import SourceRun
from parmig.ram.blocks import BlockMemory
from parmig.ram.shared import SharedArea
from parmig.snapshot.compose import SnapshotWriter
from parmig.snapshot.file_digest import digest_pieces
from parmig.snapshot.pending_file import PendingFile
from parmig.snapshot.plan import SnapshotPlan
from parmig.snapshot.snapshot_events import Committed, Composed, WentOn
from parmig.snapshot.state import StateFile, take_apart
from parmig.stream.trailer import Trailer
from parmig.transport.file import FileStream
from parmig.units import NS_PER_MS
from parmig.version import __version__


class SaveRun(SourceRun):
    """Drives the plan of a snapshot. It owns nothing of what it is given.

    Args:
        means: see SourceRun.
        plan: decides.
        memory: of the guest.
        shared: the workers' counters.
        state: takes the device state.
        disk: thread for what waits for the disk, which may take long; calls of the guest must not wait for it.
        file: the snapshot, which has no name yet.
        writer: writes its parts.
        snapshot_report: to be filled in.
    """

    def __init__(
        self,
        means: Means,
        plan: SnapshotPlan,
        memory: Sequence[BlockMemory],
        shared: SharedArea,
        state: StateFile,
        disk: GuestThread,
        file: PendingFile,
        writer: SnapshotWriter,
        snapshot_report: SnapshotReport,
    ) -> None:
        super().__init__(means, plan, memory, shared, state)
        self._snapshot_plan = plan
        self._state_file = state
        self._disk = disk
        self._file = file
        self._writer = writer
        self._snapshot_report = snapshot_report
        self._composed_ns = 0
        self._watch_all(disk.wake_fd)

    # -- doing ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._disk.finished()

    def _do(self, what: Do) -> None:
        match what:
            case Do.GO_ON:
                self._begin(WentOn, self._go_on)
            case Do.COMPOSE:
                if (watch_fd := self._guest.watch_fd()) is not None:
                    self._forget([watch_fd])  # the file no longer depends on the guest
                self._begin_on_disk(Composed, self._compose)
            case Do.COMMIT:
                self._begin_on_disk(lambda _: Committed(), self._commit)

    def _begin_on_disk(self, then: Callable[..., Event], function: Callable[[], object]) -> None:
        self._disk.begin(lambda future: self._feed_result(then, function, future), function)

    def _save_state(self) -> None:
        self._guest.save_snapshot(self._state)

    def _go_on(self) -> int:
        """Let the guest run, untracked; returns since when it runs."""
        ran_ns = self._guest.resume_source()
        now_ns = time.monotonic_ns()
        self._custody.disarm()
        self._guest.stop_dirty_log()
        return now_ns if ran_ns is None else ran_ns

    def _compose(self) -> int:
        """Write all but the trailer; returns the number of pieces that the file's digest is made of."""
        began_ns = time.monotonic_ns()
        names = frozenset(memory.block.name for memory in self._memory)
        with take_apart(self._state_file, self._report.guest.machine, names) as state:
            self._snapshot_report.file_bytes = self._writer.finish(state, self._shared)
        self._snapshot_report.compose_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        self._composed_ns = time.monotonic_ns()
        return len(digest_pieces(self._snapshot_report.file, self._snapshot_report.file_bytes))

    def _commit(self) -> None:
        """Append the trailer, bring all of it to the disk, and give the file its name."""
        began_ns = time.monotonic_ns()
        self._snapshot_report.digest_ms = (began_ns - self._composed_ns) / NS_PER_MS
        self._snapshot_report.digest = self._snapshot_plan.file_digest
        body_bytes = self._snapshot_report.file_bytes
        ran = self._custody.ran is not False
        tail = trailer(self._report.guest.kind, body_bytes, self._snapshot_report.digest, running=ran)
        FileStream(self._file.fd, self._snapshot_report.file, offset_bytes=body_bytes).write([tail])
        self._file.sync()
        if self.plan.machine.ended:  # it was cancelled during the sync
            return
        self._file.commit()
        self._snapshot_report.file_bytes += len(tail)
        self._snapshot_report.sync_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS


def trailer(kind: str, body_bytes: int, digest: str, *, running: bool) -> bytes:
    """The end of the file, after *body_bytes* with this *digest*."""
    return Trailer(__version__, kind, body_bytes, digest, running=running).encode()
