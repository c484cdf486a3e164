# SPDX-License-Identifier: Apache-2.0
"""The destination side: waits for a source that fits, gives it a session, and reports how that ended."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from parmig import logs
from parmig.config import WORKER_PROGRAMS, ReceiveConfig
from parmig.engine.agreement.agreement import check_configure
from parmig.engine.channels.securing import security_of
from parmig.engine.destination.admission import Admission, lack_of_ports, lack_of_space, wrong_transport
from parmig.engine.destination.resuming import Resuming, make_resumable
from parmig.engine.destination.session import LINGER_MS, ReceiveSession
from parmig.engine.driver import POLL_MS
from parmig.engine.guest_thread import GuestThread
from parmig.engine.matching.in_place import Staying, kept_blocks
from parmig.engine.messages.peer_messages import Configure, Refuse
from parmig.engine.one_host.adoption import Adoption
from parmig.engine.one_host.memory_files import in_order_of, without_staying
from parmig.engine.paths.path_search import listening_hosts
from parmig.engine.pool import WorkerPool
from parmig.engine.records.record_store import RecordStore
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.mismatch import Mismatch, joined
from parmig.engine.reporting.report import GuestReport, Progress, Report
from parmig.engine.steering.desk import Desk
from parmig.errors import (
    CancelledError,
    GuestError,
    LimitExceededError,
    ParmigError,
    PeerLostError,
    PeerRefusedError,
)
from parmig.guests.guest import Guest, GuestInfo
from parmig.processes import warm_up
from parmig.ram.blocks import BlockMemory
from parmig.status import MigrationStatus
from parmig.transport.polling import Poller
from parmig.transport.transport import parse_uri
from parmig.units import NS_PER_MS, NS_PER_S
from parmig.version import __version__

_logger = logging.getLogger(__name__)

NOBODY_CAME_NS = 10 * NS_PER_S
"""After this long without a sender, one line shows where to look. A sender that is refused by a check of its own never
connects, and only its own output shows it."""

WAITING = MigrationStatus.SETUP.value
"""The status while no source has a session."""


class MigrationReceiver:
    """Receives one migration into *guest*.

    Args:
        guest: opened by the caller with ``incoming=True``; the caller also closes it.
        config: where to listen.
        progress: called now and then, in the thread that called :meth:`receive_loop`.
        listening: called once, with the actual URI, when connections are accepted.
    """

    def __init__(
        self,
        guest: Guest,
        config: ReceiveConfig,
        *,
        progress: Callable[[Progress], None] | None = None,
        listening: Callable[[str], None] | None = None,
    ) -> None:
        self._guest = guest
        self._config = config
        self._progress = progress
        self._listening = listening
        endpoint = parse_uri(config.listen)
        self._admission = Admission(endpoint, self._show_line, security_of(config, endpoint))
        self._thread = GuestThread()
        self._adoption = Adoption(guest, self._thread)
        self._session: ReceiveSession | None = None
        self._store: RecordStore | None = None
        self._cancelled = False
        self._prepared = self._hinted = False
        self._began_ns = 0
        self._report = Report(parmig=__version__, side="destination")
        self.desk = Desk(self.cancel)

    # -- the caller's side ----------------------------------------------------------------------

    def receive_loop(self) -> Report:
        """Listen, take one migration, and return its report; the guest runs here only on success."""
        logs.begin_side("destination")
        self._began_ns = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            self._open_port()
            while self._receive_from(self._await_source()):
                pass
        except ParmigError as caught:
            error = caught
        finally:
            self._tear_down()
        return self._final_report(error)

    def cancel(self) -> None:
        """Give up, unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        if (session := self._session) is not None:
            session.cancel()
        self._thread.wake()

    @property
    def _pool(self) -> WorkerPool:
        """The workers of the session."""
        return self._session.pool if self._session is not None else WorkerPool("", "receive worker")

    # -- until a source is in -------------------------------------------------------------------

    def _open_port(self) -> None:
        self._report.insecure = self._admission.check(self._config, listening_hosts(self._config))
        self._store = RecordStore(self._config.state_dir)
        warm_up(WORKER_PROGRAMS[1])
        info = self._thread.call(self._guest.info)
        self._thread.call(self._guest.memory)
        self._thread.call(self._guest.traits)  # a source that comes need not wait for what stays the same
        self._report.guest = GuestReport(kind=info.kind, machine=info.machine, monitor=info.monitor)
        self._listen()

    def _listen(self) -> None:
        self._admission.listen()
        if self._listening is not None:
            self._listening(str(self._admission.endpoint))

    def _await_source(self) -> ReceiveSession:
        """Wait for a source that fits, and let it in.

        Raises:
            CancelledError: the user cancelled.
            LimitExceededError: none came in time.
            ParmigError: this side cannot receive from any source.
        """
        waiting_since_ns = time.monotonic_ns()
        watch_fd = self._guest.watch_fd()
        poller = Poller(*self._admission.pollables(), self._thread.wake_fd, watch_fd)
        while True:
            self._nobody_came(time.monotonic_ns() - waiting_since_ns)
            ready = poller.poll(POLL_MS)
            self._thread.finished()
            if self._cancelled:
                raise CancelledError(f"cancelled: {self._admission.hint()}")
            if watch_fd in ready:
                raise GuestError("the guest's virtual machine monitor died while it waited")
            if (wish := self._admission.hear()) is None:
                continue
            if wish.check:
                self._admission.answer_check(self._compare(wish, *self._look_at_guest())[0])
                continue
            self._began_ns = time.monotonic_ns()
            try:
                return self.apply_config(wish)
            except PeerRefusedError as error:
                self._admission.refuse(str(error))

    def _nobody_came(self, waited_ns: int) -> None:
        """Give up if the time is up; show where to look once nobody has come for NOBODY_CAME_NS."""
        if self._config.wait_ns and waited_ns >= self._config.wait_ns:
            raise LimitExceededError(f"gave up after {self._config.wait_ns / NS_PER_S:g} s: {self._admission.hint()}")
        if waited_ns >= NOBODY_CAME_NS and not self._hinted:
            self._hinted = True
            self._show_line(self._admission.hint())

    def apply_config(self, wish: Configure) -> ReceiveSession:
        """Check the source's wishes, let it in, and make everything ready for it.

        Raises:
            PeerRefusedError: something does not match; every mismatch is named.
            ParmigError: this side cannot receive from any source; the source was refused with the reason.
        """
        info, memory = self._look_at_guest()
        mismatches, staying = self._compare(wish, info, memory)
        if mismatches:
            raise PeerRefusedError(joined(mismatches))
        if not self._prepared:
            self._thread.call(self._guest.prepare_incoming)
            self._prepared = True
        store = self._store
        assert store is not None
        control = self._admission.admit()
        memory = in_order_of(wish.blocks, memory, info)
        resuming = Resuming()
        try:
            self._adoption.take(wish, self._admission.files, memory, staying)
            resuming = make_resumable(self._config, wish, store, self._show)
            return ReceiveSession(
                wish,
                info,
                memory,
                self._config,
                control,
                endpoint=self._admission.endpoint,
                store=store,
                in_place=staying.numbers,
                resuming=resuming,
                guest=self._guest,
                thread=self._thread,
                progress=self._show,
            )
        except ParmigError as error:
            resuming.close()
            with contextlib.suppress(PeerLostError):
                control.write(Refuse(f"the destination failed: {error}"))
            control.close(LINGER_MS)
            raise
        finally:
            self._admission.drop_files()

    def _look_at_guest(self) -> tuple[GuestInfo, list[BlockMemory]]:
        return self._thread.call(self._guest.info), list(self._thread.call(self._guest.memory))

    def _compare(self, wish: Configure, info: GuestInfo, memory: list[BlockMemory]) -> tuple[list[Mismatch], Staying]:
        """Everything that keeps the source of *wish* out, and the blocks that stay in place."""
        traits = self._thread.call(self._guest.traits)
        mismatches = check_configure(wish, info, [part.block for part in memory], traits)
        staying = Staying()
        if not mismatches:
            memory, fds = in_order_of(wish.blocks, memory, info), self._admission.files
            staying = self._adoption.decide(wish, fds, memory)
            rest = without_staying(wish, staying.numbers, fds)
            mismatches = [*staying.mismatches, *lack_of_space(kept_blocks(memory, staying.numbers), rest)]
        mismatches += wrong_transport(wish, self._admission.endpoint, secured=self._admission.secured)
        return mismatches + lack_of_ports(self._config.data_ports, wish.workers), staying

    # -- with a source --------------------------------------------------------------------------

    def _receive_from(self, session: ReceiveSession) -> bool:
        """Receive from this source. Returns whether it did not get in, so that the next may come."""
        self._session = session
        if self._cancelled:
            session.cancel()
        session.run()
        if not session.plan.lets_go:
            return False
        self._session = None
        session.promise.end(session.plan, discarded=True)
        session.close()
        logs.note_session(b"")
        self._adoption.give_back()
        self._admission.listen()
        self._admission.show(f"a source did not get in: {session.plan.error}; waiting for the next")
        return True

    # -- the end --------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        """End, whatever the outcome: discard a copy that must not run, and give everything back."""
        # The source already knows about a failure: the plan sent it before, because the guest may be busy for long.
        # Without a hand-over it never runs here.
        session = self._session
        discarded = session is not None and session.plan.undecided
        if session is None or not (session.plan.handed_over or session.plan.undecided):
            _logger.info("tear-down: the copy here never runs; discarding it")
            try:
                self._thread.call(self._guest.discard)
                discarded = True
            except Exception as problem:  # everything else must still be given back
                _logger.warning("while ending: discard: %s", problem, extra=logs.REPORTED)
                self._show(Progress(status="failed", message=f"while ending: discard: {problem}"))
        _logger.info("tear-down: ending the workers and closing all channels")
        self._thread.close()
        if session is not None:
            session.fill_in(self._report)
            session.promise.end(session.plan, discarded=discarded)
            session.close()
        self._admission.close()
        if self._store is not None:
            self._store.close()

    def _show_line(self, line: str) -> None:
        self._show(Progress(status=WAITING, message=line))

    def _show(self, progress: Progress) -> None:
        self.desk.post_progress(progress)
        if self._progress is not None:
            self._progress(replace(progress, insecure=self._report.insecure))

    def _final_report(self, error: ParmigError | None) -> Report:
        """The report of the session, or of an *error* without one."""
        report = self._report
        report.total_time_ms = (time.monotonic_ns() - self._began_ns) / NS_PER_MS
        if error is not None:
            report.status = "cancelled" if isinstance(error, CancelledError) else "failed"
            report.error = error_reports.describe_error(error, error.phase or WAITING)
        self.desk.finish(report)
        return report
