# SPDX-License-Identifier: Apache-2.0
"""The program: its commands, ``--version``, and the destination of its log."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from parmig import logs
from parmig.version import __version__

COMMANDS = {
    "demo": "Migrate a guest that writes to its memory from this machine to itself, and compare both memories.",
    "receive": "Wait for a sender and take over its guest.",
    "send": "Migrate a running guest of this host to the receiver at URI.",
    "save": "Write a running guest of this host to FILE: most memory while it runs, the rest in a short pause.",
    "restore": "Start a guest from FILE, in a monitor that waits for it.",
    "inspect": "Show what a stream or snapshot contains, also one that QEMU wrote: "
    "sections, memory, devices and their values.",
    "recover": "Settle a hand-over that did not end: find out who owns the guest, and finish or roll back.",
    "status": "Show what runs here and how far it is, or who owns which guest by the records of this host.",
    "watch": "Show the progress of a running command until it ends.",
    "set": "Change limits of a running command.",
    "cancel": "Cancel a running command; its guest continues where it was.",
    "qemu-args": "Print the command line that starts the destination of a QEMU guest of this host.",
    "predict": "Predict how long migrations of a guest of this host would take, and its pauses, without moving it.",
    "bench": "Run the migrations of a sweep, and write what each of them gave.",
    "plot": "Draw the results of a sweep, and write a page with pictures and tables.",
    "trace": "Record which pages a guest of this host writes, without moving it, or show a recording.",
    "simulate": "Simulate guests that leave a host, and name what holds them back.",
    "keygen": "Make the keys and certificates with which hosts trust each other, and nobody else.",
    "doctor": "Show what this host can do, and how to enable what it cannot do.",
}
"""The commands, each in the module of its name, and the line that the program's help shows for it: the first one of the
function's docstring."""


class _Commands(TyperGroup):
    """Imports the module of a command once it is chosen: what another command needs would only cost time."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that *args* names, and its own arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            from parmig.cli.options import with_values

            command = _load(name)
            if not isinstance(command, TyperGroup):
                rest = with_values(command.callback, rest)
        return name, command, rest


def _load(name: str) -> Any:
    """The command *name*; a group if its module has COMMANDS of its own, by name."""
    function = name.replace("-", "_")
    module = import_module(f"parmig.cli.{function}")
    gc.freeze()  # what was imported stays until the end, where looking through it costs 50 ms
    gc.enable()
    below: dict[str, Any] = getattr(module, "COMMANDS", {})
    alone = _typer(no_args_is_help=bool(below))
    if below:
        alone.callback()(getattr(module, function))
        for word, command in below.items():
            alone.command(word)(command)
    else:
        alone.command(name)(getattr(module, function))
    return get_command(alone)


def _not_loaded() -> None:
    """Stands for each command in the program's help."""


def _typer(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


app = _typer(name="parmig", cls=_Commands, no_args_is_help=True)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_not_loaded)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parmig {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Move a running virtual machine to another host, with many processes and over many network paths at once."""
    logs.show_warnings()
