# SPDX-License-Identifier: Apache-2.0
"""What ``parmig recover`` does next, from what is known. Pure: a function of the facts, so it may begin again anywhere.

The rules are those of both plans. The destination decides once: PREPARED becomes TAKEN or REFUSED. A source that has
written HANDED_OVER takes its guest back only if the destination has refused it, or if the user says so.
"""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple

from parmig.engine.records.handover_record import RecordState, Side

Decision = Literal["", "here", "there"]
Answer = Literal["", "here", "there", "undecided", "silent"]


class Look(enum.Enum):
    """What the guest of a record does now."""

    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"
    """Its monitor has ended."""
    UNREACHABLE = "unreachable"
    """Its monitor does not answer."""


class Facts(NamedTuple):
    """All that is known.

    Attributes:
        side, state, settled, runs: of the record.
        guest: what it does.
        done: what follows from *state* was just done: the guest was set right, run, or discarded.
        answer: (source) what the destination answered; ``silent``: nothing; empty: it was not asked yet.
        asked: (destination) the source has asked, and waits for the answer.
        listens: (destination) the user wants the source's question to be awaited in any case.
        decide: what the user decided: the guest is to run on this host, or on the other one.
    """

    side: Side
    state: RecordState
    settled: bool = False
    runs: bool = True
    guest: Look = Look.PAUSED
    done: bool = False
    answer: Answer = ""
    asked: bool = False
    listens: bool = False
    decide: Decision = ""


class Act(enum.Enum):
    """What to do next."""

    ASK = "ask the destination"
    SERVE = "wait until the source asks"
    RUN = "let the guest run here"
    DISCARD = "discard the copy here"
    SETTLE = "note that all is done"
    END = "end: it is settled"
    STOP = "end: this host alone cannot settle it"


Step = Act | RecordState
"""A state is to be written."""


def next_step(facts: Facts) -> Step:
    """What to do next, from *facts*."""
    return _at_source(facts) if facts.side == "source" else _at_destination(facts)


def _at_source(facts: Facts) -> Step:
    match facts.state:
        case RecordState.HANDED_OVER:
            match facts.decide, facts.answer:
                case ("there", _) | ("", "here") if facts.guest is not Look.RUNNING:
                    return RecordState.COMPLETED
                case ("here", _) | ("", "there"):
                    return RecordState.RETURNED
                case "", "":
                    return Act.ASK
            return Act.STOP  # no answer; or it runs here although it was given away
        case RecordState.OPEN | RecordState.RETURNED:
            return _finish(facts, Act.RUN if facts.guest is Look.PAUSED else Act.SETTLE)
    return _finish(facts, Act.SETTLE)


def _at_destination(facts: Facts) -> Step:
    match facts.state:
        case RecordState.PREPARED:
            if facts.decide == "here" or (facts.guest is Look.RUNNING and not facts.decide):
                # A guest that runs was continued by somebody who has decided.
                return RecordState.TAKEN if facts.guest in (Look.RUNNING, Look.PAUSED) else Act.STOP
            if facts.guest is Look.GONE or (facts.guest is Look.PAUSED and (facts.asked or facts.decide)):
                return RecordState.REFUSED
            return Act.SERVE if facts.guest is Look.PAUSED else Act.STOP
        case RecordState.TAKEN:
            return _finish(facts, Act.RUN if facts.guest is Look.PAUSED and facts.runs else Act.SETTLE)
        case RecordState.REFUSED:
            if facts.guest is Look.RUNNING:
                return Act.STOP  # whatever runs there was not started by parmig
            return _finish(facts, Act.DISCARD if facts.guest is Look.PAUSED else Act.SETTLE)
    return _finish(facts, Act.SETTLE)


def _finish(facts: Facts, follows: Act) -> Step:
    """The decision is on record: do what follows from it, note that, and answer the source if that is wanted."""
    if not facts.settled:
        if facts.guest is Look.UNREACHABLE:
            return Act.STOP
        return Act.SETTLE if facts.done else follows
    return Act.SERVE if facts.listens and not facts.asked else Act.END
