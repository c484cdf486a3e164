# SPDX-License-Identifier: Apache-2.0
"""What an option is: one declaration at a field of a msgspec structure, from which everything else follows.

The command line, the configuration file, the options of a guest, the checks and the tables of the documentation are
made from these declarations::

    class SendConfig(msgspec.Struct, frozen=True, kw_only=True):
        batch_bytes: Annotated[int, option("Guest memory in one message.", SIZE, ge=256 * KIB, le=4 * MIB)] = 4 * MIB

This module knows how values are written as text and what limits they have. It must not know any single option.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from parmig.errors import UsageError
from parmig.units import parse_duration_ns, parse_number, parse_rate, parse_size, write_duration_ns, write_size

_UNIT_SUFFIXES = ("_bytes_per_s", "_bytes", "_ns", "_percent")


class Unit(msgspec.Struct, frozen=True):
    """How the values of an option are written.

    Attributes:
        metavar: placeholder for a value in help texts.
        noun: what a value is, with its article.
        read: the value of a text; raises UsageError.
        write: a text that *read* takes.
    """

    metavar: str
    noun: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


TEXT = Unit("TEXT", "text", str)
COUNT = Unit("N", "a number", parse_number)
PERCENT = Unit("PERCENT", "a percentage", parse_number)
TIMES = Unit("", "a number", parse_number)
"""A flag that may be given several times: the value is how often."""
SIZE = Unit("SIZE", "a size", parse_size, write_size)
RATE = Unit("RATE", "a rate", parse_rate, lambda value: f"{write_size(value)}/s" if value else "0")
DURATION = Unit("DURATION", "a duration", parse_duration_ns, write_duration_ns)


class _Declared(msgspec.Struct, frozen=True):
    """What :func:`option` keeps besides the limits."""

    unit: Unit
    metavar: str
    name: str
    shown: str
    choices: tuple[str, ...] | str
    required: bool
    bare: str


def option(
    help_text: str,
    unit: Unit = TEXT,
    *,
    metavar: str = "",
    name: str = "",
    shown: str = "",
    choices: tuple[str, ...] | str = (),
    required: bool = False,
    bare: str = "",
    **limits: Any,
) -> msgspec.Meta:
    """The declaration of an option, for the ``Annotated`` type of a field.

    Args:
        help_text: one or two sentences; help output and documentation show them.
        unit: how a value is written. Not for ``bool`` (a flag) and options with *choices*.
        metavar: of the unit, if another one says more.
        name: without dashes; by default the field's name without its unit.
        shown: the default in words, where its value says nothing to a user.
        choices: the values that are allowed, or ``module:function`` that returns them, called when first needed.
        required: the command line asks for a value although the field has a default.
        bare: which of *choices* the option means without a value. The type of the field has ``bool``, too: True means
            the same, and False none of them.
        limits: ``ge``, ``gt``, ``le``, ``multiple_of`` of :class:`msgspec.Meta`.
    """
    declared = _Declared(unit, metavar or unit.metavar, name, shown, choices, required, bare)
    return msgspec.Meta(description=help_text, extra={"option": declared}, **limits)


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option, from the declaration at its field.

    Attributes:
        field: name of the field.
        name: without dashes at the front: ``max-bandwidth``.
        default: the value of the field if nothing gives another one.
        is_flag: it is on or off, and takes no value on the command line.
        is_repeated: it may be given several times; the field holds a tuple.
    """

    field: str
    name: str
    default: Any
    is_flag: bool
    is_repeated: bool
    hint: Any
    meta: msgspec.Meta
    declared: _Declared

    @property
    def required(self) -> bool:
        """Whether the command line asks for a value."""
        return self.declared.required

    @property
    def bare(self) -> str:
        """The value that it means if it is given without one; empty: it needs a value."""
        return self.declared.bare

    @property
    def is_counted(self) -> bool:
        """Whether it takes no value on the command line, and means how often it was given."""
        return self.declared.unit is TIMES

    @property
    def unit(self) -> Unit:
        """How its values are written."""
        return self.declared.unit

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are allowed; empty: any value of the unit."""
        choices = self.declared.choices
        if isinstance(choices, str):
            return tuple(resolve_name(choices)())
        return choices

    @property
    def metavar(self) -> str:
        """The placeholder for a value in help texts."""
        return "|".join(self.choices) or ("yes|no" if self.is_flag else self.declared.metavar)

    @property
    def help(self) -> str:
        """What it does, with its limits where it has both."""
        text = self.meta.description or ""
        if self.meta.ge is None or self.meta.le is None or self.is_flag:
            return text
        return f"{text.removesuffix('.')} ({self._limits()})."

    @property
    def shown(self) -> str:
        """The default as help texts show it."""
        if self.declared.shown:
            return self.declared.shown
        if self.is_flag:
            return "on" if self.default else "off"
        return str(self.default) if self.choices else self.unit.write(self.default)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.is_flag:
            return "yes or no"
        if self.choices:
            return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        limits = self._limits()
        joined = f" {'of' if limits.startswith(('at', 'more')) else 'from'} {limits}" if limits else ""
        return f"{self.unit.noun}{joined}"

    def read(self, text: str) -> Any:
        """The value that *text* means.

        Raises:
            UsageError: none that is allowed; the message does not name the option.
        """
        if self.is_flag:
            if text not in ("yes", "no"):
                raise UsageError(f"{text!r} is unknown; expected {self.expected}")
            return text == "yes"
        value = text if self.choices else self.unit.read(text)
        if not self.is_repeated:
            self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raise :class:`UsageError` unless *value* has the type of the field and is within its limits."""
        if self.bare and isinstance(value, bool):
            return
        if self.choices and value not in self.choices:
            raise UsageError(f"{value!r} is unknown; expected {self.expected}")
        try:
            msgspec.convert(value, self.hint)
        except msgspec.ValidationError as error:
            written = self.unit.write(value) if isinstance(value, int) else repr(value)
            raise UsageError(f"{written} is not allowed; expected {self.expected}") from error

    def _limits(self) -> str:
        """The limits in words, or nothing."""
        meta, write = self.meta, self.unit.write
        parts = []
        if meta.ge is not None and meta.le is not None:
            parts.append(f"{write(meta.ge)} to {write(meta.le)}")
        elif meta.ge is not None:
            parts.append(f"at least {write(meta.ge)}")
        elif meta.gt is not None:
            parts.append(f"more than {write(meta.gt)}")
        if meta.multiple_of is not None:
            parts.append(f"in steps of {write(meta.multiple_of)}")
        return ", ".join(parts)


@functools.cache
def options_of(struct: type[msgspec.Struct]) -> dict[str, Option]:
    """The options that the fields of *struct* declare, by name, in the order of the fields."""
    hints = get_type_hints(struct, include_extras=True)
    options = {}
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        meta = next((mark for mark in get_args(hint)[1:] if isinstance(mark, msgspec.Meta) and mark.extra), None)
        if get_origin(hint) is not Annotated or meta is None or meta.extra is None:
            continue
        declared: _Declared = meta.extra["option"]
        base = get_args(hint)[0]
        name = declared.name or _without_unit(field.name).replace("_", "-")
        options[name] = Option(
            field=field.name,
            name=name,
            default=field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory(),
            is_flag=base is bool,
            is_repeated=get_origin(base) is tuple and get_args(base)[-1] is ...,
            hint=hint,
            meta=meta,
            declared=declared,
        )
    return options


def check_options(values: msgspec.Struct) -> None:
    """Raise :class:`UsageError` naming the first option in *values* whose value is not allowed."""
    for name, one in options_of(type(values)).items():
        try:
            one.check(getattr(values, one.field))
        except UsageError as error:
            raise UsageError(f"--{name}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a user who wrote *name*, which is not in *known*."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known options: {', '.join(names)}"


def _without_unit(field: str) -> str:
    for suffix in _UNIT_SUFFIXES:
        if field.endswith(suffix):
            return field.removesuffix(suffix)
    return field
