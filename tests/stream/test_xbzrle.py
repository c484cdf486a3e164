# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import zlib

import pytest

from parmig.errors import StreamDataError
from parmig.stream.xbzrle import MAX_COMPRESSED_BYTES, decode, encode, inflate

OLD = bytes(range(256)) * 16


def changed(*ranges: tuple[int, int]) -> bytes:
    page = bytearray(OLD)
    for start, end in ranges:
        page[start:end] = bytes(byte ^ 0xFF for byte in page[start:end])
    return bytes(page)


@pytest.mark.parametrize(
    ("new", "payload"),
    [
        (OLD, b""),
        (changed((0, 1)), b"\0\1\xff"),
        (changed((4095, 4096)), b"\xff\x1f\1\0"),
        (changed((0, 1), (128, 130)), b"\0\1\xff\x7f\2\x7f\x7e"),
        (changed((128, 256)), b"\x80\1\x80\1" + changed((128, 256))[128:256]),
    ],
)
def test_a_difference_is_counts_and_new_bytes(new: bytes, payload: bytes) -> None:
    assert encode(OLD, new) == payload
    assert decode(payload, OLD) == new


def test_a_page_that_gains_nothing_is_not_encoded() -> None:
    assert encode(OLD, changed((0, 4000))) is not None
    assert encode(OLD, changed((0, 4096))) is None
    assert encode(bytes(4096), b"\0\1" * 2048) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",  # a count is missing
        b"\0\1",  # a byte is missing
        b"\x80",  # half a count
        b"\x80\x80\1\1x",  # a count of three bytes
        b"\0\0",  # nothing new
        b"\0\1x\0\1x",  # a later one keeps nothing
        b"\x80\x20\1x",  # keeps a whole page
        b"\xff\x1f\2xx",  # runs over the end
        b"\xff\x7f\1x",
    ],
)
def test_a_payload_that_no_encoder_writes_is_refused(payload: bytes) -> None:
    with pytest.raises(StreamDataError, match="XBZRLE") as caught:
        decode(payload, OLD, 42)
    assert caught.value.offset_bytes == 42


def test_compressed_pages_are_pages() -> None:
    assert inflate(zlib.compress(OLD, 9)) == OLD
    incompressible = zlib.compress(OLD, 0)
    assert len(incompressible) <= MAX_COMPRESSED_BYTES
    assert inflate(incompressible) == OLD


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"tea",
        zlib.compress(OLD)[:-1],
        zlib.compress(OLD[:-1]),
        zlib.compress(OLD + b"x"),
        zlib.compress(OLD) + b"x",
        zlib.compress(bytes(1 << 22)),
    ],
)
def test_what_is_no_compressed_page_is_refused(payload: bytes) -> None:
    with pytest.raises(StreamDataError, match="compressed page") as caught:
        inflate(payload, 42)
    assert caught.value.offset_bytes == 42
