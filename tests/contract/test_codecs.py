# SPDX-License-Identifier: Apache-2.0
"""What every page codec promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import ProtocolError, UsageError
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.codecs.codec import PageCodec
from parmig.ram.codecs.registry import codec, names

every_codec = pytest.mark.parametrize("one", [codec(name) for name in names()], ids=names())


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """Pages of all kinds: zero, of one value, text, random, mixed."""
    pages = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["one value", "text", "random"]))
        seed = draw(st.integers(0, 255))
        if kind == "one value":
            pages.append(bytes([seed]) * PAGE_BYTES)
        elif kind == "text":
            pages.append((b"line %d of a log\n" % seed * PAGE_BYTES)[:PAGE_BYTES])
        else:
            pages.append(np.random.default_rng(seed).bytes(PAGE_BYTES))
    return b"".join(pages)


def index_for(raw: bytes) -> np.ndarray:
    return np.arange(len(raw) // PAGE_BYTES, dtype=np.int64)


@every_codec
@given(drawn=st.lists(batches(), min_size=1, max_size=12))
def test_what_is_encoded_is_shorter_and_comes_back(one: PageCodec, drawn: list[bytes]) -> None:
    encoder, decoder = one.encoder(), one.decoder()
    for raw in drawn:
        packed = encoder.encode(0, index_for(raw), memoryview(raw)) if encoder is not None else None
        if packed is not None:
            assert decoder is not None
            assert len(packed) < len(raw)
            assert bytes(decoder.decode(0, index_for(raw), memoryview(packed), len(raw))) == raw


@every_codec
@given(payload=st.binary(min_size=1, max_size=300), pages=st.integers(1, 4))
def test_garbage_is_refused_or_has_the_announced_size(one: PageCodec, payload: bytes, pages: int) -> None:
    decoder = one.decoder()
    assert (decoder is None) == (one.number == 0)
    if decoder is None:
        return
    try:
        found = decoder.decode(0, np.arange(pages, dtype=np.int64), memoryview(payload), pages * PAGE_BYTES)
    except ProtocolError:
        return
    assert len(found) == pages * PAGE_BYTES


@every_codec
@given(raw=batches(), wrong=st.integers(-4096, 4096).filter(bool))
def test_another_size_than_announced_is_refused(one: PageCodec, raw: bytes, wrong: int) -> None:
    encoder, decoder = one.encoder(), one.decoder()
    packed = encoder.encode(0, index_for(raw), memoryview(raw)) if encoder is not None else None
    if packed is None or decoder is None or len(raw) + wrong <= 0:
        return
    with pytest.raises(ProtocolError):
        decoder.decode(0, index_for(raw), memoryview(packed), len(raw) + wrong)


def test_names_and_numbers_are_unique() -> None:
    assert len({codec(name).number for name in names()}) == len(names())
    assert all(codec(name).name == name and 0 <= codec(name).number < 256 for name in names())
    assert codec("none").number == 0


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'rar'; choose none, lz4"):
        codec("rar")


def test_lz4_tries_again_when_the_data_changes() -> None:
    encoder = codec("lz4").encoder()
    assert encoder is not None
    noise, text = np.random.default_rng(1).bytes(PAGE_BYTES), b"a" * PAGE_BYTES
    assert all(encoder.encode(0, index_for(noise), memoryview(noise)) is None for _ in range(20))
    tries = [encoder.encode(0, index_for(text), memoryview(text)) for _ in range(5)]
    assert tries[-1] is not None
    assert None not in tries[[one is not None for one in tries].index(True) :]
