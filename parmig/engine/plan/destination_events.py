# SPDX-License-Identifier: Apache-2.0
"""The events that the destination's plan takes, and the instructions that it returns."""

from __future__ import annotations

import enum

import msgspec

from parmig.engine.messages.peer_messages import ControlMessage
from parmig.engine.plan.events import (
    CancelAsked,
    Event,
    Failed,
    Instruct,
    Recorded,
    RecordFailed,
    Replace,
    Suspected,
    Tick,
    WorkerDigested,
    WorkerDigestedPages,
    WriteRecord,
)
from parmig.errors import PeerLostError, ProtocolError

__all__ = [
    "CancelAsked",
    "Event",
    "Failed",
    "Suspected",
    "Instruct",
    "Replace",
    "Recorded",
    "RecordFailed",
    "Tick",
    "WorkerDigested",
    "WorkerDigestedPages",
    "WriteRecord",
]
"""Imported from ``events``: both plans use these."""

# -- events -------------------------------------------------------------------------------------


class Heard(Event, frozen=True):
    """The source sent a message on the control channel."""

    message: ControlMessage


class Garbled(Event, frozen=True):
    """The source sent something on the control channel that is not a message."""

    error: ProtocolError


class PeerVanished(Event, frozen=True):
    """The control channel is lost; nothing more can come from the source."""

    error: PeerLostError


class Asked(Event, frozen=True):
    """The source asked, over a new connection, who has the guest."""


class WorkerListens(Event, frozen=True):
    """A receive worker listens on its data port."""

    worker: int


class WorkerConnected(Event, frozen=True):
    """A send worker has connected to its receive worker."""

    worker: int


class StateConnected(Event, frozen=True):
    """The source has connected the state channel."""


class EarlyState(Event, frozen=True):
    """Device state of the running guest came; it may be loaded at once."""

    data: bytes


class StateArrived(Event, frozen=True):
    """Device state came; *size_bytes* and *digest* are of all of it so far, the early part too."""

    size_bytes: int
    digest: str


class StateLoaded(Event, frozen=True):
    """All device state is loaded, and the guest is able to run."""


class GuestRuns(Event, frozen=True):
    """The guest has been running since *ran_ns*."""

    ran_ns: int


# -- instructions -------------------------------------------------------------------------------


class Act(enum.Enum):
    """Instructions without arguments."""

    ACCEPT = "let the source in"
    LOAD = "load the device state that was held back"
    ATTEND = "attend to the guest and the source alone; the workers matter no more"
    LISTEN = "let the source ask over a new connection"
    ANSWER = "answer the source's question by what is on record"
    RUN = "run the guest"
    COMPARE = "attend to the workers again: they compare"
    FINISH = "finish: the guest runs here, or is paused as it was"
    LET_GO = "end this session, and wait for another source"
    DISCARD = "discard the copy: the guest stays at the source"
    KEEP = "leave the copy as it is: who has the guest is not decided, or it may run"


class SendMessage(msgspec.Struct, frozen=True):
    """Send *message* to the source."""

    message: ControlMessage


class Show(msgspec.Struct, frozen=True):
    """Show how far the source is."""

    status: str
    round: int


class WriteState(msgspec.Struct, frozen=True):
    """Give *data* to the guest as the next bytes of its state."""

    data: bytes


Instruction = Act | SendMessage | Show | Instruct | Replace | WriteState | WriteRecord
