# SPDX-License-Identifier: Apache-2.0
"""Devices arrive as they were, or are refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StateError, StreamError, StreamTruncatedError
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
    state_saver,
)
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.vmdescription import FieldDescription, StructDescription, decode, find, parse
from parmig.transport.memory import MemoryStream

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
DESCRIPTION = find(SAVED)
assert DESCRIPTION is not None
STATE_BYTES = DESCRIPTION.start - 5
"""Up to EOF; what follows is for people."""
TIMERS = st.builds(
    Timer, st.integers(0, 2**64 - 1), st.booleans(), st.binary(max_size=50), st.lists(st.integers(0, 65535), max_size=9)
)


def test_a_stream_has_the_layout_of_the_format() -> None:
    fields = struct.pack(">QBI3sIHH", 7, 1, 3, b"abc", 2, 1, 2)
    expected = (
        b"QEVM\0\0\0\3"
        + (b"\x07\0\0\0\3mac")
        + (b"\x04\0\0\0\0\x05timer" + struct.pack(">II", 0, 1) + fields + b"\x7e\0\0\0\0")
        + b"\0"
    )
    saved = registry_of(Timer(7, True, b"abc", [1, 2])).save_all(machine="mac")
    assert saved.startswith(expected + b"\x06")
    assert parse(saved[len(expected) + 5 :]).devices[0].name == "timer"


def test_a_reader_without_the_declaration_reads_the_values() -> None:
    described = parse(SAVED[DESCRIPTION]).devices
    assert [(one.name, one.instance_id, one.version) for one in described] == [("timer", 0, 1), ("timer", 1, 1)]
    assert described[0].vmsd_name == "timer"
    content = migration_state_push(MigrationState("timer", Timer(7, True, b"abc", [1, 2]), FIELDS))
    assert decode(described[0], content) == {
        "ticks": 7,
        "armed": True,
        "text.count": 3,
        "text": b"abc",
        "queue.count": 2,
        "queue": [1, 2],
    }


@given(st.lists(TIMERS, max_size=3))
def test_devices_arrive_as_they_were(timers: list[Timer]) -> None:
    arrived = [Timer() for _ in timers]
    registry_of(*arrived).load_all(registry_of(*timers).save_all())
    assert [timer.values() for timer in arrived] == [timer.values() for timer in timers]


def test_a_stream_without_a_description_is_loaded() -> None:
    timers = Timer(), Timer()
    registry_of(*timers).load_all(SAVED[:STATE_BYTES])
    assert timers[0].values() == (7, True, b"abc", [1, 2])


@given(st.integers(0, len(SAVED) - 1).filter(lambda size_bytes: size_bytes != STATE_BYTES))
def test_state_that_is_cut_short_is_refused_and_changes_nothing(size_bytes: int) -> None:
    timers = Timer(1), Timer(2)
    with pytest.raises(StateError):
        registry_of(*timers).load_all(SAVED[:size_bytes])
    assert timers[0].values() == Timer(1).values()
    assert timers[1].values() == Timer(2).values()


@given(st.integers(0, STATE_BYTES - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_what_it_says(position: int, value: int) -> None:
    damaged = bytearray(SAVED)
    damaged[position] = value
    registry = registry_of(Timer(), Timer())
    try:
        registry.load_all(damaged)
    except StateError:
        return
    # The machine type and the numbers of sections are the writer's choice; values are as they were sent.
    start = SAVED.index(b"timer")
    if position >= start and damaged[position] != SAVED[position]:
        assert registry.save_all()[start:STATE_BYTES] == damaged[start:STATE_BYTES]


@given(st.binary(max_size=200), st.booleans())
def test_garbage_raises_only_state_errors(data: bytes, with_header: bool) -> None:
    header = SAVED[: SAVED.index(b"\x04")] if with_header else b""
    with pytest.raises(StateError):
        registry_of(Timer()).load_all(header + data)


def record(idstr: bytes, instance_id: int, version: int, content: bytes, number: int = 0) -> bytes:
    """A FULL section."""
    head = b"\x04" + struct.pack(">IB", number, len(idstr)) + idstr + struct.pack(">II", instance_id, version)
    return head + content + b"\x7e" + struct.pack(">I", number)


def stream(*sections: bytes) -> bytes:
    """Header, configuration, *sections* and EOF."""
    return b"QEVM\0\0\0\3\x07\0\0\0\1m" + b"".join(sections) + b"\0"


TICKS = [MigrationStateField("ticks", FIELD_TYPE_U32)]
GOOD = record(b"timer", 3, 2, bytes(4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            stream(record(b"clock", 0, 1, bytes(4))),
            r"^device state: device clock/0 is unknown, expected one of timer/3",
        ),
        (stream(record(b"timer", 4, 1, bytes(4))), r"device timer/4 is unknown"),
        (stream(record(b"\xfftimer", 3, 1, bytes(4))), r"expected a name, found b'\\xfftimer'"),
        (stream(), r"no complete record of timer/3"),
        (
            stream(record(b"timer", 3, 3, bytes(4))),
            r"timer/3: version 3 is unknown, expected 1 to 2; use a destination",
        ),
        (stream(record(b"timer", 3, 0, bytes(4))), r"timer/3: version 0 is too old, expected 1 to 2"),
        (stream(record(b"timer", 3, 2, bytes(5))), r"section 0 \('timer'\), expected its footer"),
        (stream(record(b"timer", 3, 2, bytes(3))), r"section 0 \('timer'\), expected its footer"),
        (stream(GOOD, record(b"timer", 3, 2, bytes(4), 1)), r"timer/3 has a second record, expected one"),
        (stream(GOOD) + b"\0", r"follows the end of the stream, expected a description or nothing"),
        (stream(GOOD) + b"\x06\0\0\0\2{}more", r"bytes follow"),
        (b"QEVM\0\0\0\3\x04" + GOOD, r"no configuration at its start"),
        (stream(b"\x08\0\2\0\4abcd", GOOD), r"^the device state contains command PING, expected sections of devices"),
        (stream(b"\x01" + GOOD[1:]), r"timer/3 has a section START, expected FULL"),
        (b"\x7fELF" + bytes(20), r"^device state: .* is not a migration stream"),
        (stream(GOOD)[:-8], r"timer/3: field 'ticks' \(u32\) needs 4 bytes"),
    ],
)
def test_a_stream_that_does_not_fit_is_refused_by_name(data: bytes, words: str) -> None:
    timer = Timer(1)
    registry = StateRegistry()
    registry.register(MigrationState("timer", timer, TICKS, instance_id=3, version=2))
    with pytest.raises(StateError, match=words):
        registry.load_all(data)
    assert timer.ticks == 1
    registry.load_all(stream(GOOD))
    assert timer.ticks == 0


def test_another_machine_or_other_capabilities_are_refused_when_asked_for() -> None:
    saved = registry_of(Timer()).save_all(machine="mac-2")
    registry_of(Timer()).load_all(saved, machine="mac-2")
    with pytest.raises(StateError, match="of machine 'mac-2', expected 'mac-1'"):
        registry_of(Timer()).load_all(saved, machine="mac-1")
    with pytest.raises(StateError, match="of machine 'mac-2', expected 'mac-1'"):
        registry_of(Timer()).load(MigrationDataFile(MemoryStream(saved), "test"), machine="mac-1")
    capable = registry_of(Timer()).save_all(capabilities=["x-ignore-shared"])
    registry_of(Timer()).load_all(capable, capabilities=["x-ignore-shared"])
    with pytest.raises(StateError, match="has capabilities: x-ignore-shared, expected: none"):
        registry_of(Timer()).load_all(capable)


def test_capabilities_that_differ_are_named_in_order() -> None:
    saved = registry_of().save_all(capabilities=["mapped-ram", "late-block-activate"])
    registry_of().load_all(saved, capabilities=["late-block-activate", "mapped-ram"])
    words = "the device state has capabilities: late-block-activate, mapped-ram, expected: a, b"
    with pytest.raises(StateError, match=f"^{words}$"):
        registry_of().load_all(saved, capabilities=["b", "a"])


def test_all_devices_that_are_missing_are_named() -> None:
    with pytest.raises(StateError, match=r"^the device state has no complete record of timer/0, timer/1,"):
        registry_of(Timer(), Timer()).load_all(registry_of().save_all())


def test_the_configuration_is_described_as_qemu_describes_it() -> None:
    saved = registry_of().save_all(machine="mac", capabilities=["x-ignore-shared", "mapped-ram"])
    found = parse(saved[find(saved) or slice(0)]).configuration
    names = [
        FieldDescription(name="capabilities", type="capability", size=size, index=index)
        for index, size in enumerate((16, 11))
    ]
    assert found == StructDescription(
        vmsd_name="configuration",
        version=1,
        fields=[
            FieldDescription(name="len", type="uint32", size=4),
            FieldDescription(name="name", type="buffer", size=3),
        ],
        subsections=[
            StructDescription(
                vmsd_name="configuration/capabilities",
                version=1,
                fields=[FieldDescription(name="caps_count", type="uint32", size=4), *names],
            )
        ],
    )


def test_a_description_is_written_up_to_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = len(SAVED[DESCRIPTION])
    monkeypatch.setattr(state_saver, "MAX_VMDESCRIPTION_BYTES", size_bytes)
    assert registry_of(Timer(7, True, b"abc", [1, 2]), Timer(8)).save_all() == SAVED
    monkeypatch.setattr(state_saver, "MAX_VMDESCRIPTION_BYTES", size_bytes - 1)
    assert registry_of(Timer(7, True, b"abc", [1, 2]), Timer(8)).save_all() == SAVED[:STATE_BYTES]


def test_a_machine_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(StreamError, match=r"^device state: .*machine"):
        registry_of().save_all(machine="ü")


def test_a_stream_in_a_stream_is_read_to_its_end_and_no_further() -> None:
    transport = MemoryStream()
    data = MigrationDataFile(transport, "out")
    registry_of(Timer(5)).save(data)
    data.put_be32(0x01020304)
    data.flush_data()
    source = MigrationDataFile(MemoryStream(transport.written), "in")
    timer = Timer()
    registry_of(timer).load(source)
    assert timer.ticks == 5
    assert source.get_be32() == 0x01020304


def test_a_damaged_stream_is_told_with_its_offset() -> None:
    source = MigrationDataFile(MemoryStream(stream(GOOD)[:-8]), "in")
    registry = StateRegistry()
    registry.register(MigrationState("timer", Timer(), TICKS, instance_id=3, version=2))
    with pytest.raises(StreamTruncatedError) as caught:
        registry.load(source)
    assert caught.value.offset_bytes == stream(GOOD).index(bytes(4) + b"\x7e")


def test_a_second_device_of_one_name_is_refused() -> None:
    registry = registry_of(Timer())
    with pytest.raises(StateError, match="timer/0 is already registered"):
        registry.register(MigrationState("timer", Timer(), FIELDS))


def test_devices_are_found_by_name_and_number() -> None:
    first, second = Timer(), Timer()
    registry = registry_of(first, second)
    found = registry.lookup("timer", 1)
    assert isinstance(found, MigrationState)
    assert found.target is second
    assert registry.lookup("timer") is registry.devices()[0]
    with pytest.raises(StateError, match="device clock/2 is unknown, expected one of timer/0, timer/1"):
        registry.lookup("clock", 2)
    with pytest.raises(StateError, match=r"device clock/2 is unknown, expected one of none$"):
        StateRegistry().lookup("clock", 2)


def test_fields_of_a_later_version_stay_as_they_are_or_get_their_default() -> None:
    timer = Timer(ticks=1, armed=True, text=b"old")
    fields = [
        *TICKS,
        MigrationStateField("armed", FIELD_TYPE_BOOL, since_version=2),
        MigrationStateField("text", FIELD_TYPE_BUFFER, since_version=2, default=b"new"),
    ]
    state = MigrationState("timer", timer, fields, version=2)
    state.migration_state_pop(b"\0\0\0\5", version=1)
    assert (timer.ticks, timer.armed, timer.text) == (5, True, b"new")


def test_a_default_is_copied() -> None:
    default = [1]
    fields = [*TICKS, MigrationStateArray("queue", FIELD_TYPE_U16, since_version=2, default=default)]
    timer = Timer()
    MigrationState("timer", timer, fields, version=2).migration_state_pop(bytes(4), version=1)
    assert timer.queue == default
    assert timer.queue is not default


def test_a_field_that_was_dropped_is_still_read_from_old_records() -> None:
    def convert(version: int) -> None:
        if version < 3:
            timer.ticks *= 10

    timer = Timer()
    fields = [
        MigrationStateField("ticks", FIELD_TYPE_U64),
        MigrationStateField("armed", FIELD_TYPE_BOOL, until_version=2),
    ]
    state = MigrationState("timer", timer, fields, version=3, post_load=convert)
    state.migration_state_pop(struct.pack(">QB", 4, 1), version=2)
    assert (timer.ticks, timer.armed) == (40, True)
    state.migration_state_pop(state.migration_state_push())
    assert timer.ticks == 40
    assert state.migration_state_push() == struct.pack(">Q", 40)


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


def fail(*_: object) -> None:
    raise ZeroDivisionError("oh")


def refuse(*_: object) -> None:
    raise StateError("not today")


@pytest.mark.parametrize(("hook", "words"), [(fail, "failed: ZeroDivisionError"), (refuse, "not today")])
def test_a_hook_that_fails_is_a_state_error_of_the_device(hook: Callable[..., None], words: str) -> None:
    state = MigrationState("timer", Timer(), TICKS, pre_save=hook, post_load=hook)
    with pytest.raises(StateError, match=f"timer/0: .*{words}"):
        migration_state_push(state)
    with pytest.raises(StateError, match=f"timer/0: .*{words}"):
        migration_state_pop(state, bytes(4))


def test_an_attribute_that_is_missing_is_a_state_error_of_the_device() -> None:
    state = MigrationState("timer", object(), TICKS)
    with pytest.raises(StateError, match=r"timer/0: .*ticks"):
        migration_state_push(state)
    with pytest.raises(StateError, match=r"timer/0: setting 'ticks' failed"):
        migration_state_pop(state, bytes(4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(3), "field 'ticks' .* needs 4 bytes"),
        (bytes(5), "bytes follow the last field"),
        (b"", "field 'ticks' .* needs 4 bytes"),
    ],
)
def test_bytes_of_another_length_are_refused(data: bytes, words: str) -> None:
    timer = Timer(1)
    with pytest.raises(StateError, match=f"^device timer/0: {words}"):
        migration_state_pop(MigrationState("timer", timer, TICKS), data)
    assert timer.ticks == 1


COUNTED = [
    MigrationStateField("ticks", FIELD_TYPE_U16),
    MigrationStateField("text", FIELD_TYPE_BUFFER, length_from="ticks"),
]


def test_a_length_can_be_in_another_field() -> None:
    state = MigrationState("timer", Timer(2, text=b"ab"), COUNTED)
    assert migration_state_push(state) == b"\0\2ab"
    timer = Timer()
    migration_state_pop(MigrationState("timer", timer, COUNTED), b"\0\3xyz")
    assert (timer.ticks, timer.text) == (3, b"xyz")
    with pytest.raises(StateError, match=r"'text' .*has 2 elements, expected 3 \(as field 'ticks' says\)"):
        migration_state_push(MigrationState("timer", Timer(3, text=b"ab"), COUNTED))


def test_a_length_in_another_field_is_limited_too() -> None:
    fields = [COUNTED[0], MigrationStateField("text", FIELD_TYPE_BUFFER, length_from="ticks", limit=2)]
    with pytest.raises(StateError, match=r"has 3 elements, expected at most 2 \(as field 'ticks' says\)"):
        migration_state_pop(MigrationState("timer", Timer(), fields), b"\0\3xyz")


U16 = FIELD_TYPE_U16


def test_the_largest_names_and_numbers_can_be_declared_and_arrive() -> None:
    most = 2**32 - 1
    source, destination = (
        MigrationState("a" * 255, timer, TICKS, instance_id=most, version=most) for timer in (Timer(7), Timer())
    )
    registries = StateRegistry(), StateRegistry()
    for registry, state in zip(registries, (source, destination), strict=True):
        registry.register(state)
    registries[1].load_all(registries[0].save_all())
    assert isinstance(destination.target, Timer)
    assert destination.target.ticks == 7


@pytest.mark.parametrize("idstr", ["", "a" * 256, "ü", "a\n"])
def test_an_idstr_that_cannot_be_written_is_a_programming_error(idstr: str) -> None:
    with pytest.raises(ValueError, match="idstr"):
        MigrationState(idstr, Timer(), FIELDS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MigrationState("t", 0, FIELDS, version=1, minimum_version=2), "^t/0 .*expected ascending ones"),
        (lambda: MigrationState("t", 0, FIELDS, version=1, minimum_version=0), "^t/0 .*expected ascending ones"),
        (lambda: MigrationState("t", 0, FIELDS, instance_id=-1), "^t/-1 .*expected 0 to 4294967295"),
        (lambda: MigrationState("t", 0, FIELDS, instance_id=2**32), "expected 0 to 4294967295"),
        (lambda: MigrationState("t", 0, [*TICKS, *TICKS]), "two fields of one name"),
        (lambda: MigrationState("t", 0, [MigrationStateField("x", U16, since_version=2)]), "expected at least one of"),
        (
            lambda: MigrationState(
                "t", 0, [MigrationStateField("x", U16, until_version=1)], version=3, minimum_version=2
            ),
            "is in versions 1 to 1, expected at least one of 2 to 3",
        ),
        (lambda: MigrationState("t", 0, COUNTED[1:]), "expected an integer field before it"),
        (lambda: MigrationState("t", 0, COUNTED[::-1]), "expected an integer field before it"),
        (
            lambda: MigrationState("t", 0, [MigrationStateArray("ticks", U16), COUNTED[1]]),
            "expected an integer field before it",
        ),
        (
            lambda: MigrationState("t", 0, [MigrationStateField("ticks", U16, since_version=2), COUNTED[1]], version=2),
            "expected a field of all its versions",
        ),
    ],
)
def test_what_contradicts_itself_is_a_programming_error(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_description_that_is_too_long_is_left_out() -> None:
    names = MigrationStateArray("text", FIELD_TYPE_BUFFER)
    timers = [Timer(), Timer()]
    source, destination = StateRegistry(), StateRegistry()
    for index, timer in enumerate(timers):
        source.register(MigrationState("timer", Timer(text=[b""] * 65536), [names], index))  # type: ignore[arg-type]
        destination.register(MigrationState("timer", timer, [names], index))
    saved = source.save_all()
    assert find(saved) is None
    destination.load_all(saved)
    assert [timer.text for timer in timers] == [[b""] * 65536] * 2


def test_nobody_needs_the_description_to_load() -> None:
    timers = Timer(), Timer()
    registry_of(*timers).load_all(SAVED[:STATE_BYTES] + b"\x06\0\0\0\4junk")
    assert timers[0].ticks == 7
