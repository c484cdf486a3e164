# SPDX-License-Identifier: Apache-2.0
"""Two QEMUs for a run: a source that runs its firmware and has filled memory, and a destination that waits.

The guest is idle: it finds nothing to boot, and waits. Its memory is a file that QEMU shares, and is filled from
outside, except for the parts that the firmware has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parmig.errors import GuestError, GuestRefusedError
from parmig.experiments.factors import Factors
from parmig.experiments.hosts import Host, Hosts
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import Listener
from parmig.units import GIB, MIB

QEMU = "qemu-system-x86_64"

START_LIMIT_S = 20.0
"""How long QEMU may take to greet. It takes well under a second on a quiet host."""

FIRMWARE_BYTES = 32 * MIB
"""What is left to the firmware at the end of memory below 4 GiB, and half of it at the start. SeaBIOS runs 16 MiB below
that end while it starts."""

_BLOCK_BYTES = 16 * MIB


class Machine:
    """One QEMU with its files in *directory*. A context: leaving it closes the monitor.

    Attributes:
        socket: of a QMP monitor that nobody uses, for parmig.
    """

    def __init__(self, directory: Path) -> None:
        self.memory_file = directory / "ram"
        self.errors = directory / "errors"
        self.socket = str(directory / "qmp")
        self.control = str(directory / "control")
        self._monitor: Qmp | None = None

    def command(self, memory_bytes: int, *, incoming: bool) -> list[str]:
        """The command line."""
        backend = f"memory-backend-file,id=ram0,size={memory_bytes},mem-path={self.memory_file},share=on"
        line = [QEMU, "-accel", "kvm", "-accel", "tcg", "-machine", "pc,memory-backend=ram0", "-object", backend]
        line += ["-m", f"{memory_bytes}B", "-nodefaults", "-nic", "none", "-display", "none"]
        for path in (self.socket, self.control):
            line += ["-qmp", f"unix:{path},server=on,wait=off"]
        return [*line, *(["-incoming", "defer"] if incoming else [])]

    def connect(self, started: subprocess.Popen[str]) -> None:
        """Open the monitor, as soon as QEMU has it.

        Raises:
            GuestError: QEMU ended instead, or took too long.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while self._monitor is None:
            if started.poll() is not None or time.monotonic() > deadline:
                words = self.errors.read_text(errors="replace").strip() or "without a message"
                raise GuestError(f"{QEMU} did not start: {words}")
            with contextlib.suppress(GuestRefusedError):
                self._monitor = Qmp(self.control)
                return
            time.sleep(0.02)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command of QMP."""
        return self._connected().execute(command, **arguments)

    def listen(self, *names: str) -> Listener:
        """Take in events of these names from now on."""
        return self._connected().listen(*names)

    def _connected(self) -> Qmp:
        if self._monitor is None:
            raise GuestError("the monitor of QEMU is not connected")
        return self._monitor

    def close(self) -> None:
        """Close the monitor."""
        if self._monitor is not None:
            self._monitor.close()


@contextlib.contextmanager
def qemu_pair(hosts: Hosts, factors: Factors) -> Iterator[tuple[Machine, Machine]]:
    """The source, filled, and the destination; both have ended after the context.

    Raises:
        GuestError: one did not start.
    """
    with (
        source_machine(hosts.source, factors) as source,
        destination_machine(hosts.destination, factors) as destination,
    ):
        yield source, destination


@contextlib.contextmanager
def source_machine(host: Host, factors: Factors) -> Iterator[Machine]:
    """The source, filled; it has ended after the context.

    Raises:
        GuestError: it did not start.
    """
    with _started(host, factors.memory_bytes, incoming=False) as machine:
        if factors.fill == "random":
            fill_random(machine.memory_file, factors.memory_bytes, spare_firmware=True)
        yield machine


def destination_machine(host: Host, factors: Factors) -> contextlib.AbstractContextManager[Machine]:
    """The destination, which waits; it has ended after the context.

    Raises:
        GuestError: it did not start.
    """
    return _started(host, factors.memory_bytes, incoming=True)


@contextlib.contextmanager
def _started(host: Host, memory_bytes: int, *, incoming: bool) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="parmig-run-", dir="/dev/shm"))
        machine = Machine(Path(directory))
        errors = stack.enter_context(machine.errors.open("wb"))
        line = machine.command(memory_bytes, incoming=incoming)
        machine.connect(stack.enter_context(host.running(line, stdout=errors, stderr=errors)))
        stack.callback(machine.close)
        yield machine


def fill_random(path: Path, memory_bytes: int, *, spare_firmware: bool) -> None:
    """Fill the memory file *path* with random data, different in every page."""
    block = np.frombuffer(os.urandom(_BLOCK_BYTES), dtype=np.uint64).reshape(-1, 512).copy()
    low_end = memory_bytes if memory_bytes < 7 * GIB // 2 else 3 * GIB  # where a pc has the hole below 4 GiB
    with path.open("r+b", buffering=0) as file:
        for at in range(0, memory_bytes, _BLOCK_BYTES):
            of_firmware = at < FIRMWARE_BYTES // 2 or low_end - FIRMWARE_BYTES - _BLOCK_BYTES < at < low_end
            if spare_firmware and of_firmware:
                continue
            block[:, 0] = np.arange(at, at + _BLOCK_BYTES, 4096) + 1
            os.pwrite(file.fileno(), block.data.cast("B")[: memory_bytes - at], at)
