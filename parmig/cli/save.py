# SPDX-License-Identifier: Apache-2.0
"""``parmig save``: write a running guest to a file; the guest keeps running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.attending import attended
from parmig.cli.display import showing_progress
from parmig.cli.running import run
from parmig.cli.signals import cancelling
from parmig.config import GUARDIAN_PROGRAM, SNAPSHOT_PROGRAMS
from parmig.engine.reporting.report import Report
from parmig.guests.registry import open_guest
from parmig.snapshot.saver import SnapshotSaver
from parmig.snapshot.snapshot_config import SaveConfig


@o.command(config_file=True)
def save(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write. It appears only when it is complete.")
    ],
    guest: o.GuestOption,
    config: SaveConfig,
    output: o.SteeredOutput,
) -> None:
    """Write a running guest of this host to FILE: most memory while it runs, the rest in a short pause.

    The guest keeps running here in any case. FILE has QEMU's own format; parmig restore and QEMU read it.
    """
    run(
        lambda: _save(guest, file, config, output),
        side="source",
        guest=guest,
        output=output,
        programs=[SNAPSHOT_PROGRAMS[0], GUARDIAN_PROGRAM],
    )


def _save(guest_text: str, file: Path, config: SaveConfig, output: o.SteeredOutput) -> Report:
    config.check()

    with (
        open_guest(guest_text, incoming=False) as guest,
        showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress,
    ):
        saver = SnapshotSaver(guest, file, config, progress=progress)
        with attended(saver.desk, "save", output, str(file)), cancelling(saver.cancel):
            return saver.start()
