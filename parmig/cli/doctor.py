# SPDX-License-Identifier: Apache-2.0
"""``parmig doctor``: what this host supports."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parmig.cli import options as o
from parmig.cli.output import print_json
from parmig.cli.summary import PIPE_COLUMNS
from parmig.probes import Probe, migration_possible, probe_host
from parmig.version import __version__

_STYLES = {"ok": "green", "limited": "yellow", "missing": "red"}


@o.command()
def doctor(output: o.JsonOutput) -> None:
    """Show what this host can do, and how to enable what it cannot do.

    Exit code 0 means that migrations are possible on this host.
    """
    probes = probe_host()
    possible = migration_possible(probes)
    if output.json:
        print_json({"parmig": __version__, "possible": possible, "probes": probes})
    else:
        _print_table(probes)
        typer.echo("migrations are possible on this host" if possible else "migrations are not possible on this host")
    raise typer.Exit(0 if possible else 1)


def _print_table(probes: list[Probe]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("what", "state", "found", "what to do"):
        table.add_column(column, no_wrap=column in ("what", "state"), overflow="fold")
    for probe in probes:
        table.add_row(
            probe.name, Text(probe.status, style=_STYLES[probe.status]), Text(probe.detail), Text(probe.advice)
        )
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(file=sys.stdout, highlight=False, width=width).print(table)
