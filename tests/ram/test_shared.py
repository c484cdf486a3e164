# SPDX-License-Identifier: Apache-2.0
"""What workers share arrives as it was written, and the rate limit holds for all of them together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.ram.bits import bits_for
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.shared import CATCH_UP_NS, CodecFigures, SharedArea, WorkerCounters
from parmig.units import MIB, NS_PER_S

BLOCKS = [RamBlock("a", 100 * PAGE_BYTES), RamBlock("b", 64 * PAGE_BYTES), RamBlock("c", 1 * PAGE_BYTES)]


def area(fd: int = -1, *, workers: int = 3, regions: int = 13) -> SharedArea:
    return SharedArea(fd, workers=workers, blocks=BLOCKS, regions=regions)


counters = st.builds(WorkerCounters, *[st.integers(0, (1 << 62))] * 8)


@given(counters, counters)
def test_counters_arrive_in_another_mapping(one: WorkerCounters, other: WorkerCounters) -> None:
    here = area()
    there = area(os.dup(here.fd))
    here.publish(0, one)
    there.publish(2, other)
    assert there.counters(0) == one
    assert here.counters(2) == other
    assert here.counters(1) == WorkerCounters()
    assert other.minus(other) == WorkerCounters()
    assert msgspec.structs.astuple(one.minus(WorkerCounters())) == msgspec.structs.astuple(one)
    there.close()
    here.close()


def test_what_codecs_did_is_summed_over_the_workers() -> None:
    here = area()
    there = area(os.dup(here.fd))
    here.codec_counters(0).count(2, 4096, 100)
    there.codec_counters(2).count(2, 8192, 200)
    there.codec_counters(2).spend(2, 7)
    there.codec_counters(1).count(0, 4096, 4096)
    here.codec_counters(1).spend(255, 9)
    assert here.codec_figures() == {
        0: CodecFigures(1, 4096, 4096, 0),
        2: CodecFigures(2, 12288, 300, 7),
        255: CodecFigures(0, 0, 0, 9),
    }
    there.close()
    here.close()


def test_parts_do_not_overlap() -> None:
    here = area()
    there = area(os.dup(here.fd))
    parts = [here.armed, here.senders, *here.bits, *here.reported]
    assert [len(part) for part in parts] == [13, 13, *(bits_for(block.pages) for block in BLOCKS * 2)]
    for number, part in enumerate(parts):
        part[:] = number + 1
    here.publish(0, WorkerCounters(*[-1] * 8))
    here.publish(2, WorkerCounters(*[-1] * 8))
    here.codec_counters(2).count(255, -1, -1)
    here.set_rate(5)
    for number, part in enumerate([there.armed, there.senders, *there.bits, *there.reported]):
        assert np.array_equal(part, np.full(len(part), number + 1))
    assert there.counters(1) == WorkerCounters()
    del parts, part
    there.close()
    here.close()


def test_without_a_limit_everything_may_be_sent_at_once() -> None:
    one = area()
    one.set_rate(0)
    before = time.monotonic_ns()
    instants = [one.reserve(1 << 40) for _ in range(3)]
    assert before <= instants[0] <= instants[2] <= time.monotonic_ns()
    one.close()


@pytest.mark.parametrize(("rate", "size"), [(100, 1), (MIB, 1 << 20), (7, 4096)])
def test_reservations_of_one_worker_follow_each_other_at_the_rate(rate: int, size: int) -> None:
    one = area()
    one.set_rate(rate)
    instants = [one.reserve(size) for _ in range(4)]
    assert all(after - before >= size * NS_PER_S // rate for before, after in pairwise(instants))
    one.close()


def test_who_comes_late_makes_up_for_it_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    began = clock = 1000 * NS_PER_S
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock)
    one = area()
    one.set_rate(MIB)
    assert one.reserve(MIB) == began + NS_PER_S
    clock = began + NS_PER_S + CATCH_UP_NS
    assert one.reserve(MIB) == began + 2 * NS_PER_S
    clock = began + 10 * NS_PER_S
    assert one.reserve(MIB) == clock - CATCH_UP_NS + NS_PER_S
    one.close()


PROGRAM = """
import sys
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.shared import SharedArea
fd, count, size = map(int, sys.argv[1:])
blocks = [RamBlock("a", 100 * PAGE_BYTES), RamBlock("b", 64 * PAGE_BYTES), RamBlock("c", 1 * PAGE_BYTES)]
area = SharedArea(fd, workers=3, blocks=blocks, regions=13)
sys.stdin.readline()
print(*[area.reserve(size) for _ in range(count)])
"""


def test_reservations_of_several_processes_never_overlap() -> None:
    one = area()
    rate, size, count = 64 * MIB, MIB, 200
    one.set_rate(rate)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(one.fd), str(count), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[one.fd],
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    instants = sorted(int(word) for worker in workers for word in worker.communicate()[0].split())
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(instants) == 3 * count
    # Whoever takes: each reservation begins when the one before it is paid for, so any window keeps the rate.
    assert min(after - before for before, after in pairwise(instants)) >= size * NS_PER_S // rate
    one.close()
