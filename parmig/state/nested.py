# SPDX-License-Identifier: Apache-2.0
"""Fields that are structs, and arrays of structs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parmig.state.cursor import OBJECTS_MAX, StateReader, StateWriter
from parmig.state.state_field import MISSING, CountedField, LoadPlan, StateField, guarded, within
from parmig.state.structs import Decoded, MigrationStateStruct
from parmig.stream.vmdescription import FieldDescription


@dataclass(frozen=True)
class MigrationStateStructField(StateField):
    """An attribute that is an object with state of its own. It is loaded in place, never replaced.

    The versions of its fields are those of the device or subsection that it is a part of.

    Attributes:
        name: attribute that holds the object.
        struct: what the object consists of.
        since_version: the version that brought it; a record that lacks it sets its fields to their defaults.
        until_version: the last version that has it; None: it is still there.
    """

    name: str
    struct: MigrationStateStruct
    since_version: int = 1
    until_version: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        self._check_declaration()

    @property
    def what(self) -> str:
        """Name and type, for messages."""
        return f"field {self.name!r} (struct {self.struct.name})"

    def check(
        self, earlier: Mapping[str, StateField], version: int, minimum_version: int, enclosing: tuple[str, ...]
    ) -> None:
        """See :meth:`parmig.state.state_field.StateField.check`."""
        super().check(earlier, version, minimum_version, enclosing)
        self.struct.check(version, minimum_version, enclosing)

    def encode(
        self, value: object, siblings: Mapping[str, object], writer: StateWriter, version: int
    ) -> list[FieldDescription]:
        """See :meth:`parmig.state.state_field.StateField.encode`."""
        with within(self.what):
            return [_encode(self.name, self.struct, value, writer, version)]

    def decode(self, reader: StateReader, siblings: Mapping[str, Any], version: int) -> Decoded:
        """See :meth:`parmig.state.state_field.StateField.decode`."""
        with within(self.what):
            return self.struct.decode(reader, version)

    def plan(self, target: object, value: Decoded, plan: LoadPlan) -> None:
        """See :meth:`parmig.state.state_field.StateField.plan`."""
        self.struct.plan(value, _read(target, self.name), plan)

    def plan_default(self, target: object, plan: LoadPlan) -> None:
        """See :meth:`parmig.state.state_field.StateField.plan_default`."""
        self.struct.plan_defaults(_read(target, self.name), plan)


@dataclass(frozen=True)
class MigrationStateStructArray(CountedField):
    """An attribute that is a sequence of objects with state of their own.

    With a *length* the objects are loaded in place. Otherwise the struct's factory makes new ones, and a list of these
    replaces the attribute.

    Attributes:
        name: attribute that holds the sequence.
        struct: what an element consists of.
        length: exact number of elements; None: it is counted.
        limit: largest number of elements if they are counted.
        since_version: the version that brought it.
        until_version: the last version that has it; None: it is still there.
        default: what a record that lacks the field sets the attribute to, as a copy; MISSING: it is left as it is.
            With a *length* the defaults of the elements' fields count instead.
        length_from: name of an integer field before it that holds the number of elements.
    """

    name: str
    struct: MigrationStateStruct
    length: int | None = None
    limit: int = OBJECTS_MAX
    since_version: int = 1
    until_version: int | None = field(default=None, kw_only=True)
    default: object = field(default=MISSING, kw_only=True)
    length_from: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        self._check_declaration()
        if self.length is None and self.struct.factory is None:
            raise ValueError(f"{self.what} has no length, so loading creates its elements; name a factory")
        if not any(part.since_version == 1 and part.until_version is None for part in self.struct.fields):
            raise ValueError(f"{self.what} may have empty elements; give the element a field that is in all versions")

    @property
    def what(self) -> str:
        """Name and type, for messages."""
        return f"array {self.name!r} (struct {self.struct.name})"

    def check(
        self, earlier: Mapping[str, StateField], version: int, minimum_version: int, enclosing: tuple[str, ...]
    ) -> None:
        """See :meth:`parmig.state.state_field.StateField.check`."""
        super().check(earlier, version, minimum_version, enclosing)
        self.struct.check(version, minimum_version, enclosing)

    def encode(
        self, value: object, siblings: Mapping[str, object], writer: StateWriter, version: int
    ) -> list[FieldDescription]:
        """See :meth:`parmig.state.state_field.StateField.encode`."""
        if not isinstance(value, Sequence):
            raise self._mismatch("a sequence of objects", value)
        described = self._put_count(len(value), siblings, writer)
        writer.add_objects(len(value))
        elements: list[FieldDescription] = []
        for index, item in enumerate(value):
            with within(f"{self.what}, element {index}"):
                elements.append(_encode(self.name, self.struct, item, writer, version))
        if elements and all(element == elements[0] for element in elements):
            elements[0].array_len = len(elements)
            return [*described, elements[0]]
        for index, element in enumerate(elements):
            element.index = index
        return described + elements

    def decode(self, reader: StateReader, siblings: Mapping[str, Any], version: int) -> list[Decoded]:
        """See :meth:`parmig.state.state_field.StateField.decode`."""
        count = self._get_count(reader, siblings)
        reader.add_objects(count)
        elements = []
        for index in range(count):
            with within(f"{self.what}, element {index}"):
                elements.append(self.struct.decode(reader, version))
        return elements

    def plan(self, target: object, value: list[Decoded], plan: LoadPlan) -> None:
        """See :meth:`parmig.state.state_field.StateField.plan`."""
        if self.length is not None:
            elements = self._elements(target)
        else:
            assert self.struct.factory is not None  # by the declaration
            elements = [guarded("factory", self.struct.factory) for _ in value]
            plan.assignments.append((target, self.name, elements))
        for element, decoded in zip(elements, value, strict=True):
            self.struct.plan(decoded, element, plan)

    def plan_default(self, target: object, plan: LoadPlan) -> None:
        """See :meth:`parmig.state.state_field.StateField.plan_default`."""
        if self.length is None:
            super().plan_default(target, plan)
            return
        for element in self._elements(target):
            self.struct.plan_defaults(element, plan)

    def _elements(self, target: object) -> Sequence[Any]:
        """The objects that a field with a length is loaded into."""
        elements = _read(target, self.name)
        if not isinstance(elements, Sequence) or len(elements) != self.length:
            raise self._mismatch(f"{self.length} objects to load into", elements)
        return elements


def _read(target: object, name: str) -> Any:
    return guarded(f"reading {name!r}", getattr, target, name)


def _encode(
    name: str, struct: MigrationStateStruct, value: object, writer: StateWriter, version: int
) -> FieldDescription:
    start_bytes = writer.size_bytes
    described = struct.encode(value, writer, version)
    writer.end_struct(struct.name)
    return FieldDescription(name=name, type="struct", struct=described, size=writer.size_bytes - start_bytes)
