# SPDX-License-Identifier: Apache-2.0
"""``parmig receive``: wait for a guest and take it over."""

from __future__ import annotations

from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import CHECKED, print_line, showing_progress
from parmig.cli.signals import cancelling
from parmig.config import ReceiveConfig
from parmig.engine.report import Report
from parmig.units import GIB


def receive(
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="URI",
            help="Where to wait for the sender: zmq+tcp://ADDRESS:PORT; port 0 takes a free one.",
            show_default=False,
        ),
    ],
    guest: o.GuestOption,
    path: Annotated[
        list[str],
        typer.Option(
            "--path",
            metavar="ADDR",
            help="A local address for data; may be given several times.",
            show_default="the address of --listen",
        ),
    ] = [],  # noqa: B006 - typer copies it
    data_ports: Annotated[
        o.PortRange | None,
        typer.Option(
            "--data-ports",
            parser=o.read_ports,
            metavar="FIRST-LAST",
            help="Ports for state and data, for a firewall.",
            show_default="any free",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen on addresses other than loopback, with no keys and no encryption."),
    ] = False,
    wait: Annotated[
        int,
        typer.Option(
            "--wait",
            parser=o.read_duration,
            metavar="DURATION",
            help="Give up when no sender comes in this time.",
            show_default="for ever",
        ),
    ] = 0,
    max_state: Annotated[
        int,
        typer.Option(
            "--max-state",
            parser=o.read_size,
            metavar="SIZE",
            help="Take no more device state than this.",
            show_default="1GiB",
        ),
    ] = GIB,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Wait for a sender and take its guest over.

    The guest runs here from the hand-over on; on any failure before that it never runs here.
    """
    ports = (data_ports.first, data_ports.last) if data_ports else (0, 0)
    config = ReceiveConfig(
        listen=listen,
        paths=tuple(path),
        data_ports=ports,
        insecure=insecure,
        wait_ns=wait,
        max_state_bytes=max_state,
    )
    run(lambda: _receive(guest, config, quiet), side="destination", guest=guest, as_json=as_json)


def _receive(guest_text: str, config: ReceiveConfig, quiet: bool) -> Report:
    from parmig.engine.demo import check_arrived
    from parmig.engine.receiver import MigrationReceiver
    from parmig.guests.registry import open_guest

    with open_guest(guest_text, incoming=True) as guest, showing_progress(quiet=quiet) as progress:
        receiver = MigrationReceiver(
            guest, config, progress=progress, listening=lambda uri: print_line(f"listening on {uri}")
        )
        with cancelling(receiver.cancel):
            report = receiver.receive_loop()
            if check_arrived(guest, report):
                print_line(CHECKED)
    return report
