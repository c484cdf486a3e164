# SPDX-License-Identifier: Apache-2.0
"""A guest that replays a trace writes the same pages in the same intervals, also after a move."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from parmig.config import SendConfig
from parmig.engine.demo.demo import Demo
from parmig.engine.demo.demo_config import DemoConfig
from parmig.engine.tracing.write_watch import WriteWatch
from parmig.errors import StateError, TraceError, UsageError
from parmig.guests.registry import open_guest
from parmig.guests.synthetic.ledger import BlockLedger, PageNumbers
from parmig.guests.synthetic.options import RESERVED_PAGES, parse_options
from parmig.guests.synthetic.replay import Replay
from parmig.guests.synthetic.synthetic_devices import TICK_PAGES_MAX
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.traces.trace import Trace
from parmig.ram.traces.trace_file import write_trace
from parmig.units import MIB, NS_PER_MS
from tests.support import Sink, wait_until

INTERVAL_NS = 20 * NS_PER_MS


def trace_of(*intervals: range | list[int], memory_pages: int = 64) -> Trace:
    written = [np.array(list(pages), dtype=np.int64) for pages in intervals]
    return Trace(interval_ns=INTERVAL_NS, memory_pages=memory_pages, written=written)


@contextmanager
def replaying(trace: Trace, *block_pages: int) -> Iterator[tuple[Replay, set[int], list[BlockLedger]]]:
    """A replay in memory of blocks of so many pages, and the pages that it has marked since they were cleared."""
    marked: set[int] = set()
    ledgers, fds, border = [], [], 0

    def mark(border: int, pages: PageNumbers | slice) -> None:
        assert isinstance(pages, np.ndarray)
        marked.update((pages + border).tolist())

    for index, pages in enumerate(block_pages):
        fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.ftruncate(fd, pages * PAGE_BYTES)
        fds.append(fd)
        mapping = BlockMapping(BlockMemory(RamBlock(f"ram{index}", pages * PAGE_BYTES), fd))
        first = 0 if index else RESERVED_PAGES
        ledgers.append(BlockLedger(mapping, first, pages - first, 12345 + index, partial(mark, border)))
        border += pages
    try:
        yield Replay(ledgers, trace), marked, ledgers
    finally:
        for ledger, fd in zip(ledgers, fds, strict=True):
            ledger.mapping.close()
            os.close(fd)


@pytest.mark.parametrize("tick_ns", [INTERVAL_NS // 4, INTERVAL_NS // 10, INTERVAL_NS])
def test_each_interval_has_its_pages_in_a_loop(tick_ns: int) -> None:
    intervals = [[2, 3, 9, 40], [], range(30, 50), [63]]
    with replaying(trace_of(*intervals), 24, 24, 16) as (replay, marked, ledgers):
        for pages in intervals * 2:
            for _ in range(INTERVAL_NS // tick_ns):
                replay.tick(tick_ns)
            assert marked == set(pages)
            marked.clear()
        assert replay.step == 2 * 25
        assert [ledger.damage() for ledger in ledgers] == ["", "", ""]


def test_pages_of_an_interval_are_spread_over_it() -> None:
    with replaying(trace_of(range(10, 50)), 64) as (replay, marked, _):
        replay.tick(INTERVAL_NS // 4)
        assert marked == set(range(10, 20))


def test_a_tick_that_covers_several_intervals_writes_all_of_them() -> None:
    with replaying(trace_of([5], [6], [7], [8]), 64) as (replay, marked, _):
        replay.tick(INTERVAL_NS * 2 + INTERVAL_NS // 2)
        assert (marked, replay.interval) == ({5, 6}, 2)


def test_the_ring_devices_pages_are_left_to_it() -> None:
    with replaying(trace_of([0, 1, 2]), 64) as (replay, marked, _):
        replay.tick(INTERVAL_NS)
        assert marked == {2}


def test_a_throttled_guest_has_a_slower_clock() -> None:
    with replaying(trace_of(range(10, 50)), 64) as (replay, marked, _):
        replay.throttle_percent = 75
        replay.tick(INTERVAL_NS)
        assert marked == set(range(10, 20))


def test_a_tick_writes_only_so_much_and_the_next_ones_make_up_for_it() -> None:
    pages = 3 * TICK_PAGES_MAX
    with replaying(trace_of(range(2, pages + 2), memory_pages=pages + 2), pages + 2) as (replay, marked, _):
        replay.tick(INTERVAL_NS)
        assert len(marked) == TICK_PAGES_MAX
        replay.tick(1)
        replay.tick(1)
        assert len(marked) == pages
        assert replay.interval == 0


def test_more_lost_time_than_a_second_is_lost() -> None:
    with replaying(trace_of([5], *[[6]] * 199), 64) as (replay, _, _):
        replay.tick(100 * replay.late_ns_max)
        assert replay.step == replay.late_ns_max // INTERVAL_NS


def test_state_that_is_not_in_the_trace_is_refused() -> None:
    with replaying(trace_of([5], [6, 7]), 64) as (replay, _, _):
        for interval, offset_ns, done in ((2, 0, 0), (0, INTERVAL_NS, 0), (1, 0, 3)):
            replay.interval, replay.offset_ns, replay.done = interval, offset_ns, done
            with pytest.raises(StateError, match="expected a place in the 2 intervals"):
                replay.post_load(1)


def test_a_trace_without_intervals_cannot_be_replayed() -> None:
    with pytest.raises(TraceError, match="no intervals"), replaying(trace_of(), 64):
        pass


# -- the guest --------------------------------------------------------------------------------------


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """40 intervals, each with 25 pages of its own, in 4 MiB."""
    path = tmp_path / "workload.trace"
    with path.open("wb") as file:
        write_trace(file, trace_of(*(range(2 + n, 1002, 40) for n in range(40)), memory_pages=1024))
    return path


def test_the_memory_is_that_of_the_trace_or_more(trace_file: Path) -> None:
    assert parse_options(f"trace={trace_file}").memory_bytes == 4 * MIB
    assert parse_options(f"trace={trace_file},memory=6MiB").memory_bytes == 6 * MIB


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (",memory=2MiB", "memory=2MiB of a synthetic guest is less than its trace is of, expected 4MiB or more"),
        (",rate=1MiB/s,pattern=hot", "writes what the trace says; leave out pattern, rate"),
    ],
)
def test_what_contradicts_the_trace_is_refused(trace_file: Path, more: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(f"trace={trace_file}{more}")


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no trace")
    with pytest.raises(UsageError, match=r"option 'trace' of synthetic guests: .*text: the file is no trace"):
        parse_options(f"trace={tmp_path / 'text'}")
    with pytest.raises(UsageError, match="there is no file"):
        parse_options(f"trace={tmp_path / 'none'}")


def test_a_recorded_replay_has_the_pages_of_the_trace_in_order(trace_file: Path) -> None:
    """The clocks of guest and recorder begin apart, and run on a busy machine. So a look may end within an interval;
    but what the looks find, one after the other, is the trace. The dirty log is the guest's own bitmap: each look falls
    between two of its ticks.
    """
    expected = np.concatenate([np.arange(2 + n, 1002, 40) for n in range(40)])
    with (
        open_guest(f"synthetic:trace={trace_file},running=no", incoming=False) as guest,
        WriteWatch(guest, "bitmap") as watch,
    ):
        intervals = watch.intervals(INTERVAL_NS, 10**6)
        next(intervals)
        guest.resume()
        found = 0
        while found < len(expected):
            pages = next(intervals)[0]
            pages = pages[pages >= RESERVED_PAGES]
            part = expected[found : found + len(pages)]  # at the end, the replay may have begun anew
            assert set(part.tolist()) <= set(pages.tolist())
            found += len(part)


def test_a_replay_goes_on_after_a_move_and_is_refused_without_its_trace(trace_file: Path, tmp_path: Path) -> None:
    text = f"synthetic:trace={trace_file}"
    with open_guest(text, incoming=False) as source, open_guest(text, incoming=True) as destination:
        assert isinstance(source, SyntheticGuest)
        wait_until(lambda: source.stats().pages_written > 30, "writes")
        other = tmp_path / "other.trace"
        with other.open("wb") as file:
            write_trace(file, trace_of([5], memory_pages=1024))
        with open_guest(f"synthetic:trace={other}", incoming=True) as another:
            assert len({guest.info().machine for guest in (source, destination, another)}) == 2
        sink = Sink()
        source.pause(sink)
        paused = source.stats().pages_written
        source.save_state(sink)
        for here, there in zip(source.memory(), destination.memory(), strict=True):
            os.pwrite(there.fd, os.pread(here.fd, here.block.size_bytes, 0), 0)
        destination.prepare_incoming()
        destination.write_state(memoryview(sink))
        destination.finish_load()
        assert isinstance(destination, SyntheticGuest)
        assert destination.stats().pages_written == paused
        assert source.stats().pages_written == paused, "a paused guest has a clock that stands still"
        destination.resume()
        wait_until(lambda: destination.stats().pages_written > paused, "more writes")
        destination.self_check()


def test_the_demonstration_replays_a_trace(trace_file: Path) -> None:
    demo = Demo(DemoConfig(trace=str(trace_file)), msgspec.structs.replace(SendConfig(workers=1), verify=True))
    report = demo.run()
    assert (report.status, report.guest.memory_bytes, report.verified) == ("completed", 4 * MIB, True)
    assert demo.checked
