# SPDX-License-Identifier: Apache-2.0
"""What is said over the pipe between a guest object and its monitor's process: one reply to each request.

msgpack of tagged structures, numbered so that a reply that came too late is not taken for another's.
"""

from __future__ import annotations

import msgspec

from parmig.guests.guest import DirtyLog


class Start(msgspec.Struct, tag=True):
    """Make the machine, and wait for more. Reply: Started.

    Attributes:
        options: the guest's options, in msgpack.
        incoming: leave memory as it is, and never run before state was loaded.
    """

    options: bytes
    incoming: bool


class Run(msgspec.Struct, tag=True):
    """Let the virtual CPUs and the devices run. Reply: Done with the instant, ``time.monotonic_ns()``."""


class Pause(msgspec.Struct, tag=True):
    """Stop everything. Reply: Done with the instant."""


class Throttle(msgspec.Struct, tag=True):
    """Run only ``100 - percent`` % of the time. Reply: Done."""

    percent: int


class StartLog(msgspec.Struct, tag=True):
    """Begin to record writes. Reply: Log."""

    kind: str


class SyncLog(msgspec.Struct, tag=True):
    """Bring the shared bitmap up to date. Reply: Done."""


class StopLog(msgspec.Struct, tag=True):
    """End the recording. Reply: Done."""


class SaveState(msgspec.Struct, tag=True):
    """Save all devices of the paused guest. Reply: State."""


class LoadState(msgspec.Struct, tag=True):
    """Load all devices. Reply: Done."""

    data: bytes


class Check(msgspec.Struct, tag=True):
    """Compare memory with device state. Reply: Done, or Failed naming what is wrong."""


class Special(msgspec.Struct, tag=True):
    """What only this kind of guest can do, in msgpack of a structure of its own. Reply: Done."""

    body: bytes


class Ask(msgspec.Struct, tag=True):
    """Reply: Answer with counters and serial log."""


class Started(msgspec.Struct, tag=True):
    """The machine is there; *machine* is what its device state depends on."""

    machine: str


class Done(msgspec.Struct, tag=True):
    """It is done; ``value_ns`` where an instant was asked for."""

    value_ns: int = 0


class Failed(msgspec.Struct, tag=True):
    """It failed: the name of a ParmigError class, and its message."""

    error: str
    message: str


class Log(msgspec.Struct, tag=True):
    """How to read the dirty log."""

    log: DirtyLog


class State(msgspec.Struct, tag=True):
    """The state of all devices."""

    data: bytes


class Answer(msgspec.Struct, tag=True):
    """Counters, in msgpack of a structure of the guest's own, and the serial log's last lines."""

    stats: bytes
    serial_text: str


Request = (
    Start | Run | Pause | Throttle | StartLog | SyncLog | StopLog | SaveState | LoadState | Check | Special | Ask
)  # fmt: skip
Reply = Started | Done | Failed | Log | State | Answer


class Question(msgspec.Struct):
    """A request with its number."""

    number: int
    body: Request


class Response(msgspec.Struct):
    """The reply to the request of the same number."""

    number: int
    body: Reply
