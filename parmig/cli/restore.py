# SPDX-License-Identifier: Apache-2.0
"""``parmig restore``: start a guest from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.display import showing_progress
from parmig.cli.progress import CHECKED, print_line
from parmig.cli.running import run
from parmig.cli.signals import cancelling
from parmig.config import SNAPSHOT_PROGRAMS
from parmig.engine.demo.arrival import check_arrived
from parmig.engine.reporting.report import Report
from parmig.guests.registry import open_guest
from parmig.snapshot.restorer import SnapshotRestorer
from parmig.snapshot.snapshot_config import RestoreConfig


@o.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that parmig save or QEMU wrote.")],
    guest: o.GuestOption,
    config: RestoreConfig,
    output: o.Output,
) -> None:
    """Start a guest from FILE, in a monitor that waits for it.

    parmig checks all of FILE before it touches the guest. If anything fails, the guest never runs.
    """
    run(
        lambda: _restore(guest, file, config, output),
        side="destination",
        guest=guest,
        output=output,
        programs=[SNAPSHOT_PROGRAMS[1]],
    )


def _restore(guest_text: str, file: Path, config: RestoreConfig, output: o.Output) -> Report:
    config.check()

    with (
        open_guest(guest_text, incoming=True) as guest,
        showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress,
    ):
        restorer = SnapshotRestorer(guest, file, config, progress=progress)
        with cancelling(restorer.cancel):
            report = restorer.start()
            if check_arrived(guest, report):
                print_line(CHECKED)
    return report
