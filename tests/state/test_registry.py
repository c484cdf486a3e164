# SPDX-License-Identifier: Apache-2.0
"""Devices arrive as they were, or are refused by name."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StateError
from parmig.state import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    MigrationState,
    MigrationStateArray,
    MigrationStateField,
    StateRegistry,
    migration_state_pop,
    migration_state_push,
)

FIELDS = [
    MigrationStateField("ticks", FIELD_TYPE_U64),
    MigrationStateField("armed", FIELD_TYPE_BOOL),
    MigrationStateField("text", FIELD_TYPE_BUFFER, limit=1000),
    MigrationStateArray("queue", FIELD_TYPE_U16),
]


@dataclass
class Timer:
    ticks: int = 0
    armed: bool = False
    text: bytes = b""
    queue: npt.NDArray[np.uint16] | list[int] = field(default_factory=list)

    def values(self) -> tuple[int, bool, bytes, list[int]]:
        return self.ticks, self.armed, self.text, [int(value) for value in self.queue]


def registry_of(*timers: Timer) -> StateRegistry:
    registry = StateRegistry()
    for index, timer in enumerate(timers):
        registry.register(MigrationState("timer", timer, FIELDS, instance_id=index))
    return registry


SAVED = registry_of(Timer(7, True, b"abc", [1, 2]), Timer(8)).save_all()
TIMERS = st.builds(
    Timer, st.integers(0, 2**64 - 1), st.booleans(), st.binary(max_size=50), st.lists(st.integers(0, 65535), max_size=9)
)


def test_a_record_has_the_layout_of_the_format() -> None:
    registry = registry_of(Timer(7, True, b"abc", [1, 2]))
    fields = struct.pack(">QBI3sIHH", 7, 1, 3, b"abc", 2, 1, 2)
    assert registry.save_all() == b"\x05timer" + struct.pack(">III", 0, 1, len(fields)) + fields


@given(st.lists(TIMERS, max_size=3))
def test_devices_arrive_as_they_were(timers: list[Timer]) -> None:
    arrived = [Timer() for _ in timers]
    registry_of(*arrived).load_all(registry_of(*timers).save_all())
    assert [timer.values() for timer in arrived] == [timer.values() for timer in timers]


@given(st.integers(0, len(SAVED) - 1))
def test_state_that_is_cut_short_is_refused_and_changes_nothing(size_bytes: int) -> None:
    timers = Timer(1), Timer(2)
    with pytest.raises(StateError):
        registry_of(*timers).load_all(SAVED[:size_bytes])
    assert timers[0].values() == Timer(1).values()
    assert timers[1].values() == Timer(2).values()


@given(st.integers(0, len(SAVED) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_what_it_says(position: int, value: int) -> None:
    damaged = bytearray(SAVED)
    damaged[position] = value
    registry = registry_of(Timer(), Timer())
    try:
        registry.load_all(damaged)
    except StateError:
        return
    assert registry.save_all() == damaged


@given(st.binary(max_size=200))
def test_garbage_raises_only_state_errors(data: bytes) -> None:
    with pytest.raises(StateError):
        registry_of(Timer()).load_all(data)


def record(idstr: bytes, instance_id: int, version: int, content: bytes) -> bytes:
    return bytes([len(idstr)]) + idstr + struct.pack(">III", instance_id, version, len(content)) + content


TICKS = [MigrationStateField("ticks", FIELD_TYPE_U32)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(b"clock", 0, 1, bytes(4)), r"unknown device clock/0; expected one of timer/3"),
        (record(b"timer", 4, 1, bytes(4)), r"unknown device timer/4"),
        (record(b"\xfftimer", 3, 1, bytes(4)), r"unknown device \\xfftimer/3"),
        (b"", r"expected records of timer/3, found none"),
        (record(b"timer", 3, 3, bytes(4)), r"timer/3: expected version 1 to 2, found 3"),
        (record(b"timer", 3, 0, bytes(4)), r"timer/3: expected version 1 to 2, found 0"),
        (record(b"timer", 3, 2, bytes(5)), r"timer/3: 1 bytes are left over"),
        (record(b"timer", 3, 2, bytes(3)), r"timer/3: field 'ticks' \(u32\) needs 4 bytes .* 3 are left"),
        (record(b"timer", 3, 2, bytes(4)) * 2, r"timer/3: expected one record, found a second"),
        (record(b"timer", 3, 2, bytes(4)) + b"\0", r"head of the record"),
        (b"\5timer" + struct.pack(">III", 3, 2, 2**32 - 1), r"record of timer/3 needs 4294967295 bytes"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_name(data: bytes, words: str) -> None:
    registry = StateRegistry()
    registry.register(MigrationState("timer", Timer(), TICKS, instance_id=3, version=2))
    with pytest.raises(StateError, match=words):
        registry.load_all(data)


def test_a_second_device_of_one_name_is_refused() -> None:
    registry = registry_of(Timer())
    with pytest.raises(StateError, match="timer/0 is registered already"):
        registry.register(MigrationState("timer", Timer(), FIELDS))


def test_fields_of_a_later_version_stay_as_they_are() -> None:
    timer = Timer(ticks=1, armed=True)
    fields = [*TICKS, MigrationStateField("armed", FIELD_TYPE_BOOL, since_version=2)]
    state = MigrationState("timer", timer, fields, version=2)
    state.migration_state_pop(b"\0\0\0\5", version=1)
    assert (timer.ticks, timer.armed) == (5, True)


def test_hooks_run_around_save_and_load_by_priority() -> None:
    calls: list[str] = []
    registry = StateRegistry()
    for name, priority in (("low", 0), ("high", 5), ("low2", 0)):
        registry.register(
            MigrationState(
                name,
                Timer(),
                TICKS,
                priority=priority,
                pre_save=lambda name=name: calls.append(f"save {name}"),
                post_load=lambda version, name=name: calls.append(f"load {name} {version}"),
            )
        )
    data = registry.save_all()
    assert calls == ["save high", "save low", "save low2"]
    calls.clear()
    registry.load_all(data)
    assert calls == ["load high 1", "load low 1", "load low2 1"]


def test_a_hook_that_fails_is_a_state_error_of_the_device() -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oh")

    state = MigrationState("timer", Timer(), TICKS, pre_save=fail, post_load=fail)
    with pytest.raises(StateError, match="timer/0: pre_save failed"):
        migration_state_push(state)
    with pytest.raises(StateError, match="timer/0: post_load failed"):
        migration_state_pop(state, bytes(4))


def test_an_attribute_that_is_missing_is_a_state_error_of_the_device() -> None:
    state = MigrationState("timer", object(), TICKS)
    with pytest.raises(StateError, match=r"timer/0: .*ticks"):
        migration_state_push(state)


@pytest.mark.parametrize("idstr", ["", "a" * 256, "ü", "a\n"])
def test_an_idstr_that_cannot_be_written_is_a_programming_error(idstr: str) -> None:
    with pytest.raises(ValueError, match="idstr"):
        MigrationState(idstr, Timer(), FIELDS)


def test_versions_and_names_that_contradict_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="out of range"):
        MigrationState("timer", Timer(), FIELDS, version=1, minimum_version=2)
    with pytest.raises(ValueError, match="two fields of one name"):
        MigrationState("timer", Timer(), [*TICKS, *TICKS])
