# SPDX-License-Identifier: Apache-2.0
"""Whatever is declared arrives, is described, and meets damage and other versions with a StateError."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import StateError
from parmig.state import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    FieldType,
    MigrationState,
    MigrationStateArray,
    MigrationStateField,
    MigrationStateStruct,
    MigrationStateStructArray,
    MigrationStateStructField,
    MigrationStateSubsection,
    StateRegistry,
    migration_state_pop,
    migration_state_push,
)
from parmig.state.state_field import StateField
from parmig.stream.vmdescription import decode, device_bytes

VALUES: dict[FieldType, st.SearchStrategy[Any]] = {
    FIELD_TYPE_BYTE: st.integers(0, 2**8 - 1),
    FIELD_TYPE_U16: st.integers(0, 2**16 - 1),
    FIELD_TYPE_U32: st.integers(0, 2**32 - 1),
    FIELD_TYPE_U64: st.integers(0, 2**64 - 1),
    FIELD_TYPE_BOOL: st.booleans(),
    FIELD_TYPE_BUFFER: st.binary(max_size=9),
}
KINDS = st.sampled_from(list(VALUES))


@dataclass
class Declared:
    """A struct, and what objects of it hold."""

    struct: MigrationStateStruct
    objects: st.SearchStrategy[SimpleNamespace]


Member = tuple[list[StateField], dict[str, st.SearchStrategy[Any]]]


@st.composite
def members(draw: st.DrawFn, name: str, depth: int) -> Member:
    """A field with the values it may have; with the field that holds its length, if there is one."""
    shape = draw(st.sampled_from(["one", "array", "buffers", "sized", *(["struct", "structs", "fixed"] * (depth > 0))]))
    kind = draw(KINDS)
    length = draw(st.integers(1, 3))
    if shape == "one":
        return [MigrationStateField(name, kind)], {name: VALUES[kind]}
    if shape == "array":
        fixed = draw(st.booleans())
        field = MigrationStateArray(name, kind, length if fixed else None, as_list=True)
        return [field], {name: st.lists(VALUES[kind], min_size=length if fixed else 0, max_size=length)}
    if shape == "buffers":
        field = MigrationStateArray(name, FIELD_TYPE_BUFFER, element_length=length)
        return [field], {name: st.lists(st.binary(min_size=length, max_size=length), max_size=3)}
    if shape == "sized":
        size = MigrationStateField(f"{name}_size", FIELD_TYPE_BYTE)
        field = MigrationStateField(name, FIELD_TYPE_BUFFER, length_from=size.name)
        return [size, field], {size.name: st.just(length), name: st.binary(min_size=length, max_size=length)}
    inner = draw(structs(f"{name}-{depth}", depth - 1))
    if shape == "struct":
        return [MigrationStateStructField(name, inner.struct)], {name: inner.objects}
    if shape == "structs":
        return [MigrationStateStructArray(name, inner.struct)], {name: st.lists(inner.objects, max_size=3)}
    field = MigrationStateStructArray(name, inner.struct, length)
    return [field], {name: st.lists(inner.objects, min_size=length, max_size=length)}


@st.composite
def structs(draw: st.DrawFn, name: str, depth: int = 2) -> Declared:
    """A struct of a few fields, with perhaps a subsection whose need is another attribute."""
    fields: list[StateField] = []
    values: dict[str, st.SearchStrategy[Any]] = {}
    for number in range(draw(st.integers(1, 3))):
        more, holds = draw(members(f"x{number}", depth))
        fields += more
        values |= holds
    subsections = []
    for number in range(draw(st.integers(0, 2)) if depth else 0):
        inside, holds = draw(members(f"s{number}", depth - 1))
        part = MigrationStateStruct(f"{name}/s{number}", inside)
        subsections.append(MigrationStateSubsection(part, needed=needed(f"has_s{number}")))
        values |= {f"has_s{number}": st.booleans(), **holds}
    objects = st.builds(SimpleNamespace, **values)
    template = draw(objects)
    struct = MigrationStateStruct(name, fields, subsections, factory=lambda: copy.deepcopy(template))
    return Declared(struct, objects)


def needed(name: str) -> Callable[[Any], bool]:
    return lambda target: getattr(target, name)


@st.composite
def devices(draw: st.DrawFn) -> tuple[MigrationState, MigrationState]:
    """A device at the source, and the same with other values at the destination."""
    declared = draw(structs("dev"))
    struct = declared.struct
    source, destination = (
        MigrationState("dev", draw(declared.objects), struct.fields, subsections=struct.subsections) for _ in range(2)
    )
    return source, destination


def arrived(struct: MigrationStateStruct, source: Any, destination: Any) -> bool:
    """Whether all that was saved of *source* is at *destination*."""
    parts = [struct.fields, *(sub.struct.fields for sub in struct.subsections if sub.needed(source))]
    for field in (one for fields in parts for one in fields):
        here, there = getattr(source, field.name), getattr(destination, field.name)
        if isinstance(field, MigrationStateStructField):
            here, there = [here], [there]
        if isinstance(field, MigrationStateStructField | MigrationStateStructArray):
            if len(here) != len(there) or not all(map(arrived, [field.struct] * len(here), here, there)):
                return False
        elif here != there:
            return False
    return True


def shown(struct: MigrationStateStruct, target: Any) -> dict[str, Any]:
    """What a reader without the declaration should see of numbers, bytes and structs; not counts, not empty arrays."""
    found: dict[str, Any] = {}
    for field in struct.fields:
        value = getattr(target, field.name)
        if isinstance(field, MigrationStateStructField):
            found[field.name] = shown(field.struct, value)
        elif isinstance(field, MigrationStateStructArray):
            found[field.name] = [shown(field.struct, one) for one in value]
        elif isinstance(field, MigrationStateArray) and field.field_type is FIELD_TYPE_BYTE:
            found[field.name] = bytes(value)
        else:
            found[field.name] = value
    for sub in struct.subsections:
        if sub.needed(target):
            found[sub.name] = shown(sub.struct, target)
    return {name: value for name, value in found.items() if value not in ([], b"")}


def without_counts(values: Any) -> Any:
    if isinstance(values, dict):
        kept = {name: without_counts(value) for name, value in values.items() if "." not in name}
        return {name: value for name, value in kept.items() if value not in ([], b"")}
    return [without_counts(one) for one in values] if isinstance(values, list) else values


@settings(max_examples=200)
@given(devices())
def test_any_declaration_and_value_arrives_and_is_described(pair: tuple[MigrationState, MigrationState]) -> None:
    source, destination = pair
    content, described = source.encode()
    assert device_bytes(described) == len(content)
    assert without_counts(decode(described, content)) == shown(source.struct, source.target)
    registries = StateRegistry(), StateRegistry()
    for registry, state in zip(registries, pair, strict=True):
        registry.register(state)
    registries[1].load_all(registries[0].save_all())
    assert arrived(source.struct, source.target, destination.target)


@settings(max_examples=200)
@given(devices(), st.data())
def test_damage_is_refused_with_nothing_set_or_read_as_what_it_says(
    pair: tuple[MigrationState, MigrationState], data: st.DataObject
) -> None:
    source, destination = pair
    content = bytearray(migration_state_push(source))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    before = copy.deepcopy(destination.target)
    try:
        migration_state_pop(destination, content)
    except StateError:
        assert destination.target == before


@dataclass(frozen=True)
class Era:
    """In which versions a field is."""

    since: int
    until: int

    def field(self, name: str, version: int) -> MigrationStateField | None:
        """As the program of *version* declares it, which does not know what comes; None: not there yet, or no more."""
        if version < self.since:
            return None
        until = self.until if self.until < version else None
        return MigrationStateField(name, FIELD_TYPE_U16, since_version=self.since, until_version=until, default=9)


ERAS = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda pair: Era(min(pair), max(pair)))


@given(st.lists(ERAS, min_size=1, max_size=6), st.integers(1, 5))
def test_every_version_loads_all_that_its_range_allows(eras: list[Era], oldest: int) -> None:
    def device(version: int, value: int) -> MigrationState:
        made = [era.field(f"x{number}", version) for number, era in enumerate(eras)]
        minimum = min(oldest, version)
        fields = [one for one in made if one is not None and one.last_version >= minimum]
        target = SimpleNamespace(**{f"x{number}": value + number for number in range(len(eras))})
        return MigrationState("dev", target, fields, version=version, minimum_version=minimum)

    for written in range(1, 6):
        content = migration_state_push(device(written, 100))
        for read in range(1, 6):
            state = device(read, 200)
            if not state.minimum_version <= written <= read:
                with pytest.raises(StateError, match=f"version {written} is"):
                    migration_state_pop(state, content, written)
                continue
            migration_state_pop(state, content, written)
            for number, era in enumerate(eras):
                found = getattr(state.target, f"x{number}")
                if era.since <= written <= era.until:
                    assert found == 100 + number
                elif any(one.name == f"x{number}" for one in state.fields):
                    assert found == 9
                else:
                    assert found == 200 + number


@given(st.binary(max_size=300))
def test_bytes_from_anywhere_are_refused_or_loaded(data: bytes) -> None:
    target = SimpleNamespace(a=0, b=np.zeros(0, np.uint16), c=[], d=b"")
    fields = [
        MigrationStateField("a", FIELD_TYPE_BYTE),
        MigrationStateArray("b", FIELD_TYPE_U16, length_from="a"),
        MigrationStateArray("c", FIELD_TYPE_BUFFER),
        MigrationStateField("d", FIELD_TYPE_BUFFER),
    ]
    state = MigrationState("dev", target, fields)
    try:
        migration_state_pop(state, data)
    except StateError:
        return
    assert migration_state_push(state) == data
