# SPDX-License-Identifier: Apache-2.0
"""The destination side: checks, starts receive workers, loads the state, and takes over when told."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from parmig.config import ReceiveConfig
from parmig.engine import error_reports, peer_messages
from parmig.engine.admission import Admission, check_exposure, lack_of_ports, lack_of_space
from parmig.engine.agreement import check_configure, told
from parmig.engine.control import ControlChannel
from parmig.engine.guest_thread import GuestThread
from parmig.engine.peer_messages import Configure
from parmig.engine.pool import WorkerPool
from parmig.engine.report import DigestReport, GuestReport, Progress, Report
from parmig.engine.session import ReceiveSession
from parmig.errors import (
    CancelledError,
    GuestError,
    LimitExceededError,
    OutcomeUnknownError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    StateError,
)
from parmig.guests.guest import Guest, GuestInfo
from parmig.processes import warm_up
from parmig.status import MigrationStatus, StatusEvent, StatusMachine
from parmig.transport.polling import Poller
from parmig.transport.transport import parse_uri
from parmig.units import NS_PER_MS, NS_PER_S, format_ms
from parmig.version import __version__

WORKERS_LIMIT_NS = 15 * NS_PER_S
"""For the receive workers to start and listen."""

CONNECT_LIMIT_NS = 15 * NS_PER_S
"""For the source to connect everything after it was accepted; then the next one gets its chance."""

SILENCE_LIMIT_NS = 60 * NS_PER_S
"""For a source to say where it is, which it does every few seconds."""

MAX_SWITCHOVER_NS = 3600 * NS_PER_S
"""However long a source says that its pause may be, nobody waits longer for it than twice this."""

RESUME_LIMIT_NS = 60 * NS_PER_S
"""For the guest to run after the hand-over: longer than any guest's own limit."""

NOBODY_CAME_NS = 10 * NS_PER_S
"""After so long without a sender one line says where to look. A sender that is refused by a check of its own never
connects, and only its own output says so."""

GOODBYE_LIMIT_NS = 3 * NS_PER_S
"""For the source's goodbye after the guest was resumed here; its absence changes nothing."""

MESSAGES_A_TURN = 16

POLL_MS = 200

THE_SOURCES_FAULT = (PeerLostError, PeerFailedError, PeerRefusedError, ProtocolError)
"""What a source can cause: until its session is established, such an error ends the session only."""


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
        self._thread = GuestThread()
        self._cancelled = False
        self._admission: Admission | None = None
        self._control: ControlChannel | None = None
        self._session: ReceiveSession | None = None
        self._poller = Poller()
        self._machine = StatusMachine()
        self._prepared = False
        self._hinted = False
        self._heard_ns = 0
        self._digest_told = False
        self._release: peer_messages.Release | None = None
        self._release_ns = 0
        self._load_began_ns = 0
        self._loaded_told = False
        self._handed_over_ns = 0
        self._resumed_ns = 0
        self._ran_ns = 0
        self._finished = False
        self._report = Report(parmig=__version__, side="destination")

    # -- the caller's side ----------------------------------------------------------------------

    def receive_loop(self) -> Report:
        """Listen, take one migration, and return its report; the guest runs here only on success."""
        began = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            self._listen()
            began = self._await_source()
            while not self._turn():
                pass
        except ParmigError as caught:
            error = self._failed(caught)
        finally:
            self._tear_down(error)
        return self._final_report(error, began)

    def cancel(self) -> None:
        """Give up, unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    @property
    def _pool(self) -> WorkerPool:
        """The workers of the session."""
        return self._session.pool if self._session is not None else WorkerPool("", "receive worker")

    # -- until a source is in -------------------------------------------------------------------

    def _listen(self) -> None:
        self._machine.move(StatusEvent.STARTED)
        endpoint = parse_uri(self._config.listen)
        for host in (endpoint.host, *self._config.paths):
            check_exposure(host, insecure=self._config.insecure)
        warm_up()
        info = self._thread.call(self._guest.info)
        self._thread.call(self._guest.memory)
        self._report.guest = GuestReport(kind=info.kind, machine=info.machine, monitor=info.monitor)
        self._admission = Admission(
            endpoint, lambda line: self._tell_progress(Progress(status=self._machine.status.value, message=line))
        )
        self._admission.listen()
        self._watch(*self._admission.pollables())
        if self._listening is not None:
            self._listening(str(self._admission.endpoint))

    def _watch(self, *items: Any) -> None:
        """Wake the loop for *items*, guest and user, and for nothing else any more."""
        self._poller = Poller()
        for item in (*items, self._thread.wake_fd, self._guest.watch_fd()):
            if item is not None:
                self._poller.watch(item)

    def _wait(self, cancelled: str = "cancelled; the guest stays at the source") -> None:
        """Wait for anything to happen; what concerns neither source nor workers is handled.

        Args:
            cancelled: what to say if the user has it enough.

        Raises:
            CancelledError: the user has it enough, before hand-over.
            GuestError: the monitor died.
        """
        ready = self._poller.poll(POLL_MS)
        self._thread.finished()
        if self._cancelled and not self._handed_over_ns:
            raise CancelledError(cancelled)
        if self._guest.watch_fd() in ready:
            raise GuestError("the guest's virtual machine monitor died while it waited, or during the migration")

    def _await_source(self) -> int:
        """Wait for a source that fits, and until it is connected; returns when it began to talk.

        Raises:
            LimitExceededError: none came in time.
            ParmigError: this side cannot receive anything.
        """
        assert self._admission is not None
        waiting_since = time.monotonic_ns()
        while True:
            self._nobody_came(time.monotonic_ns() - waiting_since)
            self._wait(f"cancelled: {self._hint()}")
            wish = self._admission.hear()
            if wish is None:
                continue
            began = time.monotonic_ns()
            try:
                self.apply_config(wish)
                self._await_connections()
            except THE_SOURCES_FAULT as error:
                self._let_go(error)
            else:
                self._machine.move(StatusEvent.CONFIGURED)
                return began

    def _nobody_came(self, waited_ns: int) -> None:
        """Go on waiting for a source, unless that is to end; after a while say where to look."""
        if self._config.wait_ns and waited_ns >= self._config.wait_ns:
            raise LimitExceededError(f"gave up after {self._config.wait_ns / NS_PER_S:g} s: {self._hint()}")
        if waited_ns >= NOBODY_CAME_NS and not self._hinted:
            self._hinted = True
            self._tell_progress(Progress(status=self._machine.status.value, message=self._hint()))

    def _hint(self) -> str:
        assert self._admission is not None
        if self._admission.refused:
            return (
                f"no sender got in at {self._admission.endpoint}; the last one was refused: {self._admission.refused}"
            )
        return (
            f"no sender has connected to {self._admission.endpoint} yet; look at the sender's own output, "
            "at the address and port that it was given, and for a firewall between"
        )

    def _let_go(self, error: ParmigError) -> None:
        """The source that was about to come in is refused, or gone; listen for the next."""
        assert self._admission is not None
        if self._session is None:
            self._admission.refuse(str(error))
            return
        self._say_failure(error)
        self._end_session()
        self._admission.listen()
        self._watch(*self._admission.pollables())
        self._admission.tell(f"a source did not get in: {error}; waiting for the next")

    def apply_config(self, wish: Configure) -> None:
        """Check the source's wishes, make everything ready for them, and let it in.

        Raises:
            PeerRefusedError: something does not match; every mismatch is named.
            ParmigError: this side cannot do it, for no source; the source was told.
        """
        assert self._admission is not None
        info: GuestInfo = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        mismatches = check_configure(wish, info, [one.block for one in memory])
        if not mismatches:
            mismatches = lack_of_space(memory, wish) + lack_of_ports(self._config.data_ports, wish.workers)
        if mismatches:
            raise PeerRefusedError(told(mismatches))
        by_name = {one.block.name: one for one in memory}
        if not self._prepared:
            self._thread.call(self._guest.prepare_incoming)
            self._prepared = True
        try:
            # In the source's numbering.
            ordered = [by_name[block.name] for block in wish.blocks]
            self._session = ReceiveSession(wish, ordered, self._config, self._early_state)
            self._await_ports(self._session)
        except ParmigError as error:
            self._admission.refuse(f"the destination failed: {error}")
            raise
        self._control = self._admission.admit()
        self._heard_ns = time.monotonic_ns()
        self._watch(*self._session.pollables(), *self._control.pollables())
        self._control.write(self._session.accept_message(info))

    def _await_ports(self, session: ReceiveSession) -> None:
        deadline = time.monotonic_ns() + WORKERS_LIMIT_NS
        self._watch(*session.pollables())
        while not session.listens:
            if time.monotonic_ns() > deadline:
                raise LimitExceededError(
                    f"the receive workers did not listen within {WORKERS_LIMIT_NS / NS_PER_S:.0f} s"
                )
            self._wait()
            session.turn()

    def _await_connections(self) -> None:
        assert self._session is not None
        deadline = time.monotonic_ns() + CONNECT_LIMIT_NS
        while not self._session.established:
            if time.monotonic_ns() > deadline:
                raise PeerLostError(f"it did not connect all its channels within {CONNECT_LIMIT_NS / NS_PER_S:.0f} s")
            self._turn()
        self._note_agreed(self._session.wish)

    def _note_agreed(self, wish: Configure) -> None:
        report = self._report
        report.workers, report.compression, report.transport = wish.workers, wish.codec, wish.transport
        report.guest.memory_bytes = sum(block.size_bytes for block in wish.blocks)
        report.guest.page_size_bytes = min(block.page_size_bytes for block in wish.blocks)

    # -- the loop -------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """One turn: wait for anything to happen and handle it. Returns whether the migration is over."""
        assert self._session is not None
        self._wait()
        if self._finished or (self._resumed_ns and time.monotonic_ns() - self._resumed_ns > GOODBYE_LIMIT_NS):
            return True
        self._hear_source()
        if not self._handed_over_ns:  # afterwards neither is needed any more
            self._session.turn()
            if self._session.digest is not None and not self._digest_told:
                self._digest_told = True
                self._say(peer_messages.Digested(self._session.digest))
            self._try_load()
        self._check_time()
        return self._finished

    def _hear_source(self) -> None:
        assert self._session is not None
        try:
            for _ in range(MESSAGES_A_TURN):
                if self._finished or self._control is None or (message := self._control.read()) is None:
                    return
                self._heard_ns = time.monotonic_ns()
                if self._handed_over_ns:
                    self._finished = isinstance(message, peer_messages.Goodbye) and bool(self._resumed_ns)
                else:
                    self._source_said(self._session, message)
        except PeerLostError as error:
            if not self._handed_over_ns:
                raise PeerLostError(f"the source is gone before hand-over ({error}); the guest stays there") from error
            self._finished = bool(self._resumed_ns)
            self._watch()  # heard or not, the guest is resumed here
        except ProtocolError:
            if not self._handed_over_ns:
                raise

    def _source_said(self, session: ReceiveSession, message: peer_messages.ControlMessage) -> None:
        """Before hand-over: what may come depends on what came, and comes once."""
        match message:
            case peer_messages.Progressed(status=status, round=round_):
                self._tell_progress(Progress(status=status, round=round_))
            case peer_messages.Failure(error=report):
                raise PeerFailedError(f"the source failed: {report.message}")
            case peer_messages.DigestRequest() if session.established and self._release is None:
                session.ask_digest()
            case peer_messages.Release(size_bytes=size_bytes) if session.established and self._release is None:
                session.state.check_size(size_bytes)
                self._release, self._release_ns = message, time.monotonic_ns()
                self._machine.move(StatusEvent.PAUSED)
                self._machine.move(StatusEvent.RAM_COMPLETE)
            case peer_messages.HandOver(run=run) if self._loaded_told:
                self._take_over(run)
            case _:
                raise ProtocolError(f"the source said {type(message).__name__} in status {self._machine.status.value}")

    def _take_over(self, run: bool) -> None:
        """The guest is ours: only it and the source's last words matter now."""
        assert self._control is not None
        self._machine.move(StatusEvent.HANDED_OVER)
        self._handed_over_ns = began = time.monotonic_ns()
        self._watch(*self._control.pollables())
        if run:
            self._begin(lambda: self._resumed(began), self._run_guest)
        else:
            self._resumed(began)

    def _check_time(self) -> None:
        """Raise when what is waited for takes too long; each wait has a limit."""
        assert self._session is not None
        now = time.monotonic_ns()
        if self._handed_over_ns:
            if not self._resumed_ns and now - self._handed_over_ns > RESUME_LIMIT_NS:
                raise LimitExceededError(f"the guest did not run {RESUME_LIMIT_NS / NS_PER_S:.0f} s after it was told")
        elif self._release is not None:
            limit_ns = 2 * min(self._session.wish.switchover_timeout_ns, MAX_SWITCHOVER_NS)
            if now - self._release_ns > limit_ns:
                what = "the hand-over" if self._loaded_told else "the device state, or for loading it"
                raise LimitExceededError(f"waited {format_ms(limit_ns / NS_PER_MS)} for {what}; is the source stuck?")
        elif now - self._heard_ns > SILENCE_LIMIT_NS:
            raise LimitExceededError(f"the source said nothing for {SILENCE_LIMIT_NS / NS_PER_S:.0f} s; is it stuck?")

    def _say(self, message: peer_messages.ControlMessage) -> None:
        assert self._session is not None
        try:
            if self._control is not None:
                self._control.write(message)
        except PeerLostError as error:
            # Its last words may be waiting to be read. After hand-over the guest runs here, heard or not.
            self._session.suspect(error)

    # -- device state ---------------------------------------------------------------------------

    def _early_state(self, data: bytes) -> None:
        self._begin(lambda: None, self._guest.write_state, memoryview(data))

    def _try_load(self) -> None:
        """When RAM is complete and all of the state is here: load it."""
        assert self._session is not None
        state, release = self._session.state, self._release
        if release is None or self._load_began_ns or state.size_bytes < release.size_bytes:
            return
        if (state.size_bytes, state.digest) != (release.size_bytes, release.digest):
            raise StateError(
                f"device state arrived damaged: {state.size_bytes} bytes with digest {state.digest}, "
                f"the source saved {release.size_bytes} with {release.digest}"
            )
        self._report.state_bytes = release.size_bytes
        self._load_began_ns = time.monotonic_ns()
        self._begin(self._loaded, self._load)

    def _load(self) -> None:
        assert self._session is not None
        for piece in self._session.state.held():
            self._guest.write_state(memoryview(piece))
        self._guest.finish_load()

    def _loaded(self) -> None:
        now = time.monotonic_ns()
        self._loaded_told = True
        self._say(peer_messages.Loaded(self._load_began_ns - self._release_ns, now - self._load_began_ns))

    def _run_guest(self) -> None:
        self._ran_ns = self._guest.resume()

    def _resumed(self, began_ns: int) -> None:
        self._machine.move(StatusEvent.RESUMED)
        self._resumed_ns = now = time.monotonic_ns()
        ran_ns = max(began_ns, min(self._ran_ns or now, now))
        self._say(peer_messages.Resumed(ran_ns - began_ns, now - ran_ns))

    def _begin(self, then: Callable[[], None], function: Callable[..., Any], *arguments: object) -> None:
        """Call the guest in its thread; continue with *then* in the loop. An error ends the loop."""

        def done(future: Future[Any]) -> None:
            try:
                future.result()
            except ParmigError:
                raise
            except Exception as error:
                raise ParmigError(f"{function.__name__}: {type(error).__name__}: {error}") from error
            then()

        self._thread.begin(done, function, *arguments)

    # -- the end --------------------------------------------------------------------------------

    def _failed(self, error: ParmigError) -> ParmigError:
        """*error* as it is reported, after the status has moved."""
        phase = error.phase or self._machine.status.value
        if self._machine.status is MigrationStatus.HAND_OVER:
            cause = error
            error = OutcomeUnknownError(
                f"{cause}, after hand-over: the source stays paused and leaves the guest to this side; look whether "
                "it runs here, and only if it does not, continue it there"
            )
            error.__cause__ = cause
        error.phase = phase
        if not self._machine.ended:
            self._machine.move(StatusEvent.CANCEL if isinstance(error, CancelledError) else StatusEvent.ERROR)
        return error

    def _say_failure(self, error: ParmigError) -> None:
        try:
            if self._control is not None:
                self._control.write(peer_messages.Failure(error_reports.describe_error(error)))
        except ParmigError:
            pass

    def _tear_down(self, error: ParmigError | None) -> None:
        """On every way out: the peer hears of it, a copy that must not run is discarded, the rest given back."""
        # The peer first: the guest may be busy for long, and without the source's hand-over it never runs here.
        if error is not None:
            self._say_failure(error)
        if not self._handed_over_ns:
            try:
                self._thread.call(self._guest.discard)
            except Exception as problem:  # everything else must still be given back
                self._tell_progress(Progress(status="failed", message=f"while ending: discard: {problem}"))
        self._thread.close()
        if self._session is not None and self._machine.status is not MigrationStatus.SETUP:
            self._report.ram = self._session.ram_report()
            self._report.digest = DigestReport(destination=self._session.digest)
        self._end_session()
        if self._admission is not None:
            self._admission.close()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        control, self._control = self._control, None
        if control is not None:
            control.close(linger_ms=500)

    def _tell_progress(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)

    def _final_report(self, error: ParmigError | None, began_ns: int) -> Report:
        report = self._report
        report.total_time_ms = (time.monotonic_ns() - began_ns) / NS_PER_MS
        report.status = self._machine.status.value
        if error is not None:
            report.error = error_reports.describe_error(error, error.phase)
        return report
