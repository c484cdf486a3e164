# SPDX-License-Identifier: Apache-2.0
"""``parmig demo``: a whole migration on this machine, with nothing but the package."""

from __future__ import annotations

from typing import Annotated

import msgspec

from parmig.cli import options as o
from parmig.cli.display import showing_progress
from parmig.cli.progress import CHECKED, print_line
from parmig.cli.running import run
from parmig.cli.signals import cancelling
from parmig.config import GUARDIAN_PROGRAM, WORKER_PROGRAMS, SendConfig
from parmig.engine.demo.demo import Demo
from parmig.engine.demo.demo_config import DemoConfig
from parmig.engine.reporting.report import Report

SENDING = o.Only(("workers", "transport", "compress", "tracker", "auto-converge"))
"""The options of the migration itself that the demonstration has."""


@o.command()
def demo(config: DemoConfig, sending: Annotated[SendConfig, SENDING], output: o.Output) -> None:
    """Migrate a guest that writes to its memory from this machine to itself, and compare both memories.

    Exit code 0 means: the migration completed, the memory that was placed equals that of the source, and the guest
    continued at the destination.
    """
    sending = msgspec.structs.replace(sending, verify=True)

    def body() -> Report:

        with showing_progress(quiet=output.quiet, plain=output.verbose > 0) as progress:
            demonstration = Demo(config, sending, progress=progress)
            with cancelling(demonstration.cancel):
                report = demonstration.run()
        if demonstration.checked:
            print_line(CHECKED)
        return report

    run(body, side="source", guest=config.guest, output=output, programs=[*WORKER_PROGRAMS, GUARDIAN_PROGRAM])
