# SPDX-License-Identifier: Apache-2.0
"""The golden files: parmig writes what it wrote, and reads what it wrote."""

from __future__ import annotations

import pytest

from parmig.stream.configuration import Configuration
from parmig.stream.mapped_ram import MappedRamHeader
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.sections import Command, SectionHead
from parmig.stream.vmdescription import VmDescription, find, parse
from tests.stream.streams import read_whole, reading
from tools.make_golden import GOLDEN, golden_files, main

SEQUENTIAL = (GOLDEN / "sequential.stream").read_bytes()
MACHINE, UUID = "pc-i440fx-7.2", bytes(range(16))


def from_text(text: str) -> bytes:
    found = bytearray()
    for line in text.splitlines():
        offset, content = line.split()
        found[len(found) :] = bytes(int(offset, 16) - len(found)) + bytes.fromhex(content)
    return bytes(found)


def description() -> VmDescription:
    where = find(SEQUENTIAL)
    assert where is not None
    return parse(SEQUENTIAL[where])


def test_what_is_written_is_as_it_was() -> None:
    """If this fails, the format has changed: files that users have may not be readable."""
    assert {name: (GOLDEN / name).read_bytes() for name in golden_files()} == golden_files()
    assert main(["--check"]) == 0


def test_the_sequential_file_is_read() -> None:
    found = read_whole(reading(SEQUENTIAL), description())
    page = {number: b"\xff" + bytes((number,)) * 4095 for number in (3, 7)}
    assert [item for item in found if not isinstance(item, SectionHead | Command)] == [
        Configuration(MACHINE, ("x-ignore-shared",), UUID),
        BlockEntry("mem0", 65536, 0),
        BlockEntry("pc.rom", 4096, 0x1000),
        ("mem0", 3, page[3]),
        ("mem0", 7, page[7]),
        *[("mem0", number, None) for number in (8, 9, 11)],
        ("pc.rom", 0, None),
        {"ticks": 99, "lines": [1, 2], "clock/alarm": {"text": b"hello"}},
        description(),
    ]
    assert [item.kind.name for item in found if isinstance(item, SectionHead)] == ["START", "PART", "END", "FULL"]


def test_the_mapped_file_is_read() -> None:
    found = read_whole(reading(from_text((GOLDEN / "mapped-ram.txt").read_text())), description())
    mapped = [MappedRamHeader(1, 4096, 179, 1 << 20), MappedRamHeader(1, 4096, 1114155, 2 << 20)]
    assert [item for item in found if not isinstance(item, SectionHead)] == [
        Configuration(MACHINE, ("mapped-ram",), UUID),
        BlockEntry("mem0", 65536, mapped=mapped[0]),
        BlockEntry("pc.rom", 4096, mapped=mapped[1]),
        {"ticks": 99, "lines": [1, 2], "clock/alarm": {"text": b"hello"}},
        description(),
    ]


def test_a_file_that_is_not_current_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.make_golden.golden_files", lambda: {"sequential.stream": b"other"})
    assert main(["--check"]) == 1
    assert "sequential.stream is not what parmig writes" in capsys.readouterr().out
