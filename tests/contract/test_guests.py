# SPDX-License-Identifier: Apache-2.0
"""What every guest promises the engine (``parmig.guests.guest``), asked of each that needs no other program."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

import docs.examples.tiny_guest
from parmig.errors import GuestRefusedError, HostRefusedError
from parmig.guests.guest import Guest, GuestInfo
from parmig.guests.registry import open_guest
from parmig.linux import uffd
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.trackers.registry import TRACKERS
from tests.kvm.machines import needs_kvm
from tests.support import Sink, wait_until

assert docs.examples.tiny_guest  # importing it registers the scheme

GUESTS = [
    "synthetic:memory=2MiB,rate=4MiB/s,blocks=2",
    "tiny:256KiB",
    pytest.param("kvm:memory=2MiB,rate=4MiB/s,vcpus=2", marks=needs_kvm),
]


LOGS = {"synthetic": {"pagemap", "bitmap", "digest"}, "kvm": {"pagemap", "bitmap", "digest"}, "tiny": {"digest"}}
"""The dirty logs that there are, on a host that can all of them."""


@pytest.fixture(params=GUESTS, ids=["synthetic", "tiny", "kvm"])
def text(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def source(text: str) -> Iterator[Guest]:
    with open_guest(text, incoming=False) as guest:
        yield guest


@pytest.fixture
def destination(text: str) -> Iterator[Guest]:
    with open_guest(text, incoming=True) as guest:
        yield guest


def memory_of(guest: Guest) -> list[bytes]:
    return [os.pread(one.fd, one.block.size_bytes, one.file_offset_bytes) for one in guest.memory()]


def changes(guest: Guest) -> Callable[[], bool]:
    """Tells whether memory has changed since this call."""
    before = memory_of(guest)
    return lambda: memory_of(guest) != before


def carry_memory(source: Guest, destination: Guest) -> None:
    for here, there in zip(source.memory(), destination.memory(), strict=True):
        one, other = BlockMapping(here), BlockMapping(there)
        other.pages[:] = one.pages
        one.close()
        other.close()


def test_its_memory_can_be_read_written_and_mapped(source: Guest, destination: Guest) -> None:
    for guest in (source, destination):
        memory = guest.memory()
        assert memory
        assert len({one.block.name for one in memory}) == len(memory)
        for one in memory:
            assert one.block.size_bytes > 0
            assert one.block.size_bytes % PAGE_BYTES == 0
            assert os.fstat(one.fd).st_size >= one.file_offset_bytes + one.block.size_bytes
            assert os.get_inheritable(one.fd) is False
            mapping = BlockMapping(one)
            mapping.pages[-1, -1] = mapping.pages[-1, -1]
            mapping.close()
            assert sum(piece.size_bytes for piece in one.block.ranges) == one.block.size_bytes
    assert [one.block for one in source.memory()] == [one.block for one in destination.memory()]


def test_its_memory_is_the_very_memory_of_the_guest(source: Guest) -> None:
    wait_until(changes(source), "the guest to write")


def test_looking_does_not_disturb(source: Guest) -> None:
    info = source.info()
    assert isinstance(info, GuestInfo)
    assert info.kind
    assert info.machine
    assert source.info() == info
    assert [one.fd for one in source.memory()] == [one.fd for one in source.memory()]
    assert source.is_running()
    wait_until(changes(source), "the guest to write")


def test_both_sides_are_the_same_machine(source: Guest, destination: Guest) -> None:
    assert source.info() == destination.info()
    assert not destination.is_running()


def test_it_moves(source: Guest, destination: Guest) -> None:
    sink = Sink()
    log = source.start_dirty_log("auto")
    assert log.kind in TRACKERS
    assert log.reason
    wait_until(changes(source), "the guest to write")
    source.sync_dirty_log()
    before = time.monotonic_ns()
    assert before <= source.pause(sink) <= time.monotonic_ns()
    assert not source.is_running()
    source.sync_dirty_log()
    source.save_state(sink)
    source.sync_dirty_log()
    carry_memory(source, destination)
    source.stop_dirty_log()
    destination.prepare_incoming()
    for at in range(0, len(sink), 5):
        destination.write_state(memoryview(sink)[at : at + 5])
    destination.finish_load()
    assert not destination.is_running()
    assert memory_of(destination) == memory_of(source)
    destination.resume()
    assert destination.is_running()
    wait_until(changes(destination), "the guest to go on at the destination")
    source.finish_source()
    assert not source.is_running()
    assert source.is_running() is False


def test_it_runs_on_while_and_after_it_settles(source: Guest) -> None:
    source.start_dirty_log("auto")
    for _ in range(3):
        source.settle()
        assert source.is_running()
    wait_until(changes(source), "the guest to write")


def test_a_paused_guest_writes_no_memory(source: Guest) -> None:
    source.start_dirty_log("auto")
    wait_until(changes(source), "the guest to write")
    source.pause(Sink())
    before = memory_of(source)
    for _ in range(20):  # looks again and again; any write of a running guest would show
        assert memory_of(source) == before
    source.resume_source()


STEPS: list[Callable[[Guest], object]] = [
    lambda guest: guest.start_dirty_log("auto"),
    lambda guest: guest.sync_dirty_log(),
    lambda guest: guest.pause(Sink()),
    lambda guest: guest.sync_dirty_log(),
    lambda guest: guest.save_state(Sink()),
    lambda guest: guest.sync_dirty_log(),
]


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
def test_from_every_point_the_source_goes_on(source: Guest, done: int) -> None:
    for step in STEPS[:done]:
        step(source)
    source.resume_source()
    source.stop_dirty_log()
    assert source.is_running()
    wait_until(changes(source), "the guest to go on")


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_a_migration_that_failed_can_be_tried_again(source: Guest, done: int) -> None:
    for _ in range(2):
        for step in STEPS[:done]:
            step(source)
        source.resume_source()
        source.stop_dirty_log()
    assert source.is_running()


def test_a_throttle_is_there_or_said_not_to_be_and_can_be_lifted_in_the_pause(source: Guest) -> None:
    if not source.can_throttle():
        with pytest.raises(NotImplementedError, match="cannot be throttled"):
            source.throttle(50)
        return
    for percent in (20, 99):
        source.throttle(percent)
    source.pause(Sink())
    source.throttle(0)
    source.resume_source()
    wait_until(changes(source), "the guest to go on")


def test_ending_the_log_unasked_or_twice_is_fine(source: Guest) -> None:
    source.stop_dirty_log()
    source.start_dirty_log("auto")
    source.stop_dirty_log()
    source.stop_dirty_log()
    assert source.is_running()


def test_a_log_that_there_is_not_is_refused(source: Guest) -> None:
    with pytest.raises(GuestRefusedError, match="guesswork"):
        source.start_dirty_log("guesswork")
    there_are = LOGS[source.info().kind]
    for kind in TRACKERS:
        if kind not in there_are:
            with pytest.raises(GuestRefusedError, match=kind):
                source.start_dirty_log(kind)
        elif kind == "pagemap" and uffd.probe_write_tracking():  # this kernel does not track writes
            with pytest.raises(HostRefusedError, match=kind):
                source.start_dirty_log(kind)
        else:
            assert source.start_dirty_log(kind).kind == kind
            source.stop_dirty_log()
    assert source.start_dirty_log("auto").kind in there_are
    source.stop_dirty_log()
    assert source.is_running()


def test_a_destination_can_be_discarded_before_anything(destination: Guest) -> None:
    destination.discard()
    assert not destination.is_running()
    destination.close()


def test_a_destination_can_be_discarded_in_the_middle(destination: Guest) -> None:
    destination.prepare_incoming()
    destination.write_state(memoryview(b"123"))
    destination.discard()
    assert not destination.is_running()


@pytest.mark.parametrize("incoming", [False, True])
def test_closing_twice_is_fine(text: str, incoming: bool) -> None:
    guest = open_guest(text, incoming=incoming)
    guest.close()
    guest.close()
    assert not guest.is_running()


def open_files() -> set[int]:
    """Inodes of all files that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            found.add(os.fstat(int(name)).st_ino)
    return found


def test_closing_with_a_log_and_a_pause_under_way_leaves_nothing(text: str) -> None:
    before = psutil.Process().children(recursive=True)
    guest = open_guest(text, incoming=False)
    guest.start_dirty_log("auto")
    guest.pause(Sink())
    files = {os.fstat(one.fd).st_ino for one in guest.memory()}
    assert files <= open_files()
    guest.close()
    assert not files & open_files()
    assert not guest.is_running()
    assert psutil.Process().children(recursive=True) == before
