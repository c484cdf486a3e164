# SPDX-License-Identifier: Apache-2.0
"""The devices of a KVM guest: a serial port, a timer and a disk. The guest uses them through I/O ports.

A device has registers (``read``, ``write``), which the thread of the accessing vCPU calls. The guest runs between
``start`` and ``stop``; at other times no register is used. The annotations of a device declare which of its values
must arrive at the destination.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, ClassVar

from parmig.errors import GuestError, GuestRefusedError, StateError
from parmig.guests.kvm.ram import GuestRam
from parmig.linux import trusted_files
from parmig.state import (
    U16,
    U32,
    U64,
    Buffer,
    Length,
    Limit,
    Since,
    Subsection,
    Until,
    migration_state,
    migration_struct,
)
from parmig.units import KIB, NS_PER_S

SERIAL_PORT = 0x3F8
TIMER_PORT = 0x510
DISK_PORT = 0x520

TICK_HZ = 100
READ, WRITE = 1, 2
"""The commands of the disk."""

Rest = Callable[[int], None]
"""Lets the calling vCPU wait until an instant of time.monotonic_ns(), or until it has to stop."""

_SECTOR_BYTES = 512
_TICK_NS = NS_PER_S // TICK_HZ
_LOG_BYTES = 16 * KIB


class Part:
    """A part of a machine that has state, and that must know when the guest runs."""

    def start(self) -> None:
        """The guest begins to run."""

    def stop(self) -> None:
        """The guest is paused."""

    def close(self) -> None:
        """Release what it holds."""


class Device(Part, ABC):
    """A device with a range of ports.

    Attributes:
        ports: the ports.
    """

    ports: ClassVar[range]

    @abstractmethod
    def read(self, offset: int, rest: Rest) -> int:
        """The value at port ``ports[offset]``."""

    @abstractmethod
    def write(self, offset: int, value: int) -> None:
        """Take *value*, which was written to port ``ports[offset]``."""


@migration_state("serial")
class SerialPort(Device):
    """A 16550 that is always ready to send and receives nothing.

    Args:
        path: a file to which whole lines are appended; empty: none.

    Attributes:
        registers: their values as written, by port.
        divisor: divisor of the rate. It replaces the first two ports while bit 7 of line control is set.
        text: the last 16 KiB that were sent; it begins with a whole line.
    """

    ports = range(SERIAL_PORT, SERIAL_PORT + 8)
    registers: Annotated[Buffer, Length(8)]
    divisor: U16
    text: Annotated[Buffer, Limit(_LOG_BYTES)]

    def __init__(self, path: str) -> None:
        self.registers = bytes(8)
        self.divisor = 12
        self.text = b""
        self._fd = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if path else -1

    def read(self, offset: int, rest: Rest) -> int:
        if offset < 2 and self._shows_divisor:
            return self.divisor >> 8 * offset & 0xFF
        # Nothing received, no interrupt pending, transmitter empty, the other side ready.
        return {0: 0x00, 2: 0x01, 5: 0x60, 6: 0xB0}.get(offset, self.registers[offset])

    def write(self, offset: int, value: int) -> None:
        value &= 0xFF
        if offset < 2 and self._shows_divisor:
            self.divisor = self.divisor & 0xFF00 >> 8 * offset | value << 8 * offset
        elif offset == 0:
            self._send(bytes([value]))
        else:
            self.registers = self.registers[:offset] + bytes([value]) + self.registers[offset + 1 :]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def _shows_divisor(self) -> bool:
        return bool(self.registers[3] & 0x80)

    def _send(self, letter: bytes) -> None:
        text = self.text + letter
        if self._fd >= 0 and letter == b"\n":
            with suppress(OSError):  # a full disk does not stop the guest
                os.write(self._fd, text[text.rfind(b"\n", 0, -1) + 1 :])
        if len(text) > _LOG_BYTES:
            text = text[(text.find(b"\n") + 1) or _LOG_BYTES :]
        self.text = text


@migration_state("timer")
class TimerDevice(Device):
    """A clock that ticks 100 times a second while the guest runs, and on which a vCPU can wait.

    Port 0: the number of ticks, when the next one has come or the vCPU has to stop. Port 4: the number of ticks now.

    Attributes:
        elapsed_ns: how long the guest had run when it last stopped.
    """

    ports = range(TIMER_PORT, TIMER_PORT + 8)
    elapsed_ns: U64

    def __init__(self) -> None:
        self.elapsed_ns = 0
        self._started_ns = 0

    def start(self) -> None:
        self._started_ns = time.monotonic_ns()

    def stop(self) -> None:
        self.elapsed_ns += time.monotonic_ns() - self._started_ns

    def read(self, offset: int, rest: Rest) -> int:
        origin_ns = self._started_ns - self.elapsed_ns
        ticks = (time.monotonic_ns() - origin_ns) // _TICK_NS
        if offset:
            return ticks
        rest(origin_ns + (ticks + 1) * _TICK_NS)
        return (time.monotonic_ns() - origin_ns) // _TICK_NS

    def write(self, offset: int, value: int) -> None:
        """The clock cannot be set."""


@migration_struct("disk request")
class DiskRequest:
    """The registers with the arguments of the next command of a disk.

    Attributes:
        sector: number of the sector.
        address_low: lower half of the guest physical address.
        address_high: upper half of it.
    """

    sector: U32
    address_low: U32
    address_high: U32

    def __init__(self) -> None:
        self.sector = self.address_low = self.address_high = 0

    @property
    def address(self) -> int:
        """The guest physical address."""
        return self.address_high << 32 | self.address_low


@migration_state("disk", version=2, minimum_version=1)
class BlockDevice(Device):
    """A disk: a command copies a sector of a file to or from guest memory before it returns.

    Ports, 32 bits each: 0 sector, 4 and 8 the guest physical address, 12 the command, READ or WRITE. Read: 12 is 0
    when the last command succeeded, 16 the number of sectors.

    Args:
        path: the file. Both sides use the same one, on one host or on shared storage.
        ram: guest memory.

    Attributes:
        request: the registers with the arguments of the next command.
        last_status: where records of version 1 have the status.
        status: 0 if the last command succeeded. It travels only if it did not.
        sectors: the number of sectors. Both sides must have the same.

    Raises:
        GuestRefusedError: the file cannot be opened.
    """

    FAILED = Subsection("failed", needed=lambda disk: disk.status != 0)

    ports = range(DISK_PORT, DISK_PORT + 20)
    request: DiskRequest
    last_status: Annotated[U32, Until(1)]
    status: Annotated[U32, FAILED]
    sectors: Annotated[U64, Since(2)]

    def __init__(self, path: str, ram: GuestRam) -> None:
        self.request = DiskRequest()
        self.last_status = self.status = 0
        self._ram = ram
        self._path = path
        self._fd = _open(path, os.O_RDWR)
        self.sectors = self._count_sectors()

    def read(self, offset: int, rest: Rest) -> int:
        request = self.request
        registers = {0: request.sector, 4: request.address_low, 8: request.address_high, 12: self.status}
        return registers.get(offset, self.sectors)

    def write(self, offset: int, value: int) -> None:
        if offset == 0:
            self.request.sector = value
        elif offset == 4:
            self.request.address_low = value
        elif offset == 8:
            self.request.address_high = value
        elif offset == 12:
            self.status = 0 if self._carry(value) else 1

    def pre_save(self) -> None:
        """Sync the file, because the destination may read it on another host."""
        os.fdatasync(self._fd)

    def post_load(self, version: int) -> None:
        """Refuse a file of another size.

        Raises:
            StateError: the source's disk has another number of sectors.
        """
        sectors = self._count_sectors()
        if version < 2:
            self.status, self.sectors = self.last_status, sectors
        if self.sectors != sectors:
            raise StateError(
                f"{self._path} has {sectors} sectors, the source's disk {self.sectors}; give both sides the same file"
            )

    def close(self) -> None:
        os.close(self._fd)

    def _count_sectors(self) -> int:
        return os.fstat(self._fd).st_size // _SECTOR_BYTES

    def _carry(self, command: int) -> bool:
        """Carry out *command*, and return whether the whole sector was copied."""
        sector, address = self.request.sector, self.request.address
        if command not in (READ, WRITE) or sector >= self.sectors:
            return False
        try:
            memory = self._ram.view(address, _SECTOR_BYTES)
            if command == WRITE:
                return os.pwrite(self._fd, memory, sector * _SECTOR_BYTES) == _SECTOR_BYTES
            done = os.preadv(self._fd, [memory], sector * _SECTOR_BYTES)
        except (GuestError, OSError):
            return False
        self._ram.wrote(address, _SECTOR_BYTES)
        return done == _SECTOR_BYTES


def _open(path: str, flags: int) -> int:
    try:
        return trusted_files.open_file(path, flags, 0o644)
    except OSError as error:
        raise GuestRefusedError(f"{path}: {error.strerror}; name a file that can be written") from error
