# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest

from parmig.errors import StreamDataError, StreamTooLongError, StreamTruncatedError
from parmig.stream import MigrationDataFile
from parmig.stream.data_file import BUFFER_BYTES, BY_REFERENCE_BYTES, GET_LIMIT_BYTES, MAX_VECTORS
from parmig.transport.file import FileStream
from tests.stream.streams import Pieces, put, reading


def test_numbers_are_big_endian() -> None:
    content = put(
        lambda data: data.put_byte(0x01),
        lambda data: data.put_be16(0x0203),
        lambda data: data.put_be32(0x04050607),
        lambda data: data.put_be64(0x08090A0B0C0D0E0F),
        lambda data: data.put_counted_string("Ä"),
    )
    assert content == bytes(range(1, 16)) + b"\2\xc3\x84"


@pytest.mark.parametrize("cut", range(20))
def test_what_was_put_is_got_however_it_arrives(cut: int) -> None:
    data = reading(bytes(range(1, 16)) + b"\2\xc3\x84" + b"rest", cut, cut + 1)
    assert data.get_byte() == 0x01
    assert data.get_be16() == 0x0203
    assert data.get_be32() == 0x04050607
    assert data.get_be64() == 0x08090A0B0C0D0E0F
    assert data.get_counted_string() == "Ä"
    assert data.position_bytes == 18
    assert data.get_buffer(4) == b"rest"
    assert data.at_end()


def test_small_values_wait_for_a_full_buffer() -> None:
    transport = Pieces()
    data = MigrationDataFile(transport, "test")
    for _ in range(BUFFER_BYTES // 8):
        data.put_be64(1)
    assert transport.messages == []
    data.put_byte(2)
    assert [[len(part) for part in message] for message in transport.messages] == [[BUFFER_BYTES]]
    assert data.position_bytes == BUFFER_BYTES + 1


def test_large_buffers_go_out_from_where_they_lie_between_the_small_ones() -> None:
    transport = Pieces()
    data = MigrationDataFile(transport, "test")
    large = bytearray(b"a" * BY_REFERENCE_BYTES)
    small = bytearray(b"b" * (BY_REFERENCE_BYTES - 1))
    data.put_byte(0)
    data.put_buffer(large)
    data.put_buffer(small)
    large[:], small[:] = b"c" * len(large), b"c" * len(small)
    data.flush_data()
    assert transport.messages == [[b"\0", b"c" * BY_REFERENCE_BYTES, b"b" * (BY_REFERENCE_BYTES - 1)]]


def test_a_message_has_at_most_64_vectors() -> None:
    transport = Pieces()
    data = MigrationDataFile(transport, "test")
    page = bytes(BY_REFERENCE_BYTES)
    for number in range(200):
        data.put_byte(number)
        data.put_buffer(page)
    data.flush_data()
    assert max(len(message) for message in transport.messages) <= MAX_VECTORS
    assert min(len(message) for message in transport.messages[:-1]) >= MAX_VECTORS - 2
    parts = [part for message in transport.messages for part in message]
    assert parts == [part for number in range(200) for part in (bytes((number,)), page)]


def test_flushing_nothing_writes_nothing() -> None:
    transport = Pieces()
    data = MigrationDataFile(transport, "test")
    data.flush_data()
    assert transport.messages == []
    data.put_byte(1)
    data.flush_data()
    data.flush_data()
    assert transport.messages == [[b"\1"]]


def test_after_the_end_nothing_is_read_any_more() -> None:
    transport = Pieces([b"\1"])
    data = MigrationDataFile(transport, "test")
    assert data.get_byte() == 1
    assert data.at_end()
    transport._pieces.append(b"\2")
    assert data.at_end()
    with pytest.raises(StreamTruncatedError):
        data.get_byte()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_value_that_is_cut_off_is_told_with_its_place(size: int) -> None:
    data = reading(bytes(8 + size - 1), 3, 8)
    data.skip(8)
    get = {1: data.get_byte, 2: data.get_be16, 4: data.get_be32, 8: data.get_be64}[size]
    with pytest.raises(StreamTruncatedError, match=f"test: expected {size} more bytes, found {size - 1}") as caught:
        get()
    assert caught.value.offset_bytes == 8
    assert data.get_buffer(size - 1) == bytes(size - 1)  # what is there is still there


def test_memory_is_taken_for_bytes_that_come_not_for_a_length() -> None:
    data = reading(b"abc")
    with pytest.raises(StreamTruncatedError):
        data.get_buffer(1 << 40, 1 << 41)


def test_a_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    data = reading(b"abc")
    with pytest.raises(StreamTooLongError, match=str(GET_LIMIT_BYTES)) as caught:
        data.get_buffer(GET_LIMIT_BYTES + 1)
    assert caught.value.offset_bytes == 0
    assert data.get_buffer(3) == b"abc"


def test_a_name_that_is_too_long_or_no_text_is_refused() -> None:
    with pytest.raises(StreamTooLongError, match="256 bytes, allowed are 255"):
        put(lambda data: data.put_counted_string("x" * 256))
    with pytest.raises(StreamDataError, match="expected a name"):
        reading(b"\2\xff\xff").get_counted_string()


def test_buffers_are_got_over_many_pieces() -> None:
    content = os.urandom(5000)
    cuts = range(0, 5000, 7)
    assert reading(content, *cuts).get_buffer(5000) == content
    target = bytearray(4990)
    data = reading(content, *cuts)
    data.skip(10)
    data.get_into(target)
    assert target == content[10:]


def test_looking_ahead_moves_nothing_and_copies_only_what_does_not_lie_together() -> None:
    content = os.urandom(100)
    data = reading(content, 40)
    assert [data.peek_byte(), data.peek_byte(41)] == [content[0], content[41]]
    data = reading(content, 40)
    assert data.peek_view(1, 100) == content[:40]
    data.advance(35)
    assert data.peek_view(8, 100) == content[35:43]
    data.advance(8)
    assert data.peek_view(8, 100) == content[43:]
    assert data.position_bytes == 43
    with pytest.raises(StreamTruncatedError):
        data.peek_view(58, 58)


def test_a_file_is_passed_over_without_reading_it_and_a_hole_is_left_in_it() -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        data = MigrationDataFile(FileStream(fd, "test", offset_bytes=10), "test", start_bytes=10)
        data.put_byte(1)
        data.put_hole(1 << 40)
        data.put_byte(2)
        data.flush_data()
        assert data.position_bytes == os.fstat(fd).st_size == (1 << 40) + 12
        data = MigrationDataFile(FileStream(fd, "test", offset_bytes=10), "test", start_bytes=10)
        assert data.get_byte() == 1
        data.skip(1 << 40)
        assert data.get_byte() == 2
        assert data.position_bytes == (1 << 40) + 12
        assert data.at_end()
    finally:
        os.close(fd)


def test_a_hole_can_only_be_left_in_a_file() -> None:
    with pytest.raises(StreamDataError, match="only be left in a file"):
        put(lambda data: data.put_hole(1))


def test_bytes_that_are_not_there_cannot_be_passed_over() -> None:
    data = reading(bytes(10), 4)
    with pytest.raises(StreamTruncatedError):
        data.skip(11)
