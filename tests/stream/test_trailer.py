# SPDX-License-Identifier: Apache-2.0
"""The trailer says what was put into it, or nothing at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StreamDataError, StreamError, StreamVersionError
from parmig.stream import trailer
from parmig.stream.flags import TARGET_PAGE_BYTES
from parmig.stream.trailer import Trailer

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7A), min_size=1, max_size=64)
trailers = st.builds(
    Trailer,
    parmig=names,
    guest=names,
    body_bytes=st.integers(0, 1 << 50).map(lambda page: page * TARGET_PAGE_BYTES),
    digest=st.text("0123456789abcdef", min_size=32, max_size=32),
    running=st.booleans(),
)


@given(trailers)
def test_what_is_written_is_read(one: Trailer) -> None:
    content = one.encode()
    assert trailer.decode(content, one.body_bytes) == one
    assert trailer.trailer_offset(one.body_bytes + len(content)) == one.body_bytes


@given(trailers)
def test_other_readers_of_the_file_pass_over_it(one: Trailer) -> None:
    content = one.encode()
    assert len(content) < TARGET_PAGE_BYTES
    assert not set(content) & set(b"\0{}")


@given(trailers, st.data())
def test_any_change_of_it_is_noticed(one: Trailer, data: st.DataObject) -> None:
    content = bytearray(one.encode())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert trailer.decode(bytes(content), one.body_bytes) is None
    except StreamError:
        pass


@given(st.binary(max_size=600), st.integers(0, 1 << 40))
def test_garbage_is_no_trailer_or_a_documented_error(content: bytes, offset_bytes: int) -> None:
    for start in (b"", b"parmig-snapshot 1\n"):
        try:
            trailer.decode(start + content, offset_bytes)
        except StreamError:
            pass


def test_another_version_and_another_place_are_told() -> None:
    content = Trailer("1.0", "qemu", 8192, "0f" * 16).encode()
    with pytest.raises(StreamVersionError, match="the trailer has version 2, expected 1"):
        trailer.decode(content.replace(b"snapshot 1", b"snapshot 2"), 8192)
    with pytest.raises(StreamDataError, match="at byte 4096 of the file, expected byte 8192"):
        trailer.decode(content, 4096)


@pytest.mark.parametrize("guest", ["", "two words", "name\n", "{}", "x" * 65, "ü"])
def test_a_name_that_could_not_be_read_is_not_written(guest: str) -> None:
    with pytest.raises(StreamDataError, match="cannot be written"):
        Trailer("1.0", guest, 0, "0" * 32).encode()
