# SPDX-License-Identifier: Apache-2.0
"""The encoder of a channel: which codec a batch gets, and what is counted."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.codecs.batch_encoder import BatchEncoder, open_encoder
from parmig.ram.codecs.choice import SLOW_NS_PER_BYTE
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.codecs.registry import codecs_of, names
from parmig.ram.shared import CodecCounters
from parmig.units import MIB

NONE, LZ4, ZSTD, DELTA = range(4)
PAGES = 2 * MIB // PAGE_BYTES
INDEX = np.arange(PAGES)
NOISE = os.urandom(2 * MIB)
TEXT = b"a line of a log\n" * (2 * MIB // 16)


def opened(choice: str, known: Sequence[str] = names()) -> tuple[BatchEncoder, np.ndarray]:
    table = np.zeros((256, 4), dtype=np.int64)
    return open_encoder(choice, codecs_of(choice, known), CodecSettings(), CodecCounters(table)), table


def encode(encoder: BatchEncoder, raw: bytes, round_: int = 2) -> int:
    """The codec of one batch, which the channel takes without a wait."""
    pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
    if encoder.goes_directly(0, INDEX, pages.__getitem__):
        encoder.sent_directly(0, INDEX)
        codec = NONE
    else:
        codec, packed = encoder.encode(0, round_, INDEX, memoryview(raw))
        assert (packed is None) is (codec == NONE)
    if encoder.passed(codec, len(raw), 0):
        encoder.measured(len(raw), round(10 * SLOW_NS_PER_BYTE * len(raw)))
    return codec


def changed(raw: bytes, byte: int) -> bytes:
    pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES).copy()
    pages[:, byte] ^= 1
    return pages.tobytes()


def test_a_codec_that_is_chosen_is_tried_again_when_the_data_changes() -> None:
    encoder, table = opened("lz4")
    assert [encode(encoder, NOISE) for _ in range(20)] == [NONE] * 20
    assert LZ4 in [encode(encoder, TEXT) for _ in range(4)]
    assert [encode(encoder, TEXT) for _ in range(4)] == [LZ4] * 4
    assert table[NONE, 0] + table[LZ4, 0] == table[:, 0].sum() == 28
    assert table[:, 1].sum() == 28 * len(NOISE)
    assert table[NONE, 2] == table[NONE, 1]
    assert 0 < table[LZ4, 2] < table[LZ4, 1]
    assert table[LZ4, 3] > 0


def test_delta_uses_zstd_for_pages_that_it_does_not_know() -> None:
    encoder, _ = opened("delta")
    assert encode(encoder, TEXT) == ZSTD
    assert encode(encoder, changed(TEXT, 0)) == DELTA
    encoder.forget(0, INDEX)
    assert encode(encoder, TEXT) == ZSTD


def test_delta_is_tried_for_known_pages_however_badly_others_compress() -> None:
    encoder, _ = opened("delta")
    for _ in range(6):
        encoder.forget(0, INDEX)
        assert encode(encoder, NOISE) == NONE
    assert [encode(encoder, changed(NOISE, byte)) for byte in range(4)] == [DELTA] * 4


def test_without_a_codec_pages_go_straight_from_memory() -> None:
    encoder, table = opened("none")
    assert encoder.goes_directly(0, INDEX, lambda index: np.zeros((len(index), PAGE_BYTES), dtype=np.uint8))
    encoder.sent_directly(0, INDEX)
    assert table[NONE].tolist() == [1, 2 * MIB, 2 * MIB, 0]


def test_auto_measures_the_link_then_samples_each_kind_of_data() -> None:
    encoder, table = opened("auto")
    assert [encode(encoder, TEXT) for _ in range(2)] == [NONE, NONE]
    assert encode(encoder, TEXT) in (LZ4, ZSTD)
    assert table[[LZ4, ZSTD, DELTA], 3].min() > 0
    assert encode(encoder, changed(TEXT, 0)) in (LZ4, ZSTD, DELTA)


def test_auto_remembers_what_goes_as_it_is_over_a_slow_link() -> None:
    encoder, _ = opened("auto")
    assert [encode(encoder, NOISE) for _ in range(3)] == [NONE] * 3
    assert encode(encoder, changed(NOISE, 0)) == DELTA


def test_auto_uses_only_what_both_sides_know() -> None:
    encoder, table = opened("auto", ["none", "lz4"])
    assert [encode(encoder, TEXT) for _ in range(3)] == [NONE, NONE, LZ4]
    assert not table[ZSTD:].any()


def test_auto_keeps_no_copies_of_the_first_round() -> None:
    encoder, _ = opened("auto")
    assert [encode(encoder, NOISE, round_=1) for _ in range(3)] == [NONE] * 3
    assert encode(encoder, changed(NOISE, 0), round_=2) == NONE
    assert encode(encoder, changed(NOISE, 1), round_=3) == DELTA
