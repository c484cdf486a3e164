# SPDX-License-Identifier: Apache-2.0
"""The messages between coordinator and guardian over their pipe: see :mod:`workers.guardian`."""

from __future__ import annotations

import msgspec

from parmig.engine.messages.message import Message


class GuardianSetup(Message, frozen=True):
    """With which it starts.

    Attributes:
        log_directory: for its log; empty: it has none.
        record: path of the record of the hand-over, which it reads before it lets the guest run; empty: there is none.
    """

    log_directory: str
    record: str = ""


class Guard(Message, frozen=True):
    """Coordinator: if I end without another message, call *program* (``module:function``) with *setup*."""

    program: str
    setup: bytes


class Disarm(Message, frozen=True):
    """Coordinator: the guest is handed over, or runs again; do nothing from now on.

    The guardian lives on: the end of a process takes milliseconds of a processor, and this is sent in the pause.
    """


class Leave(Message, frozen=True):
    """Coordinator: nothing needs you any more; end."""


class TakeOver(Message, frozen=True):
    """Coordinator: I live, but cannot set the guest right: begin."""


class Armed(Message, frozen=True):
    """Guardian: I am here, out of reach of what may end the coordinator.

    Attributes:
        pid: of the guardian.
        log: the file in which it records what it does; empty: it could not make one.
    """

    pid: int
    log: str


setup_decoder = msgspec.msgpack.Decoder(GuardianSetup)
guardian_decoder = msgspec.msgpack.Decoder(Guard | Disarm | Leave | TakeOver)
armed_decoder = msgspec.msgpack.Decoder(Armed)
