# SPDX-License-Identifier: Apache-2.0
"""The program: its commands, ``--version``, and the destination of its log."""

from __future__ import annotations

from typing import Annotated

import typer

from parmig import logs
from parmig.cli import demo, doctor, inspect, qemu_args, receive, restore, save, send
from parmig.version import __version__

app = typer.Typer(
    name="parmig",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(receive.receive)
app.command()(send.send)
app.command()(save.save)
app.command()(restore.restore)
app.command()(inspect.inspect)
app.command()(qemu_args.qemu_args)
app.command()(doctor.doctor)


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
