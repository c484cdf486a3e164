# SPDX-License-Identifier: Apache-2.0
"""The devices alone, as a vCPU finds them behind its ports."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.errors import GuestRefusedError, StateError
from parmig.guests.kvm.kvm_devices import READ, WRITE, BlockDevice, Device, DiskRequest, SerialPort, TimerDevice
from parmig.guests.kvm.ram import HIGH_START, LOW_BYTES, GuestRam, ram_block
from parmig.ram.blocks import PAGE_BYTES, BlockMemory
from parmig.state import U32, migration_state, migration_state_pop, migration_state_push, state_of

MEMORY_BYTES = LOW_BYTES + 16 * PAGE_BYTES  # sparse: only what is touched exists


def no_rest(until_ns: int) -> None:
    raise AssertionError("nothing here waits")


def get(device: Device, offset: int) -> int:
    return device.read(offset, no_rest)


def send(serial: SerialPort, text: str) -> None:
    for letter in text.encode():
        serial.write(0, letter)


def moved(device: Device, to: Device) -> None:
    migration_state_pop(state_of(to), migration_state_push(state_of(device)))


# -- serial port --------------------------------------------------------------------------------------


def test_the_serial_port_is_ready_to_send_and_has_received_nothing() -> None:
    serial = SerialPort("")
    assert get(serial, 5) & 0x61 == 0x60
    assert get(serial, 2) & 1 == 1
    assert get(serial, 0) == 0


def test_the_divisor_is_behind_the_first_two_ports_while_its_bit_is_set() -> None:
    serial = SerialPort("")
    serial.write(1, 0x0F)
    serial.write(3, 0x83)
    serial.write(0, 0x34)
    serial.write(1, 0x12)
    assert (get(serial, 0), get(serial, 1), serial.divisor) == (0x34, 0x12, 0x1234)
    serial.write(3, 0x03)
    assert (get(serial, 1), serial.text) == (0x0F, b"")


def test_every_register_of_the_serial_port_arrives() -> None:
    serial, other = SerialPort(""), SerialPort("")
    serial.write(3, 0x80)
    serial.write(0, 3)
    serial.write(3, 0x1B)
    for offset in (1, 4, 7):
        serial.write(offset, 0x40 + offset)
    send(serial, "half a li")
    moved(serial, other)
    send(other, "ne\n")
    assert [get(other, offset) for offset in (1, 3, 4, 7)] == [0x41, 0x1B, 0x44, 0x47]
    assert (other.divisor, other.text) == (3, b"half a line\n")


def test_only_whole_lines_go_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serial"
    path.write_text("before\n")
    serial = SerialPort(str(path))
    send(serial, "one\ntwo\nthr")
    assert path.read_text() == "before\none\ntwo\n"
    send(serial, "ee\n")
    assert path.read_text() == "before\none\ntwo\nthree\n"
    serial.close()


def test_the_last_lines_are_kept_and_begin_with_a_whole_one() -> None:
    serial = SerialPort("")
    for number in range(2000):
        send(serial, f"line {number}\n")
    lines = serial.text.decode().splitlines()
    assert len(serial.text) <= 16 << 10
    assert lines == [f"line {number}" for number in range(2000 - len(lines), 2000)]


def test_a_line_without_end_does_not_grow_without_end() -> None:
    serial = SerialPort("")
    send(serial, "x" * (40 << 10))
    assert len(serial.text) <= 16 << 10


def test_a_serial_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GuestRefusedError, match=f"{tmp_path}"):
        SerialPort(str(tmp_path))


# -- timer --------------------------------------------------------------------------------------------


def test_the_timer_stands_still_while_the_guest_does() -> None:
    timer = TimerDevice()
    timer.start()
    asked: list[int] = []

    def rest(until_ns: int) -> None:
        asked.append(until_ns)
        while time.monotonic_ns() < until_ns:
            time.sleep(0.001)

    first = timer.read(0, rest)
    assert timer.read(0, rest) > first
    assert (asked[1] - asked[0]) % 10_000_000 == 0, "a busy machine may lose whole ticks"
    timer.stop()
    elapsed_ns = timer.elapsed_ns
    other = TimerDevice()
    moved(timer, other)
    other.start()
    other.stop()
    assert elapsed_ns <= other.elapsed_ns < elapsed_ns + 5_000_000_000
    assert elapsed_ns // 10_000_000 >= first + 1


# -- disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY_BYTES)
    one = GuestRam(BlockMemory(ram_block(MEMORY_BYTES), fd))
    yield one
    one.close()
    os.close(fd)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(8)))
    return path


@pytest.fixture
def disk(image: Path, ram: GuestRam) -> Iterator[BlockDevice]:
    one = BlockDevice(str(image), ram)
    yield one
    one.close()


def order(disk: BlockDevice, command: int, sector: int, address: int) -> int:
    for offset, value in ((0, sector), (4, address & 0xFFFF_FFFF), (8, address >> 32), (12, command)):
        disk.write(offset, value)
    return get(disk, 12)


def test_sectors_travel_between_file_and_memory_on_both_sides_of_the_hole(
    disk: BlockDevice, ram: GuestRam, image: Path
) -> None:
    marked: list[tuple[int, int]] = []
    ram.mark = lambda first, end: marked.append((first, end))
    assert get(disk, 16) == 8
    assert order(disk, READ, 3, HIGH_START + PAGE_BYTES) == 0
    assert bytes(ram.view(HIGH_START + PAGE_BYTES, 512)) == bytes([3]) * 512
    assert order(disk, WRITE, 5, HIGH_START + PAGE_BYTES) == 0
    assert image.read_bytes()[5 * 512 : 6 * 512] == bytes([3]) * 512
    low_pages = LOW_BYTES // PAGE_BYTES
    assert marked == [(low_pages + 1, low_pages + 2)]  # writing to the file writes no memory
    assert order(disk, READ, 1, PAGE_BYTES - 256) == 0  # over the border of two pages
    assert marked[1:] == [(0, 2)]


@pytest.mark.parametrize(
    ("command", "sector", "address"),
    [
        (READ, 8, 0),
        (WRITE, 0xFFFF_FFFF, 0),
        (READ, 0, LOW_BYTES),
        (READ, 0, LOW_BYTES - 511),
        (READ, 0, HIGH_START - 1),
        (WRITE, 0, HIGH_START + 16 * PAGE_BYTES - 511),
        (READ, 0, 1 << 63),
        (3, 0, 0),
    ],
)
def test_what_cannot_be_carried_is_a_status_and_writes_nothing(
    disk: BlockDevice, ram: GuestRam, image: Path, command: int, sector: int, address: int
) -> None:
    before = image.read_bytes()
    ram.mark = lambda first, end: pytest.fail("memory was written")
    assert order(disk, command, sector, address) == 1
    assert image.read_bytes() == before


def test_the_registers_of_the_disk_arrive(disk: BlockDevice, image: Path, ram: GuestRam) -> None:
    order(disk, 9, 6, HIGH_START | 0x1234)
    other = BlockDevice(str(image), ram)
    moved(disk, other)
    assert [get(other, offset) for offset in (0, 4, 8, 12, 16)] == [6, 0x1234, 1, 1, 8]
    other.close()


def test_a_status_of_zero_does_not_travel(disk: BlockDevice) -> None:
    good = migration_state_push(state_of(disk))
    order(disk, 9, 6, 0)
    failed = migration_state_push(state_of(disk))
    assert b"failed" not in bytes(good)
    assert b"failed" in bytes(failed)


@migration_state("disk")
class FirstDisk:
    """A disk as parmig before protocol 3 saved it: the status is always there, the number of sectors never."""

    request: DiskRequest
    status: U32

    def __init__(self, status: int) -> None:
        self.request = DiskRequest()
        self.request.sector = 5
        self.status = status


@pytest.mark.parametrize("status", [0, 1])
def test_the_disk_of_an_older_parmig_arrives(disk: BlockDevice, status: int) -> None:
    migration_state_pop(state_of(disk), migration_state_push(state_of(FirstDisk(status))), version=1)
    assert [get(disk, offset) for offset in (0, 12, 16)] == [5, status, 8]
    again = migration_state_push(state_of(disk))
    assert (b"failed" in bytes(again)) == bool(status)


def test_a_disk_of_another_size_is_refused_by_name(disk: BlockDevice, tmp_path: Path, ram: GuestRam) -> None:
    larger = tmp_path / "larger"
    larger.write_bytes(bytes(9 * 512))
    other = BlockDevice(str(larger), ram)
    with pytest.raises(StateError, match="larger has 9 sectors, the source's disk 8"):
        moved(disk, other)
    other.close()


def test_a_disk_that_is_not_there_is_refused_by_name(tmp_path: Path, ram: GuestRam) -> None:
    with pytest.raises(GuestRefusedError, match="none: No such file"):
        BlockDevice(str(tmp_path / "none"), ram)


def test_registers_of_another_size_are_refused() -> None:
    with pytest.raises(StateError):
        migration_state_pop(state_of(SerialPort("")), bytes(3))
