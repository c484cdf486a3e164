# SPDX-License-Identifier: Apache-2.0
"""The messages on the pipe between a guest object and its monitor's process: one reply to each request.

They are tagged structures in msgpack. They have numbers, so that a late reply is not taken for another one.
"""

from __future__ import annotations

import msgspec

from parmig.guests.guest import DirtyLog


class Start(msgspec.Struct, tag=True):
    """Make the machine, and wait for more. Reply: Started.

    Attributes:
        options: the guest's options, in msgpack.
        incoming: leave memory as it is, and do not run before state is loaded.
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
    """A request that only this kind of guest knows: a structure of its own in msgpack. Reply: Done."""

    body: bytes


class Ask(msgspec.Struct, tag=True):
    """Get counters and serial log. Reply: Answer."""


class TakePulse(msgspec.Struct, tag=True):
    """Get what the guest has noted of its speed from *since_ns* on. Reply: PulseTaken."""

    since_ns: int


class Started(msgspec.Struct, tag=True):
    """The machine was made. *machine* is what its device state depends on."""

    machine: str


class Done(msgspec.Struct, tag=True):
    """The request was carried out; ``value_ns`` is the instant, for requests that return one."""

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
    """The counters, a structure of the guest's own in msgpack, and the last lines of the serial log."""

    stats: bytes
    serial_text: str


class PulseTaken(msgspec.Struct, tag=True):
    """The samples of a :class:`~parmig.guests.pulse.Pulse`: little-endian 64-bit numbers."""

    at_ns: bytes
    pages: bytes
    asked_bytes_per_s: float | None


Request = (
    Start | Run | Pause | Throttle | StartLog | SyncLog | StopLog | SaveState | LoadState | Check | Special | Ask
    | TakePulse
)  # fmt: skip
Reply = Started | Done | Failed | Log | State | Answer | PulseTaken


class Question(msgspec.Struct):
    """A request with its number."""

    number: int
    body: Request


class Response(msgspec.Struct):
    """The reply to the request of the same number."""

    number: int
    body: Reply
