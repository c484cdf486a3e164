# SPDX-License-Identifier: Apache-2.0
"""From declared options to the parameters that typer reads, and back to structures.

A value that cannot be read ends the program with usage help and exit code 2, before anything is touched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import typer
from typer.models import OptionInfo

from parmig.cli.config_file import read_table
from parmig.errors import UsageError
from parmig.options import TIMES, Option, option, options_of
from parmig.values import ADDRESS_PORT

GuestOption = Annotated[
    str,
    typer.Option(
        "--guest", metavar="GUEST", help="qemu:QMP-SOCKET, kvm[:OPTIONS], or synthetic[:OPTIONS].", show_default=False
    ),
]


RunningCommand = Annotated[
    str, typer.Argument(metavar="NAME", help="From parmig status.", show_default="the only one that runs")
]
"""A command that runs; empty: see ``steering_client.the_only_one``."""


class JsonOutput(msgspec.Struct, frozen=True, kw_only=True):
    """The options for the output that every command has."""

    json: Annotated[bool, option("Print one JSON object on standard output.")] = False


class Output(JsonOutput, frozen=True, kw_only=True):
    """The options for the output of a command that moves a guest."""

    quiet: Annotated[bool, option("Show no progress.")] = False
    verbose: Annotated[
        int, option("Write log lines to standard error. Give it twice for details.", TIMES, shown="off")
    ] = 0
    log_file: Annotated[str, option("Append log lines to FILE.", metavar="FILE", shown="none")] = ""


class SteeredOutput(Output, frozen=True, kw_only=True):
    """The same for a command that can be asked and steered while it runs."""

    name: Annotated[
        str,
        option(
            "Name of this command for parmig status, watch, set and cancel.",
            metavar="NAME",
            shown="the command and its process, like send-4711",
        ),
    ] = ""
    events: Annotated[
        str, option("Append events to FILE as they happen, one JSON object a line.", metavar="FILE", shown="none")
    ] = ""
    metrics: Annotated[
        tuple[str, int] | None, option("Serve metrics for Prometheus there.", ADDRESS_PORT, shown="nowhere")
    ] = None
    metrics_file: Annotated[
        str,
        option("Write metrics to FILE, for the textfile collector of node_exporter.", metavar="FILE", shown="none"),
    ] = ""


class Only(msgspec.Struct, frozen=True):
    """Metadata of a parameter: these options of its structure, by name, and no others."""

    names: tuple[str, ...]


def command(*, config_file: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function that takes structures of options into one that typer can read.

    Each parameter whose type is a structure with declared options is replaced by these options. The function gets
    the structure, with defaults for the options that are not given.

    Args:
        config_file: add ``--config FILE``, which gives values to options that the command line does not give.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        structures: dict[str, tuple[type[msgspec.Struct], list[Option]]] = {}
        parameters = []
        flags: list[str] = []
        defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        for name, hint in get_type_hints(function, include_extras=True).items():
            if name == "return":
                continue
            struct, options = _declared(hint)
            if struct is None:
                parameters.append(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=defaults[name])
                )
            else:
                structures[name] = struct, options
                parameters += map(_parameter, options)
                flags += [declared.name for declared in options if declared.is_flag or declared.bare]
        if config_file:
            parameters += [*map(_undo, flags), _CONFIG_FILE]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            values.pop(_CONFIG_FILE.name, None)  # its callback has read the file
            for name in flags:
                if values.pop(_field("no-" + name), False):
                    values[_field(name)] = False
            made = {
                name: struct(**dict(given for declared in options if (given := _value(declared, values))))
                for name, (struct, options) in structures.items()
            }
            function(**values, **made)

        parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _declared(hint: Any) -> tuple[type[msgspec.Struct] | None, list[Option]]:
    """The structure that *hint* names, and its options; None: *hint* is something else."""
    base, *metadata = get_args(hint) or (hint,)
    if not (isinstance(base, type) and issubclass(base, msgspec.Struct)):
        return None, []
    options = options_of(base)
    only = next((mark.names for mark in metadata if isinstance(mark, Only)), tuple(options))
    return base, [options[name] for name in only]


def _parameter(declared: Option) -> inspect.Parameter:
    """The parameter from which typer makes the option."""
    if declared.is_counted:
        described = typer.Option(
            f"--{declared.name}", f"-{declared.name[0]}", help=declared.help, count=True, show_default=False
        )
        return inspect.Parameter(
            declared.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[int, described],
            default=declared.default,
        )
    kind: Any = bool if declared.is_flag else list[str] if declared.is_repeated else str
    default: Any = declared.default if declared.is_flag or str(declared.default) == declared.shown else None
    described = typer.Option(
        f"--{declared.name}",
        help=declared.help,
        metavar=None if declared.is_flag else declared.metavar,
        parser=None if declared.is_flag else _reader(declared),
        show_default=False
        if declared.required or declared.is_flag
        else True
        if default is not None
        else declared.shown,
    )
    return inspect.Parameter(
        _field(declared.name),
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, described, declared],
        default=inspect.Parameter.empty if declared.required else default,
    )


def with_values(function: Callable[..., None], arguments: list[str]) -> list[str]:
    """*arguments* of the command *function*, with a value for each option that was given without one and may be."""
    given = []
    for place, word in enumerate(arguments):
        declared = _optional_values(function).get(word)
        alone = declared is not None and arguments[place + 1 : place + 2] not in [[name] for name in declared.choices]
        given.append(f"{word}={declared.bare}" if declared is not None and alone else word)
    return given


def _optional_values(function: Callable[..., None]) -> dict[str, Option]:
    """The options of the command *function* that may be given without a value, by name with dashes."""
    parameters = inspect.signature(function).parameters.values()
    declared = [mark for one in parameters for mark in get_args(one.annotation)[2:] if isinstance(mark, Option)]
    return {f"--{option_.name}": option_ for option_ in declared if option_.bare}


def _undo(flag: str) -> inspect.Parameter:
    """The parameter that switches off a *flag* that the configuration file sets. The help is shorter without it."""
    described = typer.Option(f"--no-{flag}", hidden=True)
    return inspect.Parameter(
        _field("no-" + flag), inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, described], default=False
    )


def _field(name: str) -> str:
    return name.replace("-", "_")


def _reader(declared: Option) -> Callable[[Any], Any]:
    """What typer calls with the text of a value; a UsageError becomes a message that names the option."""

    def read(text: Any) -> Any:
        try:
            return declared.read(text) if isinstance(text, str) else text  # else: the default
        except UsageError as error:
            raise typer.BadParameter(str(error)) from error

    return read


def _value(declared: Option, values: dict[str, Any]) -> tuple[str, Any] | None:
    """Field and value of an option that was given, taken out of *values*."""
    value = values.pop(_field(declared.name))
    if value is None or value == []:
        return None
    return declared.field, tuple(value) if declared.is_repeated else value


def _load_config_file(context: typer.Context, path: Path | None) -> None:
    """Use the values in the file at *path* for options that the command line does not give."""
    if path is None or context.command.callback is None:
        return
    known = {
        parameter.name.replace("_", "-"): get_args(parameter.annotation)[0]
        for parameter in inspect.signature(context.command.callback).parameters.values()
        if isinstance(described := get_args(parameter.annotation)[1], OptionInfo)
        and not described.hidden
        and parameter.name != _CONFIG_FILE.name
    }
    known |= {name.lstrip("-"): bool | str for name in _optional_values(context.command.callback)}
    try:
        table = read_table(path, str(context.info_name), known)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    context.default_map = {_field(name): value for name, value in table.items()}


_CONFIG_FILE = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Read options from the table of this command in a TOML file. The command line has priority.",
            show_default="none",
            callback=_load_config_file,
            is_eager=True,
            expose_value=False,
        ),
    ],
)
