# SPDX-License-Identifier: Apache-2.0
"""Structs of fields, and optional subsections of them.

A struct has no bytes of its own: its fields follow each other, then come those of its subsections that are needed.
A subsection begins with u8 0x05, u8 length of its name, the name (``STRUCT/NAME``), u32 version, as in QEMU's streams.
A device is a struct too; fields that are structs are in :mod:`parmig.state.nested`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from parmig.errors import StateError
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.identity import check_name, check_versions, refuse_version
from parmig.state.state_field import LoadPlan, StateField, guarded, within
from parmig.stream.vmdescription import FieldDescription, StructDescription


@dataclass(slots=True)
class Decoded:
    """A struct as it was read; nothing of it is set yet.

    Attributes:
        struct: what it is.
        version: of its layout.
        values: of the fields that were there.
        subsections: those that were there.
    """

    struct: MigrationStateStruct
    version: int
    values: dict[str, Any]
    subsections: list[Decoded]


@dataclass(frozen=True, eq=False)
class MigrationStateStruct:
    """The declaration of a struct: what it consists of, wherever it is.

    Attributes:
        name: 1 to 255 ASCII characters; begins the names of its subsections.
        fields: what is saved, in this order.
        subsections: optional parts, in this order.
        pre_save: called with the object before its fields are read.
        post_load: called with the object and the version of the layout after fields and subsections were set;
            raises StateError to refuse.
        factory: makes an object for an element of an array without fixed length.
    """

    name: str
    fields: Sequence[StateField]
    subsections: Sequence[MigrationStateSubsection] = ()
    pre_save: Callable[[Any], object] | None = None
    post_load: Callable[[Any, int], object] | None = None
    factory: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        check_name(self.name)
        names = [field.name for field in self.all_fields()]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name} has two fields of one name: {names}")
        subsections = [subsection.name for subsection in self.subsections]
        if len(set(subsections)) != len(subsections):
            raise ValueError(f"{self.name} has two subsections of one name: {subsections}")
        for name in subsections:
            parent, _, rest = name.rpartition("/")
            if parent != self.name or not rest:
                raise ValueError(f"subsection {name!r} has a bad name, expected {self.name}/NAME")

    def all_fields(self) -> Iterator[StateField]:
        """The fields of the struct and of all its subsections: all are attributes of one object."""
        yield from self.fields
        for subsection in self.subsections:
            yield from subsection.struct.all_fields()

    def check(self, version: int, minimum_version: int, enclosing: tuple[str, ...] = ()) -> None:
        """Refuse what cannot be written in these versions or in this place.

        Args:
            version: of the layout.
            minimum_version: the oldest that is read.
            enclosing: names of the structs that it is a part of, from the outside in.

        Raises:
            ValueError: the message names it.
        """
        for name in enclosing:
            if f"{name}/".startswith(f"{self.name}/"):
                raise ValueError(
                    f"struct {self.name!r} is in {name!r}, so their subsections have the same names; rename the struct"
                )
        if enclosing and not any(field.exists(version) for field in self.fields):
            raise ValueError(f"{self.name} has no fields in version {version}, expected at least one")
        earlier: dict[str, StateField] = {}
        for field in self.fields:
            field.check(earlier, version, minimum_version, (*enclosing, self.name))
            earlier[field.name] = field
        for sub in self.subsections:
            sub.struct.check(sub.version, sub.minimum_version, (*enclosing, self.name))

    def encode(self, target: object, writer: StateWriter, version: int) -> StructDescription:
        """Write *target* as this struct, after its ``pre_save``, and describe what was written.

        Raises:
            StateError: an attribute is missing or cannot be written as declared, or a hook failed.
        """
        if self.pre_save is not None:
            guarded("pre_save", self.pre_save, target)
        values: dict[str, object] = {}
        described: list[FieldDescription] = []
        for field in self.fields:
            if field.exists(version):
                values[field.name] = guarded(f"reading {field.name!r}", getattr, target, field.name)
                described += field.encode(values[field.name], values, writer, version)
        needed = [sub for sub in self.subsections if guarded("needed", sub.needed, target)]
        subsections = [sub.encode(target, writer) for sub in needed]
        return StructDescription(vmsd_name=self.name, version=version, fields=described, subsections=subsections)

    def decode(self, reader: StateReader, version: int) -> Decoded:
        """The struct that comes next; touches nothing but *reader*.

        Raises:
            StateError: the bytes are no such values, or of a subsection that is not known or too new.
            StreamError: they are too few.
        """
        values: dict[str, Any] = {}
        for field in self.fields:
            if field.exists(version):
                values[field.name] = field.decode(reader, values, version)
        subsections: list[Decoded] = []
        left = {sub.name: sub for sub in self.subsections}
        while (head := reader.subsection(self.name)) is not None:
            sub = left.pop(head[0], None)
            if sub is None:
                expected = ", ".join(left) or "none"
                raise StateError(
                    f"subsection {head[0]!r} is unknown or comes twice, expected one of: {expected}; "
                    "use a destination that is at least as new as the source"
                )
            subsections.append(sub.decode(reader, head[1]))
        return Decoded(self, version, values, subsections)

    def plan(self, decoded: Decoded, target: object, plan: LoadPlan) -> None:
        """Add to *plan* the steps that set *decoded* in *target*.

        Raises:
            StateError: *target* cannot take it.
        """
        for field in self.fields:
            if field.name in decoded.values:
                field.plan(target, decoded.values[field.name], plan)
            else:
                field.plan_default(target, plan)
        arrived = {sub.struct.name: sub for sub in decoded.subsections}
        for sub in self.subsections:
            if sub.name in arrived:
                sub.struct.plan(arrived[sub.name], target, plan)
            else:
                sub.struct.plan_defaults(target, plan)
        if self.post_load is not None:
            plan.hooks.append(partial(guarded, "post_load", self.post_load, target, decoded.version))

    def plan_defaults(self, target: object, plan: LoadPlan) -> None:
        """Add to *plan* the steps for a record without this struct."""
        for field in self.all_fields():
            field.plan_default(target, plan)


@dataclass(frozen=True, eq=False)
class MigrationStateSubsection:
    """A part of a struct that is written only if it is needed, so that older versions can read the rest.

    Attributes:
        struct: its name ``STRUCT/NAME``, its fields, which are attributes of the same object, and its hooks.
        needed: called with the object; whether the subsection is to be written.
        version: of its layout; newer ones are refused.
        minimum_version: the oldest layout that can still be loaded.
    """

    struct: MigrationStateStruct
    needed: Callable[[Any], bool]
    version: int = 1
    minimum_version: int = 1

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        check_versions(self.name, self.version, self.minimum_version)

    @property
    def name(self) -> str:
        """``STRUCT/NAME``."""
        return self.struct.name

    def encode(self, target: object, writer: StateWriter) -> StructDescription:
        """Write the subsection of *target* with its head; see :meth:`MigrationStateStruct.encode`."""
        writer.subsection(self.name, self.version)
        with within(f"subsection {self.name!r}"):
            return self.struct.encode(target, writer, self.version)

    def decode(self, reader: StateReader, version: int) -> Decoded:
        """What follows the head; see :meth:`MigrationStateStruct.decode`."""
        with within(f"subsection {self.name!r}"):
            refuse_version(version, self.version, self.minimum_version)
            return self.struct.decode(reader, version)
