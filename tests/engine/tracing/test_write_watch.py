# SPDX-License-Identifier: Apache-2.0
"""Watching a guest reports what it writes, and leaves it as it was."""

from __future__ import annotations

import time

import numpy as np
import pytest

from parmig.engine.tracing.trace_config import TraceConfig
from parmig.engine.tracing.write_watch import WriteWatch
from parmig.errors import CancelledError, GuestError, UsageError
from parmig.guests.registry import open_guest
from parmig.guests.synthetic.options import RESERVED_PAGES
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest
from parmig.linux import uffd
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.kvm.machines import needs_kvm
from tests.support import wait_until

MEMORY_PAGES = 4 * MIB // 4096
WRITER_PAGES = MEMORY_PAGES // 2 - RESERVED_PAGES, MEMORY_PAGES // 2
"""Pages of each block that the writer of GUEST uses."""

GUEST = "synthetic:memory=4MiB,blocks=2,rate=4MiB/s,pattern=sequential,fill=text"
TICK = 20 * NS_PER_MS


def steps(first: int, end: int) -> set[int]:
    """The pages of the writer's steps from *first* on, and before *end*."""
    return {step % sum(WRITER_PAGES) for step in range(first, end)}


def numbered(pages: set[int]) -> set[int]:
    """The writer's own numbers of *pages*, without those of the ring device."""
    return {page - RESERVED_PAGES for page in pages if page >= RESERVED_PAGES}


@pytest.mark.parametrize(
    "tracker",
    [
        pytest.param("pagemap", marks=pytest.mark.skipif(bool(uffd.probe_write_tracking()), reason="no tracking")),
        "bitmap",
        "digest",
    ],
)
def test_what_the_guest_writes_is_found_in_order(tracker: str) -> None:
    with open_guest(GUEST, incoming=False) as guest:
        assert isinstance(guest, SyntheticGuest)
        with WriteWatch(guest, tracker) as watch:
            assert (watch.log.kind, watch.source.tracker, watch.memory_pages) == (tracker, tracker, MEMORY_PAGES)
            intervals = watch.intervals(TICK, 10)
            written, scans = [], []
            for _ in range(10):
                written.append(guest.stats().pages_written)
                scans.append(next(intervals))
            written.append(guest.stats().pages_written)
        later = numbered(set(np.concatenate([pages for pages, _ in scans[1:]]).tolist()))
        # What was written after the first scan and before the last one is in the later ones. Nothing is that was
        # written before the first one began, or after the last one.
        assert steps(written[1], written[9]) <= later <= steps(written[0], written[10])
        assert later
        assert all((np.diff(pages) > 0).all() for pages, _ in scans)
        assert all({0, 1} <= set(pages.tolist()) for pages, _ in scans if len(pages)), "the ring device writes, too"
        assert [at_ns for _, at_ns in scans] == sorted(at_ns for _, at_ns in scans)
        assert scans[-1][1] >= 10 * TICK
        assert guest.is_running()
        guest.stop_dirty_log()
        guest.pause(None)  # type: ignore[arg-type]  # nothing goes there
        guest.check()


@pytest.mark.parametrize("text", [pytest.param("kvm:memory=2MiB,rate=2MiB/s,vcpus=2", marks=needs_kvm)])
def test_a_kvm_guest_is_watched(text: str) -> None:
    with open_guest(text, incoming=False) as guest:
        with WriteWatch(guest, "auto") as watch:
            scans = list(watch.intervals(TICK, 5))
        assert len(set(np.concatenate([pages for pages, _ in scans]).tolist())) > 5
        assert guest.is_running()


def test_intervals_that_one_scan_covers_are_empty() -> None:
    with open_guest(GUEST, incoming=False) as guest, WriteWatch(guest, "bitmap") as watch:
        intervals = watch.intervals(TICK, 20)
        next(intervals)
        assert isinstance(guest, SyntheticGuest)
        written, until_ns = guest.stats().pages_written, time.monotonic_ns() + 5 * TICK
        wait_until(lambda: time.monotonic_ns() > until_ns and guest.stats().pages_written > written, "five intervals")
        scans = [next(intervals) for _ in range(5)]
        assert len(scans[0][0])
        assert [len(pages) for pages, _ in scans[1:]] == [0] * 4
        assert len({at_ns for _, at_ns in scans}) == 1


def test_a_guest_that_dies_is_an_error() -> None:
    with open_guest(GUEST, incoming=False) as guest, WriteWatch(guest, "auto") as watch:
        intervals = watch.intervals(TICK, 10**6)
        next(intervals)
        guest.discard()
        with pytest.raises(GuestError):
            list(intervals)


def test_a_cancelled_watch_ends_at_once_and_may_begin_again() -> None:
    with open_guest(GUEST, incoming=False) as guest:
        with WriteWatch(guest, "auto") as watch:
            intervals = watch.intervals(NS_PER_S * 100, 2)
            watch.cancel()
            with pytest.raises(CancelledError):
                next(intervals)
        with WriteWatch(guest, "auto") as again:
            assert len(next(again.intervals(TICK, 1))[0])


def test_a_log_that_the_guest_has_not_leaves_nothing_behind() -> None:
    with open_guest(GUEST, incoming=False) as guest:
        with pytest.raises(Exception, match="magic"), WriteWatch(guest, "magic"):
            pass
        assert guest.is_running()


def test_more_intervals_than_a_trace_has_are_refused() -> None:
    assert TraceConfig(interval_ns=3, duration_ns=10).intervals == 4
    with pytest.raises(UsageError, match=r"--duration 3600s has 3600000 intervals of 1ms, expected at most 1048576"):
        TraceConfig(interval_ns=NS_PER_MS, duration_ns=3600 * NS_PER_S).check()
