# SPDX-License-Identifier: Apache-2.0
"""Live components beside devices: their sections, their versions, and what does not fit."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from parmig.errors import StateError
from parmig.state import FIELD_TYPE_BYTE, MigrationState, MigrationStateField, StateRegistry
from parmig.state.live import LiveHandlers, LiveState
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.sections import SectionKind
from parmig.transport.memory import MemoryStream


class Tape(LiveHandlers):
    """Four bytes in START, one in each of three PARTs, two in END; keeps what it read."""

    def __init__(self) -> None:
        self.parts = 0
        self.seen: list[tuple[str, bytes, int]] = []

    def save_setup(self, data: MigrationDataFile) -> None:
        data.put_buffer(b"head")

    def save_iterate(self, data: MigrationDataFile) -> bool:
        self.parts += 1
        data.put_buffer(bytes([self.parts]))
        return self.parts >= 3

    def save_complete(self, data: MigrationDataFile) -> None:
        data.put_buffer(b"ok")

    def load_setup(self) -> None:
        self.seen.append(("setup", b"", 0))

    def load(self, data: MigrationDataFile, kind: SectionKind, version: int) -> None:
        size_bytes = {SectionKind.START: 4, SectionKind.PART: 1, SectionKind.END: 2}[kind]
        self.seen.append((kind.name, data.get_buffer(size_bytes), version))


def registry_of(tape: Tape, value: int, version: int = 3, minimum_version: int = 2) -> StateRegistry:
    registry = StateRegistry()
    registry.register(MigrationState("dev", SimpleNamespace(x=value), [MigrationStateField("x", FIELD_TYPE_BYTE)]))
    registry.register(LiveState("tape", tape, 5, version, minimum_version))
    return registry


def test_a_live_component_is_read_as_it_was_written_before_the_devices() -> None:
    saved = registry_of(Tape(), 7).save_all()
    tape = Tape()
    registry_of(tape, 0).load_all(saved)
    assert tape.seen == [
        ("setup", b"", 0),
        ("START", b"head", 3),
        ("PART", b"\1", 3),
        ("PART", b"\2", 3),
        ("PART", b"\3", 3),
        ("END", b"ok", 3),
    ]
    body = b"\1\0\0\0\0\4tape" + struct.pack(">II", 5, 3) + b"head\x7e\0\0\0\0"
    body += b"".join(b"\2\0\0\0\0" + bytes([part]) + b"\x7e\0\0\0\0" for part in (1, 2, 3))
    body += b"\3\0\0\0\0ok\x7e\0\0\0\0" + b"\4\0\0\0\1\3dev" + struct.pack(">II", 0, 1) + b"\7\x7e\0\0\0\1\0"
    assert body in saved


def test_parts_are_written_until_no_component_has_more() -> None:
    registry = registry_of(Tape(), 7)
    quick = Tape()
    quick.parts = 2  # its next part is the last
    registry.register(LiveState("tape", quick, 6, priority=-1))
    saver = registry.saver(MigrationDataFile(MemoryStream(), "out"))
    saver.setup("mac")
    assert [saver.iterate() for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("version", "found"), [(2, "newer"), (5, "older")])
def test_the_version_of_a_live_component_is_looked_at_first(version: int, found: str) -> None:
    tape = Tape()
    saved = registry_of(Tape(), 7).save_all()
    with pytest.raises(
        StateError, match=f"^device tape/5: version 3 is (unknown|too old), expected {version} to {version}; "
    ):
        registry_of(tape, 0, version, version).load_all(saved)
    assert tape.seen == [], found


def test_a_live_component_without_its_end_is_missed() -> None:
    saved = registry_of(Tape(), 7).save_all()
    end = b"\3\0\0\0\0ok\x7e\0\0\0\0"
    assert saved.count(end) == 1
    with pytest.raises(StateError, match=r"no complete record of tape/5, expected one each"):
        registry_of(Tape(), 0).load_all(saved.replace(end, b""))


def test_a_live_component_is_no_full_section_and_starts_once() -> None:
    start = b"\1\0\0\0\0\4tape"
    saved = registry_of(Tape(), 7).save_all()
    with pytest.raises(StateError, match="device tape/5 has a FULL section, expected START, PART and END"):
        registry_of(Tape(), 0).load_all(saved.replace(start, b"\4" + start[1:]))
    again = b"\1\0\0\0\2\4tape" + struct.pack(">II", 5, 3) + b"head\x7e\0\0\0\2"
    end = b"\3\0\0\0\0ok"
    with pytest.raises(StateError, match="device tape/5 has a second record, expected one"):
        registry_of(Tape(), 0).load_all(saved.replace(end, again + end))


def test_a_live_component_is_declared_like_a_device() -> None:
    made = LiveState("tape", Tape())
    assert (made.name, made.version, made.minimum_version, made.priority) == ("tape/0", 1, 1, 0)
    for arguments, words in (
        (("", Tape()), "idstr ''"),
        (("tape", Tape(), -1), "tape/-1 has instance_id -1, expected 0 to"),
        (("tape", Tape(), 1, 2, 3), "tape/1 has versions 3 to 2, expected ascending ones from 1 to "),
    ):
        with pytest.raises(ValueError, match=words):
            LiveState(*arguments)  # type: ignore[arg-type]
