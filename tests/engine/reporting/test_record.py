# SPDX-License-Identifier: Apache-2.0
"""The record of a migration: what is told of it is what was marked and counted, by hand computed."""

from __future__ import annotations

import msgspec
import pytest

from parmig.engine.reporting.record import FIRST_ROUNDS, LAST_ROUNDS, MAX_FACTS, Record
from parmig.engine.reporting.report import DowntimePhases, PathReport, RamReport, RoundReport, WorkerReport
from parmig.engine.work.policy import RoundFacts
from parmig.ram.shared import WorkerCounters
from parmig.units import MIB, NS_PER_MS

MS = NS_PER_MS
FIRST = WorkerCounters(0, 100, 20, 3, 5000, 7 * MS, 11 * MS, 13 * MS)
SECOND = WorkerCounters(0, 200, 40, 6, 9000, 9 * MS, 17 * MS, 19 * MS)


def with_one_round(*, settle_ms: int = 0) -> Record:
    """Two workers and 1024 pages, after a round of 500 ms."""
    record = Record(2, 1024)
    record.begin_round(1000 * MS)
    if settle_ms:
        record.settled(settle_ms * MS)
    record.fenced(0, FIRST)
    record.fenced(1, SECOND)
    record.end_round(1500 * MS, paused=False, stolen=[1, 2])
    return record


def test_a_new_record_has_nothing_in_it() -> None:
    record = Record(2, 1024)
    assert (record.rounds, record.facts, record.marks) == ([], [], {})
    assert (record.throttle_percent, record.max_throttle_percent, record.load_ns) == (0, 0, 0)
    assert record.ram() == RamReport(total_bytes=4 << 20)
    assert record.per_worker(["a", "b"]) == [WorkerReport(worker=0, path="a"), WorkerReport(worker=1, path="b")]
    assert record.downtime_ms() is None
    assert record.throughput_mib_per_s() == 0


def test_a_round_has_the_sums_of_all_workers_and_the_slowest_scan() -> None:
    assert with_one_round(settle_ms=40).rounds == [
        RoundReport(
            round=1,
            began_ms=1000,
            dirty_pages=369,  # of the first round these are all pages, also those that nobody ever wrote
            sent_pages=300,
            zero_pages=60,
            skipped_pages=9,
            wire_bytes=14000,
            scan_ms=9,
            settle_ms=40,
            duration_ms=500,
            paused=False,
            throttle_percent=0,
        )
    ]


def test_a_later_round_has_only_what_was_added_since_the_one_before() -> None:
    record = with_one_round(settle_ms=40)
    record.throttle(30)
    record.begin_round(1600 * MS)
    record.fenced(0, WorkerCounters(0, 101, 22, 6, 5010, 12 * MS, 11 * MS, 13 * MS))
    record.fenced(1, WorkerCounters(0, 210, 60, 9, 9300, 10 * MS, 17 * MS, 19 * MS))
    ended = record.end_round(1625 * MS, paused=True, stolen=[10, 20])
    assert ended is record.rounds[1]
    assert ended == RoundReport(
        round=2,
        began_ms=1600,
        dirty_pages=33,  # skipped ones are not dirty from here on
        sent_pages=11,
        zero_pages=22,
        skipped_pages=6,
        wire_bytes=310,
        scan_ms=5,
        settle_ms=0,
        duration_ms=25,
        paused=True,
        throttle_percent=30,
    )
    assert record.stolen == [11, 22]


def test_a_worker_without_news_adds_nothing() -> None:
    record = with_one_round()
    record.begin_round(1600 * MS)
    record.fenced(1, msgspec.structs.replace(SECOND, sent_pages=201))
    assert record.end_round(1601 * MS, paused=False, stolen=[0, 0]).sent_pages == 1


def test_workers_that_nobody_counts_are_a_fault() -> None:
    record = with_one_round()
    with pytest.raises(ValueError, match="zip"):
        record.end_round(1600 * MS, paused=False, stolen=[1])
    record._before.pop()
    with pytest.raises(ValueError, match="zip"):
        record.end_round(1600 * MS, paused=False, stolen=[0, 0])


def test_the_highest_throttle_is_kept_when_it_is_lifted() -> None:
    record = Record(1, 1)
    for percent in (20, 40, 30, 0):
        record.throttle(percent)
    assert (record.throttle_percent, record.max_throttle_percent) == (0, 40)


def test_policy_sees_the_round_without_the_time_in_which_the_guest_settled() -> None:
    record = with_one_round(settle_ms=40)
    record.rounds[-1].throttle_percent = 30
    record.remaining(77)
    assert record.facts == [
        RoundFacts(
            sent_bytes=300 * 4096,
            duration_ns=460 * MS,
            scan_ns=9 * MS,
            remaining_pages=77,
            throttle_percent=30,
        )
    ]


def test_policy_sees_the_round_that_ended_last() -> None:
    record = with_one_round()
    record.begin_round(1500 * MS)
    record.fenced(0, msgspec.structs.replace(FIRST, sent_pages=105))
    record.end_round(1503 * MS, paused=False, stolen=[0, 0])
    record.remaining(1)
    assert (record.facts[0].sent_bytes, record.facts[0].duration_ns) == (5 * 4096, 3 * MS)


PAUSE = ("stopped", "paused", "final", "saved", "rescanned", "verified", "loaded", "resumed")


def paused(*instants_ms: int, scan_ms: int) -> Record:
    """A record whose marks are these, and whose round of the pause scanned for *scan_ms*."""
    record = with_one_round()
    for name, instant_ms in zip(PAUSE, instants_ms, strict=True):
        record.mark(name, instant_ms * MS)
    for took_ms in (scan_ms, 1000):  # the second one comes after the state was saved
        record.rounds.append(RoundReport(round=len(record.rounds) + 1, scan_ms=took_ms, paused=True))
    return record


def test_each_phase_is_from_one_mark_to_the_next() -> None:
    record = paused(1, 3, 8, 15, 28, 45, 68, 99, scan_ms=2)
    record.load_ns = 9 * MS
    assert record.phases() == DowntimePhases(
        pause=2,
        final_scan=2,
        final_pages=3,
        state_save=7,
        post_save_scan=13,
        verify=17,
        state_transfer=14,
        state_load=9,
        resume=31,
    )
    assert record.downtime_ms() == 98


def test_a_part_is_never_longer_than_its_phase() -> None:
    record = paused(1, 3, 8, 15, 28, 45, 68, 99, scan_ms=6)
    record.load_ns = 24 * MS
    phases = record.phases()
    assert (phases.final_scan, phases.final_pages) == (5, 0)
    assert (phases.state_load, phases.state_transfer) == (23, 0)


def test_the_throughput_is_that_of_all_memory_in_the_first_round() -> None:
    record = with_one_round()
    assert record.throughput_mib_per_s() == 8  # 4 MiB in half a second
    record.begin_round(1500 * MS)
    record.end_round(1501 * MS, paused=False, stolen=[0, 0])
    assert record.throughput_mib_per_s() == 8
    record.rounds[0].duration_ms = 0
    assert record.throughput_mib_per_s() == 0


def test_the_rounds_of_ram_add_up() -> None:
    record = with_one_round()
    record.rounds.append(RoundReport(round=2, sent_pages=1, zero_pages=2, skipped_pages=3, wire_bytes=4))
    assert record.ram() == RamReport(
        total_bytes=4 << 20, wire_bytes=14004, sent_pages=301, zero_pages=62, skipped_pages=12
    )


def test_what_each_worker_did_is_told_with_its_path() -> None:
    record = with_one_round()
    first = WorkerReport(
        worker=0, path="10.0.0.1", sent_pages=100, wire_bytes=5000, busy_ms=11, waiting_ms=13, stolen_regions=1
    )
    second = WorkerReport(worker=1, path="", sent_pages=200, wire_bytes=9000, busy_ms=17, waiting_ms=19)
    second.stolen_regions = 2
    assert record.per_worker(["10.0.0.1"]) == [first, second]


def test_what_each_path_carried_is_the_sum_of_its_workers() -> None:
    record = with_one_round()
    both = PathReport(path="a", workers=2, wire_bytes=14000, rate_mib_per_s=14000 / MIB / 0.5)
    assert record.per_path(["a", "a"]) == [both]
    first, second = record.per_path(["a", "b"])
    assert (first.wire_bytes, second.wire_bytes, first.workers) == (5000, 9000, 1)
    assert record.per_path([]) == []
    assert Record(1, 1).per_path(["a"]) == [PathReport(path="a", workers=1)]


def test_a_migration_of_days_has_the_first_and_the_last_rounds_and_all_sums() -> None:
    record = Record(1, 1024)
    rounds = FIRST_ROUNDS + LAST_ROUNDS + 500
    for number in range(1, rounds + 1):
        record.begin_round(number * 10 * MS)
        record.fenced(0, WorkerCounters(sent_pages=3 * number, wire_bytes=7 * number))
        record.end_round((number * 10 + 5) * MS, paused=False, stolen=[0])
        record.remaining(number)
    assert [one.round for one in record.rounds] == [
        *range(1, FIRST_ROUNDS + 1),
        *range(rounds - LAST_ROUNDS + 1, rounds + 1),
    ]
    assert (record.ram().sent_pages, record.ram().wire_bytes) == (3 * rounds, 7 * rounds)
    (path,) = record.per_path(["a"])
    assert path.rate_mib_per_s == pytest.approx(7 * rounds / MIB / (rounds * 0.005))
    assert [one.remaining_pages for one in record.facts] == [1, *range(rounds - MAX_FACTS + 2, rounds + 1)]
    assert (record.round_count, record.fact_count) == (rounds, rounds)
