# SPDX-License-Identifier: Apache-2.0
"""``parmig demo``: a whole migration on this machine, with nothing but the package."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from parmig.cli import options as o
from parmig.cli.output import run
from parmig.cli.progress import CHECKED, print_line, showing_progress
from parmig.cli.signals import cancelling
from parmig.config import SendConfig, default_workers
from parmig.engine.report import Report
from parmig.units import GIB, MIB


class DemoGuest(enum.StrEnum):
    """Guests that the demo can start."""

    SYNTHETIC = "synthetic"
    KVM = "kvm"
    QEMU = "qemu"


class Pattern(enum.StrEnum):
    """How the guest writes to its memory."""

    RANDOM = "random"
    SEQUENTIAL = "sequential"
    HOT = "hot"
    BURST = "burst"


def demo(
    guest: Annotated[DemoGuest, typer.Option("--guest", help="What to migrate.")] = DemoGuest.SYNTHETIC,
    memory: Annotated[
        int,
        typer.Option("--memory", parser=o.read_size, metavar="SIZE", show_default="1GiB", help="The guest's memory."),
    ] = 1 * GIB,
    workers: o.WorkersOption = default_workers(),
    transport: o.TransportOption = o.Transport.ZMQ,
    compress: o.CompressOption = o.Compress.NONE,
    tracker: o.TrackerOption = o.Tracker.AUTO,
    dirty_rate: Annotated[
        int,
        typer.Option(
            "--dirty-rate",
            parser=o.read_rate,
            metavar="RATE",
            show_default="100MiB/s",
            help="(synthetic, kvm) How fast the guest writes to its memory.",
        ),
    ] = 100 * MIB,
    auto_converge: o.AutoConvergeOption = False,
    pattern: Annotated[
        Pattern, typer.Option("--pattern", help="(synthetic, kvm) Where it writes; kvm: random or sequential.")
    ] = Pattern.RANDOM,
    vcpus: Annotated[
        int, typer.Option("--vcpus", min=1, max=64, metavar="N", help="(kvm) Virtual CPUs of the guest.")
    ] = 2,
    kernel: Annotated[
        Path | None,
        typer.Option(
            "--kernel", help="(qemu) Linux kernel to boot.", exists=True, dir_okay=False, show_default="firmware only"
        ),
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option("--initrd", help="(qemu) Its initial RAM disk.", exists=True, dir_okay=False)
    ] = None,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Migrate a guest that writes to its memory from this machine to itself, and compare both memories.

    Exit code 0 means: it completed, both memories were the same while both sides were paused, and the
    guest went on at the destination.
    """
    sending = SendConfig(
        workers=workers,
        transport=transport.value,
        compress=compress.value,
        tracker=tracker.value,
        auto_converge=auto_converge,
        verify=True,
    )

    def body() -> Report:
        from parmig.engine.demo import Demo, DemoConfig

        config = DemoConfig(
            guest=guest.value,
            memory_bytes=memory,
            dirty_rate_bytes_per_s=dirty_rate,
            pattern=pattern.value,
            vcpus=vcpus,
            kernel=str(kernel) if kernel else "",
            initrd=str(initrd) if initrd else "",
            send=sending,
        )
        with showing_progress(quiet=quiet) as progress:
            one = Demo(config, progress=progress)
            with cancelling(one.cancel):
                report = one.run()
        if one.checked:
            print_line(CHECKED)
        return report

    run(body, side="source", guest=guest.value, as_json=as_json)
