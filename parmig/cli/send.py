# SPDX-License-Identifier: Apache-2.0
"""``parmig send``: migrate a guest of this host to a receiver."""

from __future__ import annotations

from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import showing_progress
from parmig.cli.signals import cancelling
from parmig.config import SendConfig
from parmig.engine.report import Report


@o.command(config_file=True)
def send(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The address that the receiver printed.")],
    guest: o.GuestOption,
    config: SendConfig,
    output: o.Output,
) -> None:
    """Migrate a running guest of this host to the receiver at URI.

    If anything fails before the hand-over, the guest keeps running here. With --check it is not moved at all.
    """
    run(lambda: _send(guest, uri, config, output), side="source", guest=guest, output=output)


def _send(guest_text: str, uri: str, config: SendConfig, output: o.Output) -> Report:
    from parmig.processes import warm_up

    config.check()
    if not config.check_only:
        warm_up()  # the workers' imports run beside the ones below: 0.1 s of set-up less

    from parmig.engine.checker import MigrationChecker
    from parmig.engine.sender import MigrationSender
    from parmig.guests.registry import open_guest

    with (
        open_guest(guest_text, incoming=False) as guest,
        showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress,
    ):
        sender = (MigrationChecker if config.check_only else MigrationSender)(guest, uri, config, progress=progress)
        with cancelling(sender.cancel):
            return sender.start()
