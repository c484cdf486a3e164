# SPDX-License-Identifier: Apache-2.0
"""The guardian: waits for its coordinator's death, and then lets the source guest run again.

A process that is killed cannot undo what it began. Between pause and hand-over that would leave the guest
paused; this process, which does nothing else, undoes it instead. Once disarmed it does nothing: after hand-over the
source never resumes by itself. The record of the hand-over shows that too, if its coordinator was killed in between.

What ends the coordinator must not end it too: it has a session of its own, is no child of the coordinator, holds
nothing but its pipe, and takes no signal that is meant for a group.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pkgutil import resolve_name

from parmig.engine.custody.rescuing import Log, rescue, why_not
from parmig.engine.messages import guardian_messages
from parmig.engine.messages.guardian_messages import Armed, Disarm, Guard, Leave, TakeOver
from parmig.engine.messages.message import encode
from parmig.engine.records.record_file import RecordReader

IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def main(connection: Connection, setup: bytes, _fds: Sequence[int]) -> None:
    """Entry point: fork the guardian, which reads the coordinator's messages, and end.

    Args:
        connection: to the coordinator.
        setup: where its log is, and the record of the hand-over.
    """
    if os.fork():
        os._exit(0)
    status = 1
    try:
        _detach()
        told = guardian_messages.setup_decoder.decode(setup)
        reader = RecordReader(told.record) if told.record else None
        _serve(connection, Log(told.log_directory), reader)
        status = 0
    finally:
        os._exit(status)


def _detach() -> None:
    os.setsid()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # Beside its pipe it holds only the coordinator's standard output and standard error.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _serve(connection: Connection, log: Log, reader: RecordReader | None) -> None:
    connection.send_bytes(encode(Armed(os.getpid(), log.path)))
    guard: Guard | None = None
    why = "the coordinator has ended"
    asked = False
    while True:
        try:
            message = guardian_messages.guardian_decoder.decode(connection.recv_bytes())
        except (EOFError, OSError):
            break
        if isinstance(message, Disarm):
            guard = None
            continue
        if isinstance(message, Leave):
            guard = None
            break
        if isinstance(message, TakeOver):
            why, asked = "the coordinator could not set the guest right", True
            break
        guard = message
        _prepare(guard)
    if guard is None:
        log.remove()
        return
    connection.close()
    # A coordinator that asks for it knows that the guest is its own. One that was killed has left only the record.
    if reader is not None and not asked and (reason := why_not(reader)):
        log.write(f"{why}: nothing is done, since {reason}")
        return
    log.write(f"{why}: {guard.program} begins")
    rescue(guard.program, guard.setup, log)


def _prepare(guard: Guard) -> None:
    """Import now what will be called: later the package may be gone, or the guest may be waiting."""
    try:
        resolve_name(guard.program)
    except Exception:
        pass  # the guardian retries, and its log shows it
