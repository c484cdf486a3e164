# SPDX-License-Identifier: Apache-2.0
"""Calls to the guest happen in one thread, in order, and the loop hears of their end."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from parmig.engine import guest_thread
from parmig.engine.guest_thread import GuestThread
from parmig.errors import GuestError, LimitExceededError
from tests.support import PATIENCE_S, wait_until


@pytest.fixture
def thread() -> Iterator[GuestThread]:
    one = GuestThread()
    yield one
    one.close()


def woken(thread: GuestThread, limit_s: float = PATIENCE_S) -> bool:
    return bool(select.select([thread.wake_fd], [], [], limit_s)[0])


def test_a_call_returns_what_the_function_returns(thread: GuestThread) -> None:
    assert thread.call(divmod, 17, 5) == (3, 2)
    assert thread.call(threading.get_ident) == thread.call(threading.get_ident) != threading.get_ident()


def test_a_call_raises_what_the_function_raises(thread: GuestThread) -> None:
    def fail() -> None:
        raise GuestError("it went away")

    with pytest.raises(GuestError, match="it went away"):
        thread.call(fail)


def test_a_guests_own_timeout_is_not_taken_for_ours(thread: GuestThread) -> None:
    def fail() -> None:
        raise TimeoutError("the monitor's socket")

    with pytest.raises(TimeoutError, match="the monitor's socket"):
        thread.call(fail)


def test_a_call_that_takes_too_long_is_an_error_that_names_it(
    thread: GuestThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_thread, "CALL_LIMIT_S", 0.02)
    released = threading.Event()

    def hang() -> None:
        released.wait(PATIENCE_S)

    with pytest.raises(LimitExceededError, match="did not finish hang"):
        thread.call(hang)
    released.set()


def test_what_is_begun_is_finished_in_order_in_the_loops_thread(thread: GuestThread) -> None:
    gate = threading.Event()
    order: list[tuple[object, int]] = []

    def then(future: Future[int]) -> None:
        order.append((future.result(), threading.get_ident()))

    thread.begin(lambda future: None, gate.wait, PATIENCE_S)
    for number in range(5):
        thread.begin(then, abs, -number)
    thread.finished()
    assert order == []
    assert not woken(thread, 0)
    gate.set()

    def all_finished() -> bool:
        assert woken(thread)
        thread.finished()
        return len(order) == 5

    wait_until(all_finished, "five continuations")
    assert order == [(number, threading.get_ident()) for number in range(5)]


def test_a_failure_of_what_was_begun_is_in_its_future(thread: GuestThread) -> None:
    found: list[BaseException | None] = []
    thread.begin(lambda future: found.append(future.exception()), divmod, 1, 0)
    assert woken(thread)
    thread.finished()
    assert [type(one) for one in found] == [ZeroDivisionError]


def test_waking_is_seen_once(thread: GuestThread) -> None:
    thread.wake()
    thread.wake()
    assert woken(thread)
    thread.finished()
    assert not woken(thread, 0)


def test_closing_waits_for_the_call_under_way_and_drops_the_rest() -> None:
    one = GuestThread()
    began, gate = threading.Event(), threading.Event()
    ran: list[str] = []

    def work() -> None:
        began.set()
        gate.wait(PATIENCE_S)
        ran.append("under way")

    one.begin(lambda future: None, work)
    one.begin(lambda future: None, ran.append, "dropped")
    assert began.wait(PATIENCE_S)
    threading.Timer(0.01, gate.set).start()
    one.close()
    assert ran == ["under way"]


def test_waking_after_the_end_touches_no_descriptor_that_was_opened_since() -> None:
    one = GuestThread()
    number = one.wake_fd
    one.close()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    if fd != number:
        os.dup2(fd, number)
    one.wake()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    os.close(fd)
    if fd != number:
        os.close(number)


def test_a_call_has_the_limit_that_its_caller_gives(thread: GuestThread) -> None:
    gate = threading.Event()
    with pytest.raises(LimitExceededError, match=r"did not finish wait within 0\.02 s"):
        thread.call(gate.wait, limit_s=0.02)
    gate.set()


def test_a_call_that_was_given_up_before_it_began_never_runs(thread: GuestThread) -> None:
    gate = threading.Event()
    ran: list[str] = []
    thread.begin(lambda future: None, gate.wait, PATIENCE_S)
    with pytest.raises(LimitExceededError, match="did not finish append"):
        thread.call(ran.append, "late", limit_s=0.02)
    gate.set()
    assert thread.call(lambda: "next") == "next"
    assert ran == []


def test_closing_leaves_a_call_that_hangs_behind() -> None:
    one = GuestThread()
    began, gate = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        gate.wait(PATIENCE_S)

    one.begin(lambda future: None, hang)
    assert began.wait(PATIENCE_S)
    assert one.close(limit_s=0.02) is False
    gate.set()
    assert one.close() is True


def test_a_call_that_hangs_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import threading\n"
        "from parmig.engine.guest_thread import GuestThread\n"
        "one, began = GuestThread(), threading.Event()\n"
        "one.begin(lambda future: None, lambda: (began.set(), threading.Event().wait()))\n"
        "began.wait()\n"
        "one.close(limit_s=0.01)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False).returncode == 0
