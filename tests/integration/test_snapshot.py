# SPDX-License-Identifier: Apache-2.0
"""A running guest is saved to a file and goes on; another begins where the file was made."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

import docs.examples.tiny_guest
from parmig.guests.registry import open_guest
from parmig.inspection import inspect_file
from parmig.ram.blocks import PAGE_BYTES
from parmig.snapshot.opened import OpenSnapshot
from parmig.units import MIB
from tests.integration.sides import Command, Discard, HeldGuest, allocated_bytes, tracked_mappings, until
from tests.integration.snapshots import FORMATS, Saving, goes_on, memory_of, restore, save

every_format = pytest.mark.parametrize("format_", FORMATS)


class Beginning(HeldGuest):
    """A guest that notes where it begins to run."""

    began_at = -1

    def resume(self) -> int:
        self.began_at = self.stats().counter
        return super().resume()


@pytest.mark.parametrize(
    ("format_", "tracker", "workers"),
    [
        ("mapped-ram", "pagemap", 2),
        ("mapped-ram", "bitmap", 3),
        ("mapped-ram", "digest", 1),
        ("stream", "pagemap", 3),
        ("stream", "bitmap", 1),
        ("stream", "digest", 2),
    ],
)
def test_a_writing_guest_goes_on_and_begins_again_from_the_file(
    tmp_path: Path, format_: str, tracker: str, workers: int
) -> None:
    with (
        HeldGuest("memory=32MiB,rate=60MiB/s,blocks=2") as source,
        Beginning("memory=32MiB,blocks=2", incoming=True) as copy,
    ):
        report = save(source, tmp_path / "s", format=format_, tracker=tracker, workers=workers)
        assert (report.status, report.error, report.tracker) == ("completed", None, tracker)
        assert tracked_mappings(source.pid) == 0
        saved_at = source.stats().counter
        goes_on(source)
        report = restore(copy, tmp_path / "s", workers=workers)
        assert (report.status, report.error, report.verified) == ("completed", None, True)
        assert len(report.per_worker) == (workers if format_ == "mapped-ram" else 1)
        assert 0 < copy.began_at <= saved_at  # where the file was made, not where the other one is
        goes_on(copy)
        assert os.listdir(tmp_path) == ["s"]


@every_format
def test_a_paused_guest_is_the_same_bit_for_bit_and_stays_paused(tmp_path: Path, format_: str) -> None:
    options = "memory=16MiB,blocks=2,touched=70%,running=no"
    with HeldGuest(options) as source, HeldGuest(options, incoming=True) as copy:
        assert save(source, tmp_path / "s", format=format_).error is None
        assert source.stats().paused
        report = restore(copy, tmp_path / "s")
        assert report.error is None
        assert copy.stats().paused
        copy.check()
        for here, there in zip(memory_of(source), memory_of(copy), strict=True):
            assert (here == there).all()


def test_a_guest_can_be_left_paused(tmp_path: Path) -> None:
    with HeldGuest("memory=8MiB") as source, HeldGuest("memory=8MiB", incoming=True) as copy:
        assert save(source, tmp_path / "s").error is None
        assert restore(copy, tmp_path / "s", paused=True).error is None
        assert copy.stats().paused
        copy.check()


def test_the_pages_of_the_file_are_an_image_of_the_memory_with_holes_for_zeros(tmp_path: Path) -> None:
    with HeldGuest("memory=32MiB,rate=0,touched=30%,running=no") as source:
        os.pwrite(source.memory()[0].fd, bytes(4 * MIB), 20 * MIB)  # allocated, and zero
        assert save(source, tmp_path / "s").error is None
        (memory,) = memory_of(source)
    with OpenSnapshot(tmp_path / "s") as snapshot:
        (block,) = snapshot.blocks
        place = block.mapped
        assert place is not None
        image = os.pread(snapshot.fd, block.size_bytes, place.pages_offset_bytes)
        assert image == memory.tobytes()
        bitmap = np.frombuffer(os.pread(snapshot.fd, block.pages // 8, place.bitmap_offset_bytes), np.uint8)
        stored = np.unpackbits(bitmap, bitorder="little").astype(bool)
        assert (stored == memory.any(axis=1)).all()
        found = os.fstat(snapshot.fd)
        assert found.st_blocks * 512 < stored.sum() * PAGE_BYTES + MIB


@every_format
def test_memory_without_content_takes_no_room_in_the_file_or_in_the_copy(tmp_path: Path, format_: str) -> None:
    options = "memory=64MiB,rate=0,touched=10%"
    with HeldGuest(options) as source, HeldGuest(options, incoming=True) as copy:
        assert save(source, tmp_path / "s", format=format_).error is None
        assert (tmp_path / "s").stat().st_blocks * 512 < 10 * MIB
        assert restore(copy, tmp_path / "s").error is None
        assert allocated_bytes(copy) <= allocated_bytes(source) + MIB
        goes_on(copy)


@every_format
def test_what_became_a_hole_after_it_was_written_is_zero_in_the_copy(tmp_path: Path, format_: str) -> None:
    with HeldGuest("memory=32MiB,rate=0", hold=("pause",)) as source, HeldGuest("memory=32MiB", incoming=True) as copy:
        with Saving(source, tmp_path / "s", format=format_) as saving:
            source.gates["pause"].wait()  # all of RAM has been written, and no more is dirtied
            source.punch("ram0", 1000, 2000)
            source.open_gates()
            report = saving.report()
        assert report.error is None
        assert sum(one.zero_pages for one in report.rounds if one.paused) == 2000
        assert restore(copy, tmp_path / "s").error is None
        assert not memory_of(copy)[0][1000:3000].any()
        goes_on(copy)
    if format_ == "mapped-ram":
        assert (tmp_path / "s").stat().st_blocks * 512 < 26 * MIB


@every_format
def test_a_guest_whose_memory_holds_garbage_becomes_equal(tmp_path: Path, format_: str) -> None:
    options = "memory=16MiB,rate=0,touched=40%,blocks=2"
    with HeldGuest(options) as source, HeldGuest(options, incoming=True) as copy:
        assert save(source, tmp_path / "s", format=format_).error is None
        for memory in copy.memory():
            os.pwrite(memory.fd, random.Random(7).randbytes(memory.block.size_bytes), 0)
        assert restore(copy, tmp_path / "s").error is None
        goes_on(copy)


@every_format
def test_a_guest_whose_state_is_any_bytes_is_saved_and_restored(tmp_path: Path, format_: str) -> None:
    with (
        open_guest("tiny:4MiB", incoming=False) as source,
        open_guest("tiny:4MiB", incoming=True) as copy,
    ):
        assert isinstance(source, docs.examples.tiny_guest.TinyGuest)
        assert isinstance(copy, docs.examples.tiny_guest.TinyGuest)
        report = save(source, tmp_path / "s", format=format_)
        assert (report.status, report.error) == ("completed", None)
        until(lambda: source.count > 3, "the source to go on")
        source.pause(Discard())
        report = restore(copy, tmp_path / "s", paused=True)
        assert (report.status, report.error, report.state_bytes) == ("completed", None, 8)
        assert 0 < copy.count <= source.count
        found = inspect_file(str(tmp_path / "s"))
        assert [(one.idstr, one.fields) for one in found.devices] == [
            ("parmig/guest-state", {"size": 8, "state": copy.count.to_bytes(8, "big").hex()})
        ]


@every_format
def test_a_file_says_what_is_in_it(tmp_path: Path, format_: str) -> None:
    with HeldGuest("memory=8MiB,rate=0,blocks=2") as source:
        report = save(source, tmp_path / "s", format=format_)
        info = source.info()
    found = inspect_file(str(tmp_path / "s"))
    assert found.complete, found.notes
    assert found.machine == info.machine
    assert [(block.name, block.bytes) for block in found.blocks] == [("ram0", 4 * MIB), ("ram1", 4 * MIB)]
    assert all(device.fields is not None for device in found.devices)
    assert found.trailer is not None
    assert report.snapshot is not None
    assert found.trailer.digest == report.snapshot.digest
    assert found.total_bytes == report.snapshot.file_bytes


@every_format
def test_the_figures_of_the_reports_agree(tmp_path: Path, format_: str) -> None:
    with HeldGuest("memory=32MiB,rate=40MiB/s,touched=70%") as source, HeldGuest("memory=32MiB", incoming=True) as copy:
        saved = save(source, tmp_path / "s", format=format_, workers=3)
        restored = restore(copy, tmp_path / "s")
    assert (saved.error, restored.error) == (None, None)
    phases = msgspec.structs.astuple(saved.downtime_phases_ms)
    assert saved.downtime_ms is not None
    assert math.isclose(sum(phases), saved.downtime_ms, rel_tol=1e-6)
    assert all(phase >= 0 for phase in phases)
    assert saved.downtime_phases_ms.state_load == saved.downtime_phases_ms.state_transfer == 0
    assert saved.downtime_ms < saved.total_time_ms
    assert [one.paused for one in saved.rounds[-2:]] == [True, True]
    assert saved.ram.sent_pages == sum(one.sent_pages for one in saved.per_worker)
    assert saved.ram.wire_bytes == sum(one.wire_bytes for one in saved.rounds)
    assert saved.snapshot is not None
    assert restored.snapshot is not None
    assert saved.snapshot.digest == restored.snapshot.digest is not None
    assert saved.snapshot.file_bytes == restored.snapshot.file_bytes == (tmp_path / "s").stat().st_size
    assert saved.snapshot.format == restored.snapshot.format == format_
    assert restored.ram.sent_pages == sum(one.sent_pages for one in restored.per_worker)
    if format_ == "mapped-ram":
        assert restored.ram.sent_pages + restored.ram.zero_pages == 32 * MIB // PAGE_BYTES
    else:  # a page that was written twice is in the file twice
        assert restored.ram.sent_pages == saved.ram.sent_pages


def test_the_bandwidth_limit_holds_for_all_workers_together(tmp_path: Path) -> None:
    """No run may be faster. A busy machine makes runs slower, whatever the limiter does: one of ten must not be."""
    with HeldGuest("memory=32MiB,rate=0") as source:
        for number in range(10):
            report = save(source, tmp_path / str(number), max_bandwidth_bytes_per_s=40 * MIB)
            assert report.error is None
            first = report.rounds[0]
            assert first.wire_bytes == 32 * MIB
            rate = first.wire_bytes / first.duration_ms * 1000
            assert rate < 40 * MIB * 1.05
            if rate > 40 * MIB * 0.95:
                return
    pytest.fail(f"slower than the limit ten times, at last {rate / MIB:.2f} MiB/s")


def test_the_commands_save_and_restore_and_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "guest.snap"
    arguments = ["save", str(path), "--guest", "synthetic:memory=16MiB,rate=40MiB/s", "--workers", "2", "--json"]
    with Command(*arguments) as command:
        code, report = command.end()
        assert (code, report["status"]) == (0, "completed"), command.errors
        assert report["snapshot"]["file"] == str(path)
    before = path.stat().st_ino
    with Command(*arguments) as command:
        code, report = command.end()
        assert (code, report["error"]["type"]) == (3, "HostRefusedError")
        assert "--force" in report["error"]["message"]
    assert path.stat().st_ino == before
    with Command(*arguments, "--force", "--format", "stream") as command:
        assert command.end()[0] == 0, command.errors
    assert path.stat().st_ino != before
    assert os.listdir(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    with Command("restore", str(path), "--guest", "synthetic:memory=16MiB", "--json") as command:
        code, report = command.end()
        assert (code, report["status"], report["verified"]) == (0, "completed", True), command.errors
        assert report["snapshot"]["format"] == "stream"
        assert "found its memory right" in command.errors
