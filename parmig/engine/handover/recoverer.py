# SPDX-License-Identifier: Apache-2.0
"""Settles one record of a hand-over: carries out what ``recovery`` decides."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pkgutil import resolve_name

import msgspec

from parmig.engine.channels.securing import security_of
from parmig.engine.handover.questions import AnswerPort, ask_for_guest
from parmig.engine.handover.record_keeper import boot_id
from parmig.engine.handover.recovery import Act, Answer, Decision, Facts, Look, next_step
from parmig.engine.records.handover_record import HandOverRecord, RecordState
from parmig.engine.records.record_file import RecordFile
from parmig.errors import CancelledError, LimitExceededError, OutcomeUnknownError, ParmigError, PeerUnreachableError
from parmig.guests.guest import FoundGuest
from parmig.transport.polling import Poller
from parmig.transport.transport import parse_uri
from parmig.units import NS_PER_S, format_ms

_logger = logging.getLogger(__name__)

ASK_NS = 10 * NS_PER_S
"""How long the destination is asked by default."""

POLL_MS = 200


class RecoveryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a record is settled.

    Attributes:
        peer: URI of the destination; empty: that of the record.
        listen: URI at which the source asks; empty: that of the record.
        decide: what the user decided; empty: nothing.
        wait_ns: how long to ask, or to wait for the question; 0: ASK_NS, or without a limit.
        keys, peers: what secures the question, as in ``SendConfig``.
    """

    peer: str = ""
    listen: str = ""
    decide: Decision = ""
    wait_ns: int = 0
    keys: str = ""
    peers: tuple[str, ...] = ()


class Recoverer:
    """Settles the record in *file*.

    Args:
        file: not owned.
        config: how.
        show: shows a line to the user.

    Attributes:
        guest: what the guest did when it was looked at last.
    """

    def __init__(self, file: RecordFile, config: RecoveryConfig, show: Callable[[str], None]) -> None:
        self._file = file
        self._config = config
        self._show = show
        self._cancelled = False
        self._found: FoundGuest | None = None
        self._port: AnswerPort | None = None
        self._problem = ""
        self.guest = Look.UNREACHABLE

    def cancel(self) -> None:
        """End the wait. Safe from a signal handler."""
        self._cancelled = True

    @property
    def record(self) -> HandOverRecord:
        """As it is now."""
        return self._file.record

    def settle(self) -> None:
        """Do everything that can be done here.

        Raises:
            OutcomeUnknownError: this host alone cannot settle it; the message says what is known, and what to do.
            CancelledError: the user ended the wait.
            ParmigError: the guest or the disk failed; recover again.
        """
        with contextlib.ExitStack() as opened:
            opened.callback(self._close)
            self._look()
            facts = self._facts(Facts(self.record.side, self.record.state))
            while (step := next_step(facts)) is not Act.END:
                if step is Act.STOP:
                    raise OutcomeUnknownError(self._what_is_known(facts))
                facts = self._facts(self._take(step, facts))

    def _facts(self, facts: Facts) -> Facts:
        record = self.record
        return facts._replace(
            side=record.side,
            state=record.state,
            settled=record.settled,
            runs=record.runs,
            guest=self.guest,
            listens=bool(self._config.listen),
            decide=self._config.decide,
        )

    def _take(self, step: Act | RecordState, facts: Facts) -> Facts:
        """Take one step; returns the facts with what it changed."""
        match step:
            case RecordState():
                if self._config.decide:
                    self._show(f"WARNING: {_DECIDED[self._config.decide]}")
                self._file.write(state=step, settled=False)
                self._answer()
            case Act.ASK:
                return facts._replace(answer=self._ask())
            case Act.SERVE:
                self._serve()
                if self.record.owner != "undecided":
                    self._answer()
                return facts._replace(asked=True)
            case Act.RUN:
                self._run()
                self._look()
                return facts._replace(done=True)
            case Act.DISCARD:
                assert self._found is not None
                self._found.discard()
                self.guest = Look.GONE
                self._show("the copy here was discarded")
                return facts._replace(done=True)
            case Act.SETTLE:
                self._file.write(settled=True)
        return facts

    # -- the guest ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find the guest, and see what it does."""
        self._close_guest()
        record = self.record
        try:
            finder = record.finder
            if finder is not None and record.boot == boot_id():
                self._found = resolve_name(finder.program)(finder.setup)
            if self._found is None:
                self.guest = Look.GONE
                return
            self.guest = Look.RUNNING if self._found.is_running() else Look.PAUSED
        except ParmigError as error:
            self._problem, self.guest = str(error), Look.UNREACHABLE

    def _run(self) -> None:
        """Let the guest run here; at the source it is set right first."""
        rescue = self.record.rescue
        if self.record.side == "source" and rescue is not None:
            self._close_guest()  # the rescue needs the socket
            resolve_name(rescue.program)(rescue.setup)
        elif self._found is not None and self.record.runs:
            self._found.resume()
        self._show("the guest was continued here" if self.record.runs else "the guest stays paused here, as it was")

    # -- the other host -------------------------------------------------------------------------

    def _ask(self) -> Answer:
        """Ask the destination until it answers; returns its answer, or ``silent``."""
        endpoint = parse_uri(self._config.peer or self.record.peer)
        self._show(f"asks the destination at {endpoint} who has the guest")
        deadline_ns = time.monotonic_ns() + (self._config.wait_ns or ASK_NS)
        while True:
            try:
                answer = ask_for_guest(endpoint, self.record.session, security=security_of(self._config, endpoint))
                if answer.owner != "undecided":
                    return answer.owner
            except (PeerUnreachableError, ParmigError) as error:
                self._problem = str(error)
                _logger.info("the destination did not answer: %s", error)
            if self._cancelled:
                raise CancelledError("cancelled while the destination was asked")
            if time.monotonic_ns() >= deadline_ns:
                return "silent"
            time.sleep(POLL_MS / 1000)

    def _serve(self) -> None:
        """Wait until the source asks."""
        if self._port is None:
            endpoint = parse_uri(self._config.listen or self.record.here)
            self._port = AnswerPort(endpoint, self.record.session, security_of(self._config, endpoint))
        self._show(f"listening on {self._port.endpoint} until the source asks; run parmig recover there")
        limit_ns = self._config.wait_ns
        began_ns = time.monotonic_ns()
        poller = Poller(*self._port.pollables())
        while not self._port.heard():
            poller.poll(POLL_MS)
            if self._cancelled:
                raise CancelledError("cancelled while the source's question was awaited; nothing was changed")
            if limit_ns and time.monotonic_ns() - began_ns >= limit_ns:
                raise LimitExceededError(f"the source did not ask within {format_ms(limit_ns / 1e6)}")

    def _answer(self) -> None:
        """Answer the source, if it has asked, by what is on record."""
        if self._port is not None:
            self._port.answer(self.record.owner)

    # -- words ----------------------------------------------------------------------------------

    def _what_is_known(self, facts: Facts) -> str:
        record = self.record
        where = record.guest or f"a {record.kind} guest"
        known = (
            f"session {record.name}: {where} is {self.guest.value} here, and this {record.side} is {record.state.value}"
        )
        if facts.guest is Look.UNREACHABLE:
            return f"{known}: {self._problem}; see to the monitor, and recover again"
        if facts.answer in ("silent", "undecided"):
            return (
                f"{known}; the destination does not answer ({self._problem}). Run parmig recover there, and this again "
                "with --peer URI if it listens elsewhere. Only if its host is lost for good, or you have seen there "
                "that the guest does not run: --decide here. If it runs there: --decide there"
            )
        return (
            f"{known}, which does not fit together: somebody has continued or ended it by hand. See to it that the "
            "guest runs on one host only, and say which by --decide here or --decide there"
        )

    # -- the end --------------------------------------------------------------------------------

    def _close_guest(self) -> None:
        if self._found is not None:
            self._found.close()
            self._found = None

    def _close(self) -> None:
        self._close_guest()
        if self._port is not None:
            self._port.close()
            self._port = None


_DECIDED = {
    "here": "you decided that the guest runs here; parmig cannot see that it does not run on the other host, too",
    "there": "you decided that the guest runs on the other host; parmig cannot see that it does",
}
