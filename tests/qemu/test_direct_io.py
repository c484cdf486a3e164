# SPDX-License-Identifier: Apache-2.0
"""Promise 2 with disks: what a device stores by direct I/O while its guest is moved arrives, every byte of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sides import LISTEN, Command
from tests.qemu import disks
from tests.qemu.disks import DISK_BYTES_PER_S, ReadingMachine, SlowDisk
from tests.qemu.machines import wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(int(os.environ.get("PARMIG_DISK_TIMEOUT", "600")))]

MOVES = int(os.environ.get("PARMIG_DISK_MOVES", "2"))
"""20 for a soak."""
SNAPSHOTS = int(os.environ.get("PARMIG_DISK_SNAPSHOTS", "1"))
"""10 for a soak."""

ATTEMPTS = 6
"""At losing bytes; the first does it in nearly every run."""

HANGING_BYTES_PER_S = 8192
"""A request of 128 KiB takes 16 s."""

UNSETTLED = "from parmig.guests.qemu.qemu_guest import QemuGuest\nQemuGuest.settle = lambda self: None"
"""A parmig that does not wait for the disk."""

with_and_without_iothread = pytest.mark.parametrize("iothread", [False, True], ids=["main loop", "iothread"])


@pytest.fixture(scope="module")
def reading(qemu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SlowDisk, Path]]:
    if reason := disks.missing():
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; tests with a slow disk are mandatory where CI is set")
        pytest.skip(reason)
    with disks.reading_disk(tmp_path_factory.mktemp("disk")) as found:
        yield found


def move(source: ReadingMachine, destination: ReadingMachine, *, settle: bool = True, way: str = "") -> dict[str, Any]:
    """One attempt by two commands, both memories compared in the pause; the source's report."""
    receive = Command("receive", "--listen", LISTEN, "--guest", f"qemu:{destination.socket}", "--json")
    with receive as there:
        guest = f"qemu:{source.socket}" + (f",settle={way}" if way else "")
        arguments = ("send", there.uri(), "--guest", guest, "--workers", "2", "--verify", "--json")
        with Command(*arguments, prelude="" if settle else UNSETTLED) as here:
            report: dict[str, Any] = here.end()[1]
            return report


def move_again_and_again(
    reading: tuple[SlowDisk, Path], iothread: bool, moves: int, way: str = ""
) -> tuple[list[int], list[dict[str, Any]]]:
    """Move the reading guest from QEMU to QEMU; how much it found wrong in each pass, and the reports."""
    disk, initrd = reading
    checks: list[int] = []
    reports = []
    with ExitStack() as stack:
        machine = stack.enter_context(ReadingMachine(initrd, disk, iothread=iothread))
        machine.wait_for_serial("PASS 1")
        for _ in range(moves):
            destination = stack.enter_context(ReadingMachine(initrd, disk, iothread=iothread, incoming=True))
            machine.wait_for_requests()
            report = move(machine, destination, way=way)
            assert (report["status"], report["verified"]) == ("completed", True), report["error"]
            reports.append(report)
            checks += machine.checks()
            machine = destination
        machine.wait_for_checks(1)
        checks += machine.checks()
    return checks, reports


@with_and_without_iothread
def test_what_the_disk_stores_during_a_move_arrives(reading: tuple[SlowDisk, Path], iothread: bool) -> None:
    checks, reports = move_again_and_again(reading, iothread, MOVES)
    assert sum(checks) == 0, checks
    assert {report["settle"] for report in reports} == {"transaction"}
    rounds = [one for report in reports for one in report["rounds"]]
    assert max(one["settle_ms"] for one in rounds if not one["paused"]) > 5  # requests were in flight
    assert all(one["settle_ms"] == 0 for one in rounds if one["paused"])


def test_without_waiting_for_the_disk_bytes_are_lost(reading: tuple[SlowDisk, Path]) -> None:
    disk, initrd = reading
    with ExitStack() as stack:
        machine = stack.enter_context(ReadingMachine(initrd, disk, iothread=False))
        machine.wait_for_serial("PASS 1")
        for _ in range(ATTEMPTS):
            destination = stack.enter_context(ReadingMachine(initrd, disk, iothread=False, incoming=True))
            machine.wait_for_requests()
            report = move(machine, destination, settle=False)
            if report["verified"] is False:
                assert "the memories are not the same" in report["error"]["message"]
                return
            assert report["status"] == "completed", report["error"]
            machine = destination
        pytest.fail("nothing was lost: were requests in flight at all?")


def test_a_qemu_whose_transaction_waits_for_nothing_is_stopped_for_a_moment(
    reading: tuple[SlowDisk, Path],
) -> None:
    checks, reports = move_again_and_again(reading, iothread=False, moves=1, way="stop")
    assert sum(checks) == 0, checks
    assert reports[0]["settle"] == "stop"


@with_and_without_iothread
def test_what_the_disk_stores_during_a_snapshot_is_in_it(
    reading: tuple[SlowDisk, Path], iothread: bool, tmp_path: Path
) -> None:
    disk, initrd = reading
    with ReadingMachine(initrd, disk, iothread=iothread) as source:
        source.wait_for_serial("PASS 1")
        for number in range(SNAPSHOTS):
            source.wait_for_requests()
            file = tmp_path / str(number)
            with Command("save", str(file), "--guest", f"qemu:{source.socket}", "--json") as command:
                code, report = command.end()
                assert (code, report["status"], report["settle"]) == (0, "completed", "transaction"), command.errors
            with ReadingMachine(initrd, disk, iothread=iothread, incoming=True) as copy:
                with Command("restore", str(file), "--guest", f"qemu:{copy.socket}", "--json") as command:
                    code, _ = command.end()
                    assert code == 0, command.errors
                copy.wait_for_checks(1)
                assert sum(copy.checks()) == 0, copy.checks()
            file.unlink()
        assert sum(source.checks()) == 0, source.checks()


@contextmanager
def reading_pair(reading: tuple[SlowDisk, Path]) -> Iterator[tuple[ReadingMachine, Command]]:
    """A guest that reads the disk, and a receiver that waits for it."""
    disk, initrd = reading
    with (
        ReadingMachine(initrd, disk, iothread=False) as source,
        ReadingMachine(initrd, disk, iothread=False, incoming=True) as destination,
        Command("receive", "--listen", LISTEN, "--guest", f"qemu:{destination.socket}", "--json") as there,
    ):
        source.wait_for_serial("PASS 1")
        yield source, there


@contextmanager
def settling_beside_a_disk_that_hangs(disk: SlowDisk, source: ReadingMachine, uri: str, way: str) -> Iterator[Command]:
    """A sender that waits for a disk, which hangs until the end of the block."""
    source.wait_for_requests()
    try:
        with Command("send", uri, "--guest", f"qemu:{source.socket},settle={way}", "--json") as here:
            wait_until(lambda: source.tracked_mappings() or here.process.poll() is not None, "the dirty log")
            disk.limit(HANGING_BYTES_PER_S)
            here.wait_for("waiting for the guest's disk requests in flight")
            yield here
    finally:
        disk.limit(DISK_BYTES_PER_S)


def test_a_disk_that_hangs_is_told_of_and_a_cancel_works_meanwhile(reading: tuple[SlowDisk, Path]) -> None:
    with reading_pair(reading) as (source, there):
        settings = source.settings()
        with settling_beside_a_disk_that_hangs(reading[0], source, there.uri(), "transaction") as here:
            asked = time.monotonic()
            here.process.send_signal(signal.SIGINT)
            code, report = here.end()
            assert (code, report["status"]) == (130, "cancelled"), report["error"]
            assert time.monotonic() - asked < 20  # of it 5 s for QEMU, whose main loop waits for the disk
            assert source.tracked_mappings() == 0
        there.end()
        wait_until(lambda: source.settings() == settings, "the settings to be as before")
        assert source.ask("query-status")["running"]
        source.wait_for_checks(1)
        assert sum(source.checks()) == 0


def test_a_guest_that_was_stopped_to_settle_runs_again_though_the_sender_is_killed(
    reading: tuple[SlowDisk, Path],
) -> None:
    with reading_pair(reading) as (source, there):
        with settling_beside_a_disk_that_hangs(reading[0], source, there.uri(), "stop") as here:
            here.process.kill()
        wait_until(lambda: source.ask("query-status")["running"], "the guest to run again")
        source.wait_for_checks(1)
        there.process.terminate()
