# SPDX-License-Identifier: Apache-2.0
"""The synthetic guest keeps the contract of the guest interface, and finds every kind of lost page."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from parmig.errors import GuestError, GuestRefusedError, HostRefusedError, StateError, StatusError, UsageError
from parmig.guests.registry import open_guest
from parmig.guests.spawned.monitor_messages import Pause
from parmig.guests.synthetic.ledger import BlockLedger
from parmig.guests.synthetic.options import block_layout, parse_options, touched_layout
from parmig.guests.synthetic.synthetic_devices import SerialLog, Writer
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest, open_synthetic
from parmig.guests.synthetic.synthetic_log import choose_log
from parmig.linux import pagemap, uffd
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.state import state_of
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.support import PATIENCE_S, Sink

needs_pagemap = pytest.mark.skipif(uffd.probe_write_tracking() is not None, reason=str(uffd.probe_write_tracking()))


@contextmanager
def opened(options: str, *, incoming: bool = False) -> Iterator[SyntheticGuest]:
    guest = open_synthetic(options, incoming=incoming)
    try:
        yield guest
    finally:
        guest.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.002)


def writes_more(guest: SyntheticGuest, pages: int = 200) -> None:
    start = guest.stats()
    until(lambda: guest.stats().pages_written >= start.pages_written + pages, "pages to be written")
    until(lambda: guest.stats().counter > start.counter + 2, "ticks")


def contents(guest: SyntheticGuest) -> list[bytes]:
    return [os.pread(memory.fd, memory.block.size_bytes, 0) for memory in guest.memory()]


def place(guest: SyntheticGuest, data: list[bytes]) -> None:
    """As a receiver does: data where there is some, holes elsewhere."""
    for memory, content in zip(guest.memory(), data, strict=True):
        pages = np.frombuffer(content, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        for page in np.flatnonzero(pages.any(axis=1)):
            os.pwrite(memory.fd, pages[page], int(page) * PAGE_BYTES)


def saved(guest: SyntheticGuest) -> bytes:
    sink = Sink()
    guest.pause(sink)
    guest.save_state(sink)
    return bytes(sink)


def load(guest: SyntheticGuest, state: bytes) -> None:
    guest.prepare_incoming()
    for start in range(0, len(state), 1000):
        guest.write_state(memoryview(state)[start : start + 1000])
    guest.finish_load()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- options ----------------------------------------------------------------------------------------


def test_options_are_read_in_the_units_of_people() -> None:
    options = parse_options(
        "memory=1GiB, rate=200MiB/s,pattern=hot,fill=text,touched=50%,blocks=3,seed=7,tracker=bitmap"
    )
    assert (options.memory_bytes, options.rate_bytes_per_s, options.touched_pages) == (1 << 30, 200 * MIB, 131072)
    assert (options.pattern, options.fill, options.blocks, options.seed) == ("hot", "text", 3, 7)
    assert (options.tracker, options.running) == ("bitmap", True)
    assert parse_options("").touched_pages * PAGE_BYTES == parse_options("").memory_bytes
    assert parse_options("touched=64MiB,memory=128MiB").touched_pages == 64 * MIB // PAGE_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "mem=1GiB",
        "memory",
        "memory=",
        "memory=much",
        "memory=4097",
        "memory=0",
        "memory=16KiB,blocks=2",
        "memory=1MiB,memory=1MiB",
        "rate=fast",
        "pattern=zigzag",
        "fill=1",
        "touched=101%",
        "touched=x%",
        "touched=2MiB,memory=1MiB",
        "blocks=0",
        "blocks=65",
        "seed=-1",
        "tracker=kvm",
        "running=maybe",
    ],
)
def test_options_without_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_options(text)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"^synthetic guests have no option 'mem'; did you mean 'memory'\?$"):
        parse_options("mem=1")


@pytest.mark.parametrize("text", ["memory=1MiB,blocks=7", "memory=1MiB,touched=37%,blocks=5", "memory=1MiB,touched=0%"])
def test_blocks_cover_the_memory_and_the_touched_part_lies_in_them(text: str) -> None:
    options = parse_options(text)
    blocks, touched = block_layout(options), touched_layout(options)
    assert sum(block.size_bytes for block in blocks) == options.memory_bytes
    assert [block.ranges[0].gpa for block in blocks] == np.cumsum([0, *(b.size_bytes for b in blocks)])[:-1].tolist()
    assert 0 <= options.touched_pages - sum(pages for _, pages in touched) <= 2  # the ring's pages
    assert all(first + pages <= block.pages for (first, pages), block in zip(touched, blocks, strict=True))


# -- writer, without a process ----------------------------------------------------------------------


@contextmanager
def block_ledger(pages: int, touched: int) -> Iterator[tuple[BlockLedger, set[int]]]:
    marked: set[int] = set()
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE_BYTES)
    mapping = BlockMapping(BlockMemory(RamBlock("ram0", pages * PAGE_BYTES), fd))

    def mark(found: npt.NDArray[np.int64] | slice) -> None:
        marked.update(range(found.start, found.stop) if isinstance(found, slice) else found.tolist())

    try:
        yield BlockLedger(mapping, 0, touched, 12345, mark), marked
    finally:
        mapping.close()
        os.close(fd)


@pytest.mark.parametrize(("throttle", "expected"), [(0, 1024), (50, 512), (99, 10)])
def test_the_rate_is_kept_to_the_page_and_throttled(throttle: int, expected: int) -> None:
    with block_ledger(64, 64) as (ledger, _):
        writer = Writer([ledger], 4 * MIB, "random", 1)
        writer.throttle_percent = throttle
        for _ in range(200):
            writer.tick(5 * NS_PER_MS)
        assert writer.step == expected
        assert int(ledger.counts.sum()) == expected
        assert ledger.damage() == ""


def test_a_burst_writes_all_of_it_in_half_of_the_time() -> None:
    with block_ledger(64, 64) as (ledger, _):
        writer = Writer([ledger], 4 * MIB, "burst", 1)
        steps = []
        for _ in range(100):
            writer.tick(NS_PER_S // 100)
            steps.append(writer.step)
        assert steps[-1] == pytest.approx(1024, abs=25)
        assert len(set(steps[50:])) <= 2


def test_hot_pages_get_nine_writes_of_ten() -> None:
    with block_ledger(1000, 1000) as (ledger, _):
        Writer([ledger], 0, "hot", 1).write(8000)
        assert int(ledger.counts[:100].sum()) == pytest.approx(7200, abs=200)
        assert ledger.counts[100:].any()


def test_sequential_writes_go_round() -> None:
    with block_ledger(8, 8) as (ledger, marked):
        writer = Writer([ledger], 0, "sequential", 1)
        writer.write(5)
        assert marked == {0, 1, 2, 3, 4}
        writer.write(5)
        assert ledger.counts.tolist() == [2, 2, 1, 1, 1, 1, 1, 1]


def test_the_account_names_what_is_wrong_with_a_page() -> None:
    with block_ledger(300, 299) as (ledger, _):
        ledger.fill("random")
        words = ledger.mapping.words
        before = words[5].copy()
        ledger.record(np.array([5]), np.array([3]))
        assert ledger.damage() == ""
        words[5] = before
        words[6, 511] ^= np.uint64(1)
        words[7] = 0
        words[299, 77] = 1
        assert ledger.damage() == (
            "block 'ram0': 4 of 300 pages are wrong: page 5 stale (expected count 4, found 1), "
            "page 6 torn (expected count 1, found 1), page 7 lost (expected count 1, found 0), page 299 is not zero"
        )


@pytest.mark.parametrize(("kind", "low", "high"), [("random", 250, 256), ("text", 10, 60)])
def test_fills_are_as_dense_as_they_say(kind: str, low: int, high: int) -> None:
    with block_ledger(600, 600) as (ledger, marked):
        ledger.fill(kind)
        assert len(marked) == 600
        assert ledger.damage() == ""
        pages = ledger.mapping.pages
        assert len(np.unique(pages, axis=0)) == 600
        assert low <= len(np.unique(pages[300, 8:2048])) <= high


def test_the_serial_log_keeps_its_last_lines_whole() -> None:
    log = SerialLog()
    for counter in range(0, 20 * 5000, 20):
        log.tick(counter)
    lines = log.text.decode().splitlines()
    assert len(log.text) <= 65536
    assert [int(line.split()[1]) for line in lines] == list(range(5001 - len(lines), 5001))


# -- the guest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["random", "sequential", "hot", "burst"])
@pytest.mark.parametrize("fill", ["random", "zero", "text"])
def test_a_guest_writes_and_finds_its_memory_right(pattern: str, fill: str) -> None:
    with opened(f"memory=4MiB,rate=40MiB/s,pattern={pattern},fill={fill},blocks=3,touched=60%") as guest:
        assert guest.is_running()
        writes_more(guest, 2000)
        with pytest.raises(StatusError):
            guest.check()
        before_ns = time.monotonic_ns()
        assert before_ns <= guest.pause(Sink()) <= time.monotonic_ns()
        assert not guest.is_running()
        guest.check()
        stats = guest.stats()
        assert stats.paused
        held = contents(guest)
        guest.punch("ram1", 1, 5)
        guest.check()
        assert guest.stats() == stats
        assert held[0] == contents(guest)[0]
        guest.resume_source()
        writes_more(guest)


def test_nothing_is_written_while_paused() -> None:
    with opened("memory=1MiB,rate=400MiB/s") as guest:
        writes_more(guest)
        guest.pause(Sink())
        held = contents(guest)
        select.select([], [], [], 0.03)  # several ticks
        assert contents(guest) == held


def test_a_guest_is_opened_by_its_scheme_and_says_what_it_is() -> None:
    with open_guest("synthetic:memory=1MiB,running=no", incoming=False) as guest:
        info = guest.info()
        assert (info.kind, info.machine) == ("synthetic", "synthetic-2")
        assert info.monitor.startswith("parmig")
        assert not guest.is_running()
        guest.pause(Sink())
        guest.resume_source()
        assert not guest.is_running(), "a guest that was paused before stays paused"


def test_state_and_memory_go_on_at_the_destination() -> None:
    options = "memory=2MiB,rate=100MiB/s,pattern=hot,blocks=2,seed=9,touched=80%"
    with opened(options) as source, opened("memory=2MiB,blocks=2", incoming=True) as destination:
        until(lambda: source.stats().serial_lines >= 2, "heartbeats")
        state = saved(source)
        place(destination, contents(source))
        load(destination, state)
        assert not destination.is_running()
        destination.check()
        arrived, left = destination.stats(), source.stats()
        assert arrived == left
        assert destination.serial_text() == source.serial_text()
        destination.resume()
        until(lambda: destination.stats().serial_lines >= arrived.serial_lines + 2, "heartbeats")
        writes_more(destination)
        assert source.stats() == left
        destination.pause(Sink())
        destination.check()
        assert destination.stats().ring_fault == ""
        beats = [line.split() for line in destination.serial_text().splitlines()]
        assert [int(beat[1]) for beat in beats] == list(range(1, len(beats) + 1))
        assert [int(beat[3]) for beat in beats] == [20 * number for number in range(1, len(beats) + 1)]


def test_a_destination_chooses_the_pages_that_the_source_would_have_chosen() -> None:
    with block_ledger(64, 64) as (first, _), block_ledger(64, 64) as (second, _):
        source, destination = Writer([first], MIB, "random", 3), Writer([second], 0, "burst", 4)
        source.tick(20 * NS_PER_MS)
        state_of(destination).migration_state_pop(state_of(source).migration_state_push())
        first.counts[:] = 0
        for writer in (source, destination):
            writer.tick(20 * NS_PER_MS)
        assert first.counts.any()
        assert (first.counts == second.counts).all()


def test_one_stale_page_is_found_at_the_destination() -> None:
    with opened("memory=1MiB,rate=100MiB/s") as source, opened("memory=1MiB", incoming=True) as destination:
        source.pause(Sink())
        early = contents(source)[0]
        source.resume_source()
        writes_more(source, 2000)
        state = saved(source)
        late = contents(source)[0]
        number = max(changed([early], [late])[0])
        assert number > 1, "the writer wrote, not only the ring"
        page = number * PAGE_BYTES
        place(destination, [late[:page] + early[page : page + PAGE_BYTES] + late[page + PAGE_BYTES :]])
        load(destination, state)
        words = rf"block 'ram0': 1 of 256 pages are wrong: page {number} stale \(expected count"
        with pytest.raises(GuestError, match=words):
            destination.check()
        place(destination, [late])
        destination.check()


def test_memory_that_was_read_before_the_state_was_saved_is_found() -> None:
    with opened("memory=1MiB,rate=0") as source, opened("memory=1MiB", incoming=True) as destination:
        writes_ring = source.stats().ring_index
        until(lambda: source.stats().ring_index > writes_ring, "ring entries")
        source.pause(Sink())
        early = contents(source)
        state = saved(source)
        assert [a != b for a, b in zip(early, contents(source), strict=True)] == [True]
        place(destination, early)
        load(destination, state)
        with pytest.raises(GuestError, match="ring device"):
            destination.check()


def test_a_lost_ring_entry_is_found() -> None:
    with opened("memory=1MiB,rate=0") as guest:
        until(lambda: guest.stats().ring_index > 300, "the ring to go round")
        guest.pause(Sink())
        os.pwrite(guest.memory()[0].fd, b"\0" * 16, 16 * 5)
        with pytest.raises(GuestError, match=r"ring device: 1 entries are wrong"):
            guest.check()


def test_punched_pages_that_keep_their_old_bytes_are_found() -> None:
    with opened("memory=1MiB,running=no") as guest:
        held = contents(guest)[0][7 * PAGE_BYTES : 8 * PAGE_BYTES]
        guest.punch("ram0", 7, 2)
        assert contents(guest)[0][7 * PAGE_BYTES : 9 * PAGE_BYTES] == bytes(2 * PAGE_BYTES)
        guest.check()
        os.pwrite(guest.memory()[0].fd, held, 7 * PAGE_BYTES)
        with pytest.raises(GuestError, match=r"page 7 stale \(expected count 0, found 1\)"):
            guest.check()


@pytest.mark.parametrize(
    ("block", "first", "pages"), [("ram1", 3, 1), ("ram0", 1, 1), ("ram0", 255, 2), ("ram0", 5, 0)]
)
def test_punching_what_is_not_there_is_refused(block: str, first: int, pages: int) -> None:
    with opened("memory=1MiB,running=no") as guest, pytest.raises(GuestError, match="block"):
        guest.punch(block, first, pages)


def test_checking_leaves_holes_as_they_are() -> None:
    with opened("memory=8MiB,rate=1MiB/s,fill=zero,touched=25%") as guest:
        writes_more(guest, 3)
        guest.pause(Sink())
        fd = guest.memory()[0].fd
        held = os.fstat(fd).st_blocks
        guest.check()
        assert os.fstat(fd).st_blocks == held
        assert held * 512 < 2 * MIB + 3 * PAGE_BYTES


# -- dirty logs -------------------------------------------------------------------------------------


def changed(before: list[bytes], after: list[bytes]) -> list[set[int]]:
    found = []
    for old, new in zip(before, after, strict=True):
        pages = [np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_BYTES) for data in (old, new)]
        found.append(set(np.flatnonzero((pages[0] != pages[1]).any(axis=1)).tolist()))
    return found


def bitmap(guest: SyntheticGuest) -> list[set[int]]:
    fd, offset, found = guest.dirty_bitmap_fd(), 0, []
    for memory in guest.memory():
        words = -(-memory.block.pages // 64)
        data = os.pread(fd, 8 * words, offset)
        os.pwrite(fd, bytes(8 * words), offset)
        bits = np.unpackbits(np.frombuffer(data, dtype="<u8").view(np.uint8), bitorder="little")
        found.append(set(np.flatnonzero(bits).tolist()))
        offset += 8 * words
    assert offset == os.fstat(fd).st_size
    return found


def test_the_bitmap_holds_every_write_made_before_the_call_and_changes_only_inside_it() -> None:
    with opened("memory=5MiB,rate=20MiB/s,blocks=3,running=no") as guest:
        before = contents(guest)
        assert guest.start_dirty_log("bitmap").kind == "bitmap"
        guest.resume()
        writes_more(guest)
        assert bitmap(guest) == [set()] * 3
        guest.punch("ram2", 3, 2)
        guest.pause(Sink())
        guest.sync_dirty_log()
        assert bitmap(guest) == changed(before, contents(guest))
        before = contents(guest)
        guest.save_state(Sink())
        guest.sync_dirty_log()
        assert bitmap(guest) == changed(before, contents(guest)) == [{1}, set(), set()]
        guest.sync_dirty_log()
        assert bitmap(guest) == [set()] * 3
        guest.stop_dirty_log()
        guest.stop_dirty_log()
        guest.resume_source()
        writes_more(guest)
        guest.sync_dirty_log()
        assert bitmap(guest) == [set()] * 3


def scan(pid: int, segments: tuple[tuple[object, ...], ...]) -> list[set[int]]:
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    vector = np.zeros(64, dtype=pagemap.PAGE_REGION_DTYPE)
    found = []
    try:
        for (segment,) in segments:
            start, end = segment.address, segment.address + segment.pages * PAGE_BYTES  # type: ignore[attr-defined]
            pages: set[int] = set()
            for regions in pagemap.scan(
                fd, start, end, vector, flags=3, mask=pagemap.PAGE_IS_WRITTEN, returned=pagemap.PAGE_IS_WRITTEN
            ):
                for first, last in zip(regions["start"].tolist(), regions["end"].tolist(), strict=True):
                    pages.update(range((first - start) // PAGE_BYTES, (last - start) // PAGE_BYTES))
            found.append(pages)
    finally:
        os.close(fd)
    return found


@needs_pagemap
@pytest.mark.parametrize("fill", ["random", "zero"])
def test_the_page_tables_of_the_process_hold_every_write(fill: str) -> None:
    with opened(f"memory=5MiB,rate=20MiB/s,blocks=3,fill={fill},running=no") as guest:
        log = guest.start_dirty_log("auto")
        assert (log.kind, log.pid) == ("pagemap", guest.pid)
        scan(log.pid, log.segments)
        before = contents(guest)
        guest.resume()
        writes_more(guest)
        guest.sync_dirty_log()
        guest.pause(Sink())
        assert scan(log.pid, log.segments) == changed(before, contents(guest))
        guest.save_state(Sink())
        assert scan(log.pid, log.segments) == [{1}, set(), set()]
        files = len(os.listdir(f"/proc/{guest.pid}/fd"))
        guest.stop_dirty_log()
        assert len(os.listdir(f"/proc/{guest.pid}/fd")) == files - 1
        with pytest.raises(PermissionError):
            scan(log.pid, log.segments)
        assert guest.start_dirty_log("pagemap").segments == log.segments


def test_a_guest_without_write_tracking_falls_back_to_the_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uffd, "probe_write_tracking", lambda: "not here")
    assert choose_log("auto", "auto") == ("bitmap", "not here")
    with pytest.raises(HostRefusedError, match="not here"):
        choose_log("pagemap", "auto")


def test_the_option_tracker_is_what_auto_stands_for() -> None:
    with opened("memory=1MiB,running=no,tracker=digest") as guest:
        log = guest.start_dirty_log("auto")
        assert (log.kind, log.reason) == ("digest", "asked for by the guest's option tracker")
        guest.sync_dirty_log()
        with pytest.raises(GuestRefusedError, match="kvm"):
            guest.start_dirty_log("kvm")


# -- the destination --------------------------------------------------------------------------------


def test_an_incoming_guest_runs_only_with_state() -> None:
    with opened("memory=1MiB", incoming=True) as guest:
        assert not guest.is_running()
        for forbidden in (guest.resume, guest.finish_load, lambda: guest.write_state(memoryview(b"x"))):
            with pytest.raises(StatusError):
                forbidden()
        guest.prepare_incoming()
        with pytest.raises(StateError, match="at most"):
            guest.write_state(memoryview(bytes(17 * MIB)))
        guest.write_state(memoryview(b"no state at all"))
        with pytest.raises(StateError):
            guest.finish_load()
        with pytest.raises(StatusError):
            guest.resume()
        guest.discard()
        assert not guest.is_running()
        with pytest.raises(GuestError, match="SIGKILL"):
            guest.resume()


def test_state_of_another_memory_is_refused() -> None:
    with opened("memory=2MiB,running=no") as source, opened("memory=1MiB", incoming=True) as small:
        with pytest.raises(StateError, match=r"ledger/0.*510 pages, expected at most 254"):
            load(small, saved(source))
        with pytest.raises(StatusError):
            source.prepare_incoming()
    with opened("memory=2MiB,blocks=2", incoming=True) as split, opened("memory=2MiB,running=no") as source:
        state = saved(source)
        with pytest.raises(StateError, match="ledger/1"):
            load(split, state)


# -- the process ------------------------------------------------------------------------------------


def test_a_dead_guest_is_an_error_that_says_how_it_died() -> None:
    with opened("memory=1MiB") as guest:
        watch = guest.watch_fd()
        assert watch is not None
        assert not select.select([watch], [], [], 0)[0]
        os.kill(guest.pid, signal.SIGSEGV)
        assert select.select([watch], [], [], 5)[0]
        assert not guest.is_running()
        with pytest.raises(GuestError, match=r"signal 11 \(SIGSEGV\) while asked for Pause"):
            guest.pause(Sink())
        guest.stop_dirty_log()
        guest.discard()


def test_the_guest_ignores_ctrl_c() -> None:
    with opened("memory=1MiB") as guest:
        os.kill(guest.pid, signal.SIGINT)
        writes_more(guest)


def test_a_guest_that_hangs_is_an_error_and_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("memory=1MiB") as guest:
        pid = guest.pid
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr("parmig.guests.spawned.monitor_process._END_LIMIT_S", 0.2)
        with pytest.raises(GuestError, match=r"did not answer Pause in 0\.05 s"):
            guest._process.ask(Pause(), 0.05)  # type: ignore[union-attr]
        guest.close()
        assert not psutil.pid_exists(pid)


def test_a_late_answer_is_not_taken_for_another() -> None:
    with opened("memory=1MiB") as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        with pytest.raises(GuestError, match="did not answer"):
            guest._process.ask(Pause(), 0.05)  # type: ignore[union-attr]
        os.kill(guest.pid, signal.SIGCONT)
        assert guest.stats().paused


def test_nothing_is_left_after_close() -> None:
    with opened("memory=1MiB,running=no"):
        pass  # starts the fork server, which stays
    files = open_files()
    guest = open_synthetic("memory=1MiB,blocks=4", incoming=False)
    pid = guest.pid
    guest.start_dirty_log("auto")
    guest.close()
    guest.close()
    assert open_files() == files
    assert not psutil.pid_exists(pid)
    for call in (guest.stats, guest.resume, lambda: guest.pause(Sink())):
        with pytest.raises(GuestError, match="closed"):
            call()


def test_nothing_is_left_when_the_start_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("memory=1MiB,running=no"):
        pass
    files = open_files()
    monkeypatch.setattr("parmig.guests.spawned.owned_monitor._SLOW_LIMIT_S", -1.0)
    with pytest.raises(GuestError, match="did not answer Start"):
        open_synthetic("memory=1MiB", incoming=False)
    assert open_files() == files


OWNER = """
import os, signal
from parmig.guests.synthetic.synthetic_guest import open_synthetic
if __name__ == "__main__":
    guest = open_synthetic("memory=1MiB", incoming=False)
    print(guest.pid, flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_guest_ends_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        watch = os.pidfd_open(int(owner.stdout.readline()))
        try:
            assert not select.select([watch], [], [], 0)[0]
            owner.stdin.write("\n")
            owner.stdin.flush()
            assert select.select([watch], [], [], 5)[0]
        finally:
            os.close(watch)
