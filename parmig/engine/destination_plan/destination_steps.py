# SPDX-License-Identifier: Apache-2.0
"""What the destination waits for, and for how long. Pure."""

from __future__ import annotations

import enum

from parmig.errors import LimitExceededError, ParmigError, PeerLostError
from parmig.units import NS_PER_MS, NS_PER_S, format_ms

WORKERS_LIMIT_NS = 15 * NS_PER_S
"""How long the receive workers may take to start and listen."""

CONNECT_LIMIT_NS = 15 * NS_PER_S
"""How long an accepted source may take to connect all its channels. After that the next source may come."""

SILENCE_LIMIT_NS = 60 * NS_PER_S
"""How long a source may be silent. It reports its progress every few seconds."""

MAX_SWITCHOVER_NS = 3600 * NS_PER_S
"""Whatever limit a source announces for its pause, the destination waits at most twice this long."""

RESUME_LIMIT_NS = 60 * NS_PER_S
"""How long the guest may take to run after the hand-over. This is longer than any guest's own limit."""

GOODBYE_LIMIT_NS = 3 * NS_PER_S
"""How long to wait for the source's goodbye after the guest was resumed here. The outcome is the same without it."""


ANSWER_LIMIT_NS = 10 * NS_PER_S
"""How long a destination that has the guest waits for the question of a source that it lost. A source that lives asks
several times a second."""


class Step(enum.Enum):
    """What the destination waits for."""

    STARTING = "starting the receive workers"
    CONNECTING = "waiting for the source to connect its channels"
    RECEIVING = "receiving memory"
    HOLDING = "waiting for the rest of the device state"
    LOADING = "loading the device state"
    LOADED = "waiting for the hand-over"
    KEEPING = "keeping the copy until the lost source asks for the guest"
    TAKING = "writing to the record that the guest is here"
    REFUSING = "writing to the record that the guest is refused"
    RESUMING = "resuming the guest"
    GOODBYE = "waiting for the source's goodbye"
    ANSWERING = "answering a source that was lost; the guest is here"
    DONE = "done"


def overdue(step: Step, waited_ns: int, switchover_ns: int) -> ParmigError | None:
    """The error of a step that has taken too long, or None.

    Args:
        step: what is waited for.
        waited_ns: how long, so far. Everything from the release to the hand-over shares one limit.
        switchover_ns: how long the source says that its pause may take.
    """
    switchover_ns = 2 * min(switchover_ns, MAX_SWITCHOVER_NS)
    match step:
        case Step.STARTING if waited_ns >= WORKERS_LIMIT_NS:
            return LimitExceededError(f"the receive workers did not listen within {_s(WORKERS_LIMIT_NS)}")
        case Step.CONNECTING if waited_ns >= CONNECT_LIMIT_NS:
            return PeerLostError(f"the source did not connect all its channels within {_s(CONNECT_LIMIT_NS)}")
        case Step.RECEIVING if waited_ns >= SILENCE_LIMIT_NS:
            return LimitExceededError(f"the source sent nothing for {_s(SILENCE_LIMIT_NS)}; is it stuck?")
        case Step.HOLDING | Step.LOADING | Step.LOADED if waited_ns >= switchover_ns:
            limit = format_ms(switchover_ns / NS_PER_MS)
            return LimitExceededError(f"{step.value} took longer than {limit}; is the source stuck?")
        case Step.KEEPING if waited_ns >= switchover_ns:
            return PeerLostError(f"the source did not ask for the guest within {format_ms(switchover_ns / NS_PER_MS)}")
        case Step.RESUMING if waited_ns >= RESUME_LIMIT_NS:
            return LimitExceededError(f"the guest did not run {_s(RESUME_LIMIT_NS)} after the hand-over")
    return None


def _s(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_S:.0f} s"
