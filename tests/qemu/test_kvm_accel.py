# SPDX-License-Identifier: Apache-2.0
"""QEMU under KVM: two virtual CPUs write and count, and no page may be lost or stale however often the guest is moved.

``PARMIG_KVM_MOVES`` is how often the guest with private memory is moved back and forth; 3 if it is not set.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parmig.guests.kvm.program_layout import FIRST_PAGE
from parmig.guests.kvm.programs import damage
from parmig.ram.blocks import PAGE_BYTES
from tests.kvm.machines import needs_kvm
from tests.qemu.boot_disk import boot_disk
from tests.qemu.machines import MIB, QemuMachine, wait_until
from tests.qemu.test_migration import move
from tools.soak_kvm import beats

MOVES = int(os.environ.get("PARMIG_KVM_MOVES", "3"))
MOVE_LIMIT_S = 30
CPUS = 2
PAGES = 8 * MIB // PAGE_BYTES
PAGES_PER_S = 20 * MIB // PAGE_BYTES

pytestmark = [pytest.mark.qemu, *needs_kvm, pytest.mark.timeout(120 + MOVE_LIMIT_S * MOVES)]


class FlatMachine(QemuMachine):
    """A QEMU under KVM that boots *disk*, or waits for a guest that booted it.

    Args:
        disk: of :func:`boot_disk`.
        incoming: start with ``-incoming defer``.
        memory: options; by default no backend: private memory.
    """

    def __init__(self, disk: Path, *, incoming: bool = False, memory: list[str] | None = None) -> None:
        super().__init__(
            memory_bytes=32 * MIB,
            memory=memory or ["-machine", "pc"],
            incoming=incoming,
            extra=("-smp", str(CPUS), "-drive", f"file={disk},format=raw,if=ide"),
            accelerator="kvm",
        )

    def wait_for_lines(self, more: int) -> None:
        """Wait until the guest wrote *more* lines from now on."""
        wanted = self.serial().count("\n") + more
        wait_until(lambda: self._alive() and self.serial().count("\n") >= wanted, 60, f"{more} more lines")

    def check(self) -> None:
        """Compare the memory of the paused guest with the registers of its CPUs, and with what was there first.

        Raises:
            AssertionError: pages are lost or stale.
        """
        file = self.directory / "memory"
        self.ask("pmemsave", val=0, size=(FIRST_PAGE + PAGES) * PAGE_BYTES, filename=str(file))
        memory = np.fromfile(file, np.uint8).reshape(-1, PAGE_BYTES)
        registers = self.ask("human-monitor-command", **{"command-line": "info registers -a"})
        counts = [int(value, 16) for value in re.findall(r"\bEBX=([0-9a-f]{8})", registers)]
        assert len(counts) == CPUS
        assert min(counts) > 0
        wrong = damage(lambda first, pages: memory[first : first + pages].copy(), counts)
        assert not wrong, wrong
        words = memory[FIRST_PAGE:].view("<u4")
        addresses = np.arange(FIRST_PAGE, FIRST_PAGE + PAGES, dtype=np.uint32) * PAGE_BYTES
        assert (words[:, 1:] == addresses[:, None]).all(), "a page has the content of another"


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
