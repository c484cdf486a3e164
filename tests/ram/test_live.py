# SPDX-License-Identifier: Apache-2.0
"""RAM is a component of a registry like any other: it travels with the devices, and arrives with its holes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parmig.errors import StateError
from parmig.ram.bits import Index
from parmig.ram.blocks import BlockMapping
from parmig.ram.live import PART_PAGES, ram_state
from parmig.state import FIELD_TYPE_U64, MigrationState, MigrationStateField, StateRegistry
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.ram_blocks import read_setup
from parmig.stream.ram_words import RamWordReader
from parmig.stream.sections import EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.stream.xbzrle import encode
from parmig.transport.memory import MemoryStream
from tests.support import allocated_pages, content, file_pages, index_of, mapped


class Clock:
    ticks = 0


def registry_of(
    clock: Clock, blocks: list[BlockMapping], dirty: Callable[[BlockMapping], Index] | None = None
) -> StateRegistry:
    registry = StateRegistry()
    registry.register(MigrationState("clock", clock, [MigrationStateField("ticks", FIELD_TYPE_U64)], priority=9))
    registry.register(ram_state(blocks, dirty))
    return registry


def kinds(data: bytes) -> list[tuple[SectionKind, str]]:
    """Kind and name of the sections of *data* up to the first device."""
    source = MigrationDataFile(MemoryStream(data), "test")
    reader, found = SectionReader(source), []
    reader.read_header()
    words: RamWordReader | None = None
    while not isinstance(item := reader.next(), EndOfStream):
        if isinstance(item, SectionHead):
            found.append((item.kind, item.idstr))
            if item.kind is SectionKind.FULL:
                return found
            words = words or RamWordReader(source, read_setup(source))
            assert all(len(run.index) for run in words.read_section())  # type: ignore[union-attr]
            reader.footer(item)
    return found


def test_ram_and_devices_arrive_and_holes_stay_holes() -> None:
    source, destination = Clock(), Clock()
    source.ticks = 7
    with mapped(40, 3) as blocks, mapped(40, 3) as arrived:
        some = index_of([0, 1, 2, 9, 39])
        blocks[0].pages[some] = content(1, 5)
        blocks[1].pages[1] = 0  # exists, and is zero
        arrived[0].pages[3] = 9  # what an earlier migration left
        data = registry_of(source, blocks).save_all()
        registry_of(destination, arrived).load_all(data)
        assert destination.ticks == 7
        for here, there in zip(blocks, arrived, strict=True):
            assert (file_pages(here) == file_pages(there)).all()
        assert [allocated_pages(one) for one in arrived] == [6, 0]
        assert [allocated_pages(one) for one in blocks] == [5, 1]
    assert kinds(data) == [
        (SectionKind.START, "ram"),
        (SectionKind.PART, "ram"),
        (SectionKind.END, "ram"),
        (SectionKind.FULL, "clock"),
    ]


def test_a_guest_that_runs_is_saved_in_parts_and_what_it_writes_comes_last() -> None:
    dirty: list[int] = []

    def asked(mapping: BlockMapping) -> Index:
        found, dirty[:] = index_of(dirty), []
        return found

    clock, arrived_clock = Clock(), Clock()
    with mapped(2 * PART_PAGES + 5) as blocks, mapped(2 * PART_PAGES + 5) as arrived:
        registry = registry_of(clock, blocks, asked)
        transport = MemoryStream()
        saver = registry.saver(MigrationDataFile(transport, "out"))
        blocks[0].pages[5] = content(1)
        saver.setup("mac")
        assert not saver.iterate()
        blocks[0].pages[5] = content(2)
        dirty.append(5)
        assert not saver.iterate()
        assert saver.iterate()
        assert saver.iterate()  # page 5 again
        blocks[0].pages[6] = content(3)
        dirty.append(6)
        clock.ticks = 3
        saver.complete()
        assert [kind for kind, _ in kinds(bytes(transport.written))].count(SectionKind.PART) == 4
        registry_of(arrived_clock, arrived).load_all(transport.written)
        assert (file_pages(arrived[0]) == file_pages(blocks[0])).all()
        assert arrived_clock.ticks == 3


def test_another_memory_is_refused() -> None:
    with mapped(4) as blocks, mapped(5) as other:
        data = registry_of(Clock(), blocks).save_all()
        with pytest.raises(
            StateError, match=r"ram/0: expected blocks ram0 \(20480 bytes\), found ram0 \(16384 bytes\)"
        ):
            registry_of(Clock(), other).load_all(data)


def test_encoded_pages_of_qemu_are_decoded() -> None:
    with mapped(4) as blocks, mapped(4) as arrived:
        old, new = content(1)[0], content(1)[0].copy()
        new[100:110] = 0
        blocks[0].pages[2] = arrived[0].pages[2] = old
        registry = registry_of(Clock(), blocks)
        plain = registry.save_all()
        encoded = encode(old.tobytes(), new.tobytes())
        assert encoded is not None
        word = (2 << 12 | 0x40).to_bytes(8, "big") + b"\4ram0" + b"\1" + len(encoded).to_bytes(2, "big") + encoded
        end = b"\3\0\0\0\0"  # the type and number of RAM's END
        at = plain.index(end) + len(end)
        registry_of(Clock(), arrived).load_all(plain[:at] + word + plain[at:])
        assert (arrived[0].pages[2] == new).all()


def test_a_stream_that_is_cut_short_sets_no_device() -> None:
    clock, source = Clock(), Clock()
    source.ticks = 5
    with mapped(4) as blocks, mapped(4) as arrived:
        data = registry_of(source, blocks).save_all()
        end = data.rindex(b"\0\x06")
        for size_bytes in range(0, end, 7):
            with pytest.raises(StateError):
                registry_of(clock, arrived).load_all(data[:size_bytes])
    assert clock.ticks == 0
