# SPDX-License-Identifier: Apache-2.0
"""The guests that are tortured. Each can tell by itself whether its memory and its devices are right."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from parmig.units import MIB
from tests.qemu import disks
from tests.qemu.boot_disk import boot_disk
from tests.qemu.disks import ReadingMachine
from tests.qemu.flat_machine import CPUS, PAGES, PAGES_PER_S, FlatMachine
from tests.qemu.machines import QemuMachine

Rates: TypeAlias = tuple[int, ...]


class Guests(ABC):
    """Makes the monitors of one kind of guest.

    Attributes:
        rates_bytes_per_s: of links over which a migration takes 1 to 5 s, so that faults meet all of its steps.
        memory_bytes: of a guest whose memory may lie in a file system of its own; 0: it may not.
    """

    rates_bytes_per_s: Rates = ()
    memory_bytes = 0

    def __init__(self) -> None:
        self.opened = ExitStack()

    @abstractmethod
    def machine(self, *, incoming: bool, space: Path | None = None) -> QemuMachine:
        """A monitor that was not started yet, with its memory in a file in *space* if there is one."""

    @abstractmethod
    def start(self, machine: QemuMachine) -> None:
        """Let a new guest run, and wait until it works."""

    @abstractmethod
    def check(self, machine: QemuMachine) -> None:
        """Let the guest work on, and look whether everything is right. It runs before and after.

        Raises:
            AssertionError: something is wrong.
        """


class FlatGuests(Guests):
    """A program under KVM, whose two virtual CPUs write pages all the time; its registers say what these must hold."""

    memory_bytes = 32 * MIB
    rates_bytes_per_s = (6 * MIB, 12 * MIB, 30 * MIB, 60 * MIB)

    def __init__(self) -> None:
        super().__init__()
        self._disk = Path(f"/dev/shm/parmig-torture-{os.getpid()}")
        self._disk.write_bytes(boot_disk("random", PAGES, PAGES_PER_S, CPUS))
        self.opened.callback(self._disk.unlink)

    def machine(self, *, incoming: bool, space: Path | None = None) -> QemuMachine:
        memory = None
        if space is not None:
            backend = f"memory-backend-file,id=ram0,size={self.memory_bytes},mem-path={space}/ram,share=on"
            memory = ["-machine", "pc,memory-backend=ram0", "-object", backend]
        return FlatMachine(self._disk, incoming=incoming, memory=memory)

    def start(self, machine: QemuMachine) -> None:
        assert isinstance(machine, FlatMachine)
        machine.ask("cont")
        machine.wait_for_lines(3)

    def check(self, machine: QemuMachine) -> None:
        assert isinstance(machine, FlatMachine)
        machine.wait_for_lines(2)
        machine.ask("stop")
        machine.check()
        machine.ask("cont")


class DiskGuests(Guests):
    """A Linux whose slow disk (``cache=none``) fills its page cache by direct I/O; it compares every page with sums."""

    rates_bytes_per_s = (30 * MIB, 60 * MIB, 120 * MIB)

    def __init__(self) -> None:
        super().__init__()
        directory = self.opened.enter_context(tempfile.TemporaryDirectory(prefix="parmig-torture-", dir="/var/tmp"))
        self._disk, self._initrd = self.opened.enter_context(disks.reading_disk(Path(directory)))

    def machine(self, *, incoming: bool, space: Path | None = None) -> QemuMachine:
        return ReadingMachine(self._initrd, self._disk, iothread=False, incoming=incoming)

    def start(self, machine: QemuMachine) -> None:
        machine.wait_for_serial("PASS 1")

    def check(self, machine: QemuMachine) -> None:
        assert isinstance(machine, ReadingMachine)
        machine.wait_for_checks(1)
        assert not sum(machine.checks()), f"pages from the disk are wrong: {machine.checks()}"


KINDS: dict[str, type[Guests]] = {"kvm": FlatGuests, "disk": DiskGuests}
