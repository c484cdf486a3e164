# SPDX-License-Identifier: Apache-2.0
"""The guests that are tortured, and where they are. Each can tell whether its memory and its devices are right."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import psutil

from parmig.units import MIB
from tests.qemu import disks
from tests.qemu.boot_disk import boot_disk
from tests.qemu.disks import ReadingMachine
from tests.qemu.flat_machine import CPUS, PAGES, PAGES_PER_S, FlatMachine
from tests.qemu.machines import QemuMachine
from tools.torture_commands import START_LIMIT_S
from tools.torture_side import RIGHT, WRONG

Rates: TypeAlias = tuple[int, ...]


class Place(ABC):
    """Where the guest is before the run, or may be afterwards.

    Attributes:
        guest: the value of ``--guest``.
        program: how Python starts the command.
        monitor: the process of a monitor that lives without its command; None: there is none.
    """

    guest: str
    program: tuple[str, ...] = ("-m", "parmig")
    monitor: psutil.Process | None = None

    @abstractmethod
    def state(self, output: str) -> str:
        """``running``, ``gone``, or another word for a guest that does not run.

        Args:
            output: what the command has written.
        """

    @abstractmethod
    def check(self, output: str) -> None:
        """Let the guest work on, and look whether everything is right. It runs before and after.

        Raises:
            AssertionError: something is wrong.
        """

    def left(self) -> list[str]:
        """What parmig left behind in the monitor of a running guest."""
        return []


class Guests(ABC):
    """Makes the places of one kind of guest.

    Attributes:
        rates_bytes_per_s: of links over which a migration takes 1 to 5 s, so that faults meet all of its steps.
        memory_bytes: of a guest whose memory may lie in a file system of its own; 0: it may not.
    """

    rates_bytes_per_s: Rates = ()
    memory_bytes = 0

    def __init__(self) -> None:
        self.opened = ExitStack()

    @abstractmethod
    def source(self, stack: ExitStack) -> Place:
        """A place with a new guest that works."""

    @abstractmethod
    def destination(self, stack: ExitStack, space: Path | None) -> Place:
        """A place that waits for a guest, whose memory lies in *space* if there is one."""


class SyntheticPlace(Place):
    """A guest that lives as long as its command, which tells how it is at its end."""

    program = ("-m", "tools.torture_side")

    def __init__(self, options: str) -> None:
        self.guest = f"checked:{options}"

    def state(self, output: str) -> str:
        return "running" if RIGHT in output or WRONG in output else "gone"

    def check(self, output: str) -> None:
        assert WRONG not in output, output[output.index(WRONG) :].partition("\n")[0]


class SyntheticGuests(Guests):
    """parmig's own guest: a process that writes pages all the time, and keeps account of what they must hold."""

    rates_bytes_per_s = (6 * MIB, 12 * MIB, 30 * MIB, 60 * MIB)

    def source(self, stack: ExitStack) -> Place:
        return SyntheticPlace("memory=32MiB,rate=5MiB/s")

    def destination(self, stack: ExitStack, space: Path | None) -> Place:
        return SyntheticPlace("memory=32MiB")


class QemuPlace(Place):
    """A QEMU, which lives without its command."""

    def __init__(self, machine: QemuMachine) -> None:
        self.machine = machine
        self.guest = f"qemu:{machine.socket}"
        self.monitor = psutil.Process(machine.pid)
        self._before = self._files()

    def state(self, output: str) -> str:
        if self.machine.process.poll() is not None:
            return "gone"
        return str(self.machine.ask("query-status")["status"])

    def check(self, output: str) -> None:
        machine = self.machine
        if isinstance(machine, ReadingMachine):
            machine.wait_for_checks(1)
            assert not sum(machine.checks()), f"pages from the disk are wrong: {machine.checks()}"
        elif isinstance(machine, FlatMachine):
            machine.wait_for_lines(2)
            machine.ask("stop")
            machine.check()
            machine.ask("cont")

    def left(self) -> list[str]:
        more = [f"the descriptor {file}" for file in (self._files() - self._before).elements()]
        fdsets = [f"the fdset {fdset}" for fdset in self.machine.ask("query-fdsets")]
        return more + fdsets + ["the tracking of its memory"] * bool(self.machine.tracked_mappings())

    def _files(self) -> Counter[str]:
        """What descriptors of QEMU refer to, but for those that it makes for devices that run."""
        files = [file for file in self.machine.fds().values() if file.startswith(("/", "socket:", "pipe:"))]
        return Counter(files + [file for file in self.machine.fds().values() if "userfaultfd" in file])


class QemuGuests(Guests):
    """Guests in QEMUs."""

    @abstractmethod
    def machine(self, *, incoming: bool, space: Path | None = None) -> QemuMachine:
        """A monitor that was not started yet, with its memory in a file in *space* if there is one."""

    @abstractmethod
    def begin(self, machine: QemuMachine) -> None:
        """Let a new guest run, and wait until it works."""

    def source(self, stack: ExitStack) -> Place:
        machine = stack.enter_context(self.machine(incoming=False))
        self.begin(machine)
        return QemuPlace(machine)

    def destination(self, stack: ExitStack, space: Path | None) -> Place:
        return QemuPlace(stack.enter_context(self.machine(incoming=True, space=space)))


class FlatGuests(QemuGuests):
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

    def begin(self, machine: QemuMachine) -> None:
        assert isinstance(machine, FlatMachine)
        machine.ask("cont")
        machine.wait_for_lines(3, START_LIMIT_S)


class DiskGuests(QemuGuests):
    """A Linux whose slow disk (``cache=none``) fills its page cache by direct I/O; it compares every page with sums."""

    rates_bytes_per_s = (30 * MIB, 60 * MIB, 120 * MIB)

    def __init__(self) -> None:
        super().__init__()
        directory = self.opened.enter_context(tempfile.TemporaryDirectory(prefix="parmig-torture-", dir="/var/tmp"))
        self._disk, self._initrd = self.opened.enter_context(disks.reading_disk(Path(directory)))

    def machine(self, *, incoming: bool, space: Path | None = None) -> QemuMachine:
        return ReadingMachine(self._initrd, self._disk, iothread=False, incoming=incoming)

    def begin(self, machine: QemuMachine) -> None:
        machine.wait_for_serial("PASS 1")


KINDS: dict[str, type[Guests]] = {"synthetic": SyntheticGuests, "kvm": FlatGuests, "disk": DiskGuests}
