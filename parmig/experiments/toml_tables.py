# SPDX-License-Identifier: Apache-2.0
"""Tables of TOML files whose keys are declared options. Values are written as on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from parmig.errors import UsageError
from parmig.options import Option, nearest, options_of

Struct = TypeVar("Struct", bound=msgspec.Struct)


def read_text(path: Path) -> str:
    """The text of the file at *path*.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"cannot read {path}: {reason}; give the path of a TOML file") from error


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables in *text*, the content of the file *name*.

    Raises:
        UsageError: it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"{name} is not a TOML file: {error}") from error


def read_table(table: Mapping[str, Any], struct: type[Struct], where: str, **more: Any) -> Struct:
    """*table* as a structure with declared options.

    Args:
        where: the table, for messages: ``[migration] of evacuation.toml``.
        more: fields that are no options.

    Raises:
        UsageError: a key is unknown or missing, or has a value that is not allowed; the message names it.
    """
    known = options_of(struct)
    for key in table:
        if key not in known:
            raise UsageError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
    for key, declared in known.items():
        if declared.required and key not in table:
            raise UsageError(f"{where} has no {key!r}; expected {declared.expected}")
    values = {known[key].field: value_of(known[key], value, f"{key!r} in {where}") for key, value in table.items()}
    return struct(**values, **more)


def value_of(declared: Option, value: Any, where: str) -> Any:
    """What *value* of the file means.

    Raises:
        UsageError: it is not allowed; the message begins with *where*.
    """
    try:
        if declared.is_flag:
            if isinstance(value, bool):
                return value
        elif isinstance(value, str | int) and not isinstance(value, bool):
            return declared.read(str(value))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    expected = "true or false" if declared.is_flag else f"{declared.expected}, in quotes if it has a unit"
    raise UsageError(f"{where} is {value!r}; expected {expected}")
