# SPDX-License-Identifier: Apache-2.0
"""The pause ends within its limit, nothing said after hand-over changes whose the guest is, and the report is true."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import msgspec
import psutil
import pytest

from parmig.config import SendConfig
from parmig.engine import guest_thread
from parmig.engine.custody import custody
from parmig.engine.custody.custody import Custody
from parmig.engine.destination_plan import destination_end
from parmig.engine.driver import Driver
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested, DigestRequest
from parmig.engine.reporting.report import ErrorReport, Progress, Report
from parmig.engine.source.send_run import SendRun
from parmig.guests.guest import DirtyLog, Rescue
from parmig.linux import ptrace
from parmig.units import NS_PER_S
from tests.engine.custody.test_guardian import gone
from tests.integration.sides import (
    KNOWN_LIMIT_S,
    Discard,
    HeldGuest,
    Migration,
    OtherSide,
    guests,
    never_ran,
    runs_on,
    until,
)

QUICK = "memory=16MiB,rate=20MiB/s"
SHORT = SendConfig(workers=2, verify=True, switchover_timeout_ns=2 * NS_PER_S)


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of seconds that nearly every test here waits for. Other tests have the real ones."""
    monkeypatch.setattr(destination_end, "ANSWER_LIMIT_NS", NS_PER_S // 2)
    monkeypatch.setattr(custody, "LEAST_RESUME_LIMIT_S", 1.0)
    monkeypatch.setattr(guest_thread, "CLOSE_LIMIT_S", 1.0)


def ended(report: Report, status: str, error: str, code: int, where: str) -> str:
    """The report of a failure as it must be; returns its words."""
    assert report.error is not None, report
    assert (report.status, report.error.type, report.exit_code) == (status, error, code), report.error
    assert report.source_guest == where
    return report.error.message


# -- limits ----------------------------------------------------------------------------------------------


def test_a_destination_that_hangs_while_it_loads_gives_the_source_back_within_the_limit() -> None:
    with (
        guests(QUICK, hold_destination=["finish_load"]) as (source, destination),
        Migration(source, destination, SHORT) as at,
    ):
        destination.gates["finish_load"].wait()
        assert source.stats().paused
        began = time.monotonic()
        until(lambda: not source.stats().paused, "the source to go on", 2 + KNOWN_LIMIT_S)
        assert time.monotonic() - began < 2 + KNOWN_LIMIT_S
        words = ended(at.sent(), "failed", "LimitExceededError", 1, "running")
        assert "loading device state at the destination did not end within the 2000.0 ms" in words
        destination.open_gates()
        assert at.received().status == "failed"
        runs_on(source)
        never_ran(destination)


def test_a_destination_that_hangs_after_hand_over_ends_as_unknown_within_the_limit() -> None:
    with (
        guests(QUICK, hold_destination=["resume"]) as (source, destination),
        Migration(source, destination, SHORT) as at,
    ):
        destination.gates["resume"].wait()
        words = ended(at.sent(), "unknown", "OutcomeUnknownError", 4, "paused")
        assert "resuming at the destination did not end within the 2000.0 ms" in words
        assert source.stats().paused
        destination.open_gates()
        assert at.received().status == "completed"
        assert destination.is_running()


def test_a_guest_that_hangs_while_it_is_saved_is_reported_as_paused() -> None:
    with (
        guests(QUICK, hold_source=["save_state"]) as (source, destination),
        Migration(source, destination, SHORT) as at,
    ):
        source.gates["save_state"].wait()
        words = ended(at.sent(), "failed", "SourcePausedError", 5, "paused")
        assert "saving device state did not end within" in words  # what failed first
        assert "could not be resumed (the guest did not finish resume_source within 2 s)" in words
        assert "it is PAUSED here" in words
        assert "no guardian watches over it" in words
        assert at.received().status == "failed"
        never_ran(destination)
        assert source.stats().paused


class Stubborn(HeldGuest):
    """A guest that does not go on, or says so of one that does."""

    goes_on = False

    def resume_source(self) -> None:
        if self.goes_on:
            super().resume_source()
        raise ValueError("out of sorts")


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_cancel_whose_resume_fails_says_what_the_guest_does(goes_on: bool) -> None:
    with (
        Stubborn(QUICK, hold=["save_state"]) as source,  # type: ignore[attr-defined]
        HeldGuest("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
        Migration(source, destination) as at,
    ):
        source.goes_on = goes_on
        source.gates["save_state"].wait()
        assert at.sender is not None
        at.sender.cancel()
        source.open_gates()
        if goes_on:
            ended(at.sent(), "cancelled", "CancelledError", 130, "running")
            runs_on(source)
        else:
            words = ended(at.sent(), "cancelled", "SourcePausedError", 5, "paused")
            assert "cancelled" in words
            assert "out of sorts" in words
            assert source.stats().paused
        assert any("out of sorts" in seen.message for seen in at.seen)


class Settles(HeldGuest):
    """A guest that settles, and hangs while it does: where it settles by stopping, it stands still meanwhile."""

    way = "stop"

    def start_dirty_log(self, kind: str) -> DirtyLog:
        return msgspec.structs.replace(super().start_dirty_log(kind), settle=self.way)

    def settle(self) -> None:
        if self.way == "stop":
            self.pause(Discard())
        self._at("settle")


@pytest.mark.parametrize(
    ("way", "error", "code", "where"),
    [("stop", "SourcePausedError", 5, "paused"), ("transaction", "CancelledError", 130, "unknown")],
)
def test_a_guest_that_hangs_while_it_settles_is_reported_as_paused_where_settling_stops_it(
    way: str, error: str, code: int, where: str
) -> None:
    with (
        Settles(QUICK, hold=["settle"]) as source,  # type: ignore[attr-defined]
        HeldGuest("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
    ):
        source.way = way
        with Migration(source, destination, SHORT) as at:
            source.gates["settle"].wait()
            assert at.sender is not None
            at.sender.cancel()
            words = ended(at.sent(), "cancelled", error, code, where)
            assert "cancelled" in words
            assert ("it is PAUSED here" in words) == (way == "stop")
            never_ran(destination)


# -- the guardian ----------------------------------------------------------------------------------------


def leave_a_trace(path: bytes) -> bool:
    """A rescue that makes a file."""
    Path(os.fsdecode(path)).touch()
    return True


class Guarded(HeldGuest):
    """A guest that a guardian watches over. Its rescue makes the file *trace*."""

    trace: Path

    def rescue(self, *, settling: bool = False, pausing: bool = False) -> Rescue:
        return Rescue(f"{__name__}:leave_a_trace", os.fsencode(self.trace))


def test_the_guardian_is_disarmed_before_the_guest_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From that message on the guest may run at the destination; if this process died then, it would run twice."""
    say, cut_off = SendRun._say, []

    def cut_off_the_guardian(self: SendRun, message: m.ControlMessage) -> None:
        if isinstance(message, m.HandOver):
            guardian = self._custody._guardian
            assert guardian.pid
            guardian._drop()  # the guardian sees the same if this process dies now
            gone(guardian.pid)
            cut_off.append(True)
        say(self, message)

    monkeypatch.setattr(SendRun, "_say", cut_off_the_guardian)
    monkeypatch.setattr(Guarded, "trace", tmp_path / "rescued", raising=False)
    with (
        Guarded(QUICK) as source,  # type: ignore[attr-defined]
        HeldGuest("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
        Migration(source, destination) as at,
    ):
        assert (at.sent().status, at.received().status) == ("completed", "completed")
        assert cut_off == [True]
        assert not (tmp_path / "rescued").exists()


# -- after hand-over -------------------------------------------------------------------------------------


def say(at: Migration, message: m.ControlMessage) -> None:
    """Have the receiver say *message* now, in its own loop."""
    assert at.receiver is not None
    session = at.receiver._session
    assert session is not None
    at.receiver._thread._note(lambda _: session._say(message), Future())


LATE: list[m.ControlMessage] = [
    m.Loaded(1, 1),
    Digested("another"),
    DigestRequest(),
    m.Release(1, "x"),
    m.HandOver(True),
    m.Progressed("active", 1),
    m.Refuse("no"),
    m.Failure(ErrorReport(type="GuestError", message="cannot")),
    m.Failure(ErrorReport(type="PeerLostError", message="gone")),
    m.Goodbye(),
]


@pytest.mark.parametrize("message", LATE, ids=lambda message: type(message).__name__)
def test_nothing_that_is_said_after_hand_over_gives_the_guest_back(message: m.ControlMessage) -> None:
    with guests(QUICK, hold_destination=["resume"]) as (source, destination), Migration(source, destination) as at:
        destination.gates["resume"].wait()
        say(at, message)
        ended(at.sent(), "unknown", "OutcomeUnknownError", 4, "paused")
        assert source.stats().paused
        destination.open_gates()
        assert at.received().status == "completed"
        assert destination.is_running()


def test_a_digest_that_is_said_again_after_hand_over_does_no_harm() -> None:
    before = SendConfig(workers=2, verify="before")
    with (
        guests(QUICK, hold_destination=["resume"]) as (source, destination),
        Migration(source, destination, before) as at,
    ):
        destination.gates["resume"].wait()
        assert at.receiver is not None
        assert at.receiver._session is not None
        assert at.receiver._session.plan.digest
        say(at, Digested(at.receiver._session.plan.digest))
        destination.open_gates()
        assert (at.sent().status, at.sent().source_guest) == ("completed", "moved")


@pytest.mark.parametrize("late", [False, True])
def test_a_progress_callback_that_raises_is_a_failure_before_hand_over_and_unknown_after_it(late: bool) -> None:
    held = "resume" if late else "finish_load"

    def fail(_: Progress) -> None:
        raise ZeroDivisionError("the caller's own")

    with guests(QUICK, hold_destination=[held]) as (source, destination), Migration(source, destination) as at:
        assert at.sender is not None
        destination.gates[held].wait()
        at.sender._progress = fail
        if late:
            words = ended(at.sent(), "unknown", "OutcomeUnknownError", 4, "paused")
            assert source.stats().paused
        else:
            words = ended(at.sent(), "failed", "ParmigError", 1, "running")
            runs_on(source)
        assert "ZeroDivisionError: the caller's own" in words
        destination.open_gates()
        assert at.received().status == ("completed" if late else "failed")


ENDS_WITH_CONNECTION = SendConfig(workers=2, verify=True, reconnect_timeout_ns=0)
"""Channels that do not outlive their connections."""


def break_a_data_connection(worker: int) -> None:
    """Shut the connection of a send worker down, as a firewall would; both its ends live."""
    process = psutil.Process(worker)
    (number,) = (one.fd for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED)
    pidfd = os.pidfd_open(worker)
    try:
        with socket.socket(fileno=ptrace.pidfd_getfd(pidfd, number)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(pidfd)


def test_loaded_while_a_loss_is_suspected_never_hands_over() -> None:
    with (
        guests(QUICK, hold_destination=["finish_load", "resume"]) as (source, destination),
        Migration(source, destination, ENDS_WITH_CONNECTION) as at,
    ):
        sender = at.sender
        assert sender is not None
        destination.gates["finish_load"].wait()
        break_a_data_connection(at.send_workers()[0])
        until(lambda: sender._plan is not None and sender._plan.suspected, "the sender to suspect something")
        destination.gates["finish_load"].open()
        error = at.sent().error
        assert error is not None
        assert error.type in ("PeerLostError", "PeerFailedError")
        assert "lost" in error.message
        assert at.sent().status == "failed"
        destination.open_gates()
        runs_on(source)
        assert at.received().status == "failed"
        never_ran(destination)


def test_neither_side_is_busy_while_it_waits_for_the_cause_of_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe of a worker that has ended stays readable; polled on, it would wake the loop without end."""
    turn, turns = Driver.turn, Counter[str]()

    def count(self: Driver[object]) -> bool:
        if self._plan.suspected is not None:
            turns[type(self).__name__] += 1
        return turn(self)

    monkeypatch.setattr(Driver, "turn", count)
    with (
        guests(QUICK, hold_destination=["finish_load"]) as (source, destination),
        Migration(source, destination, ENDS_WITH_CONNECTION) as at,
    ):
        destination.gates["finish_load"].wait()
        break_a_data_connection(at.send_workers()[0])
        assert at.sent().status == "failed"
        destination.open_gates()
        assert at.received().status == "failed"
    assert turns["SendRun"] + turns["ReceiveSession"] > 0
    assert max(turns.values()) < 100, turns


def unread_bytes(port: int) -> int:
    """How many bytes wait to be read by whoever has connections at the local *port*."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].partition(":")[2], 16) for line in lines if int(line[1].partition(":")[2], 16) == port)


def test_a_hand_over_that_cannot_be_sent_gives_the_guest_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination is killed with something unread, so that the source's host hears at once; then it hands over."""
    with OtherSide("receive", guest="memory=16MiB") as there, HeldGuest(QUICK) as source:  # type: ignore[attr-defined]
        uri = there.wait_for("uri")
        disarm = Custody.disarm

        def lose_the_destination(self: Custody) -> None:
            disarm(self)
            there.process.send_signal(signal.SIGSTOP)
            until(lambda: unread_bytes(int(uri.rpartition(":")[2])), "a keep-alive that nobody reads")
            there.kill()

        monkeypatch.setattr(Custody, "disarm", lose_the_destination)
        with Migration(source, None, uri=uri) as at:
            words = ended(at.sent(), "failed", "PeerLostError", 1, "running")
            assert "cannot send" in words
            runs_on(source)


# -- paused or running is what it was at its pause -------------------------------------------------------


@pytest.mark.parametrize("runs", [True, False])
def test_a_guest_arrives_as_it_was_at_its_pause_not_at_the_start(runs: bool) -> None:
    options = f"memory=16MiB,rate=20MiB/s,running={'no' if runs else 'yes'}"
    with (
        guests(options, hold_source=["start_dirty_log"]) as (source, destination),
        Migration(source, destination) as at,
    ):
        source.gates["start_dirty_log"].wait()
        if runs:
            source.resume()
        else:
            source.pause(Discard())
        source.open_gates()
        assert at.sent().status == "completed"
        assert at.received().status == "completed"
        assert destination.is_running() == runs


class PausedLater(HeldGuest):
    """A guest whose monitor tells that somebody had paused it just before."""

    def ran_until_pause(self) -> bool | None:
        return False


def test_what_the_monitor_tells_of_the_pause_counts() -> None:
    with (
        PausedLater(QUICK) as source,  # type: ignore[attr-defined]
        HeldGuest("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
        Migration(source, destination) as at,
    ):
        assert (at.sent().status, at.received().status) == ("completed", "completed")
        assert not destination.is_running()
