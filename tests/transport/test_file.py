# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.errors import SnapshotError, TransportError
from parmig.transport.file import READ_BYTES, FileTransport
from parmig.transport.transport import Endpoint, parse_uri


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return parse_uri(f"file://{tmp_path}/file")


@pytest.fixture
def memory_file() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


def everything(channel: FileTransport) -> bytes:
    found = bytearray()
    while (message := channel.read()) is not None:
        assert all(len(piece) <= READ_BYTES for piece in message)
        found += b"".join(message)
    return bytes(found)


def test_what_the_source_writes_the_destination_reads(endpoint: Endpoint) -> None:
    source, destination = FileTransport("source"), FileTransport("destination")
    source.connect(endpoint)
    frames = [os.urandom(1 + number % 7) for number in range(3000)]  # more than one system call takes
    source.write(frames[:2000])
    source.write([b""])
    source.write([*frames[2000:], memoryview(os.urandom(8)).cast("I"), bytearray(READ_BYTES)])
    assert destination.bind(endpoint) == endpoint
    found = everything(destination)
    assert found[: sum(map(len, frames))] == b"".join(frames)
    assert len(found) == sum(map(len, frames)) + 8 + READ_BYTES
    assert destination.read() is None
    for one in (source, destination, source):
        one.shutdown()


def test_pieces_stay_valid_while_they_are_referenced(memory_file: int) -> None:
    os.pwrite(memory_file, b"a" * READ_BYTES + b"b" * READ_BYTES, 0)
    channel = FileTransport.from_fd(memory_file, "test")
    first, second = channel.read(), channel.read()
    assert first is not None
    assert second is not None
    assert bytes(first[0]) == b"a" * READ_BYTES
    assert bytes(second[0]) == b"b" * READ_BYTES


def test_a_descriptor_stays_the_caller_s_and_where_it_was(memory_file: int) -> None:
    os.write(memory_file, b"0123456789")
    os.lseek(memory_file, 3, os.SEEK_SET)
    channel = FileTransport.from_fd(memory_file, "test", offset_bytes=8)
    assert everything(channel) == b"89"
    channel.write([b"ab"])
    channel.shutdown()
    assert os.read(memory_file, 99) == b"3456789ab"


def test_a_file_that_is_there_is_not_written_over(endpoint: Endpoint) -> None:
    Path(endpoint.host).write_bytes(b"precious")
    with pytest.raises(TransportError, match=r"file:///.*: File exists"):
        FileTransport("source").connect(endpoint)
    assert Path(endpoint.host).read_bytes() == b"precious"


def test_a_new_file_is_for_its_owner_only(endpoint: Endpoint) -> None:
    source = FileTransport("source")
    source.connect(endpoint)
    source.shutdown()
    assert os.stat(endpoint.host).st_mode & 0o777 == 0o600


def test_a_file_that_is_missing_is_told(endpoint: Endpoint) -> None:
    with pytest.raises(TransportError, match=r"destination: cannot open file:///.*No such file"):
        FileTransport("destination").bind(endpoint)


def test_a_full_file_system_is_told() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(SnapshotError, match=r"cannot write at byte 0 .*No space left on device; free some space"):
            FileTransport.from_fd(fd, "test").write([b"x"])
    finally:
        os.close(fd)


def test_a_limit_in_the_middle_of_a_write_is_told_with_its_place(memory_file: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SnapshotError, match="cannot write at byte 100000 of the file: File too large"):
            FileTransport.from_fd(memory_file, "test").write([bytes(30_000)] * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.fstat(memory_file).st_size == 100_000


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    channel = FileTransport("test")
    channel.bind(parse_uri(f"file://{tmp_path}"))
    with pytest.raises(SnapshotError, match="cannot read at byte 0 of the file: Is a directory"):
        channel.read()
    channel.shutdown()
    with pytest.raises(SnapshotError):
        channel.read()


def test_behind_every_end_there_is_nothing(memory_file: int) -> None:
    channel = FileTransport.from_fd(memory_file, "test")
    for _ in range(4):
        assert channel.skip(1 << 62) == 1 << 62
    assert channel.read() is None
