# SPDX-License-Identifier: Apache-2.0
"""``parmig send``: migrate a guest of this host to a receiver."""

from __future__ import annotations

from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.after import run_after
from parmig.cli.attending import attended
from parmig.cli.display import showing_progress
from parmig.cli.running import run
from parmig.cli.signals import cancelling
from parmig.config import GUARDIAN_PROGRAM, WORKER_PROGRAMS, SendConfig
from parmig.engine.reporting.report import Report
from parmig.engine.source.checker import MigrationChecker
from parmig.engine.source.sender import MigrationSender
from parmig.guests.registry import open_guest


@o.command(config_file=True)
def send(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The address that the receiver printed.")],
    guest: o.GuestOption,
    config: SendConfig,
    output: o.SteeredOutput,
) -> None:
    """Migrate a running guest of this host to the receiver at URI.

    If anything fails before the hand-over, the guest keeps running here. With --check it is not moved at all.
    """
    run(
        lambda: _send(guest, uri, config, output),
        side="source",
        guest=guest,
        output=output,
        programs=[WORKER_PROGRAMS[0], GUARDIAN_PROGRAM],
    )


def _send(guest_text: str, uri: str, config: SendConfig, output: o.SteeredOutput) -> Report:
    config.check()

    with (
        open_guest(guest_text, incoming=False) as guest,
        showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress,
    ):
        if config.check_only:
            checker = MigrationChecker(guest, uri, config, progress=progress)
            with cancelling(checker.cancel):
                return checker.start()
        sender = MigrationSender(guest, uri, config, progress=progress)
        with attended(sender.desk, "send", output, uri), cancelling(sender.cancel):
            report = sender.start()
    if config.after_end:
        run_after(config.after_end, report)
    return report
