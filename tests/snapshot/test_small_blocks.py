# SPDX-License-Identifier: Apache-2.0
"""A guest like QEMU, whose state is a stream with pages of its own: they are in the file, and come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

import docs.examples.tiny_guest
from parmig.guests.guest import StateSink
from parmig.inspection import inspect_file
from parmig.ram.bits import Index
from parmig.snapshot.opened import OpenSnapshot
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS, MigrationCommand
from parmig.stream.ram_blocks import BlockEntry, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes
from parmig.stream.ram_words import PageRun, ZeroRun
from parmig.stream.section_writer import SectionWriter
from parmig.stream.stream_walk import StreamWalk
from parmig.stream.vmdescription import DeviceDescription, FieldDescription, VmDescription, build
from parmig.transport.memory import MemoryStream
from parmig.units import KIB
from tests.integration.snapshots import FORMATS, restore, save
from tests.support import content, index_of

RAM, TIMER = 2, 5
BLOCKS = {"empty": 0, "vga": 256 * KIB, "rom": 8 * KIB}
ROM = content(9, 2)

every_format = pytest.mark.parametrize("format_", FORMATS)


def words(block: str, pages: set[int], tag: int) -> bytes:
    index = index_of(pages)
    return bytes(
        encode_page_words(bytearray(page_words_bytes(block, len(index))), block, index, content(tag, len(index)))
    )


class StreamingGuest(docs.examples.tiny_guest.TinyGuest):
    """A tiny guest whose state is a stream of QEMU's format, with ``x-ignore-shared``."""

    extra: Callable[[SectionWriter, MigrationDataFile], None] | None = None
    ends = True

    def __init__(self, *, incoming: bool) -> None:
        super().__init__(64 * KIB, incoming=incoming)
        self.vga = np.zeros((64, 4096), np.uint8)
        self.rom = np.full((2, 4096), 0xAA, np.uint8)  # an incoming one has content of its own
        self.zeroed: set[int] = set()
        self.device = b""
        self.capabilities: tuple[str, ...] = ()

    def state_blocks(self) -> Mapping[str, int]:
        return {name: size_bytes for name, size_bytes in BLOCKS.items() if size_bytes}

    def save_state(self, sink: StateSink) -> None:
        transport = MemoryStream()
        data = MigrationDataFile(transport, "state")
        sections = SectionWriter(data)
        sections.header()
        sections.configuration("tiny-1", ("x-ignore-shared",))
        sections.start(RAM, "ram", 0, 4)
        blocks = {"tiny.ram": 64 * KIB} | BLOCKS
        write_block_list(data, [BlockEntry(name, size, gpa=n << 30) for n, (name, size) in enumerate(blocks.items())])
        self._end(data, sections)
        sections.part(RAM)  # twice the same pages: the last word counts
        data.put_buffer(words("vga", {0, 1, 2, 40}, 1) + words("rom", {0, 1}, 9))
        self._end(data, sections)
        if self.extra is not None:
            self.extra(sections, data)
        sections.command(MigrationCommand.SWITCHOVER_START)
        sections.end(RAM)
        data.put_buffer(encode_zero_words("vga", index_of({1, 50})) + words("vga", {2, 7}, 2))
        self._end(data, sections)
        sections.full(TIMER, "timer", 0, 1)
        data.put_be64(self.count)
        sections.footer(TIMER)
        if self.ends:
            sections.eof()
            fields = [FieldDescription(name="count", type="uint64", size=8)]
            device = DeviceDescription(name="timer", instance_id=0, vmsd_name="timer", version=1, fields=fields)
            sections.vmdescription(build(VmDescription(page_size=4096, devices=[device])))
        data.flush_data()
        sink.write(bytes(transport.written))

    def _end(self, data: MigrationDataFile, sections: SectionWriter) -> None:
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        sections.footer(RAM)

    def finish_load(self) -> None:
        walk = StreamWalk(MigrationDataFile(MemoryStream(bytes(self._arrived)), "state"))
        head = walk.head()
        self.capabilities = head.configuration.capabilities
        assert {one.name: one.size_bytes for one in head.blocks} == self.state_blocks()
        for run in walk.pages():
            assert isinstance(run, PageRun | ZeroRun)
            (self.vga if run.block == "vga" else self.rom)[run.index] = run.pages if isinstance(run, PageRun) else 0
            self._note_zero(run.block, run.index if isinstance(run, ZeroRun) else None)
        self.device = bytes(self._arrived[walk.devices_offset_bytes :])

    def _note_zero(self, block: str, index: Index | None) -> None:
        if index is not None and block == "vga":
            self.zeroed |= set(index.tolist())


@pytest.fixture
def pair() -> Iterator[tuple[StreamingGuest, StreamingGuest]]:
    with StreamingGuest(incoming=False) as source, StreamingGuest(incoming=True) as copy:
        yield source, copy  # type: ignore[misc]


def expected_vga() -> np.ndarray:
    vga = np.zeros((64, 4096), np.uint8)
    vga[[0, 1, 2, 40]] = content(1, 4)
    vga[[1, 50]] = 0
    vga[[2, 7]] = content(2, 2)
    return vga


@every_format
def test_small_blocks_and_devices_come_back(
    tmp_path: Path, pair: tuple[StreamingGuest, StreamingGuest], format_: str
) -> None:
    source, copy = pair
    assert save(source, tmp_path / "s", format=format_).error is None
    assert source.is_running()
    report = restore(copy, tmp_path / "s", paused=True)
    assert report.error is None, report.error
    assert (copy.vga == expected_vga()).all()
    assert (copy.rom == ROM).all()
    assert copy.zeroed == set(range(64)) - {0, 2, 7, 40}  # zero is told, for what is not empty
    assert copy.capabilities == ()
    assert copy.device.startswith(b"\4\0\0\0\5\5timer")


@every_format
def test_the_file_is_a_stream_without_what_belonged_to_the_migration(
    tmp_path: Path, pair: tuple[StreamingGuest, StreamingGuest], format_: str
) -> None:
    assert save(pair[0], tmp_path / "s", format=format_).error is None
    found = inspect_file(str(tmp_path / "s"))
    assert found.complete, found.notes
    assert found.capabilities == (["mapped-ram"] if format_ == "mapped-ram" else [])
    assert [(one.name, one.gpa) for one in found.blocks] == [("tiny.ram", None), ("vga", None), ("rom", None)]
    assert [(one.idstr, set(one.fields or ())) for one in found.devices] == [("timer", {"count"})]
    with OpenSnapshot(tmp_path / "s") as snapshot:
        assert snapshot.description is not None
        (size, name, *_) = snapshot.description["configuration"]["fields"]
        assert (size["name"], name["size"]) == ("len", len("tiny-1"))
        names = msgspec.json.encode(snapshot.description)
        assert b"x-ignore-shared" not in names
        assert (b"configuration/capabilities" in names) is (format_ == "mapped-ram")


def put_command(sections: SectionWriter, data: MigrationDataFile) -> None:
    sections.command(MigrationCommand.OPEN_RETURN_PATH)


def put_live(sections: SectionWriter, data: MigrationDataFile) -> None:
    sections.start(9, "block", 0, 1)


def put_shared(sections: SectionWriter, data: MigrationDataFile) -> None:
    sections.part(RAM)
    data.put_buffer(words("tiny.ram", {3}, 3))
    data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
    sections.footer(RAM)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (put_command, "command OPEN_RETURN_PATH cannot be in a snapshot"),
        (put_live, "live state of 'block' cannot be in a snapshot"),
        (put_shared, "pages of block 'tiny.ram', which parmig moves itself"),
    ],
)
def test_a_state_that_cannot_be_in_a_snapshot_is_no_file_and_the_guest_runs(
    tmp_path: Path,
    pair: tuple[StreamingGuest, StreamingGuest],
    extra: Callable[[SectionWriter, MigrationDataFile], None],
    said: str,
) -> None:
    pair[0].extra = extra  # type: ignore[assignment]
    report = save(pair[0], tmp_path / "s")
    assert report.error is not None
    assert report.error.type == "SnapshotError"
    assert said in report.error.message
    assert list(tmp_path.iterdir()) == []
    assert pair[0].is_running()


def test_a_state_that_was_cut_off_is_no_file(tmp_path: Path, pair: tuple[StreamingGuest, StreamingGuest]) -> None:
    pair[0].ends = False
    report = save(pair[0], tmp_path / "s")
    assert report.error is not None
    assert "does not end with its mark" in report.error.message
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_change_meanwhile_are_told(tmp_path: Path, pair: tuple[StreamingGuest, StreamingGuest]) -> None:
    pair[0].state_blocks = lambda: {"vga": 128 * KIB, "rom": 8 * KIB}  # type: ignore[method-assign]
    report = save(pair[0], tmp_path / "s")
    assert report.error is not None
    assert "changed its blocks vga while it was saved; save it again" in report.error.message
    assert list(tmp_path.iterdir()) == []
