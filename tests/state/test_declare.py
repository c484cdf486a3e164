# SPDX-License-Identifier: Apache-2.0
"""A class with annotations is a device; what it says and what it forgot are found when it is declared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest

from parmig.errors import StateError
from parmig.state import (
    FIELD_TYPE_U16,
    FIELD_TYPE_U64,
    MISSING,
    NOT_MIGRATED,
    U16,
    U32,
    U64,
    Bool,
    BoolArray,
    Buffer,
    Byte,
    ByteArray,
    Length,
    Limit,
    Since,
    StateRegistry,
    Subsection,
    U16Array,
    U32Array,
    U64Array,
    Until,
    migration_state,
    migration_state_pop,
    migration_state_push,
    migration_struct,
    state_of,
)
from parmig.stream.vmdescription import decode

ERROR = Subsection("error", needed=lambda queue: queue.error != 0)
ANNOUNCE = Subsection("announce", needed=lambda net: net.announce_left > 0, version=2)


@migration_struct("queue")
@dataclass
class Queue:
    size: U16 = 256
    ready: Bool = False
    error: Annotated[Byte, ERROR] = 0


@migration_state("net", version=3, minimum_version=2, priority=7)
@dataclass
class Net:
    kind: ClassVar[str] = "net"
    start: InitVar[int] = 0
    mac: Annotated[Buffer, Length(6)] = bytes(6)
    status: Byte = 0
    flags: U32 = 0
    queues: Annotated[list[Queue], Length(2)] = field(default_factory=lambda: [Queue(), Queue()])
    control: Queue = field(default_factory=Queue)
    more: Annotated[list[Queue], Limit(4)] = field(default_factory=list)
    vlans: Annotated[list[U16], Limit(4096)] = field(default_factory=list)
    table: U64Array = field(default_factory=lambda: np.zeros(2, np.uint64))
    key: Annotated[ByteArray, Length(4)] = field(default_factory=lambda: np.zeros(4, np.uint8))
    masks: U16Array = field(default_factory=lambda: np.zeros(0, np.uint16))
    words: U32Array = field(default_factory=lambda: np.zeros(0, np.uint32))
    bits: BoolArray = field(default_factory=lambda: np.zeros(3, np.bool_))
    on: list[Bool] = field(default_factory=list)
    count: Byte = 0
    peers: Annotated[list[Annotated[Buffer, Length(6)]], Length("count")] = field(default_factory=list)
    names: list[Buffer] = field(default_factory=list)
    offloads: Annotated[U64, Since(3)] = 5
    speed_kbit: Annotated[U32, Until(2)] = 0
    speed_mbit: Annotated[U32, Since(3)] = 10
    announce_left: Annotated[U16, ANNOUNCE] = 0
    announce_ns: Annotated[U64, Since(2), ANNOUNCE] = 0
    fd: Annotated[int, NOT_MIGRATED] = -1
    calls: Annotated[list[str], NOT_MIGRATED] = field(default_factory=list)

    def pre_save(self) -> None:
        self.calls.append("pre_save")

    def post_load(self, version: int) -> None:
        if version < 3:
            self.speed_mbit = self.speed_kbit // 1000
        self.calls.append(f"post_load {version}")


def full_net() -> Net:
    return Net(
        mac=b"\x52\x54\0\0\0\1",
        status=3,
        flags=7,
        queues=[Queue(1, True), Queue(2, error=9)],
        control=Queue(64),
        more=[Queue(5)],
        vlans=[1, 4095],
        table=np.array([1, 2**64 - 1], np.uint64),
        key=np.array([1, 2, 3, 4], np.uint8),
        masks=np.array([7], np.uint16),
        words=np.array([8, 9], np.uint32),
        bits=np.array([True, False, True]),
        on=[True, False],
        count=2,
        peers=[b"abcdef", b"ghijkl"],
        names=[b"", b"eth0"],
        offloads=6,
        speed_mbit=1000,
        announce_left=3,
        announce_ns=4,
        fd=9,
    )


def plain(net: Net) -> dict[str, Any]:
    """All that is migrated."""
    found = dataclasses.asdict(net)
    for name in ("fd", "calls", "speed_kbit"):
        del found[name]
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def test_a_declared_device_arrives_as_it_was() -> None:
    source, destination = full_net(), Net(fd=4)
    control, first = destination.control, destination.queues[0]
    registries = StateRegistry(), StateRegistry()
    for registry, net in zip(registries, (source, destination), strict=True):
        registry.register(state_of(net, 1))
    registries[1].load_all(registries[0].save_all())
    assert plain(destination) == plain(source)
    assert destination.fd == 4
    assert destination.calls == ["post_load 3"]
    assert source.calls == ["pre_save"]
    assert destination.control is control
    assert destination.queues[0] is first
    assert isinstance(destination.vlans, list)
    assert destination.table.dtype == np.uint64


def test_what_is_declared_is_described() -> None:
    content, described = state_of(full_net()).encode()
    values = decode(described, content)
    assert values["mac"] == b"\x52\x54\0\0\0\1"
    assert values["queues"][1] == {"size": 2, "ready": False, "queue/error": {"error": 9}}
    assert values["peers"] == [b"abcdef", b"ghijkl"]
    assert values["names.length"] == [0, 4]
    assert values["net/announce"] == {"announce_left": 3, "announce_ns": 4}
    assert not {"fd", "calls", "start", "kind", "speed_kbit"} & set(values)
    assert (described.name, described.version) == ("net", 3)


def test_a_declaration_compiles_to_a_migration_state() -> None:
    net = Net()
    state = state_of(net, 5)
    assert (state.idstr, state.instance_id, state.target) == ("net", 5, net)
    assert (state.version, state.minimum_version, state.priority) == (3, 2, 7)
    assert [one.name for one in state.subsections] == ["net/announce"]


@migration_state("net", version=2)
@dataclass
class OldNet:
    """A device as an older program has it."""

    speed_kbit: U32 = 0
    gone: Annotated[U16, Until(1)] = 1


@migration_state("net", version=3)
@dataclass
class NewNet:
    speed_kbit: Annotated[U32, Until(2)] = 0
    speed_mbit: Annotated[U32, Since(3)] = 0
    mtu: Annotated[U16, Since(3)] = 1500

    def post_load(self, version: int) -> None:
        if version < 3:
            self.speed_mbit = self.speed_kbit // 1000


def test_records_of_older_versions_get_defaults_and_are_converted() -> None:
    content = migration_state_push(state_of(OldNet(5000)))
    assert content == (5000).to_bytes(4, "big")
    net = NewNet(mtu=1)
    migration_state_pop(state_of(net), content, version=2)
    assert (net.speed_mbit, net.mtu) == (5, 1500)
    with pytest.raises(StateError, match="net/0: version 3 is unknown, expected 1 to 2"):
        migration_state_pop(state_of(OldNet()), content, version=3)


def test_a_subsection_that_is_not_there_sets_the_defaults() -> None:
    net = Net(announce_left=3, announce_ns=4, control=Queue(error=5))
    migration_state_pop(state_of(net), migration_state_push(state_of(Net())))
    assert (net.announce_left, net.announce_ns, net.control.error) == (0, 0, 0)


@migration_state("plain")
class Plain:
    """Neither a dataclass nor with defaults."""

    ticks: U64
    label: Buffer = b"none"

    def __init__(self, mapping: object) -> None:
        self.ticks = 0
        self.mapping = mapping


def test_a_class_of_any_kind_can_be_declared() -> None:
    source, destination = Plain(1), Plain(2)
    source.ticks = 5
    migration_state_pop(state_of(destination), migration_state_push(state_of(source)))
    assert (destination.ticks, destination.label, destination.mapping) == (5, b"none", 2)
    assert state_of(source).priority == 0


@dataclass
class Base:
    ticks: U64 = 0


@migration_state("derived")
@dataclass(slots=True)
class Derived(Base):
    armed: Bool = False


class Undeclared(Derived):
    more: U64 = 0


def test_annotations_of_base_classes_count_and_declarations_of_base_classes_do_not() -> None:
    assert [one.name for one in state_of(Derived()).fields] == ["ticks", "armed"]
    for device, name in ((Undeclared(), "Undeclared"), (5, "int"), (Queue(), "Queue")):
        with pytest.raises(ValueError, match=f"^{name} is not a device; declare it with @migration_state"):
            state_of(device)


class NeedsArguments:
    size: U16

    def __init__(self, size: int) -> None:
        self.size = size


class Misplaced:
    ticks: U64 = 0
    queue: list[U16] = field(default_factory=list)


def annotated(hint: Any, default: Any = dataclasses.MISSING) -> type:
    """A dataclass with one attribute ``x``."""
    one = ("x", hint) if default is dataclasses.MISSING else ("x", hint, default)
    return dataclasses.make_dataclass("Made", [one])


class Unresolved:
    ticks: NoSuchType = 0  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (lambda: annotated(int, 0), "'x' is annotated as <class 'int'>, which is not a field; .*NOT_MIGRATED"),
        (lambda: annotated(Any, 0), "which is not a field"),
        (lambda: annotated(Net), "which is not a field"),
        (lambda: annotated(Annotated[str, FIELD_TYPE_U64]), "which does not fit a field of type u64"),
        (lambda: annotated(Annotated[U64, FIELD_TYPE_U16]), "two markers of one kind"),
        (lambda: annotated(Annotated[U64, Since(1), Since(2)]), "two markers of one kind"),
        (lambda: annotated(Annotated[U64, Length(4)]), "cannot have a length"),
        (lambda: annotated(Annotated[U64, Limit(4)]), "cannot have a limit"),
        (lambda: annotated(Annotated[U64, NOT_MIGRATED]), "a marker that does not apply"),
        (lambda: annotated(Annotated[Queue, Length(2)]), r"does not apply: Length\(elements=2\)"),
        (lambda: annotated(Annotated[U64, Since(2)]), "expected at least one of 1 to 1"),
        (lambda: annotated(Annotated[list[U16], Length("y")]), "expected an integer field before it"),
        (lambda: annotated(list[int]), "expected a list of a field type"),
        (lambda: annotated(list[Annotated[U16, Length(2)]]), "only buffers have an element_length"),
        (lambda: annotated(list[Annotated[Buffer, Length("y")]]), "expected a list of a field type"),
        (lambda: annotated(list[Annotated[U16, Since(2)]]), "expected a list of a field type"),
        (lambda: annotated(list[migration_struct("element")(NeedsArguments)]), "name a factory"),  # type: ignore[misc]
        (lambda: annotated(Byte, 256), "default of field 'x' .*expected an integer of 8 bits"),
        (lambda: annotated(Annotated[Buffer, Length(6)], b""), "default of field 'x' .*0 elements, expected 6"),
        (lambda: Misplaced, "put it below"),
        (lambda: Unresolved, "'NoSuchType' is not defined; declare at the top of a module"),
    ],
)
def test_a_mistake_is_found_when_the_class_is_declared(cls: Callable[[], type], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        migration_state("made")(cls())


def test_a_mistake_in_the_head_is_found_when_the_class_is_declared() -> None:
    for make in (lambda: migration_state("ü"), lambda: migration_state("x", version=0), lambda: migration_struct("")):
        with pytest.raises(ValueError, match=r"idstr|expected ascending ones"):
            make()(annotated(U64))
    with pytest.raises(ValueError, match=r"^x has versions 3 to 2, expected ascending ones"):
        migration_state("x", version=2, minimum_version=3)(annotated(U64))


def test_a_class_that_is_made_in_a_test_is_compiled_with_all_that_it_says() -> None:
    """What is declared at the top of a module is compiled before any test runs."""
    calls: list[object] = []

    def count(_: object, version: int) -> None:
        calls.append(version)

    late = Subsection("late", lambda one: one.late > 0, 4, 2, pre_save=calls.append, post_load=count)
    part = migration_struct("part")(dataclasses.make_dataclass("Part", [("size", U16, field(default=6))]))
    members = [
        ("x", U16, field(default=1)),
        ("parts", Annotated[list[part], Since(2)], field(default_factory=list)),  # type: ignore[valid-type]
        ("late", Annotated[U64, late], field(default=0)),
        ("control", Annotated[part, Since(2)], field(default_factory=part)),
        (
            "words",
            Annotated[U16Array, Since(2)],
            field(default_factory=lambda: np.array([5], np.uint16), compare=False),
        ),
        ("numbers", Annotated[list[U16], Since(2)], field(default_factory=lambda: [7])),
    ]
    outer = migration_state("outer", version=2)(dataclasses.make_dataclass("Outer", members))
    source, arrived = outer(5, [part(1), part(2)], 4, part(8), [1, 2]), outer(parts=[part(9)])
    content = migration_state_push(state_of(source))
    assert calls == [source]
    migration_state_pop(state_of(arrived), content)
    assert arrived == source
    assert arrived.words.tolist() == [1, 2]
    assert calls == [source, 4]
    migration_state_pop(state_of(arrived), b"\0\3", 1)
    assert arrived == outer(3, [], 0)
    assert arrived.words.tolist() == [5]
    assert arrived.numbers == [7]
    old = content.replace(b"outer/late\0\0\0\4", b"outer/late\0\0\0\1")
    assert old != content
    with pytest.raises(StateError, match="subsection 'outer/late': version 1 is too old, expected 2 to 4"):
        migration_state_pop(state_of(arrived), old)


def test_defaults_of_a_class_that_is_no_dataclass_are_its_attributes() -> None:
    annotations = {"ticks": Annotated[U16, Since(2)], "always": U16}
    for members, default in (({"ticks": 7, "always": 1}, 7), ({"__slots__": tuple(annotations)}, MISSING)):
        made = migration_state("made", version=2)(type("Made", (), {"__annotations__": annotations, **members}))
        assert state_of(made()).fields[0].default == default
