# SPDX-License-Identifier: Apache-2.0
"""A synthetic guest is moved by real workers over loopback, and arrives whole."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import msgspec
import psutil
import pytest

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from parmig.guests.guest import DirtyLog
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.codecs.registry import choices
from parmig.transport.registry import data_transports
from parmig.units import MIB, NS_PER_S
from tests.integration.sides import (
    Command,
    Discard,
    HeldGuest,
    Migration,
    allocated_bytes,
    guests,
    is_alive,
    listen_uri,
    migrate,
    tracked_mappings,
    until,
)


def arrived(source: HeldGuest, destination: HeldGuest, report: Report) -> None:
    """It completed, the memories were the same, and the guest goes on there and only there."""
    assert report.error is None
    assert report.status == "completed"
    assert report.verified is True
    assert report.digest.source == report.digest.destination is not None
    assert source.stats().paused
    assert tracked_mappings(source.pid) == 0
    before = destination.stats().counter
    assert before >= source.stats().counter
    until(lambda: destination.stats().counter > before + 3, "the destination's next ticks")
    destination.pause(Discard())
    destination.check()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_writing_guest_arrives_whole_with_any_number_of_workers(workers: int) -> None:
    with guests() as (source, destination):
        report, _ = migrate(source, destination, workers=workers)
        arrived(source, destination, report)
        assert len(report.per_worker) == report.workers == workers
        for worker in report.per_worker:
            assert 0 < worker.busy_ms <= worker.busy_ms + worker.waiting_ms < report.total_time_ms


@pytest.mark.parametrize("tracker", ["pagemap", "bitmap", "digest"])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "delta"])
def test_every_tracker_works_with_every_codec(tracker: str, codec: str) -> None:
    with guests("memory=32MiB,rate=40MiB/s,fill=text") as (source, destination):
        report, _ = migrate(source, destination, tracker=tracker, compress=codec)
        arrived(source, destination, report)
        assert (report.tracker, report.compression) == (tracker, codec)
        assert (report.ram.wire_bytes < 24 * MIB) is (codec != "none")


@pytest.mark.parametrize("transport", data_transports())
@pytest.mark.parametrize("codec", choices())
def test_every_transport_works_with_every_codec(transport: str, codec: str) -> None:
    """Over memory that holds something else, too: pages are put where others are, and where none are."""
    with guests("memory=32MiB,rate=40MiB/s,fill=text,blocks=2") as (source, destination):
        destination.adopts_memory = False  # with unix, its memory would stay in place
        memory = destination.memory()[0]
        os.pwrite(memory.fd, random.Random(7).randbytes(memory.block.size_bytes), 0)
        report, there = migrate(source, destination, transport=transport, compress=codec)
        arrived(source, destination, report)
        assert (report.transport, report.compression) == (there.transport, there.compression) == (transport, codec)
        sent, placed = (
            {done.codec: (done.batches, done.raw_bytes, done.encoded_bytes) for done in one.codecs if done.batches}
            for one in (report, there)
        )
        assert sent == placed
        assert sum(raw for _, raw, _ in sent.values()) == report.ram.sent_pages * PAGE_BYTES
        assert all(encoded < raw for name, (_, raw, encoded) in sent.items() if name != "none")


def test_delta_sends_the_changes_of_pages_that_are_written_again() -> None:
    """Over a link that carries less than the guest writes. Each write changes a few bytes of a page."""
    with guests("memory=32MiB,rate=100MiB/s,pattern=sequential") as (source, destination):
        report, _ = migrate(
            source,
            destination,
            workers=1,
            compress="delta",
            max_bandwidth_bytes_per_s=40 * MIB,
            downtime_limit_ns=1,
            max_downtime_ns=NS_PER_S,  # so there are several rounds
        )
        arrived(source, destination, report)
    later = report.rounds[1:]
    written_bytes = sum(one.sent_pages for one in later) * PAGE_BYTES
    assert written_bytes > 16 * MIB
    assert sum(one.wire_bytes for one in later) < written_bytes / 20


def test_auto_compresses_for_a_slow_link() -> None:
    with guests("memory=48MiB,rate=0,fill=text") as (source, destination):
        report, _ = migrate(source, destination, workers=1, compress="auto", max_bandwidth_bytes_per_s=40 * MIB)
        arrived(source, destination, report)
    assert report.ram.wire_bytes < 24 * MIB  # two batches of 4 MiB measure the link


@pytest.mark.parametrize("pattern", ["random", "sequential", "hot", "burst"])
def test_every_pattern_of_writes_arrives_whole(pattern: str) -> None:
    with guests(f"memory=32MiB,rate=60MiB/s,pattern={pattern}") as (source, destination):
        report, _ = migrate(source, destination, max_bandwidth_bytes_per_s=200 * MIB)
        arrived(source, destination, report)


@pytest.mark.parametrize("tracker", ["pagemap", "bitmap"])
def test_several_blocks_arrive_whole(tracker: str) -> None:
    with guests("memory=32MiB,rate=40MiB/s,blocks=5") as (source, destination):
        report, _ = migrate(source, destination, tracker=tracker, workers=3)
        arrived(source, destination, report)


def test_what_was_never_touched_stays_unallocated_at_the_destination() -> None:
    with guests("memory=64MiB,rate=0,touched=10%") as (source, destination):
        report, _ = migrate(source, destination)
        arrived(source, destination, report)
        assert allocated_bytes(destination) <= allocated_bytes(source) + MIB < 16 * MIB
        assert report.ram.skipped_pages > 12000
        assert report.ram.wire_bytes < 8 * MIB


def test_pages_that_are_allocated_and_zero_take_no_room_on_the_wire_or_at_the_destination() -> None:
    with guests("memory=32MiB,rate=0,touched=25%") as (source, destination):
        os.pwrite(source.memory()[0].fd, bytes(8 * MIB), 16 * MIB)
        report, _ = migrate(source, destination)
        arrived(source, destination, report)
        assert report.ram.zero_pages >= 2048
        assert allocated_bytes(destination) < 10 * MIB


@pytest.mark.parametrize("touched", ["100%", "30%"])
def test_a_destination_that_holds_garbage_becomes_equal(touched: str) -> None:
    with guests(f"memory=32MiB,rate=20MiB/s,blocks=2,touched={touched}") as (source, destination):
        for memory in destination.memory():
            os.pwrite(memory.fd, random.Random(7).randbytes(memory.block.size_bytes), 0)
        report, _ = migrate(source, destination)
        arrived(source, destination, report)


def test_a_paused_guest_arrives_paused() -> None:
    with guests() as (source, destination):
        source.pause(Discard())
        stopped = source.stats().counter
        report, received = migrate(source, destination)
        assert (report.status, report.verified, received.status) == ("completed", True, "completed")
        assert destination.stats().paused
        assert destination.stats().counter == stopped
        destination.check()
        assert source.stats().paused


def test_a_guest_goes_there_and_back_again() -> None:
    with guests() as (source, destination), HeldGuest("memory=32MiB", incoming=True) as home:
        first, _ = migrate(source, destination)
        assert first.status == "completed", first.error
        second, _ = migrate(destination, home)
        arrived(destination, home, second)


@pytest.mark.parametrize("tracker", ["pagemap", "bitmap", "digest"])
def test_holes_punched_while_rounds_run_arrive_as_zero(tracker: str) -> None:
    with guests("memory=32MiB,rate=20MiB/s,blocks=2", hold_source=("pause",)) as (source, destination):
        config = SendConfig(workers=2, verify=True, tracker=tracker, max_bandwidth_bytes_per_s=40 * MIB)
        with Migration(source, destination, config) as migration:
            chance = random.Random(3)
            punched = 0
            migration.at_round(1)
            # Up to the pause and no further: a guest that is paused gives nothing back. Nor without end: to a bitmap
            # each hole is dirty pages, and a guest that punches for ever never converges.
            pause = source.gates["pause"]
            while migration.status == "active" and not pause.reached.is_set() and punched < 300:
                first = chance.randrange(64, 4000)
                source.punch("ram1", first, chance.randrange(1, 90))
                punched += 1
            pause.wait()
            source.open_gates()
            report = migration.sent()
            migration.received()
        assert punched > 20
        arrived(source, destination, report)


def test_a_hole_in_place_of_a_page_that_was_sent_arrives_as_zero() -> None:
    with guests("memory=32MiB,rate=0", hold_source=("pause",)) as (source, destination):
        with Migration(source, destination) as migration:
            source.gates["pause"].wait()  # all of RAM has been sent, and nothing is written any more
            source.punch("ram0", 1000, 2000)
            source.open_gates()
            report = migration.sent()
            migration.received()
        arrived(source, destination, report)
        paused = [one for one in report.rounds if one.paused]
        assert sum(one.zero_pages for one in paused) == 2000


class Settling(HeldGuest):
    """A guest with a device whose store nothing tracks: it was in flight at the first scan, and then lands."""

    settled = 0

    def start_dirty_log(self, kind: str) -> DirtyLog:
        return msgspec.structs.replace(super().start_dirty_log(kind), settle="by itself")

    def settle(self) -> None:
        self.settled += 1
        if self.settled == 1:
            (memory,) = self.memory()
            os.pwrite(memory.fd, b"landed", memory.file_offset_bytes + MIB)


def test_what_devices_store_before_a_guest_has_settled_arrives() -> None:
    with Settling("memory=16MiB,rate=0") as source, HeldGuest("memory=16MiB", incoming=True) as destination:  # type: ignore[attr-defined]
        report, _ = migrate(source, destination)
        assert (report.error, report.verified, report.settle) == (None, True, "by itself")
        assert source.settled == sum(not one.paused for one in report.rounds) > 0
        (memory,) = destination.memory()
        assert os.pread(memory.fd, 6, memory.file_offset_bytes + MIB) == b"landed"


def test_the_figures_of_the_report_agree_with_each_other() -> None:
    with guests("memory=32MiB,rate=40MiB/s,touched=70%") as (source, destination):
        report, received = migrate(source, destination, workers=3, verify="before")
        arrived(source, destination, report)
    phases = msgspec.structs.astuple(report.downtime_phases_ms)
    assert all(phase >= 0 for phase in phases)
    assert report.downtime_ms is not None
    assert math.isclose(sum(phases), report.downtime_ms, rel_tol=1e-6)
    assert report.downtime_ms < report.total_time_ms
    assert report.downtime_without_verify_ms == pytest.approx(report.downtime_ms - report.downtime_phases_ms.verify)
    assert 0 < report.downtime_without_verify_ms < report.downtime_ms
    assert [one.round for one in report.rounds] == list(range(1, len(report.rounds) + 1))
    assert [one.paused for one in report.rounds[-2:]] == [True, True]
    for total in ("wire_bytes", "sent_pages", "zero_pages", "skipped_pages"):
        assert getattr(report.ram, total) == sum(getattr(one, total) for one in report.rounds)
    for total in ("wire_bytes", "sent_pages"):
        assert getattr(report.ram, total) == sum(getattr(one, total) for one in report.per_worker)
        assert getattr(report.ram, total) == getattr(received.ram, total)
    first = report.rounds[0]
    assert first.sent_pages + first.zero_pages + first.skipped_pages == first.dirty_pages == 32 * MIB // 4096
    assert report.ram.total_bytes == received.ram.total_bytes == report.guest.memory_bytes == 32 * MIB
    assert sum(one.duration_ms for one in report.rounds) < report.total_time_ms
    assert report.state_bytes == received.state_bytes > 0
    assert received.digest.destination == report.digest.destination


def test_workers_use_no_shared_memory_directory_and_end_with_the_migration() -> None:
    with guests("memory=32MiB,rate=2MiB/s") as (source, destination):
        config = SendConfig(workers=2, max_bandwidth_bytes_per_s=40 * MIB, switchover="manual")
        with Migration(source, destination, config) as migration:
            migration.at_round(1)
            workers = [psutil.Process(pid) for pid in (*migration.send_workers(), *migration.receive_workers())]
            assert len(workers) == 4
            for pid in (*(one.pid for one in workers), os.getpid()):
                opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
                assert not [name for name in opened if name.startswith("/dev/shm/")]
            migration.switch_over()
            assert migration.sent().error is None
            assert migration.received().error is None
        assert not any(is_alive(worker) for worker in workers)


@pytest.mark.parametrize("transport", data_transports())
def test_the_command_line_moves_a_guest_and_both_sides_report_it(transport: str) -> None:
    with (
        listen_uri(transport) as uri,
        Command("receive", "--listen", uri, "--guest", "synthetic:memory=32MiB", "--json") as there,
        Command(
            "send",
            there.uri(),
            "--guest",
            "synthetic:memory=32MiB,rate=40MiB/s",
            "--workers",
            "2",
            "--transport",
            transport,
            "--verify",
            "--json",
        ) as here,
    ):
        code, report = here.end()
        verified = None if transport == "unix" else True
        assert (code, report["status"], report["verified"]) == (0, "completed", verified), here.errors
        code, report = there.end()
        assert (code, report["status"], report["side"]) == (0, "completed", "destination"), there.errors
        assert "found its memory right" in there.errors
