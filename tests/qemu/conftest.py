# SPDX-License-Identifier: Apache-2.0
"""What the tests with a real QEMU share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parmig.errors import GuestError
from tests.lasting import LASTING
from tests.qemu import disks, machines
from tests.qemu.machines import QemuMachine, wait_until


@pytest.fixture(scope="session")
def qemu() -> None:
    """Skip where QEMU cannot be run, but never on CI."""
    if reason := machines.missing():
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; tests with QEMU are mandatory where CI is set")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def disk_module(qemu: None) -> None:
    """Skip where the kernel's modules for a disk cannot be had, but never on CI."""
    if reason := disks.missing_module(disks.MODULES[-1]):
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; tests with a disk are mandatory where CI is set")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def initrd(qemu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initrd, built once for each test process."""
    return machines.build_initrd(tmp_path_factory.mktemp("initrd"))


class LentGuest:
    """A booted Linux that many tests use, one after the other. It is replaced if one does not leave it as it was."""

    def __init__(self, initrd: Path) -> None:
        self._initrd = initrd
        self._machine: QemuMachine | None = None
        self._was: Any = None

    def lend(self) -> QemuMachine:
        """It ticks, and its monitor is connected."""
        if self._machine is None:
            self._machine = QemuMachine(self._initrd).__enter__()
            LASTING.add(self._machine.pid)
            self._machine.wait_for_serial("TICK 2 ")
            self._was = self._state()
        elif self._machine.process.poll() is None:
            self._machine.connect()
        return self._machine

    def take_back(self) -> None:
        """Keep it if it is as it was; end it otherwise."""
        assert self._machine is not None
        try:
            if self._machine.ask("query-status")["status"] == "paused":
                self._machine.ask("cont")
            # QEMU closes what was given to it a moment after its guest runs again.
            wait_until(lambda: self._state() == self._was, "the guest as it was", 1)
        except (AssertionError, GuestError, OSError):
            self.end()
        else:
            self._machine.disconnect()

    def _state(self) -> Any:
        machine = self._machine
        assert machine is not None
        status = machine.ask("query-status")["status"]
        files = sorted(file.partition("[")[0] for file in machine.fds().values())  # each connection is another one
        return status, machine.settings(), files, machine.tracked_mappings()

    def end(self) -> None:
        """End it."""
        machine, self._machine = self._machine, None
        if machine is not None:
            LASTING.discard(machine.pid)
            machine.__exit__()


@pytest.fixture(scope="session")
def lent_guest(initrd: Path) -> Iterator[LentGuest]:
    """One for each test process."""
    guest = LentGuest(initrd)
    yield guest
    guest.end()


@pytest.fixture
def linux_guest(lent_guest: LentGuest) -> Iterator[QemuMachine]:
    """A booted Linux that ticks. Whoever leaves it running, with nothing attached, spares the next test its boot."""
    yield lent_guest.lend()
    lent_guest.take_back()


@pytest.fixture
def bare_guest(qemu: None) -> Iterator[QemuMachine]:
    """A QEMU that never ran (-S)."""
    with QemuMachine() as machine:
        yield machine
