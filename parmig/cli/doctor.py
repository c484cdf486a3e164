# SPDX-License-Identifier: Apache-2.0
"""``parmig doctor``: what this host supports."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from parmig.cli import options as o
from parmig.cli.output import print_json
from parmig.cli.tables import output_console, plain_table
from parmig.errors import ParmigError
from parmig.options import option
from parmig.probes import Probe, Status, migration_possible, probe_host
from parmig.version import __version__

_STYLES = {"ok": "green", "limited": "yellow", "missing": "red"}


DEFAULT_KEYS = "/etc/parmig/keys"
"""Where keys are looked for without ``--keys``. Only this command does that: others use keys only if they are named."""


class DoctorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What else to look at."""

    keys: Annotated[
        str,
        option(
            "Directory of keys and certificates to look at; see security.md.",
            metavar="DIR",
            shown=f"{DEFAULT_KEYS}, if it exists",
        ),
    ] = ""


@o.command()
def doctor(options: DoctorOptions, output: o.JsonOutput) -> None:
    """Show what this host can do, and how to enable what it cannot do.

    Exit code 0 means that migrations are possible on this host.
    """
    probes = probe_host() + probe_keys(options.keys)
    possible = migration_possible(probes)
    if output.json:
        print_json({"parmig": __version__, "possible": possible, "probes": probes})
    else:
        _print_table(probes)
        typer.echo("migrations are possible on this host" if possible else "migrations are not possible on this host")
    raise typer.Exit(0 if possible else 1)


def _print_table(probes: list[Probe]) -> None:
    rows = [
        (probe.name, Text(probe.status, style=_STYLES[probe.status]), probe.detail, probe.advice) for probe in probes
    ]
    columns = ("what", "state", "found", "what to do")
    output_console().print(plain_table(columns, rows, folded=("found", "what to do")))


def probe_keys(directory: str) -> list[Probe]:
    """A line for each certificate of *directory*; of DEFAULT_KEYS, if that exists, for an empty *directory*."""
    if not directory and not os.path.isdir(DEFAULT_KEYS):
        return []
    from parmig.transport.security import expiry  # takes 50 ms to import, and only keys need it

    probes = []
    for name in expiry.certificates(directory or DEFAULT_KEYS):
        try:
            found = expiry.read_expiry(directory or DEFAULT_KEYS, name)
        except ParmigError as error:
            probes.append(Probe(name, "missing", str(error), "see security.md"))
            continue
        status: Status = "missing" if found.days_left < 0 else "limited" if expiry.ends_soon(found) else "ok"
        probes.append(Probe(name, status, str(found), "" if status == "ok" else "make a new one: parmig keygen"))
    return probes
