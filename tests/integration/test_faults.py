# SPDX-License-Identifier: Apache-2.0
"""Whatever dies, and whenever: the guest runs on exactly one side, the error names the cause, nothing is left."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest

from parmig.config import SendConfig
from parmig.engine.destination_plan.destination_steps import Step as DestinationStep
from parmig.engine.handover.questions import ask_for_guest
from parmig.engine.reporting.report import Report
from parmig.engine.source_plan.source_steps import NOBODY_NS
from parmig.errors import PeerFailedError
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import parse_uri
from parmig.units import MIB, NS_PER_S
from tests.integration.sides import (
    ENDED,
    KNOWN_LIMIT_S,
    LIMIT_S,
    LISTEN,
    Command,
    Discard,
    HeldGuest,
    Migration,
    OtherSide,
    guests,
    is_alive,
    kill,
    never_ran,
    runs_on,
    until,
)

SLOW = "memory=32MiB,rate=200MiB/s"
SLOW_RATE = {"max_bandwidth_bytes_per_s": 40 * MIB}
ENDLESS = SLOW_RATE | {"switchover": "manual"}
"""Every round takes most of a second, and there is no end of them."""
QUICK = "memory=32MiB,rate=20MiB/s"
LONG_PAUSE = SLOW_RATE | {"downtime_limit_ns": 20 * NS_PER_S}
"""Pauses after round 1, with most of the memory dirty: the last round takes most of a second, and state is saved beside
it."""


class Moment(msgspec.Struct, frozen=True):
    """When it happens, and what guests and configuration get a migration there."""

    name: str
    guest: str = QUICK
    send: dict[str, int | str] = {}
    hold_source: tuple[str, ...] = ()
    hold_destination: tuple[str, ...] = ()


MOMENTS = {
    moment.name: moment
    for moment in (
        Moment("round 1", SLOW, ENDLESS),
        Moment("a later round", SLOW, ENDLESS),
        Moment("pausing", hold_source=("pause",)),
        Moment("the last round", SLOW, LONG_PAUSE, hold_source=("save_state",)),
        Moment("saving state", hold_source=("save_state",)),
        Moment("comparing digests", send={"verify": "before"}, hold_source=("save_state",)),
        Moment("loading state", hold_destination=("finish_load",)),
    )
}

every_moment = pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())


class Scene(Migration):
    """A migration that is brought to a moment."""

    moment: Moment
    stopped = 0

    def reach(self) -> None:
        """Be there."""
        match self.moment.name:
            case "round 1":
                self.at_round(1)
            case "a later round":
                self.at_round(2)
            case "the last round":
                self.at_status("pre-switchover")
            case "comparing digests":
                self._hold_digests()
            case "loading state" if self.destination is not None:
                self.destination.gates["finish_load"].wait()
            case _:
                assert self.source is not None
                self.source.gates[self.moment.hold_source[0]].wait()

    def _hold_digests(self) -> None:
        # Saving writes one page of the first worker's; so the second hears nothing before it is asked for digests.
        assert self.source is not None
        self.source.gates["save_state"].wait()
        self.stopped = self.receive_workers()[1]
        os.kill(self.stopped, signal.SIGSTOP)
        self.source.open_gates()
        until(lambda: self.sender is not None and self.sender._plan.step.name == "DIGESTING", "the digests")

    def known(self, since: float) -> None:
        """The sender has known of the failure within the limit, though a guest may still be held."""
        until(lambda: self.status in ENDED, "the sender to know", KNOWN_LIMIT_S - (time.monotonic() - since))

    def go_on(self) -> None:
        """Let the guests finish what they are at."""
        for guest in (self.source, self.destination):
            if guest is not None:
                guest.open_gates()


@contextmanager
def scene(moment: Moment, **more: int) -> Iterator[Scene]:
    """A migration at *moment*, both sides here; *more* are fields of SendConfig."""
    with (
        guests(moment.guest, hold_source=moment.hold_source, hold_destination=moment.hold_destination) as (here, there),
        Scene(here, there, SendConfig(**{"workers": 2, "verify": True} | moment.send | more)) as migration,
    ):
        migration.moment = moment
        migration.reach()
        yield migration


def failed(report: Report, error: str, *words: str, code: int = 1) -> None:
    """The report of a failure: class, exit code, words."""
    assert report.error is not None, report
    assert report.error.type == error, report.error
    assert report.exit_code == code
    assert report.status == ("cancelled" if error == "CancelledError" else "failed")
    for word in words:
        assert word in report.error.message, report.error
    assert report.error.phase


# -- one process dies ----------------------------------------------------------------------------------


@every_moment
def test_a_send_worker_is_killed_that_nobody_replaces(moment: Moment) -> None:
    with scene(moment, reconnect_timeout_ns=0) as at:
        victim = at.send_workers()[0]
        began = time.monotonic()
        kill(victim)
        at.known(began)
        at.go_on()
        cause = f"send worker 0 (process {victim}) was killed by signal 9"
        failed(at.sent(), "WorkerError", cause)
        failed(at.received(), "PeerFailedError", cause)
        assert at.source is not None
        assert at.destination is not None
        runs_on(at.source)
        never_ran(at.destination)


@every_moment
def test_a_receive_worker_is_killed_that_nobody_replaces(moment: Moment) -> None:
    with scene(moment, reconnect_timeout_ns=0) as at:
        victim = at.receive_workers()[1]
        began = time.monotonic()
        kill(victim)
        at.known(began)
        at.go_on()
        cause = f"receive worker 1 (process {victim}) was killed by signal 9"
        failed(at.sent(), "PeerFailedError", cause)
        failed(at.received(), "WorkerError", cause)
        assert at.source is not None
        assert at.destination is not None
        runs_on(at.source)
        never_ran(at.destination)


@every_moment
def test_the_destination_guest_is_killed(moment: Moment) -> None:
    with scene(moment) as at:
        assert at.source is not None
        assert at.destination is not None
        began = time.monotonic()
        kill(at.destination.pid)
        at.known(began)
        at.go_on()
        failed(at.received(), "GuestError", "died")
        failed(at.sent(), "PeerFailedError", "the destination failed", "died")
        runs_on(at.source)
        never_ran(at.destination)


@every_moment
def test_the_source_guest_is_killed(moment: Moment) -> None:
    with scene(moment) as at:
        assert at.source is not None
        assert at.destination is not None
        began = time.monotonic()
        kill(at.source.pid)
        at.known(began)
        at.go_on()
        sent, received = at.sent(), at.received()
        failed(sent, "GuestError")
        assert sent.error is not None
        words = sent.error.message
        assert "died" in words or "ended by signal 9" in words, words  # a call under way may see it first
        failed(received, "PeerFailedError", "the source failed", words)
        never_ran(at.destination)


@every_moment
def test_the_sender_is_cancelled(moment: Moment) -> None:
    with scene(moment) as at:
        assert at.source is not None
        assert at.destination is not None
        assert at.sender is not None
        began = time.monotonic()
        at.sender.cancel()
        at.known(began)
        at.go_on()
        failed(at.sent(), "CancelledError", code=130)
        failed(at.received(), "PeerFailedError", "cancelled")
        runs_on(at.source)
        never_ran(at.destination)


@every_moment
def test_the_receiver_is_cancelled(moment: Moment) -> None:
    with scene(moment) as at:
        assert at.source is not None
        assert at.destination is not None
        assert at.receiver is not None
        began = time.monotonic()
        at.receiver.cancel()
        at.known(began)
        at.go_on()
        failed(at.received(), "CancelledError", code=130)
        failed(at.sent(), "PeerFailedError", "the destination failed: cancelled")
        runs_on(at.source)
        never_ran(at.destination)


# -- a whole side dies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["round 1", "a later round", "pausing", "the last round", "saving state", "loading state"]
)
def test_the_receiver_process_is_killed(name: str) -> None:
    moment = MOMENTS[name]
    with ExitStack() as stack:
        there = stack.enter_context(OtherSide("receive", guest="memory=32MiB", hold=moment.hold_destination))
        source = HeldGuest(moment.guest, hold=moment.hold_source)
        stack.enter_context(source)
        config = SendConfig(**{"workers": 2, "verify": True} | moment.send)
        at = stack.enter_context(Scene(source, None, config, uri=there.wait_for("uri")))
        at.moment = moment
        if moment.hold_destination:
            there.wait_for("at")
        else:
            at.reach()
        began = time.monotonic()
        there.kill()
        at.known(began)
        at.go_on()
        failed(at.sent(), "PeerLostError", "lost")
        runs_on(source)


@pytest.mark.parametrize(
    "name", ["round 1", "a later round", "pausing", "the last round", "saving state", "loading state"]
)
def test_the_sender_process_is_killed(name: str) -> None:
    moment = MOMENTS[name]
    with ExitStack() as stack:
        destination = HeldGuest("memory=32MiB", incoming=True, hold=moment.hold_destination)
        stack.enter_context(destination)
        at = stack.enter_context(Scene(None, destination))
        at.moment = moment
        here = stack.enter_context(
            OtherSide("send", guest=moment.guest, hold=moment.hold_source, uri=at.uri, send=moment.send)
        )
        match name:
            case "round 1":
                here.wait_for("active 1 True")
            case "a later round":
                here.wait_for("active 2 True")
            case "the last round":
                until(lambda: any(line.get("status") == "pre-switchover" for line in here.lines), "the pause")
            case "loading state":
                at.reach()
            case _:
                here.wait_for("at")
        began = time.monotonic()
        here.kill()  # waits for its workers and its guest, too
        at.go_on()
        failed(at.received(), "PeerLostError", "the source is gone before hand-over")
        assert time.monotonic() - began < KNOWN_LIMIT_S
        never_ran(destination)


# -- hand-over -----------------------------------------------------------------------------------------


def test_a_source_lost_right_after_loading_leaves_no_copy_running() -> None:
    with ExitStack() as stack:
        destination = HeldGuest("memory=32MiB", incoming=True, hold=["finish_load"])
        stack.enter_context(destination)
        at = stack.enter_context(Migration(None, destination))
        here = stack.enter_context(OtherSide("send", guest=QUICK, uri=at.uri, send={}))
        destination.gates["finish_load"].wait()
        here.process.send_signal(signal.SIGSTOP)  # so that it never answers to Loaded
        destination.open_gates()
        receiver = at.receiver
        assert receiver is not None
        until(
            lambda: receiver._session and receiver._session.plan.step is DestinationStep.LOADED, "the copy to be ready"
        )
        here.kill()
        until(lambda: any(QUESTION in seen.message for seen in at.received_progress), "the loss to be known")
        assert receiver._session is not None
        session = receiver._session.promise._keeper.record.session
        with pytest.raises(PeerFailedError, match="waits for another migration"):
            ask_for_guest(parse_uri(at.uri), bytes(16))
        assert not at._received
        assert ask_for_guest(parse_uri(at.uri), session).owner == "there"
        failed(at.received(), "PeerLostError", "asked for it afterwards")
        never_ran(destination)


QUESTION = DestinationStep.KEEPING.value


def test_a_destination_that_has_the_guest_resumes_it_though_the_source_is_gone() -> None:
    with ExitStack() as stack:
        destination = HeldGuest("memory=32MiB", incoming=True, hold=["resume"])
        stack.enter_context(destination)
        at = stack.enter_context(Migration(None, destination))
        here = stack.enter_context(OtherSide("send", guest=QUICK, uri=at.uri, send={}))
        destination.gates["resume"].wait()
        here.kill()
        destination.open_gates()
        report = at.received()
        assert (report.status, report.error) == ("completed", None)
        before = destination.stats().counter
        until(lambda: destination.stats().counter > before + 3, "the destination's next ticks")
        destination.pause(Discard())
        destination.check()


def outcome_unknown(source: HeldGuest, report: Report) -> None:
    """The source does not know, and does not run."""
    assert report.error is not None
    assert (report.status, report.error.type, report.exit_code) == ("unknown", "OutcomeUnknownError", 4), report.error
    assert "stays paused here" in report.error.message
    assert source.stats().paused
    assert not source.is_running()
    source.check()


def test_a_source_that_lost_the_destination_after_hand_over_stays_paused_and_says_so() -> None:
    with ExitStack() as stack:
        there = stack.enter_context(OtherSide("receive", guest="memory=32MiB", hold=["resume"]))
        source = HeldGuest(QUICK)
        stack.enter_context(source)
        at = stack.enter_context(Migration(source, None, uri=there.wait_for("uri")))
        assert there.wait_for("at") == "resume"
        began = time.monotonic()
        there.kill()
        report = at.sent()
        assert time.monotonic() - began < NOBODY_NS / NS_PER_S + KNOWN_LIMIT_S
        outcome_unknown(source, report)


def test_a_destination_guest_that_dies_after_hand_over_leaves_the_source_paused() -> None:
    with guests(QUICK, hold_destination=["resume"]) as (source, destination), Migration(source, destination) as at:
        destination.gates["resume"].wait()
        kill(destination.pid)
        destination.open_gates()
        outcome_unknown(source, at.sent())
        assert at.received().error is not None
        never_ran(destination)


def kill_workers(at: Migration) -> None:
    assert at.sender is not None
    assert at.receiver is not None
    processes = [*at.sender._pool._processes, *at.receiver._pool._processes]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    multiprocessing.connection.wait([process.sentinel for process in processes], LIMIT_S)


def kill_source(at: Migration) -> None:
    assert at.source is not None
    kill(at.source.pid)


def cancel_both(at: Migration) -> None:
    assert at.sender is not None
    assert at.receiver is not None
    at.sender.cancel()
    at.receiver.cancel()


@pytest.mark.parametrize("what", [kill_workers, kill_source, cancel_both])
def test_what_happens_after_hand_over_to_what_is_needed_no_more_changes_nothing(
    what: Callable[[Migration], None],
) -> None:
    config = SendConfig(workers=2)  # --verify would need the workers and both guests for longer
    with (
        guests(QUICK, hold_destination=["resume"]) as (source, destination),
        Migration(source, destination, config) as at,
    ):
        destination.gates["resume"].wait()
        what(at)
        destination.open_gates()
        assert (at.sent().status, at.sent().error) == ("completed", None)
        assert (at.received().status, at.received().error) == ("completed", None)
        assert destination.is_running()
        destination.pause(Discard())
        destination.check()


# -- before anything has begun -------------------------------------------------------------------------


def test_a_receiver_that_waits_can_be_cancelled() -> None:
    with HeldGuest("memory=8MiB", incoming=True) as destination:  # type: ignore[attr-defined]
        with Migration(None, destination) as at:
            assert at.receiver is not None
            at.receiver.cancel()
            failed(at.received(), "CancelledError", f"no sender has connected to {at.uri}", code=130)
        never_ran(destination)


def test_a_receiver_without_a_sender_says_once_where_to_look() -> None:
    soon = "import parmig.engine.destination.receiver as r; r.NOBODY_CAME_NS = 10**8"
    where = ["--listen", LISTEN, "--guest", "synthetic:memory=8MiB", "--wait", "1.5s", "--json"]
    with Command("receive", *where, prelude=soon) as receiver:
        uri = receiver.uri()
        code, report = receiver.end()
    assert (code, report["error"]["type"]) == (1, "LimitExceededError")
    for words in (f"no sender has connected to {uri}", "sender's own output", "address and port", "firewall"):
        assert words in report["error"]["message"]
        assert receiver.errors.count(words) == 2, "once while it waited, once as the error"


def test_a_receiver_does_not_say_so_at_once() -> None:
    where = ["--listen", LISTEN, "--guest", "synthetic:memory=8MiB", "--wait", "1s", "--json"]
    with Command("receive", *where) as receiver:
        receiver.end()
    assert receiver.errors.count("no sender has connected") == 1


def test_a_sender_that_waits_for_an_answer_can_be_cancelled() -> None:
    with HeldGuest("memory=32MiB") as source, ExitStack() as stack:  # type: ignore[attr-defined]
        silent = TcpTransport("silent", heartbeat=True, max_message_bytes=MIB)
        stack.callback(silent.shutdown)
        uri = str(silent.bind(parse_uri("tcp://127.0.0.1:0")))
        with Migration(source, None, uri=uri) as at:
            until(lambda: silent.read(10), "the source's wishes")
            silent.accept()
            assert at.sender is not None
            began = time.monotonic()
            at.sender.cancel()
            failed(at.sent(), "CancelledError", code=130)
            assert time.monotonic() - began < KNOWN_LIMIT_S
        assert source.is_running()


def test_a_second_sender_does_not_disturb_the_first() -> None:
    with guests(SLOW) as (source, destination), HeldGuest("memory=32MiB") as second:  # noqa: SIM117 - too long on one line
        with Migration(source, destination, SendConfig(workers=2, **ENDLESS)) as at:
            at.at_round(1)
            config = SendConfig(workers=2, connect_timeout_ns=NS_PER_S // 5)
            with Migration(second, None, config, uri=at.uri) as other:  # type: ignore[arg-type]
                failed(other.sent(), "PeerUnreachableError")
            assert second.is_running()
            assert at.status == "active"


# -- the command line ----------------------------------------------------------------------------------

SEND = ("--guest", "synthetic:memory=32MiB,rate=200MiB/s", "--workers", "2", "--max-bandwidth", "40MiB/s", "--json")


@pytest.mark.parametrize("side", ["send", "receive"])
@pytest.mark.parametrize("line", ["active, round 1", "active, round 2", "pre-switchover"])
def test_ctrl_c_in_a_command_ends_both_in_order(side: str, line: str) -> None:
    limit = ["--downtime-limit", "20s"] if line == "pre-switchover" else []
    with Command(
        "receive", "--listen", "zmq+tcp://127.0.0.1:0", "--guest", "synthetic:memory=32MiB", "--json"
    ) as there:
        with Command("send", there.uri(), *SEND, *limit) as here:
            here.wait_for(line)
            family = [*_family(here), *_family(there)]
            (here if side == "send" else there).process.send_signal(signal.SIGINT)
            code, report = here.end()
            assert code == (130 if side == "send" else 1), here.errors
            assert report["status"] == ("cancelled" if side == "send" else "failed")
            code, report = there.end()
            assert code == (1 if side == "send" else 130), there.errors
            assert "cancelled" in report["error"]["message"]
        until(lambda: not any(is_alive(one) for one in family), f"the end of {family}")


def _family(command: Command) -> list:
    import psutil

    return psutil.Process(command.process.pid).children(recursive=True)
