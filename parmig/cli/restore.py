# SPDX-License-Identifier: Apache-2.0
"""``parmig restore``: start a guest from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import CHECKED, print_line, showing_progress
from parmig.cli.signals import cancelling
from parmig.config import RestoreConfig, default_workers
from parmig.engine.report import Report


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What parmig save wrote, or QEMU.")],
    guest: o.GuestOption,
    workers: o.WorkersOption = default_workers(),
    paused: Annotated[bool, typer.Option("--paused", help="Leave the guest paused.")] = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Start a guest from FILE, in a monitor that waits for it.

    All of FILE is checked before the guest is touched; after a failure it never runs.
    """
    config = RestoreConfig(workers=workers, paused=paused)
    run(lambda: _restore(guest, file, config, quiet), side="destination", guest=guest, as_json=as_json)


def _restore(guest_text: str, file: Path, config: RestoreConfig, quiet: bool) -> Report:
    from parmig.processes import warm_up

    config.check()
    warm_up()  # the workers' imports run beside the ones below

    from parmig.engine.demo import check_arrived
    from parmig.guests.registry import open_guest
    from parmig.snapshot.restorer import SnapshotRestorer

    with open_guest(guest_text, incoming=True) as guest, showing_progress(quiet=quiet) as progress:
        restorer = SnapshotRestorer(guest, file, config, progress=progress)
        with cancelling(restorer.cancel):
            report = restorer.start()
            if check_arrived(guest, report):
                print_line(CHECKED)
    return report
