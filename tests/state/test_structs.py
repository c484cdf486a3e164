# SPDX-License-Identifier: Apache-2.0
"""Structs within devices, arrays of them, and subsections that come and go."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from parmig.errors import StateError
from parmig.state import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    MigrationState,
    MigrationStateField,
    MigrationStateStruct,
    MigrationStateStructArray,
    MigrationStateStructField,
    MigrationStateSubsection,
    migration_state_pop,
    migration_state_push,
)
from parmig.state.cursor import StateWriter
from parmig.state.state_field import StateField
from parmig.stream.vmdescription import decode


@dataclass
class Queue:
    size: int = 0
    ready: bool = False
    error: int = 0


@dataclass
class Net:
    count: int = 0
    queues: list[Queue] = field(default_factory=list)
    control: Queue = field(default_factory=Queue)
    text: bytes = b""
    left: int = 0


SIZE = MigrationStateField("size", FIELD_TYPE_U16)
READY = MigrationStateField("ready", FIELD_TYPE_BOOL)
ERROR = MigrationStateSubsection(
    MigrationStateStruct("queue/error", [MigrationStateField("error", FIELD_TYPE_BYTE, default=0)]),
    needed=lambda queue: queue.error != 0,
    version=3,
    minimum_version=2,
)
QUEUE = MigrationStateStruct("queue", [SIZE, READY], [ERROR], factory=Queue)
TEXT = MigrationStateField("text", FIELD_TYPE_BUFFER, length=3)
LEFT = MigrationStateSubsection(
    MigrationStateStruct("net/left", [MigrationStateField("left", FIELD_TYPE_U32, default=0)]),
    needed=lambda net: net.left != 0,
)
SUBSECTION_ERROR = b"\x05\x0bqueue/error" + struct.pack(">I", 3)
SUBSECTION_LEFT = b"\x05\x08net/left" + struct.pack(">I", 1)


def state_of(net: object, *fields: StateField, **others: Any) -> MigrationState:
    return MigrationState("net", net, fields, **others)


CONTROL = MigrationStateStructField("control", QUEUE)
QUEUES = MigrationStateStructArray("queues", QUEUE)
PAIR = MigrationStateStructArray("queues", QUEUE, length=2)


@pytest.mark.parametrize(
    ("fields", "net", "expected"),
    [
        ([CONTROL], Net(control=Queue(1, True)), b"\0\1\1"),
        ([CONTROL, TEXT], Net(control=Queue(1, True, 9), text=b"abc"), b"\0\1\1" + SUBSECTION_ERROR + b"\x09abc"),
        ([QUEUES], Net(queues=[]), b"\0\0\0\0"),
        ([QUEUES], Net(queues=[Queue(1), Queue(2, True)]), b"\0\0\0\2\0\1\0\0\2\1"),
        ([QUEUES], Net(queues=[Queue(1, error=4), Queue(2)]), b"\0\0\0\2\0\1\0" + SUBSECTION_ERROR + b"\4\0\2\0"),
        ([PAIR], Net(queues=[Queue(1), Queue(2)]), b"\0\1\0\0\2\0"),
        (
            [
                MigrationStateField("count", FIELD_TYPE_BYTE),
                MigrationStateStructArray("queues", QUEUE, length_from="count"),
            ],
            Net(1, [Queue(5)]),
            b"\1\0\5\0",
        ),
    ],
)
def test_structs_have_no_bytes_of_their_own_and_arrive(fields: list[StateField], net: Net, expected: bytes) -> None:
    state = state_of(net, *fields)
    content, described = state.encode()
    assert content == expected
    arrived = Net(queues=[Queue(), Queue()])
    migration_state_pop(state_of(arrived, *fields), content)
    assert all(getattr(arrived, one.name) == getattr(net, one.name) for one in fields)
    decode(described, content)  # raises where it does not fit


def test_a_reader_without_the_declaration_sees_structs_and_subsections() -> None:
    net = Net(queues=[Queue(1, error=4), Queue(2)], left=7)
    content, described = state_of(net, QUEUES, subsections=[LEFT]).encode()
    assert decode(described, content) == {
        "queues.count": 2,
        "queues": [{"size": 1, "ready": False, "queue/error": {"error": 4}}, {"size": 2, "ready": False}],
        "net/left": {"left": 7},
    }


def test_an_array_of_equal_structs_is_described_once() -> None:
    _, described = state_of(Net(queues=[Queue(n) for n in range(9)]), QUEUES).encode()
    assert [(one.name, one.array_len, one.size) for one in described.fields] == [
        ("queues.count", None, 4),
        ("queues", 9, 3),
    ]


def test_objects_of_fixed_number_are_loaded_in_place() -> None:
    control, first, second = Queue(), Queue(), Queue()
    net = Net(control=control, queues=[first, second])
    migration_state_pop(state_of(net, CONTROL, PAIR), b"\0\1\0" + b"\0\2\0" + b"\0\3\0")
    assert (control.size, first.size, second.size) == (1, 2, 3)
    assert net.control is control
    assert net.queues == [first, second]


@pytest.mark.parametrize("queues", [[], [Queue()], None, 5])
def test_objects_that_are_not_there_to_be_loaded_are_missed_before_anything_is_set(queues: Any) -> None:
    control = Queue()
    state = state_of(Net(control=control, queues=queues), CONTROL, PAIR)
    with pytest.raises(StateError, match=r"net/0: array 'queues' \(struct queue\) is .*, expected 2 objects"):
        migration_state_pop(state, b"\0\1\0" + b"\0\2\0" + b"\0\3\0")
    assert control.size == 0


def test_errors_say_which_element() -> None:
    with pytest.raises(
        StateError, match=r"net/0: array 'queues' .*, element 1: field 'size' \(u16\) is int -1, expected"
    ):
        migration_state_push(state_of(Net(queues=[Queue(), Queue(-1)]), QUEUES))
    with pytest.raises(StateError, match=r"net/0: array 'queues' .*, element 1: field 'ready' \(bool\) is .*expected"):
        migration_state_pop(state_of(Net(), QUEUES), b"\0\0\0\2" + b"\0\1\0" + b"\0\1\2")
    with pytest.raises(StateError, match=r"'queues' .*is int 3, expected a sequence of objects"):
        migration_state_push(state_of(Net(queues=3), QUEUES))  # type: ignore[arg-type]


def test_a_count_of_structs_is_limited_by_itself() -> None:
    with pytest.raises(StateError, match="has 4294967295 elements, expected at most 65536"):
        migration_state_pop(state_of(Net(), QUEUES), b"\xff" * 1000)


def test_structs_in_structs_are_limited_together() -> None:
    inner = MigrationStateStruct("inner", [MigrationStateField("size", FIELD_TYPE_BYTE)], factory=Queue)
    outer = MigrationStateStruct("outer", [MigrationStateStructArray("queues", inner)], factory=Net)
    state = state_of(Net(queues=[Net(queues=[Queue()] * 300)] * 300), MigrationStateStructArray("queues", outer))
    with pytest.raises(StateError, match="more than 65536 structs and buffers"):
        migration_state_push(state)
    content = (300).to_bytes(4, "big") + 300 * ((300).to_bytes(4, "big") + bytes(300))
    with pytest.raises(StateError, match="more than 65536 structs and buffers"):
        migration_state_pop(state, content)
    migration_state_pop(state, (1).to_bytes(4, "big") + content[4:308])
    assert len(state.target.queues[0].queues) == 300


# -- subsections ------------------------------------------------------------------------------------


def test_a_subsection_is_written_only_where_it_is_needed() -> None:
    state = state_of(Net(text=b"abc"), TEXT, subsections=[LEFT])
    assert migration_state_push(state) == b"abc"
    state = state_of(Net(text=b"abc", left=7), TEXT, subsections=[LEFT])
    assert migration_state_push(state) == b"abc" + SUBSECTION_LEFT + b"\0\0\0\7"


def test_a_subsection_that_is_not_there_means_its_defaults() -> None:
    net = Net(left=9)
    state = state_of(net, TEXT, subsections=[LEFT])
    migration_state_pop(state, b"abc" + SUBSECTION_LEFT + b"\0\0\0\7")
    assert net.left == 7
    migration_state_pop(state, b"abc")
    assert net.left == 0


def test_older_destinations_take_what_was_saved_without_the_subsection_and_refuse_it_otherwise() -> None:
    newer = state_of(Net(text=b"abc", left=7), TEXT, subsections=[LEFT])
    older = state_of(Net(), TEXT)
    with pytest.raises(
        StateError, match=r"net/0: subsection 'net/left' is unknown or comes twice.*as new as the source"
    ):
        migration_state_pop(older, migration_state_push(newer))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"abc" + 2 * (SUBSECTION_LEFT + bytes(4)),
            "subsection 'net/left' is unknown or comes twice, expected one of: none; ",
        ),
        (
            b"abc" + SUBSECTION_LEFT[:-1] + b"\2" + bytes(4),
            "subsection 'net/left': version 2 is unknown, expected 1 to 1",
        ),
        (
            b"abc" + b"\x05\x08net/lost" + bytes(8),
            "subsection 'net/lost' is unknown or comes twice, expected one of: net/left",
        ),
        (b"abc" + b"\x05\x05net/\xff" + bytes(8), r"subsection 'net/\\\\xff'"),
        (b"abc" + SUBSECTION_LEFT + bytes(3), r"field 'left' \(u32\) needs 4 bytes"),
        (b"abc" + SUBSECTION_LEFT[:-3], "version of subsection 'net/left' needs 4 bytes"),
        (b"abc\x05\x08net/lef", "bytes follow"),
        (b"abc\x05", "bytes follow"),
        (b"abc\x05\x08tea/left" + bytes(8), "bytes follow"),
    ],
)
def test_a_subsection_that_does_not_fit_is_refused_by_name(content: bytes, words: str) -> None:
    net = Net(text=b"old")
    with pytest.raises(StateError, match=words):
        migration_state_pop(state_of(net, TEXT, subsections=[LEFT]), content)
    assert net.text == b"old"


def test_a_subsection_has_versions_of_its_own() -> None:
    net = Net()
    state = state_of(net, CONTROL, version=7)
    migration_state_pop(state, b"\0\1\0" + SUBSECTION_ERROR[:-1] + b"\2" + b"\x09")
    assert net.control.error == 9
    with pytest.raises(StateError, match="subsection 'queue/error': version 1 is too old, expected 2 to 3"):
        migration_state_pop(state, b"\0\1\0" + SUBSECTION_ERROR[:-1] + b"\1" + b"\x09")


def test_a_subsection_can_have_subsections() -> None:
    inner = MigrationStateSubsection(
        MigrationStateStruct("net/left/count", [MigrationStateField("count", FIELD_TYPE_BYTE)]), needed=lambda _: True
    )
    body = MigrationStateStruct("net/left", [MigrationStateField("left", FIELD_TYPE_U32)], [inner])
    other = MigrationStateSubsection(MigrationStateStruct("net/text", [TEXT]), needed=lambda _: True)
    part = MigrationStateSubsection(body, needed=lambda _: True)
    content, described = state_of(Net(3, left=7, text=b"abc"), CONTROL, subsections=[part, other]).encode()
    assert decode(described, content)["net/left"] == {"left": 7, "net/left/count": {"count": 3}}
    net = Net()
    migration_state_pop(state_of(net, CONTROL, subsections=[part, other]), content)
    assert (net.count, net.left, net.text) == (3, 7, b"abc")


def test_a_guest_cannot_pass_a_value_off_as_a_subsection() -> None:
    """Only its name tells a subsection from the field that comes next, so such a value is not written at all."""
    forged = SUBSECTION_ERROR + b"\x01"
    text = MigrationStateField("text", FIELD_TYPE_BUFFER, length=len(forged))
    with pytest.raises(StateError, match="the value after struct 'queue' looks like its subsection 'queue/error'"):
        migration_state_push(state_of(Net(text=forged), CONTROL, text))
    assert migration_state_push(state_of(Net(text=forged), text)) == forged
    nearly = forged.replace(b"queue/", b"queue-")
    state = state_of(Net(text=nearly), CONTROL, text)
    arrived = Net()
    migration_state_pop(state_of(arrived, CONTROL, text), migration_state_push(state))
    assert arrived.text == nearly


def test_the_longest_name_of_a_subsection_is_recognized_too() -> None:
    name = "q" * 253 + "/x"
    writer = StateWriter()
    writer.end_struct("q" * 253)
    writer.put(b"\5\xff" + name.encode())
    with pytest.raises(StateError, match="looks like its subsection 'qqq"):
        writer.content()


# -- versions ---------------------------------------------------------------------------------------


def test_fields_of_structs_go_by_the_version_of_the_device() -> None:
    queue = MigrationStateStruct(
        "queue", [SIZE, MigrationStateField("error", FIELD_TYPE_BYTE, since_version=2, default=5)], factory=Queue
    )
    fields = [MigrationStateStructField("control", queue), MigrationStateStructArray("queues", queue)]
    net = Net(control=Queue(error=1))
    state = state_of(net, *fields, version=2)
    migration_state_pop(state, b"\0\1" + b"\0\0\0\1" + b"\0\2", version=1)
    assert (net.control, net.queues) == (Queue(1, False, 5), [Queue(2, False, 5)])
    migration_state_pop(state, b"\0\1\7" + b"\0\0\0\1" + b"\0\2\x08")
    assert (net.control, net.queues) == (Queue(1, False, 7), [Queue(2, False, 8)])


def test_a_struct_that_older_records_lack_gets_the_defaults_of_its_fields() -> None:
    queue = MigrationStateStruct("queue", [MigrationStateField("size", FIELD_TYPE_U16, default=256)], factory=Queue)
    fields = [
        MigrationStateField("left", FIELD_TYPE_BYTE),
        MigrationStateStructField("control", queue, since_version=2),
        MigrationStateStructArray("queues", queue, length=1, since_version=2),
        MigrationStateStructArray("text", queue, since_version=2, default=[]),
    ]
    control = Queue(1)
    net = Net(control=control, queues=[Queue(2)])
    migration_state_pop(state_of(net, *fields, version=2), b"\3", version=1)
    assert net.control is control
    assert (control.size, net.queues[0].size, net.text) == (256, 256, [])


# -- hooks ------------------------------------------------------------------------------------------


def test_hooks_of_inner_structs_run_before_those_of_outer_ones_when_loading() -> None:
    calls: list[str] = []

    def hooks(name: str) -> dict[str, Callable[..., None]]:
        return {
            "pre_save": lambda *_: calls.append(f"save {name}"),
            "post_load": lambda *told: calls.append(f"load {name} {told[-1]}"),
        }

    queue = MigrationStateStruct("queue", [SIZE], **hooks("queue"))
    left = MigrationStateSubsection(
        MigrationStateStruct("net/left", [MigrationStateField("left", FIELD_TYPE_U32)], **hooks("left")),
        needed=lambda net: net.left,
        version=5,
    )
    state = state_of(
        Net(left=1), MigrationStateStructField("control", queue), version=2, subsections=[left], **hooks("net")
    )
    content = migration_state_push(state)
    assert calls == ["save net", "save queue", "save left"]
    calls.clear()
    migration_state_pop(state, content)
    assert calls == ["load queue 2", "load left 5", "load net 2"]
    calls.clear()
    migration_state_pop(state, b"\0\1")
    assert calls == ["load queue 2", "load net 2"]


def broken(*_: object) -> bool:
    raise ZeroDivisionError("oh")


def test_a_test_or_a_factory_that_fails_is_a_state_error() -> None:
    left = MigrationStateSubsection(LEFT.struct, needed=broken)
    with pytest.raises(StateError, match="net/0: needed failed: ZeroDivisionError"):
        migration_state_push(state_of(Net(text=b"abc"), TEXT, subsections=[left]))
    queues = MigrationStateStructArray("queues", MigrationStateStruct("queue", [SIZE], factory=broken))
    with pytest.raises(StateError, match="net/0: factory failed: ZeroDivisionError"):
        migration_state_pop(state_of(Net(), queues), b"\0\0\0\1\0\1")


def test_a_hook_or_an_attribute_that_fails_is_named_with_its_place() -> None:
    hooked = MigrationStateStructField("control", MigrationStateStruct("queue", [SIZE], pre_save=broken))
    with pytest.raises(StateError, match=r": pre_save failed: ZeroDivisionError"):
        migration_state_push(state_of(Net(), hooked))
    hooked = MigrationStateStructField("control", MigrationStateStruct("queue", [SIZE], post_load=broken))
    with pytest.raises(StateError, match=r": post_load failed: ZeroDivisionError"):
        migration_state_pop(state_of(Net(), hooked), b"\0\1")
    with pytest.raises(StateError, match=r": reading 'lost' failed: AttributeError"):
        migration_state_push(state_of(Net(), MigrationStateField("lost", FIELD_TYPE_U16)))
    with pytest.raises(StateError, match=r"net/0: subsection 'net/left': field 'left' "):
        migration_state_push(state_of(Net(left=-1), subsections=[LEFT]))


def test_errors_of_structs_name_the_field_that_they_are_in() -> None:
    place = r"^device net/0: field 'control' \(struct queue\): "
    with pytest.raises(StateError, match=f"{place}reading 'size' failed"):
        migration_state_push(state_of(Net(control=None), CONTROL))  # type: ignore[arg-type]
    with pytest.raises(StateError, match=f"{place}subsection 'queue/error': "):
        migration_state_pop(state_of(Net(), CONTROL), b"\0\1\0" + SUBSECTION_ERROR[:-1] + b"\1\x09")
    with pytest.raises(StateError, match=r"^device net/0: reading 'control' failed: AttributeError"):
        migration_state_pop(state_of(object(), CONTROL), b"\0\1\0")
    with pytest.raises(StateError, match=r"array 'queues' \(struct queue\) is list \[\], expected 2 objects"):
        migration_state_pop(state_of(Net(), PAIR), 2 * b"\0\1\0")


def test_structs_that_differ_are_described_one_by_one() -> None:
    described = PAIR.encode([Queue(1), Queue(2, error=9)], {}, StateWriter(), 1)
    assert [(one.name, one.type, one.index, one.array_len) for one in described] == [
        ("queues", "struct", 0, None),
        ("queues", "struct", 1, None),
    ]
    (one,) = CONTROL.encode(Queue(1), {}, StateWriter(), 1)
    assert (one.name, one.type, one.index, one.size) == ("control", "struct", None, 3)


def test_a_hook_gets_the_object_that_was_loaded() -> None:
    loaded: list[object] = []
    struct_ = MigrationStateStruct("queue", [SIZE], post_load=lambda queue, _: loaded.append(queue))
    net = Net()
    migration_state_pop(state_of(net, MigrationStateStructField("control", struct_)), b"\0\1")
    assert loaded == [net.control]


# -- mistakes ---------------------------------------------------------------------------------------

INNER = MigrationStateStructField("control", MigrationStateStruct("net", [SIZE]))
EMPTY = MigrationStateSubsection(MigrationStateStruct("net/none", []), needed=bool)
LATE = MigrationStateField("size", FIELD_TYPE_U16, since_version=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MigrationStateStruct("ü", []), "idstr 'ü'"),
        (lambda: MigrationStateStruct("queue", [SIZE, SIZE]), "two fields of one name"),
        (lambda: MigrationStateStruct("net", [MigrationStateField("left", FIELD_TYPE_U16)], [LEFT]), "two fields of"),
        (lambda: MigrationStateStruct("net", [], [LEFT, LEFT]), "two fields of one name"),
        (lambda: MigrationStateStruct("net", [], [EMPTY, EMPTY]), "net has two subsections of one name: .*'net/none'"),
        (lambda: MigrationStateStruct("tea", [], [LEFT]), "expected tea/NAME"),
        (
            lambda: MigrationStateSubsection(LEFT.struct, needed=bool, version=1, minimum_version=2),
            "net/left has versions 2 to 1, expected ascending ones",
        ),
        (lambda: MigrationStateStructArray("queues", MigrationStateStruct("queue", [SIZE])), "name a factory"),
        (
            lambda: MigrationStateStructArray("queues", MigrationStateStruct("queue", [LATE], factory=Queue)),
            "may have empty elements",
        ),
        (lambda: MigrationStateStructField("a b", QUEUE), "expected the name of an attribute"),
        (
            lambda: state_of(0, MigrationStateStructArray("x", MigrationStateStruct("net", [SIZE], factory=Queue))),
            "struct 'net' is in 'net'",
        ),
        (lambda: state_of(0, INNER), "have the same names"),
        (
            lambda: state_of(0, MigrationStateStructField("control", MigrationStateStruct("queue", []))),
            "no fields in version 1",
        ),
        (
            lambda: MigrationState("pci/net", 0, [MigrationStateStructField("x", MigrationStateStruct("pci", [SIZE]))]),
            "have the same names",
        ),
        (
            lambda: state_of(0, MigrationStateStructField("x", MigrationStateStruct("queue", [READY, LATE]))),
            "net/0: .*expected at least one of 1 to 1",
        ),
        (
            lambda: state_of(0, subsections=[MigrationStateSubsection(MigrationStateStruct("net/x", []), needed=bool)]),
            "no fields in version 1",
        ),
    ],
)
def test_a_declaration_without_sense_is_a_programming_error(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
