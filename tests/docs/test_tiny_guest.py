# SPDX-License-Identifier: Apache-2.0
"""The example of docs/guests.md, taken through the calls that the engine makes."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from docs.examples import tiny_guest
from docs.examples.tiny_guest import TinyGuest
from parmig.errors import GuestRefusedError, StateError
from parmig.guests.registry import open_guest
from parmig.ram.reach.mapped import BlockMapping
from tests.support import PATIENCE_S, Sink

SIZE = "256KiB"


def open_tiny(*, incoming: bool) -> TinyGuest:
    assert tiny_guest.__name__ == "docs.examples.tiny_guest"
    guest = open_guest(f"tiny:{SIZE}", incoming=incoming)
    assert isinstance(guest, TinyGuest)
    return guest


def wait_for_count(guest: TinyGuest, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while guest.count < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def copy_memory(source: TinyGuest, destination: TinyGuest) -> None:
    for left, right in zip(source.memory(), destination.memory(), strict=True):
        assert left.block == right.block
        one, other = BlockMapping(left), BlockMapping(right)
        other.pages[:] = one.pages
        one.close()
        other.close()


def test_it_moves_and_goes_on_counting() -> None:
    sink = Sink()
    with closing(open_tiny(incoming=False)) as source, closing(open_tiny(incoming=True)) as destination:
        assert source.info() == destination.info()
        assert source.is_running()
        assert not destination.is_running()
        assert source.start_dirty_log("auto").kind == "digest"
        wait_for_count(source, 10)
        before = time.monotonic_ns()
        assert before <= source.pause(sink) <= time.monotonic_ns()
        paused_at = source.count
        source.sync_dirty_log()
        source.save_state(sink)
        copy_memory(source, destination)
        source.stop_dirty_log()
        destination.prepare_incoming()
        destination.write_state(memoryview(sink)[:3])
        destination.write_state(memoryview(sink)[3:])
        destination.finish_load()
        assert destination.count == paused_at
        assert not destination.is_running()
        destination.resume()
        wait_for_count(destination, paused_at + 10)
        source.finish_source()
        assert source.count == paused_at


def test_a_source_runs_on_after_a_failure_and_a_paused_one_stays_paused() -> None:
    with open_tiny(incoming=False) as guest:
        guest.resume_source()
        assert guest.is_running()
        for running in (True, False):
            guest.start_dirty_log("auto")
            guest.pause(Sink())
            guest.resume_source()
            guest.stop_dirty_log()
            assert guest.is_running() is running
            guest.pause(Sink())


def test_it_refuses_a_log_that_it_has_not() -> None:
    with open_tiny(incoming=False) as guest, pytest.raises(GuestRefusedError, match="digest"):
        guest.start_dirty_log("pagemap")


def test_it_refuses_state_that_was_cut_short() -> None:
    with open_tiny(incoming=True) as guest:
        guest.prepare_incoming()
        guest.write_state(memoryview(b"1234"))
        with pytest.raises(StateError, match="4 arrived"):
            guest.finish_load()
        guest.discard()
        assert not guest.is_running()
        guest.close()
        guest.close()
