# SPDX-License-Identifier: Apache-2.0
"""While a command runs: its control socket, its events and its metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from parmig.cli.options import SteeredOutput
from parmig.engine.reporting.notes import BeginNote
from parmig.engine.steering.desk import Desk
from parmig.engine.steering.engine_status import EngineStatus
from parmig.engine.steering.steering_server import serving
from parmig.errors import UsageError


@contextlib.contextmanager
def attended(desk: Desk, command: str, output: SteeredOutput, peer: str) -> Iterator[None]:
    """While the context is open, others can ask and steer the *command* whose engine has this desk, and watch it as
    *output* says.

    Args:
        peer: the address or the file, for the status.

    Raises:
        UsageError: the name is taken, or a library is missing.
        HostRefusedError: a file or an address cannot be used.
    """
    with contextlib.ExitStack() as opened:
        opened.enter_context(serving(desk, command, name=output.name, peer=peer))
        if output.events:
            from parmig.engine.observing.event_file import EventFile

            events = EventFile(output.events)
            opened.callback(events.close)
            desk.listeners.append(events.take)
            events.take([_begins(desk.status)])
        if output.metrics is not None or output.metrics_file:
            try:
                from parmig.engine.observing.metrics import Metrics  # its library takes 60 ms to import
            except ImportError as error:
                raise UsageError(f"metrics need prometheus-client ({error}); pip install 'parmig[metrics]'") from error
            opened.callback(Metrics(desk, output.metrics, output.metrics_file).close)
        yield


def _begins(status: EngineStatus) -> BeginNote:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return BeginNote(
        at_ms=0.0,
        time=now,
        name=status.name,
        command=status.command,
        process=status.process,
        peer=status.peer,
        parmig=status.parmig,
    )
