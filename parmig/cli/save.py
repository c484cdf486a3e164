# SPDX-License-Identifier: Apache-2.0
"""``parmig save``: write a running guest to a file; the guest goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import showing_progress
from parmig.cli.signals import cancelling
from parmig.config import SWITCHOVER_TIMEOUT_NS, SaveConfig, default_workers
from parmig.engine.report import Report
from parmig.units import NS_PER_MS


def save(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Name of the file; it is there only once it is complete.")
    ],
    guest: o.GuestOption,
    format: o.FormatOption = o.Format.MAPPED_RAM,  # noqa: A002 - the option is called so
    workers: o.WorkersOption = default_workers(),
    tracker: o.TrackerOption = o.Tracker.AUTO,
    max_bandwidth: o.BandwidthOption = 0,
    downtime_limit: o.DowntimeLimitOption = 300 * NS_PER_MS,
    max_downtime: o.MaxDowntimeOption = 0,
    timeout: o.TimeoutOption = 0,
    switchover_timeout: o.SwitchoverTimeoutOption = SWITCHOVER_TIMEOUT_NS,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Write a running guest of this host to FILE: its memory while it runs, the rest in a short pause.

    The guest goes on here in any case. FILE is QEMU's own format, for parmig restore and for QEMU.
    """
    config = SaveConfig(
        workers=workers,
        format=format.value,
        tracker=tracker.value,
        max_bandwidth_bytes_per_s=max_bandwidth,
        downtime_limit_ns=downtime_limit,
        max_downtime_ns=max_downtime,
        timeout_ns=timeout,
        switchover_timeout_ns=switchover_timeout,
        replace=force,
    )
    run(lambda: _save(guest, file, config, quiet), side="source", guest=guest, as_json=as_json)


def _save(guest_text: str, file: Path, config: SaveConfig, quiet: bool) -> Report:
    from parmig.processes import warm_up

    config.check()
    warm_up()  # the workers' imports run beside the ones below

    from parmig.guests.registry import open_guest
    from parmig.snapshot.saver import SnapshotSaver

    with open_guest(guest_text, incoming=False) as guest, showing_progress(quiet=quiet) as progress:
        saver = SnapshotSaver(guest, file, config, progress=progress)
        with cancelling(saver.cancel):
            return saver.start()
