# SPDX-License-Identifier: Apache-2.0
"""Batches are placed exactly, and nothing that does not fit is placed at all."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import MemoryFullError, ProtocolError
from parmig.ram import flow
from parmig.ram.blocks import PAGE_BYTES, BlockMapping, BlockMemory, RamBlock
from parmig.ram.codecs.registry import codec
from parmig.ram.packets import BatchHeader
from parmig.ram.place import WRITE_RUN_PAGES, note_existing
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.shared import SharedArea
from parmig.units import MIB
from tests.support import allocated_pages, content, file_pages, index_of, mapped, pages_below, runs_of, shared_area

PAGES = 200
Message = list[memoryview]


def message(
    sequence: int,
    data: set[int],
    zero: set[int] = frozenset(),  # type: ignore[assignment]
    *,
    how: str = "gathered",
    tag: int = 1,
    block: int = 0,
    **fields: int,
) -> tuple[Message, np.ndarray]:
    """One batch and its pages; *how* is gathered, direct (a frame a run) or lz4."""
    pages = content(tag, len(data))
    if how == "lz4":
        pages[:, 512:] = 7
    raw = pages.tobytes()
    frames: list[bytes] = [raw] if raw else []
    number = 0
    if how == "direct":
        lengths = [int(end - first) * PAGE_BYTES for first, end in runs_of(data)]
        starts = np.cumsum([0, *lengths])
        frames = [raw[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    elif how == "lz4" and raw:
        encoder = codec("lz4").encoder()
        assert encoder is not None
        packed = encoder.encode(block, index_of(data), memoryview(raw))
        assert packed is not None
        frames, number = [bytes(packed)], 1
    values = {
        "codec": number,
        "block": block,
        "round": 1,
        "sequence": sequence,
        "raw_bytes": len(raw),
        "payload_bytes": sum(map(len, frames)),
    }
    header = BatchHeader(**{**values, **fields}, data_runs=runs_of(data), zero_runs=runs_of(set(zero)))
    return [memoryview(header.encode()), *map(memoryview, frames)], pages


@contextmanager
def receiving(
    *pages: int, compress: str = "none"
) -> Iterator[tuple[MigrationRamReceive, list[BlockMapping], SharedArea]]:
    with mapped(*pages, offset_pages=1) as mappings, shared_area(mappings, []) as shared:
        yield (
            MigrationRamReceive(worker=0, blocks=mappings, codec=codec(compress), shared=shared, batch_bytes=4 * MIB),
            mappings,
            shared,
        )


batches = st.lists(
    st.tuples(
        pages_below(PAGES), pages_below(PAGES), st.sampled_from(["gathered", "direct", "lz4"]), st.integers(0, 1)
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=80)
@given(batches)
def test_pages_land_where_they_belong_and_zero_pages_cost_nothing(
    drawn: list[tuple[set[int], set[int], str, int]],
) -> None:
    with receiving(PAGES, PAGES, compress="lz4") as (ram, mappings, _):
        model = [np.zeros((PAGES, PAGE_BYTES), dtype=np.uint8) for _ in mappings]
        placed: list[set[int]] = [set(), set()]
        sequence = 0
        for tag, (data, zero, how, block) in enumerate(drawn):
            zero = zero - data
            if not data and not zero:
                continue
            sequence += 1
            frames, pages = message(sequence, data, zero, how=how, tag=tag, block=block)
            assert ram.migrate_ram_receive(frames) == flow.ack(sequence)
            model[block][index_of(data)] = pages
            model[block][index_of(zero)] = 0
            placed[block] |= data
        for mapping, wanted, exist in zip(mappings, model, placed, strict=True):
            assert np.array_equal(file_pages(mapping), wanted)
            assert allocated_pages(mapping) == len(exist)


@pytest.mark.parametrize("how", ["gathered", "direct"])
@pytest.mark.parametrize("length", [1, WRITE_RUN_PAGES - 1, WRITE_RUN_PAGES, 64])
def test_long_and_short_runs_in_one_batch_do_not_get_mixed_up(how: str, length: int) -> None:
    data = {0, 2, *range(4, 4 + length), 90, *range(100, 120), 199}
    with receiving(PAGES) as (ram, (mapping,), _):
        frames, pages = message(1, data, how=how)
        ram.migrate_ram_receive(frames)
        found = file_pages(mapping)
        assert np.array_equal(found[index_of(data)], pages)
        assert np.flatnonzero(found.any(axis=1)).tolist() == sorted(data)


def test_newer_pages_replace_older_ones() -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        ram.migrate_ram_receive(message(1, {5, 6}, tag=1)[0])
        frames, pages = message(2, {6}, {5}, tag=2)
        ram.migrate_ram_receive(frames)
        assert np.array_equal(mapping.pages[6], pages[0])
        assert not mapping.pages[5].any()


def test_pages_that_existed_before_are_made_zero() -> None:
    with receiving(PAGES) as (ram, mappings, shared):
        mappings[0].pages[3] = content(9)[0]
        note_existing(mappings, shared)
        ram.migrate_ram_receive(message(1, set(), {2, 3, 4})[0])
        assert not file_pages(mappings[0]).any()
        assert allocated_pages(mappings[0]) == 1


def test_what_was_placed_is_counted() -> None:
    with receiving(PAGES) as (ram, _, shared):
        frames = message(1, {1, 2, 9}, {20, 21})[0]
        ram.migrate_ram_receive(frames)
        found = shared.counters(0)
        assert (found.sent_pages, found.zero_pages, found.wire_bytes) == (3, 2, sum(map(len, frames)))


@pytest.mark.parametrize("sequence", [0, 2, 7])
def test_the_first_batch_has_number_one(sequence: int) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        with pytest.raises(ProtocolError, match=f"batch {sequence} after batch 0"):
            ram.migrate_ram_receive(message(sequence, {1})[0])
        assert allocated_pages(mapping) == 0


@pytest.mark.parametrize("sequence", [0, 1, 2, 4, 1 << 63])
def test_a_batch_that_is_lost_or_repeated_is_noticed(sequence: int) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        for number in (1, 2):
            ram.migrate_ram_receive(message(number, {number})[0])
        with pytest.raises(ProtocolError, match="lost or repeated"):
            ram.migrate_ram_receive(message(sequence, {100})[0])
        assert allocated_pages(mapping) == 2


def spoilt() -> list[tuple[str, Message, str]]:
    """Batches whose header is right and whose payload is not."""
    two = {1, 9}
    direct = message(1, two, how="direct")[0]
    lz4 = message(1, two, how="lz4")[0]
    half = message(1, two, payload_bytes=4096)[0]
    return [
        ("no payload", direct[:1], "0 bytes of pages, announced were 8192"),
        ("a frame missing", direct[:2], "4096 bytes of pages"),
        ("a frame too many", [*direct, direct[1]], "12288 bytes of pages"),
        ("frames of other lengths", [direct[0], direct[1][:1], memoryview(bytes(8191))], "2 frames for 2 runs"),
        ("three frames", [direct[0], direct[1], direct[1][:96], direct[1][96:]], "3 frames for 2 runs"),
        ("short pages", [half[0], half[1][:4096]], "as they are"),
        ("another codec", message(1, two, codec=9)[0], "codec 9, agreed is lz4"),
        ("encoded in pieces", [lz4[0], lz4[1][:10], lz4[1][10:]], "codec 1, agreed is lz4"),
        ("garbage", [lz4[0], memoryview(bytes(len(lz4[1])))], "lz4|decompressed"),
    ]


@pytest.mark.parametrize(("frames", "words"), [pytest.param(*case[1:], id=case[0]) for case in spoilt()])
def test_a_payload_that_is_not_what_was_announced_is_refused(frames: Message, words: str) -> None:
    with receiving(PAGES, compress="lz4") as (ram, (mapping,), _):
        with pytest.raises(ProtocolError, match=words):
            ram.migrate_ram_receive(frames)
        assert allocated_pages(mapping) == 0
        ram.migrate_ram_receive(message(1, {1})[0])  # a batch that was refused has not taken the number


def test_an_encoded_batch_without_a_codec_is_refused() -> None:
    with receiving(PAGES) as (ram, _, _), pytest.raises(ProtocolError, match="codec 1, agreed is none"):
        ram.migrate_ram_receive(message(1, {1, 2}, how="lz4")[0])


@pytest.mark.parametrize("kind", [0, 1, 2, 4, 6, 99])
def test_other_kinds_of_messages_are_refused(kind: int) -> None:
    with receiving(PAGES) as (ram, _, _), pytest.raises(ProtocolError, match=f"kind {kind}"):
        ram.migrate_ram_receive([memoryview(bytes([kind]) + bytes(40))])


def test_an_empty_message_is_refused() -> None:
    with receiving(PAGES) as (ram, _, _), pytest.raises(ProtocolError, match="kind 0"):
        ram.migrate_ram_receive([memoryview(b"")])


def fence(round_: int, sequence: int) -> memoryview:
    return memoryview(struct.pack(">B3xIQ", flow.FENCE, round_, sequence))


def test_a_fence_is_answered_when_all_of_it_is_placed() -> None:
    with receiving(PAGES) as (ram, _, _):
        ram.migrate_ram_receive(message(1, {1})[0])
        assert ram.migrate_ram_receive([fence(4, 1)]) == struct.pack(">B3xIQ", flow.FENCED, 4, 1)
        for sequence in (0, 2):
            with pytest.raises(ProtocolError, match=f"names batch {sequence}, placed were 1"):
                ram.migrate_ram_receive([fence(4, sequence)])
        with pytest.raises(ProtocolError, match="has 16 bytes"):
            ram.migrate_ram_receive([fence(4, 1)[:15]])


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_garbage_is_refused_and_places_nothing(frames: list[bytes]) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        with pytest.raises(ProtocolError):
            ram.migrate_ram_receive([memoryview(frame) for frame in frames])
        assert allocated_pages(mapping) == 0


# -- a memory file without room ---------------------------------------------------------------------


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("how", ["gathered", "direct"])
@pytest.mark.parametrize("step", [1, 2, 8], ids=["one run", "isolated pages", "far apart"])
def test_a_full_memory_file_is_an_error_and_no_signal(small_tmpfs: Path, how: str, step: int) -> None:
    size = 64 * MIB
    fd = os.open(small_tmpfs / "ram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, size)
    mapping = BlockMapping(BlockMemory(RamBlock("pc.ram", size), fd))
    shared = SharedArea(-1, workers=1, blocks=[mapping.block], regions=1)
    ram = MigrationRamReceive(worker=0, blocks=[mapping], codec=codec("none"), shared=shared, batch_bytes=4 * MIB)
    try:
        with pytest.raises(MemoryFullError, match=rf"block 'pc.ram' at byte .* up to {size} bytes"):  # noqa: PT012  whichever fills it
            for number in range(8):  # 8 MiB
                data = {step * page for page in range(256 * number, 256 * (number + 1))}
                ram.migrate_ram_receive(message(number + 1, data, how=how)[0])
        assert allocated_pages(mapping) <= 1024
    finally:
        mapping.close()
        shared.close()
        os.close(fd)
