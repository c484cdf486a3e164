# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.errors import SnapshotError
from parmig.transport.file import READ_BYTES, FileStream


@pytest.fixture
def memory_file() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


def everything(channel: FileStream) -> bytes:
    found = bytearray()
    while (piece := channel.read()) is not None:
        assert 0 < len(piece) <= READ_BYTES
        found += piece
    return bytes(found)


def test_what_is_written_is_read(memory_file: int) -> None:
    stream = FileStream(memory_file, "test")
    pieces = [os.urandom(1 + number % 7) for number in range(3000)]  # more than one system call takes
    stream.write(pieces[:2000])
    stream.write([b""])
    stream.write([*pieces[2000:], memoryview(os.urandom(8)).cast("I"), bytearray(READ_BYTES)])
    reading = FileStream(memory_file, "test")
    found = everything(reading)
    assert found[: sum(map(len, pieces))] == b"".join(pieces)
    assert len(found) == sum(map(len, pieces)) + 8 + READ_BYTES
    assert reading.read() is None


def test_pieces_stay_valid_while_they_are_referenced(memory_file: int) -> None:
    os.pwrite(memory_file, b"a" * READ_BYTES + b"b" * READ_BYTES, 0)
    channel = FileStream(memory_file, "test")
    first, second = channel.read(), channel.read()
    assert first is not None
    assert second is not None
    assert bytes(first) == b"a" * READ_BYTES
    assert bytes(second) == b"b" * READ_BYTES


def test_a_descriptor_stays_the_caller_s_and_where_it_was(memory_file: int) -> None:
    os.write(memory_file, b"0123456789")
    os.lseek(memory_file, 3, os.SEEK_SET)
    channel = FileStream(memory_file, "test", offset_bytes=8)
    assert everything(channel) == b"89"
    channel.write([b"ab"])
    assert os.read(memory_file, 99) == b"3456789ab"


def test_a_full_file_system_is_told() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(SnapshotError, match=r"cannot write at byte 0 .*No space left on device; free some space"):
            FileStream(fd, "test").write([b"x"])
    finally:
        os.close(fd)


def test_a_limit_in_the_middle_of_a_write_is_told_with_its_place(memory_file: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SnapshotError, match="cannot write at byte 100000 of the file: File too large"):
            FileStream(memory_file, "test").write([bytes(30_000)] * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.fstat(memory_file).st_size == 100_000


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SnapshotError, match="cannot read at byte 0 of the file: Is a directory"):
            FileStream(fd, "test").read()
    finally:
        os.close(fd)


def test_behind_every_end_there_is_nothing(memory_file: int) -> None:
    channel = FileStream(memory_file, "test")
    for _ in range(4):
        assert channel.skip(1 << 62) == 1 << 62
    assert channel.read() is None
