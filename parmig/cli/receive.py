# SPDX-License-Identifier: Apache-2.0
"""``parmig receive``: wait for a guest and take it over."""

from __future__ import annotations

from parmig.cli import options as o
from parmig.cli.attending import attended
from parmig.cli.display import showing_progress
from parmig.cli.progress import CHECKED, print_line
from parmig.cli.running import run
from parmig.cli.signals import cancelling
from parmig.config import WORKER_PROGRAMS, ReceiveConfig
from parmig.engine.demo.arrival import check_arrived
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.destination.resumed_receiver import ResumedReceiver
from parmig.engine.reporting.report import Report
from parmig.guests.registry import open_guest


@o.command(config_file=True)
def receive(guest: o.GuestOption, config: ReceiveConfig, output: o.SteeredOutput) -> None:
    """Wait for a sender and take over its guest.

    The guest runs here after the hand-over. If anything fails before that, it never runs here.
    """
    run(
        lambda: _receive(guest, config, output),
        side="destination",
        guest=guest,
        output=output,
        programs=[WORKER_PROGRAMS[1]],
    )


def _receive(guest_text: str, config: ReceiveConfig, output: o.SteeredOutput) -> Report:
    config.check()

    with (
        open_guest(guest_text, incoming=True) as guest,
        showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress,
    ):
        kind = ResumedReceiver if config.resume else MigrationReceiver
        receiver = kind(guest, config, progress=progress, listening=lambda uri: print_line(f"listening on {uri}"))
        with attended(receiver.desk, "receive", output, config.listen), cancelling(receiver.cancel):
            report = receiver.receive_loop()
            if check_arrived(guest, report):
                print_line(CHECKED)
    return report
