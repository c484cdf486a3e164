# SPDX-License-Identifier: Apache-2.0
"""``parmig keygen``: make the keys and certificates of a fleet."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.errors import UsageError
from parmig.options import COUNT, option
from parmig.values import HOST


class KeygenOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whose keys are made."""

    hosts: Annotated[
        tuple[tuple[str, ...], ...],
        option(
            "A host: its name, and the other names and addresses by which it is reached; repeat the option for more.",
            HOST,
            name="host",
            shown="at least one is needed",
        ),
    ] = ()
    days: Annotated[int, option("How long the certificates of the hosts are valid.", COUNT, ge=1, le=3650)] = 365


@o.command()
def keygen(
    options: KeygenOptions,
    output: o.JsonOutput,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Of the fleet. It is made if it does not exist.")],
) -> None:
    """Make the keys and certificates with which hosts trust each other, and nobody else.

    DIR gets an authority, unless it has one, and a directory for each host. Nothing is overwritten.
    """
    with showing_errors():
        if not options.hosts:
            raise UsageError("whose keys? Give --host NAME,ADDRESS for each host, like --host a.example.net,192.0.2.1")
        from parmig.transport.security.fleet import add_hosts  # takes 50 ms to import

        made = add_hosts(directory, options.hosts, options.days)
    if output.json:
        hosts = [{"names": names, "directory": path} for names, path in zip(options.hosts, made, strict=True)]
        print_json({"directory": directory, "hosts": hosts})
        return
    typer.echo("copy each directory to its host, for example:")
    for names, path in zip(options.hosts, made, strict=True):
        typer.echo(f"  scp -pr {path} {names[0]}:/etc/parmig/keys")
    typer.echo(f"keep {os.path.join(directory, 'ca-key.pem')} here: whoever has it can make keys for any host")
