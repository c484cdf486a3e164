# SPDX-License-Identifier: Apache-2.0
"""What every page codec promises."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import ProtocolError, UsageError
from parmig.ram.bits import Index
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageDecoder, PageEncoder
from parmig.ram.codecs.registry import choices, codec, codecs_of, name_of, names
from parmig.ram.codecs.sent_pages import SLOT_BYTES

every_codec = pytest.mark.parametrize("one", [codec(name) for name in names()], ids=names())

PAGES = 40
SETTINGS = CodecSettings(delta_cache_bytes=24 * SLOT_BYTES)
"""Fewer copies than there are pages."""


class Ends:
    """Both ends of a codec, and the memory of two blocks at the destination."""

    def __init__(self, one: PageCodec) -> None:
        self.memory = np.zeros((2, PAGES, PAGE_BYTES), dtype=np.uint8)
        self.encoder: PageEncoder | None = one.encoder(SETTINGS)
        self.decoder: PageDecoder | None = one.decoder(self._read)

    def _read(self, block: int, index: Index) -> Pages:
        pages: Pages = self.memory[block][index]
        return pages

    def carry(self, block: int, round_: int, index: Index, raw: bytes) -> int:
        """Send *raw*, place it, and return how many bytes were sent."""
        packed = None
        if self.encoder is not None:
            packed = self.encoder.encode(block, index, memoryview(raw))
            self.encoder.sent(block, round_, index, memoryview(raw))
        placed = memoryview(raw)
        if packed is not None:
            assert self.decoder is not None
            assert len(packed) < len(raw)
            placed = self.decoder.decode(block, index, memoryview(packed), len(raw))
        self.memory[block][index] = np.frombuffer(placed, dtype=np.uint8).reshape(-1, PAGE_BYTES)
        assert bytes(placed) == raw
        return len(raw) if packed is None else len(packed)


def page(kind: str, seed: int) -> bytes:
    if kind == "one value":
        return bytes([seed]) * PAGE_BYTES
    if kind == "text":
        return (b"line %d of a log\n" % seed * PAGE_BYTES)[:PAGE_BYTES]
    return np.random.default_rng(seed).bytes(PAGE_BYTES)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Index, bytes]:
    """A block, pages of it, and their content of all kinds: of one value, text, random, changed in a few bytes."""
    index = np.array(sorted(draw(st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=8))), dtype=np.int64)
    pages = []
    for number in index.tolist():
        kind = draw(st.sampled_from(["one value", "text", "random", "changed"]))
        content = bytearray(page("random" if kind == "changed" else kind, number))
        if kind == "changed":
            content[100:108] = draw(st.binary(min_size=8, max_size=8))
        pages.append(bytes(content))
    return draw(st.integers(0, 1)), index, b"".join(pages)


def first_pages(raw: bytes) -> Index:
    return np.arange(len(raw) // PAGE_BYTES, dtype=np.int64)


def packed_by(one: PageCodec, raw: bytes) -> tuple[Ends, bytes | None]:
    """Both ends after pages were sent, and the same pages with a change, encoded."""
    ends = Ends(one)
    ends.carry(0, 1, first_pages(raw), raw)
    changed = bytearray(raw)
    changed[7] ^= 1
    if ends.encoder is None:
        return ends, None
    return ends, ends.encoder.encode(0, first_pages(raw), memoryview(bytes(changed)))


steps = st.one_of(batches(), st.tuples(st.integers(0, 1), st.sets(st.integers(0, PAGES - 1)), st.just("zero")))


@every_codec
@given(drawn=st.lists(st.tuples(st.integers(0, 1), steps), min_size=1, max_size=20))
def test_what_is_encoded_is_shorter_and_comes_back(one: PageCodec, drawn: list[tuple[int, tuple]]) -> None:
    """Rounds go on, blocks change, pages become zero, or are sent by others: what comes out is what went in."""
    ends = Ends(one)
    round_ = 1
    for later, (block, pages, raw) in drawn:
        round_ += later
        if raw == "zero":
            index = np.array(sorted(pages), dtype=np.int64)
            ends.memory[block][index] = 0
            if ends.encoder is not None:
                ends.encoder.forget(block, index)
        else:
            ends.carry(block, round_, pages, raw)


@every_codec
@given(payload=st.binary(min_size=1, max_size=300), pages=st.integers(1, 4))
def test_garbage_is_refused_or_has_the_announced_size(one: PageCodec, payload: bytes, pages: int) -> None:
    decoder = Ends(one).decoder
    assert (decoder is None) == (one.number == 0)
    if decoder is None:
        return
    try:
        found = decoder.decode(0, np.arange(pages, dtype=np.int64), memoryview(payload), pages * PAGE_BYTES)
    except ProtocolError:
        return
    assert len(found) == pages * PAGE_BYTES


@every_codec
@given(batch=batches(), damage=st.data())
def test_a_damaged_batch_is_refused_or_has_the_announced_size(
    one: PageCodec, batch: tuple[int, Index, bytes], damage: st.DataObject
) -> None:
    _, _, raw = batch
    ends, packed = packed_by(one, raw)
    if packed is None or ends.decoder is None:
        return
    broken = bytearray(packed)
    broken[damage.draw(st.integers(0, len(packed) - 1))] ^= damage.draw(st.integers(1, 255))
    try:
        found = ends.decoder.decode(0, first_pages(raw), memoryview(broken), len(raw))
    except ProtocolError:
        return
    assert len(found) == len(raw)


@every_codec
@given(batch=batches(), wrong=st.integers(-2, 2).filter(bool))
def test_another_size_than_announced_is_refused(one: PageCodec, batch: tuple[int, Index, bytes], wrong: int) -> None:
    _, _, raw = batch
    ends, packed = packed_by(one, raw)
    pages = len(raw) // PAGE_BYTES + wrong
    if packed is None or ends.decoder is None or pages <= 0:
        return
    with pytest.raises(ProtocolError):
        ends.decoder.decode(0, np.arange(pages), memoryview(packed), pages * PAGE_BYTES)


def test_names_and_numbers_are_unique() -> None:
    assert len({codec(name).number for name in names()}) == len(names())
    assert all(codec(name).name == name and 0 <= codec(name).number < 256 for name in names())
    assert codec("none").number == 0
    assert [name_of(codec(name).number) for name in names()] == list(names())
    assert name_of(200) == "200"


@pytest.mark.parametrize("ask", [codec, lambda name: codecs_of(name, names())])
def test_an_unknown_codec_is_refused_with_the_known_ones(ask: object) -> None:
    with pytest.raises(UsageError, match="'rar'; choose none, lz4, zstd, delta, auto"):
        ask("rar")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("choice", "known", "used"),
    [
        ("none", ["none", "lz4"], ("none",)),
        ("zstd", ["none", "lz4"], ("zstd",)),  # the destination refuses it by name
        ("delta", ["none", "lz4", "zstd", "delta"], ("delta", "zstd")),
        ("auto", ["none", "lz4"], ("none", "lz4")),
        ("auto", ["lz4", "none", "delta", "rar"], ("none", "lz4", "delta")),
    ],
)
def test_a_choice_uses_what_both_sides_know(choice: str, known: list[str], used: tuple[str, ...]) -> None:
    assert choice in choices()
    assert codecs_of(choice, known) == used


# -- zstd ---------------------------------------------------------------------------------------


def zstd_decoder() -> PageDecoder:
    decoder = Ends(codec("zstd")).decoder
    assert decoder is not None
    return decoder


def without_size(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(raw)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (without_size(bytes(PAGE_BYTES)), "announces -1 bytes, expected 4096"),
        (zstandard.ZstdCompressor().compress(bytes(1 << 30)), "announces 1073741824 bytes, expected 4096"),
        (zstandard.ZstdCompressor().compress(bytes(PAGE_BYTES)) + b"x", "is not zstd"),
        (zstandard.ZstdCompressor().compress(bytes(PAGE_BYTES))[:-1], "is not zstd"),
        (b"", "is not zstd"),
    ],
    ids=["without a size", "huge", "more behind it", "cut", "empty"],
)
def test_a_zstd_frame_of_another_form_is_refused_before_memory_is_taken(payload: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        zstd_decoder().decode(0, np.arange(1), memoryview(payload), PAGE_BYTES)


def test_the_level_of_zstd_matters() -> None:
    raw = Path(__file__).read_bytes()[: 2 * PAGE_BYTES]
    fast, slow = (codec("zstd").encoder(CodecSettings(zstd_level=level)) for level in (1, 19))
    assert fast is not None
    assert slow is not None
    lengths = [len(one.encode(0, first_pages(raw), memoryview(raw)) or raw) for one in (fast, slow)]
    assert lengths[1] < lengths[0]


# -- delta --------------------------------------------------------------------------------------


def test_delta_sends_only_what_changed_in_pages_that_it_knows() -> None:
    ends = Ends(codec("delta"))
    index = np.arange(20, dtype=np.int64)
    raw = bytearray(os.urandom(20 * PAGE_BYTES))
    assert ends.carry(0, 2, index, bytes(raw)) == len(raw)
    for number in range(20):
        raw[number * PAGE_BYTES + 50 : number * PAGE_BYTES + 58] = os.urandom(8)
    assert ends.carry(0, 3, index, bytes(raw)) < 20 * 40


def test_delta_notices_memory_that_somebody_else_wrote() -> None:
    ends, packed = packed_by(codec("delta"), os.urandom(3 * PAGE_BYTES))
    assert packed is not None
    assert ends.decoder is not None
    ends.memory[0][1][17] ^= 1
    with pytest.raises(ProtocolError, match="expected memory that only parmig writes"):
        ends.decoder.decode(0, np.arange(3), memoryview(packed), 3 * PAGE_BYTES)


def test_delta_knows_a_batch_by_most_of_its_pages() -> None:
    encoder = codec("delta").encoder(SETTINGS)
    assert encoder is not None
    encoder.sent(0, 2, np.arange(4), memoryview(bytes(4 * PAGE_BYTES)))
    assert encoder.knows(0, np.arange(8))
    assert not encoder.knows(0, np.arange(9))
    assert not encoder.knows(1, np.arange(4))
