# SPDX-License-Identifier: Apache-2.0
"""``parmig watch``: the progress of a command that somebody else has started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from parmig.cli import options as o
from parmig.cli.display import showing_progress
from parmig.cli.output import print_json, showing_errors
from parmig.engine.reporting.report import Progress
from parmig.engine.steering.engine_status import EngineStatus, progress_of
from parmig.engine.steering.steering_client import SteeringClient, the_only_one
from parmig.errors import PeerLostError

LOOK_EVERY_S = 0.2
"""As often as a command looks at its own counters."""


@o.command()
def watch(
    output: o.JsonOutput,
    name: o.RunningCommand = "",
) -> None:
    """Show the progress of a running command until it ends.

    Ctrl-C ends the watching only. With --json it prints what was seen last.
    """
    last: EngineStatus | None = None
    with (
        showing_errors(),
        SteeringClient(the_only_one(name)) as client,
        showing_progress(quiet=False) as show,
        contextlib.suppress(PeerLostError, KeyboardInterrupt),  # it has ended, or whoever watches has seen enough
    ):
        while True:
            last = _look(client, last, show)
            time.sleep(LOOK_EVERY_S)
    if output.json:
        print_json(last)


def _look(client: SteeringClient, last: EngineStatus | None, show: Callable[[Progress], None] | None) -> EngineStatus:
    """Show the status of the command if it is another than *last*, and return it."""
    status = client.status()
    if status != last and show is not None:
        show(progress_of(status))
    return status
