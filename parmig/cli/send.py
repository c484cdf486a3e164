# SPDX-License-Identifier: Apache-2.0
"""``parmig send``: migrate a guest of this host to a receiver."""

from __future__ import annotations

from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import showing_progress
from parmig.cli.signals import cancelling
from parmig.config import DEFAULT_BATCH_BYTES, SWITCHOVER_TIMEOUT_NS, SendConfig, default_workers
from parmig.engine.report import Report
from parmig.units import NS_PER_MS, NS_PER_S


def send(
    uri: Annotated[str, typer.Argument(metavar="URI", help="What the receiver printed: zmq+tcp://ADDRESS:PORT.")],
    guest: o.GuestOption,
    workers: o.WorkersOption = default_workers(),
    transport: o.TransportOption = o.Transport.ZMQ,
    path: o.SendPathsOption = [],  # noqa: B006 - typer copies it
    compress: o.CompressOption = o.Compress.NONE,
    tracker: o.TrackerOption = o.Tracker.AUTO,
    batch: o.BatchOption = DEFAULT_BATCH_BYTES,
    max_bandwidth: o.BandwidthOption = 0,
    downtime_limit: o.DowntimeLimitOption = 300 * NS_PER_MS,
    max_downtime: o.MaxDowntimeOption = 0,
    auto_converge: o.AutoConvergeOption = False,
    throttle_initial: o.ThrottleInitialOption = 20,
    throttle_increment: o.ThrottleIncrementOption = 10,
    throttle_max: o.ThrottleMaxOption = 99,
    timeout: o.TimeoutOption = 0,
    switchover_timeout: o.SwitchoverTimeoutOption = SWITCHOVER_TIMEOUT_NS,
    connect_timeout: o.ConnectTimeoutOption = 3 * NS_PER_S,
    verify: o.VerifyOption = False,
    quit_source: Annotated[
        bool, typer.Option("--quit-source", help="End the source's monitor after success instead of leaving it paused.")
    ] = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Migrate a running guest of this host to the receiver at URI.

    On any failure before the hand-over the guest runs on here as before.
    """
    config = SendConfig(
        workers=workers,
        transport=transport.value,
        paths=tuple(path),
        compress=compress.value,
        tracker=tracker.value,
        batch_bytes=batch,
        max_bandwidth_bytes_per_s=max_bandwidth,
        downtime_limit_ns=downtime_limit,
        max_downtime_ns=max_downtime,
        auto_converge=auto_converge,
        throttle_initial_percent=throttle_initial,
        throttle_increment_percent=throttle_increment,
        throttle_max_percent=throttle_max,
        timeout_ns=timeout,
        switchover_timeout_ns=switchover_timeout,
        connect_timeout_ns=connect_timeout,
        verify=verify,
        quit_source=quit_source,
    )
    run(lambda: _send(guest, uri, config, quiet), side="source", guest=guest, as_json=as_json)


def _send(guest_text: str, uri: str, config: SendConfig, quiet: bool) -> Report:
    from parmig.processes import warm_up

    config.check()
    warm_up()  # the workers' imports run beside the ones below: 0.1 s of set-up less

    from parmig.engine.sender import MigrationSender
    from parmig.guests.registry import open_guest

    with open_guest(guest_text, incoming=False) as guest, showing_progress(quiet=quiet) as progress:
        sender = MigrationSender(guest, uri, config, progress=progress)
        with cancelling(sender.cancel):
            return sender.start()
