# SPDX-License-Identifier: Apache-2.0
"""What is said over the pipe between a SyntheticGuest and its process: one reply to each request.

msgpack of tagged structures, numbered so that a reply that came too late is not taken for another's.
"""

from __future__ import annotations

import msgspec

from parmig.guests.base import Segment
from parmig.guests.synthetic.options import SyntheticOptions


class SyntheticStats(msgspec.Struct, frozen=True):
    """Counters of a synthetic guest, all of them device state but ``paused`` and ``ring_fault``.

    Attributes:
        pages_written: by the writer, a page counted each time.
        counter: ticks of about 5 ms that the guest has run.
        serial_lines: heartbeat lines ever written.
        ring_index: entries that the ring device has taken.
        paused: whether the writer and the devices stand still.
        ring_fault: what the ring device found wrong in its memory; empty: nothing.
    """

    pages_written: int
    counter: int
    serial_lines: int
    ring_index: int
    paused: bool
    ring_fault: str = ""


class Start(msgspec.Struct, tag=True):
    """Map the memory, fill it unless incoming, and wait for more. Reply: Done."""

    options: SyntheticOptions
    incoming: bool


class Run(msgspec.Struct, tag=True):
    """Let the writer and the devices run. Reply: Done."""


class Pause(msgspec.Struct, tag=True):
    """Stop between two ticks. Reply: Done with the instant, ``time.monotonic_ns()``."""


class Throttle(msgspec.Struct, tag=True):
    """Write at ``100 - percent`` % of the rate. Reply: Done."""

    percent: int


class Punch(msgspec.Struct, tag=True):
    """Give pages back, as a balloon does. Reply: Done."""

    block: str
    first_page: int
    pages: int


class StartLog(msgspec.Struct, tag=True):
    """Begin to record writes. Reply: Segments, empty but for ``pagemap``."""

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
    """Compare memory with device state. Reply: Done, or Failed naming the pages."""


class Ask(msgspec.Struct, tag=True):
    """Reply: Answer with counters and serial log."""


class Done(msgspec.Struct, tag=True):
    """It is done; ``value_ns`` where an instant was asked for."""

    value_ns: int = 0


class Failed(msgspec.Struct, tag=True):
    """It failed: the name of a ParmigError class, and its message."""

    error: str
    message: str


class Segments(msgspec.Struct, tag=True):
    """Where the process maps each block."""

    segments: tuple[tuple[Segment, ...], ...]


class State(msgspec.Struct, tag=True):
    """The records of all devices."""

    data: bytes


class Answer(msgspec.Struct, tag=True):
    """Counters and the serial log's last lines."""

    stats: SyntheticStats
    serial_text: str


Request = (
    Start | Run | Pause | Throttle | Punch | StartLog | SyncLog | StopLog | SaveState | LoadState | Check | Ask
)  # fmt: skip
Reply = Done | Failed | Segments | State | Answer


class Question(msgspec.Struct):
    """A request with its number."""

    number: int
    body: Request


class Response(msgspec.Struct):
    """The reply to the request of the same number."""

    number: int
    body: Reply
