# SPDX-License-Identifier: Apache-2.0
"""The configuration file: a TOML table for each command, with values written as on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parmig.errors import UsageError
from parmig.options import nearest

TABLES = ("receive", "save", "send")
"""Commands that read a configuration file."""


def read_table(path: Path, table: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The options in *table* of the file at *path*: name to True, False, a text or a list of texts.

    Args:
        path: of the file. Tables of other commands are left alone, so one file serves several commands.
        table: name of the command.
        known: the options of the command by name without dashes at the front, with their type: ``bool`` for a flag,
            ``list[str]`` for an option that may be given several times, ``bool | str`` for one that needs no value.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has a table, option or value that is not allowed.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the path of a TOML file") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    for name, content in tables.items():
        if name not in TABLES or not isinstance(content, dict):
            raise UsageError(f"{path} has no table for a command named {name!r}; known tables: {_in_brackets(TABLES)}")
    options: dict[str, Any] = {}
    for key, value in tables.get(table, {}).items():
        name = key.lstrip("-").replace("_", "-")
        if name not in known:
            raise UsageError(f"unknown option {key!r} in table [{table}] of {path}; {nearest(name, known)}")
        if name in options:
            raise UsageError(f"option {name!r} appears twice in table [{table}] of {path}; keep one of them")
        options[name] = _value(value, known[name], f"option {key!r} in table [{table}] of {path}")
    return options


def _value(value: Any, kind: Any, where: str) -> Any:
    """*value* as typer takes it for an option of type *kind*."""
    if kind == bool | str and isinstance(value, bool):
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is {value!r}; expected true or false")
        return value
    if kind == list[str] and isinstance(value, list):
        return [_value(item, str, where) for item in value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where} is {value!r}; write the value as on the command line, in quotes")
    return [str(value)] if kind == list[str] else str(value)


def _in_brackets(names: tuple[str, ...]) -> str:
    return ", ".join(f"[{name}]" for name in names)
