# SPDX-License-Identifier: Apache-2.0
"""Device state declared once, by a class with annotations, and compiled to fields.

::

    ALARM = Subsection("alarm", needed=lambda timer: timer.armed)

    @migration_state("timer", version=2)
    @dataclass
    class Timer:
        ticks: U64 = 0
        armed: Bool = False
        label: Annotated[Buffer, Limit(100)] = b""
        queue: Annotated[list[U16], Length(8)] = field(default_factory=lambda: [0] * 8)
        period_ns: Annotated[U64, Since(2)] = 1_000_000
        deadline_ns: Annotated[U64, ALARM] = 0
        fd: Annotated[int, NOT_MIGRATED] = -1

    registry.register(state_of(Timer()))

To type checkers the attributes are int, bool, bytes and lists. A record of an older version, or one without the
subsection, sets them to their defaults. Methods ``pre_save(self)`` and ``post_load(self, version)`` are the hooks.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from operator import methodcaller
from typing import Annotated, Any, ClassVar, TypeVar

from parmig.state.arrays import MigrationStateArray
from parmig.state.device import MigrationState
from parmig.state.fields import FieldType, MigrationStateField
from parmig.state.identity import check_versions
from parmig.state.markers import ArrayOf, Length, Limit, NotMigrated, Since, Subsection, Until
from parmig.state.nested import MigrationStateStructArray, MigrationStateStructField
from parmig.state.state_field import MISSING, StateField
from parmig.state.structs import MigrationStateStruct, MigrationStateSubsection

_T = TypeVar("_T", bound=type)
_DEVICE, _STRUCT = "__migration_state__", "__migration_struct__"
_MARKERS = (FieldType, ArrayOf, Length, Limit, Since, Until, Subsection, NotMigrated)
_PYTHON_TYPES = {FieldType.BOOL: bool, FieldType.BUFFER: bytes}  # the others are int


@dataclasses.dataclass(frozen=True)
class _Device:
    struct: MigrationStateStruct
    version: int
    minimum_version: int
    priority: int


def migration_state(idstr: str, *, version: int = 1, minimum_version: int = 1, priority: int = 0) -> Callable[[_T], _T]:
    """Declare a class to be a device; see the module. ``@dataclass``, if any, goes below.

    Args:
        idstr: what kind of device, 1 to 255 ASCII characters; the same on both sides.
        version: of the layout; records of newer versions are refused.
        minimum_version: the oldest layout that can still be loaded.
        priority: devices of higher priority are saved and loaded first.

    Raises:
        ValueError: (of the decorator) the declaration makes no sense; the message says why.
    """

    def declare(cls: _T) -> _T:
        struct = _compile(cls, idstr)
        check_versions(idstr, version, minimum_version)
        struct.check(version, minimum_version)
        setattr(cls, _DEVICE, _Device(struct, version, minimum_version, priority))
        return cls

    return declare


def migration_struct(name: str) -> Callable[[_T], _T]:
    """Declare a class to be a part of devices: ``queue: Queue``, ``queues: list[Queue]``.

    It has no version of its own: ``Since`` and ``Until`` count the versions of the device that it is in.

    Args:
        name: begins the names of its subsections, and is part of descriptions.

    Raises:
        ValueError: (of the decorator) the declaration makes no sense; the message says why.
    """

    def declare(cls: _T) -> _T:
        setattr(cls, _STRUCT, _compile(cls, name))
        return cls

    return declare


def state_of(device: object, instance_id: int = 0) -> MigrationState:
    """The state of *device*, an object of a class declared by :func:`migration_state`, to be registered.

    Raises:
        ValueError: its class is not declared; a declared class that it inherits from does not count.
    """
    declared: _Device | None = vars(type(device)).get(_DEVICE)
    if declared is None:
        raise ValueError(f"{type(device).__name__} is not a device; declare it with @migration_state")
    pre_save, post_load = declared.struct.pre_save, declared.struct.post_load
    return MigrationState(
        declared.struct.name,
        device,
        declared.struct.fields,
        instance_id,
        declared.version,
        declared.minimum_version,
        declared.priority,
        pre_save=None if pre_save is None else lambda: pre_save(device),
        post_load=None if post_load is None else lambda version: post_load(device, version),
        subsections=declared.struct.subsections,
    )


def _compile(cls: type, name: str) -> MigrationStateStruct:
    """What the annotations of *cls* declare."""
    try:
        defaults = _defaults(cls)
        fields: list[StateField] = []
        parts: dict[Subsection, list[StateField]] = {}
        for attribute, hint in _hints(cls).items():
            base, marks = _split(hint)
            where = fields
            if Subsection in marks:
                where = parts.setdefault(marks.pop(Subsection), [])
            field = _field(attribute, base, marks, defaults.get(attribute, MISSING))
            if marks:
                raise ValueError(f"{attribute!r} has a marker that does not apply: {next(iter(marks.values()))}")
            if field is not None:
                where.append(field)
        return MigrationStateStruct(
            name,
            fields,
            [_subsection(name, part, members) for part, members in parts.items()],
            pre_save=methodcaller("pre_save") if hasattr(cls, "pre_save") else None,
            post_load=_post_load if hasattr(cls, "post_load") else None,
            factory=cls if _needs_no_arguments(cls) else None,
        )
    except ValueError as error:
        raise ValueError(f"{cls.__qualname__}: {error}") from error


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of *cls* for attributes of its objects."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise ValueError(f"an annotation cannot be read: {error}; declare at the top of a module") from error
    return {
        name: hint
        for name, hint in hints.items()
        if typing.get_origin(hint) is not ClassVar and hint is not ClassVar
        if not isinstance(hint, dataclasses.InitVar) and hint is not dataclasses.KW_ONLY
    }


def _defaults(cls: type) -> dict[str, object]:
    if dataclasses.is_dataclass(cls):
        made = {
            field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            for field in dataclasses.fields(cls)
        }
        return {name: value for name, value in made.items() if value is not dataclasses.MISSING}
    attributes = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
    if any(isinstance(value, dataclasses.Field) for value in attributes.values()):
        raise ValueError("@dataclass comes too late; put it below this decorator")
    return {name: value for name, value in attributes.items() if not isinstance(value, types.MemberDescriptorType)}


def _split(hint: Any) -> tuple[Any, dict[type, Any]]:
    """The type in *hint*, and the markers on it, by their class."""
    if typing.get_origin(hint) is not Annotated:
        return hint, {}
    base, *remarks = typing.get_args(hint)
    markers = [remark for remark in remarks if isinstance(remark, _MARKERS)]
    by_type = {type(marker): marker for marker in markers}
    if len(by_type) < len(markers):
        raise ValueError(f"{markers} has two markers of one kind, expected one")
    return base, by_type


def _field(name: str, base: Any, marks: dict[type, Any], default: object) -> StateField | None:
    """The field of attribute *name*; None: it is not migrated. Removes the *marks* that it uses."""
    if marks.pop(NotMigrated, None):
        return None
    versions: dict[str, Any] = {}
    if Since in marks:
        versions["since_version"] = marks.pop(Since).version
    if Until in marks:
        versions["until_version"] = marks.pop(Until).version
    with_default = versions | {"default": default}
    kind: FieldType | None = marks.pop(FieldType, None)
    if kind is not None:
        if base is not _PYTHON_TYPES.get(kind, int):
            raise ValueError(f"{name!r} is annotated as {base}, which does not fit a field of type {kind.value}")
        return MigrationStateField(name, kind, **_elements(marks), **with_default)
    if ArrayOf in marks:
        return MigrationStateArray(name, marks.pop(ArrayOf).field_type, **_elements(marks), **with_default)
    if isinstance(base, type) and _STRUCT in vars(base):
        return MigrationStateStructField(name, vars(base)[_STRUCT], **versions)
    if typing.get_origin(base) is list:
        return _list_field(name, typing.get_args(base)[0], _elements(marks), with_default)
    raise ValueError(
        f"{name!r} is annotated as {base}, which is not a field; give it a type of parmig.state, "
        "or mark it as NOT_MIGRATED if it may be lost in a migration"
    )


def _list_field(name: str, hint: Any, elements: dict[str, Any], others: dict[str, Any]) -> StateField:
    """The field of a list of *hint*."""
    base, marks = _split(hint)
    if isinstance(base, type) and _STRUCT in vars(base) and not marks:
        return MigrationStateStructArray(name, vars(base)[_STRUCT], **elements, **others)
    kind: FieldType | None = marks.pop(FieldType, None)
    if kind is not None and base is _PYTHON_TYPES.get(kind, int):
        length = marks.pop(Length, None)
        if not marks and (length is None or isinstance(length.elements, int)):
            size = None if length is None else length.elements
            return MigrationStateArray(name, kind, **elements, **others, element_length=size, as_list=True)
    raise ValueError(f"{name!r} is a list of {hint}; expected a list of a field type or of a class @migration_struct")


def _elements(marks: dict[type, Any]) -> dict[str, Any]:
    """The arguments of a field that say how many elements it has."""
    arguments: dict[str, Any] = {}
    if Length in marks:
        elements = marks.pop(Length).elements
        arguments["length_from" if isinstance(elements, str) else "length"] = elements
    if Limit in marks:
        arguments["limit"] = marks.pop(Limit).elements
    return arguments


def _subsection(struct: str, part: Subsection, fields: list[StateField]) -> MigrationStateSubsection:
    body = MigrationStateStruct(f"{struct}/{part.name}", fields, pre_save=part.pre_save, post_load=part.post_load)
    return MigrationStateSubsection(body, part.needed, part.version, part.minimum_version)


def _post_load(target: Any, version: int) -> None:
    target.post_load(version)


def _needs_no_arguments(cls: type) -> bool:
    try:
        inspect.signature(cls).bind()
    except (TypeError, ValueError):
        return False
    return True
