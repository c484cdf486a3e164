# SPDX-License-Identifier: Apache-2.0
"""The guardian: waits for its coordinator's death, and then lets the source guest go on.

A process that is killed cannot undo what it began. Between pause and hand-over that would leave the guest
paused; this process, which does nothing else, undoes it instead. Once disarmed it does nothing: after hand-over the
source never resumes by itself.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from multiprocess.connection import Connection

from parmig.engine import messages
from parmig.engine.messages import Guard


def main(connection: Connection, _setup: bytes, _fds: Sequence[int]) -> None:
    """Entry point: hold what was last told, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    told: messages.Guard | messages.Disarm = messages.Disarm()
    while True:
        try:
            told = messages.guardian_decoder.decode(connection.recv_bytes())
        except (EOFError, OSError):
            break
    if isinstance(told, Guard):
        module, _, function = told.program.partition(":")
        try:
            getattr(import_module(module), function)(told.setup)
        except Exception as error:  # nobody is left to hear of it but whoever reads our standard error
            sys.stderr.write(f"parmig: the sender died, and its guest could not be set right: {error}\n")
