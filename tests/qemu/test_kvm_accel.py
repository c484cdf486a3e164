# SPDX-License-Identifier: Apache-2.0
"""QEMU under KVM: two virtual CPUs write and count, and no page may be lost or stale however often the guest is moved.

``PARMIG_KVM_MOVES`` is how often the guest with private memory is moved back and forth; 3 if it is not set.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from parmig.guests.kvm.program_layout import FIRST_PAGE
from parmig.ram.blocks import PAGE_BYTES
from tests.kvm.machines import needs_kvm
from tests.qemu.boot_disk import boot_disk
from tests.qemu.flat_machine import CPUS, PAGES, PAGES_PER_S, FlatMachine
from tests.qemu.machines import MIB
from tests.qemu.test_migration import move
from tools.soak_kvm import beats

MOVES = int(os.environ.get("PARMIG_KVM_MOVES", "3"))
MOVE_LIMIT_S = 120

pytestmark = [pytest.mark.qemu, *needs_kvm, pytest.mark.timeout(120 + MOVE_LIMIT_S * MOVES)]


def start(machine: FlatMachine) -> None:
    machine.ask("cont")
    machine.wait_for_lines(3)


def moved(source: FlatMachine, destination: FlatMachine, *, guest: str = "", verify: bool = True) -> dict[str, Any]:
    """Move the guest as :func:`move` does, let it run on, and check both sides; it is running at the end."""
    report = move(source, destination, "--workers", "2", guest=guest, verify=verify)
    assert report["tracker"] == "pagemap"
    assert source.ask("query-status")["status"] == ("postmigrate" if "state=migrate" in guest else "paused")
    source.check()
    destination.wait_for_lines(2)
    destination.ask("stop")
    destination.check()
    destination.ask("cont")
    return report


def numbers(text: str) -> list[int]:
    """Of the lines of the serial port."""
    return [beat.number for beat in beats(text)]


@pytest.fixture
def disk(qemu: None, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with the program that the test names, in a directory that a QEMU in a chroot has too."""
    path = Path(f"/dev/shm/parmig-test-boot-disk-{os.getpid()}")
    path.write_bytes(boot_disk(request.param, PAGES, PAGES_PER_S, CPUS))
    yield path
    path.unlink()


@pytest.mark.parametrize("disk", ["increment"], indirect=True)
def test_a_guest_with_private_memory_is_moved_back_and_forth(disk: Path) -> None:
    text, reports = "", []
    with ExitStack() as stack:
        source = stack.enter_context(FlatMachine(disk))
        start(source)
        for number in range(MOVES):
            with ExitStack() as new:
                destination = new.enter_context(FlatMachine(disk, incoming=True))
                reports.append(moved(source, destination, verify=number % 2 == 0))
                text += source.serial()
                stack.close()
                stack.enter_context(new.pop_all())
            source = destination
        text += source.serial()
    lines = numbers(text)
    assert lines == list(range(1, len(lines) + 1))
    pause_ms = statistics.median(report["downtime_ms"] for report in reports)
    again = sum(round_["sent_pages"] for report in reports for round_ in report["rounds"][1:])
    assert again > 0, "the guest never wrote while it was moved"
    print(f"{MOVES} moves, {len(lines)} lines, {again} pages sent again, median pause {pause_ms:.1f} ms")


@pytest.mark.parametrize("disk", ["random"], indirect=True)
def test_a_guest_with_a_shared_memory_file_is_moved_and_lost_pages_are_noticed(disk: Path) -> None:
    shared = ["-machine", "pc,memory-backend=ram0"]
    shared += ["-object", f"memory-backend-file,id=ram0,size={32 * MIB},mem-path={{dir}}/ram,share=on"]
    with (
        FlatMachine(disk, memory=shared) as source,
        FlatMachine(disk, memory=shared, incoming=True) as middle,
        FlatMachine(disk, memory=shared, incoming=True) as destination,
    ):
        start(source)
        moved(source, middle)
        moved(middle, destination, guest=",state=migrate")
        destination.ask("stop")
        with (destination.directory / "ram").open("r+b") as file:
            os.pwrite(file.fileno(), bytes(8 * PAGE_BYTES), FIRST_PAGE * PAGE_BYTES)
        with pytest.raises(AssertionError, match="lost or stale"):
            destination.check()
