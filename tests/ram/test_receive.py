# SPDX-License-Identifier: Apache-2.0
"""Batches are placed exactly, and nothing that does not fit is placed at all."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import GuestRefusedError, MemoryFullError, ProtocolError
from parmig.linux import files, uffd
from parmig.ram import channel_messages as messages
from parmig.ram import receive
from parmig.ram.bits import LONG_RUN_PAGES, mask_of_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.codecs.registry import codec
from parmig.ram.packets import BatchHeader
from parmig.ram.place import PagePlacer
from parmig.ram.reach.mapped import WRITE_RUN_PAGES, BlockMapping
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.regions import SPAN_PAGES
from parmig.ram.shared import SharedArea
from parmig.transport.transport import Incoming
from parmig.units import MIB
from tests.huge import HUGE_BYTES, UNIT_PAGES, more_huge_pages
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
        encoder = codec("lz4").encoder(CodecSettings())
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
            MigrationRamReceive(
                worker=0, blocks=mappings, codecs=[codec(compress)], shared=shared, batch_bytes=4 * MIB
            ),
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
            assert ram.migrate_ram_receive(Incoming(frames)) == messages.ack(sequence)
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
        ram.migrate_ram_receive(Incoming(frames))
        found = file_pages(mapping)
        assert np.array_equal(found[index_of(data)], pages)
        assert np.flatnonzero(found.any(axis=1)).tolist() == sorted(data)


def test_newer_pages_replace_older_ones() -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        ram.migrate_ram_receive(Incoming(message(1, {5, 6}, tag=1)[0]))
        frames, pages = message(2, {6}, {5}, tag=2)
        ram.migrate_ram_receive(Incoming(frames))
        assert np.array_equal(mapping.pages[6], pages[0])
        assert not mapping.pages[5].any()


def test_pages_that_existed_before_are_made_zero() -> None:
    with receiving(PAGES) as (ram, mappings, _):
        mappings[0].pages[3] = content(9)[0]
        ram.migrate_ram_receive(Incoming(message(1, set(), {2, 3, 4})[0]))
        assert not file_pages(mappings[0]).any()
        assert allocated_pages(mappings[0]) == 1


def test_long_runs_of_zero_pages_are_given_back_and_can_be_placed_again() -> None:
    pages = LONG_RUN_PAGES + 100
    with receiving(pages) as (ram, (mapping,), shared):
        kept = {7, pages - 3}
        zero = set(range(pages)) - kept
        ram.migrate_ram_receive(Incoming(message(1, set(range(pages)))[0]))
        ram.migrate_ram_receive(Incoming(message(2, set(), zero)[0]))
        assert set(np.flatnonzero(file_pages(mapping).any(axis=1)).tolist()) == kept
        # Up to page 6 the run is short. What was given back is no longer noted as existing.
        assert allocated_pages(mapping) == len(kept) + 7 + 2
        noted = np.flatnonzero(mask_of_bits(shared.bits[0], 0, pages))
        assert noted.tolist() == [*range(8), *range(pages - 3, pages)]
        frames, placed = message(3, zero, tag=3)
        ram.migrate_ram_receive(Incoming(frames))
        assert np.array_equal(file_pages(mapping)[sorted(zero)], placed)


def test_what_was_placed_is_counted() -> None:
    with receiving(PAGES) as (ram, _, shared):
        frames = message(1, {1, 2, 9}, {20, 21})[0]
        ram.migrate_ram_receive(Incoming(frames))
        found = shared.counters(0)
        assert (found.sent_pages, found.zero_pages, found.wire_bytes) == (3, 2, sum(map(len, frames)))


class Placing(Incoming):
    """A message whose payload is not in memory: this notes how it is asked for."""

    places = True
    asked = ""

    def into(self, targets: Sequence[memoryview]) -> None:
        self.asked += "into "
        super().into(targets)

    def frames(self) -> list[memoryview]:
        self.asked = "frames"
        return super().frames()


def test_a_payload_goes_straight_to_pages_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "PIECE_PAGES", 50)
    with receiving(PAGES, compress="lz4") as (ram, (mapping,), _):
        for sequence, (data, how, asked) in enumerate(
            [
                (set(range(3, 90)), "direct", "into into "),  # nothing exists yet, and it takes two pieces
                ({5, 6, 7, 20, 40}, "direct", "into "),
                ({5, 6, 7, 20, 40}, "gathered", "into "),
                ({5, 6, 7, 95}, "gathered", "into into "),
                ({5, 6}, "lz4", "frames"),
                (set(range(3, 90, 2)), "gathered", "into "),
                (set(range(1, PAGES, 2)), "gathered", "frames"),  # many runs, and not all of them exist
            ],
            1,
        ):
            frames, pages = message(sequence, data, how=how, tag=sequence)
            incoming = Placing(frames)
            ram.migrate_ram_receive(incoming)
            assert incoming.asked == asked
            assert np.array_equal(file_pages(mapping)[sorted(data)], pages)


@pytest.mark.parametrize("sequence", [0, 2, 7])
def test_the_first_batch_has_number_one(sequence: int) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        with pytest.raises(ProtocolError, match=f"batch {sequence} followed batch 0"):
            ram.migrate_ram_receive(Incoming(message(sequence, {1})[0]))
        assert allocated_pages(mapping) == 0


@pytest.mark.parametrize("sequence", [0, 1, 2, 4, 1 << 63])
def test_a_batch_that_is_lost_or_repeated_is_noticed(sequence: int) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        for number in (1, 2):
            ram.migrate_ram_receive(Incoming(message(number, {number})[0]))
        with pytest.raises(ProtocolError, match="lost or repeated"):
            ram.migrate_ram_receive(Incoming(message(sequence, {100})[0]))
        assert allocated_pages(mapping) == 2


def spoilt() -> list[tuple[str, Message, str]]:
    """Batches whose header is right and whose payload is not."""
    two = {1, 9}
    direct = message(1, two, how="direct")[0]
    lz4 = message(1, two, how="lz4")[0]
    half = message(1, two, payload_bytes=4096)[0]
    return [
        ("no payload", direct[:1], "0 bytes of pages, expected 8192"),
        ("a frame missing", direct[:2], "4096 bytes of pages"),
        ("a frame too many", [*direct, direct[1]], "12288 bytes of pages"),
        (
            "frames of other lengths",
            [direct[0], direct[1][:1], memoryview(bytes(8191))],
            "2 frames, expected one for each of 2 runs",
        ),
        (
            "three frames",
            [direct[0], direct[1], direct[1][:96], direct[1][96:]],
            "3 frames, expected one for each of 2 runs",
        ),
        ("short pages", [half[0], half[1][:4096]], "as they are"),
        ("another codec", message(1, two, codec=9)[0], "names codec 9; the agreed codecs are lz4"),
        ("encoded in pieces", [lz4[0], lz4[1][:10], lz4[1][10:]], "encoded in 2 frames; expected one"),
        ("garbage", [lz4[0], memoryview(bytes(len(lz4[1])))], "lz4|decompressed"),
    ]


@pytest.mark.parametrize(("frames", "words"), [pytest.param(*case[1:], id=case[0]) for case in spoilt()])
def test_a_payload_that_is_not_what_was_announced_is_refused(frames: Message, words: str) -> None:
    with receiving(PAGES, compress="lz4") as (ram, (mapping,), _):
        with pytest.raises(ProtocolError, match=words):
            ram.migrate_ram_receive(Incoming(frames))
        assert allocated_pages(mapping) == 0
        ram.migrate_ram_receive(Incoming(message(1, {1})[0]))  # a batch that was refused has not taken the number


def test_an_encoded_batch_without_a_codec_is_refused() -> None:
    with (
        receiving(PAGES) as (ram, _, _),
        pytest.raises(ProtocolError, match="names codec 1; the agreed codecs are none"),
    ):
        ram.migrate_ram_receive(Incoming(message(1, {1, 2}, how="lz4")[0]))


def test_each_batch_is_decoded_by_the_codec_that_it_names() -> None:
    with mapped(PAGES, offset_pages=1) as (mapping,), shared_area([mapping], []) as shared:
        ram = MigrationRamReceive(
            worker=0,
            blocks=[mapping],
            codecs=[codec(name) for name in ("none", "lz4")],
            shared=shared,
            batch_bytes=4 * MIB,
        )
        for sequence, (how, first) in enumerate([("lz4", 1), ("gathered", 9), ("lz4", 17)], 1):
            frames, pages = message(sequence, {first, first + 1}, how=how)
            ram.migrate_ram_receive(Incoming(frames))
            assert np.array_equal(file_pages(mapping)[[first, first + 1]], pages)


@pytest.mark.parametrize("kind", [0, 1, 2, 4, 6, 99])
def test_other_kinds_of_messages_are_refused(kind: int) -> None:
    with receiving(PAGES) as (ram, _, _), pytest.raises(ProtocolError, match=f"kind {kind}"):
        ram.migrate_ram_receive(Incoming([memoryview(bytes([kind]) + bytes(40))]))


def test_an_empty_message_is_refused() -> None:
    with receiving(PAGES) as (ram, _, _), pytest.raises(ProtocolError, match="kind 0"):
        ram.migrate_ram_receive(Incoming([memoryview(b"")]))


def fence(round_: int, sequence: int) -> memoryview:
    return memoryview(struct.pack(">B3xIQ", messages.FENCE, round_, sequence))


def test_a_fence_is_answered_when_all_of_it_is_placed() -> None:
    with receiving(PAGES) as (ram, _, _):
        ram.migrate_ram_receive(Incoming(message(1, {1})[0]))
        assert ram.migrate_ram_receive(Incoming([fence(4, 1)])) == struct.pack(">B3xIQ", messages.FENCED, 4, 1)
        for sequence in (0, 2):
            with pytest.raises(ProtocolError, match=f"names batch {sequence}, expected 1"):
                ram.migrate_ram_receive(Incoming([fence(4, sequence)]))
        with pytest.raises(ProtocolError, match="expected 16"):
            ram.migrate_ram_receive(Incoming([fence(4, 1)[:15]]))


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_garbage_is_refused_and_places_nothing(frames: list[bytes]) -> None:
    with receiving(PAGES) as (ram, (mapping,), _):
        with pytest.raises(ProtocolError):
            ram.migrate_ram_receive(Incoming([memoryview(frame) for frame in frames]))
        assert allocated_pages(mapping) == 0


# -- a memory file without room ---------------------------------------------------------------------


SMALL_BYTES = 4 * MIB


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, "tmpfs", f"size={SMALL_BYTES}") as directory:
        yield directory


@contextmanager
def mounted(directory: Path, kind: str, options: str) -> Iterator[Path]:
    """A file system, or a skip with the reason; where CI is set it must be there."""
    done = subprocess.run(["mount", "-t", kind, "-o", options, kind, directory], check=False, capture_output=True)
    if done.returncode:
        if os.environ.get("CI") and "quota" not in options:  # Debian's kernels have tmpfs quotas since 6.6 only
            pytest.fail(f"mounting a {kind} is mandatory where CI is set: {done.stderr.decode()}")
        pytest.skip(f"no {kind} with {options} can be mounted here: mount ended with code {done.returncode}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def ram_file(path: Path, size_bytes: int, page_bytes: int = PAGE_BYTES) -> Iterator[tuple[PagePlacer, BlockMapping]]:
    """A placer for a new memory file."""
    with path.open("w+b") as file:
        file.truncate(size_bytes)
        mapping = BlockMapping(BlockMemory(RamBlock("pc.ram", size_bytes, page_bytes), file.fileno()))
        shared = SharedArea(-1, workers=1, blocks=[mapping.block], regions=1)
        try:
            yield PagePlacer([mapping], shared), mapping
        finally:
            mapping.close()
            shared.close()


@pytest.mark.parametrize("how", ["gathered", "direct"])
@pytest.mark.parametrize("step", [1, 2, 8], ids=["one run", "isolated pages", "far apart"])
def test_a_full_memory_file_is_an_error_and_no_signal(small_tmpfs: Path, how: str, step: int) -> None:
    size = 64 * MIB
    fd = os.open(small_tmpfs / "ram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, size)
    mapping = BlockMapping(BlockMemory(RamBlock("pc.ram", size), fd))
    shared = SharedArea(-1, workers=1, blocks=[mapping.block], regions=1)
    ram = MigrationRamReceive(worker=0, blocks=[mapping], codecs=[codec("none")], shared=shared, batch_bytes=4 * MIB)
    try:
        with pytest.raises(MemoryFullError, match=rf"block 'pc.ram' .* at byte .* room for {size} bytes"):  # noqa: PT012  whichever fills it
            for number in range(8):  # 8 MiB
                data = {step * page for page in range(256 * number, 256 * (number + 1))}
                ram.migrate_ram_receive(Incoming(message(number + 1, data, how=how)[0]))
        assert allocated_pages(mapping) == SMALL_BYTES // PAGE_BYTES  # it was used to the last page
    finally:
        mapping.close()
        shared.close()
        os.close(fd)


PROGRAM = """
import os, sys
import numpy as np
from parmig.errors import MemoryFullError
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.place import PagePlacer
from parmig.ram.shared import SharedArea
path, worker, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
block = RamBlock("pc.ram", os.fstat(fd).st_size)
mapping = BlockMapping(BlockMemory(block, fd))
shared = SharedArea(-1, workers=1, blocks=[block], regions=1)
placer = PagePlacer([mapping], shared)
pages = np.arange(worker * block.pages // 4, (worker + 1) * block.pages // 4, step)
raw = memoryview(np.full((8, 4096), worker + 1, dtype=np.uint8).data).cast("B")
print("ready", flush=True)
sys.stdin.readline()
placed = 0
try:
    for part in range(0, len(pages), 8):
        index = pages[part : part + 8]
        for tag in range(2):  # the second time through the mapping
            placer.place(0, np.stack((index, index + 1), axis=1), raw[: len(index) * 4096])
            placer.note_placed(0, index)
        placed += len(index)
except MemoryFullError:
    print("full", placed)
"""


def fill_at_once(path: Path, size_bytes: int, limit_bytes: int) -> None:
    """Four workers fill a memory file together: each is told that it is full, and none is killed."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    path.chmod(0o666)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), str(worker), str(worker % 3 + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    answers = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert [answer[0] for answer in answers] == ["full"] * 4
    placed = sum(int(answer[1]) for answer in answers)
    assert limit_bytes // PAGE_BYTES - 4 * 8 <= placed <= limit_bytes // PAGE_BYTES


def test_several_workers_fill_a_file_system_at_once_and_none_is_killed(small_tmpfs: Path) -> None:
    fill_at_once(small_tmpfs / "ram", 64 * MIB, SMALL_BYTES)


def test_a_quota_that_is_used_up_is_an_error_and_no_signal(tmp_path: Path) -> None:
    with mounted(tmp_path, "tmpfs", f"size=64m,usrquota,usrquota_block_hardlimit={SMALL_BYTES}") as directory:
        directory.chmod(0o777)
        path = directory / "ram"
        path.touch()
        os.chown(path, 65534, 65534)  # root's own quota has no limit
        fill_at_once(path, 64 * MIB, SMALL_BYTES)


@pytest.fixture
def small_hugetlbfs(tmp_path: Path) -> Iterator[Path]:
    """Room for 4 huge pages."""
    with more_huge_pages(6), mounted(tmp_path, "hugetlbfs", f"pagesize=2M,size={4 * HUGE_BYTES}") as directory:
        yield directory


def test_huge_pages_that_ran_out_are_an_error_and_no_signal(small_hugetlbfs: Path) -> None:
    """Mapping the file reserves them; giving pages back gives their reservation back, too."""
    with ram_file(small_hugetlbfs / "ram", 4 * HUGE_BYTES, HUGE_BYTES) as (placer, mapping):
        page = memoryview(content(1).data).cast("B")
        for huge in range(4):
            placer.place_run(0, huge * UNIT_PAGES + 3, page)
        other = ram_file(small_hugetlbfs / "other", 3 * HUGE_BYTES, HUGE_BYTES)
        with pytest.raises(GuestRefusedError, match=r"cannot be mapped: .*huge pages"), other:
            pass
        files.punch_hole(mapping.fd, HUGE_BYTES, 3 * HUGE_BYTES)
        with ram_file(small_hugetlbfs / "third", 3 * HUGE_BYTES, HUGE_BYTES):
            placer.place_run(0, 5, page)  # it exists
            with pytest.raises(MemoryFullError, match=r"'pc.ram' .* at byte .*No space left"):
                placer.place_run(0, UNIT_PAGES + 5, page)


def test_pages_in_huge_pages_land_where_they_belong_and_zero_pages_cost_none(small_hugetlbfs: Path) -> None:
    with ram_file(small_hugetlbfs / "ram", 4 * HUGE_BYTES, HUGE_BYTES) as (placer, mapping):
        ram = MigrationRamReceive(
            worker=0, blocks=[mapping], codecs=[codec("none")], shared=placer._shared, batch_bytes=4 * MIB
        )
        mapping.pages[3 * UNIT_PAGES + 7] = 9  # it was there before
        data = {0, 2, *range(5, 40), UNIT_PAGES - 1, UNIT_PAGES}
        for number, tag in ((1, 1), (2, 2)):
            frames, pages = message(number, data, set(range(4 * UNIT_PAGES)) - data, tag=tag)
            ram.migrate_ram_receive(Incoming(frames))
            found = file_pages(mapping)
            assert np.array_equal(found[index_of(data)], pages)
            assert np.flatnonzero(found.any(axis=1)).tolist() == sorted(data)
            assert allocated_pages(mapping) == 3 * UNIT_PAGES
        ram.migrate_ram_receive(Incoming(message(3, set(), data)[0]))
        assert not file_pages(mapping).any()


# -- what existed before -----------------------------------------------------------------------------


@given(pages_below(PAGES), st.lists(st.integers(0, PAGES - 1), max_size=60), pages_below(PAGES))
@settings(deadline=None, max_examples=60)
def test_memory_need_not_be_empty_whatever_is_told_in_whatever_order(
    before: set[int], zero: list[int], placed: set[int]
) -> None:
    with receiving(PAGES) as (_, (mapping,), shared):
        placer = PagePlacer([mapping], shared)
        for page in before:
            os.pwrite(mapping.fd, content(7)[0].tobytes(), mapping.file_offset_bytes + page * PAGE_BYTES)
        index = np.array(sorted(placed, reverse=True), dtype=np.int64)
        for page in index.tolist():
            placer.place_run(0, page, memoryview(content(page)[0].data))
        placer.note_placed(0, index)
        placer.place_zero(0, np.array([(page, page + 1) for page in zero], dtype=np.int64).reshape(-1, 2))
        left = (before | placed) - set(zero)
        assert set(np.flatnonzero(file_pages(mapping).any(axis=1)).tolist()) == left
        assert allocated_pages(mapping) == len(before | placed)


def test_what_was_there_is_looked_for_in_pieces_however_far_pages_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = 40 * SPAN_PAGES
    with receiving(pages) as (ram, (mapping,), _):
        far = {5, SPAN_PAGES + 5, 20 * SPAN_PAGES, pages - 1}
        for page in far:
            mapping.pages[page] = 1
        asked: list[int] = []
        real = mapping.allocated

        def allocated(first: int, count: int, among: np.ndarray) -> np.ndarray:
            asked.append(count)
            return real(first, count, among)

        monkeypatch.setattr(mapping, "allocated", allocated)
        ram.migrate_ram_receive(Incoming(message(1, set(), far - {5} | {7})[0]))
        assert len(asked) == 3
        assert max(asked) <= SPAN_PAGES
        assert [page for page in sorted(far) if mapping.pages[page].any()] == [5]


@pytest.mark.parametrize("pages", [[10, 9, 2, 1, 130], [9, 1, 10, 2, 130]], ids=["descending", "to and fro"])
def test_pages_noted_in_any_order_are_all_noted(pages: list[int]) -> None:
    with receiving(PAGES) as (_, (mapping,), shared):
        placer = PagePlacer([mapping], shared)
        placer.note_placed(0, np.array(pages))
        assert np.flatnonzero(mask_of_bits(shared.bits[0], 0, PAGES)).tolist() == [1, 2, 9, 10, 130]


@pytest.mark.parametrize("most_bytes", [1, 1000, PAGE_BYTES, 3 * PAGE_BYTES + 1])
def test_a_write_that_is_cut_short_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    real = os.pwrite

    def refuse(*_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(uffd, "create_filler", refuse)  # where it is allowed, pwrite(2) writes little
    with receiving(PAGES) as (ram, (mapping,), _):
        frames, pages = message(1, {3, *range(20, 31)}, how="direct")
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:most_bytes], at))
        ram.migrate_ram_receive(Incoming(frames))
        found = file_pages(mapping)
        assert np.array_equal(found[[3, *range(20, 31)]], pages)
        assert np.flatnonzero(found.any(axis=1)).tolist() == [3, *range(20, 31)]
