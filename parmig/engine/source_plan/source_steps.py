# SPDX-License-Identifier: Apache-2.0
"""What the source waits for, and the errors of a migration that takes too long. Pure."""

from __future__ import annotations

import enum

from parmig.engine.reporting.record import Record
from parmig.engine.work.policy import Limits, expected_downtime_ns
from parmig.errors import GuestRefusedError, LimitExceededError, NotConvergingError, ParmigError
from parmig.ram.blocks import PAGE_BYTES
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S, format_ms, format_rate, format_size

NOBODY_NS = 4 * NS_PER_S
"""The destination is given up if its host still refuses a question after this long. One that lives notices within 3 s
that it has lost the source, and listens again."""


class Step(enum.Enum):
    """What the source waits for."""

    SETUP = "setup"
    STARTING_LOG = "starting the dirty log"
    SCANNING = "scanning for dirty pages"
    SETTLING = "waiting for the guest's disk requests in flight"
    SENDING = "sending"
    SYNCING_COUNT = "syncing the dirty log"
    COUNTING = "counting dirty pages"
    RECONNECTING = "waiting for a lost connection"
    REJOINING = "connecting to the destination, whose receiver was started again"
    CHECKING_HELD = "comparing what the restarted destination holds"
    HOLDING = "waiting for parmig set --switchover now"
    BEFORE_PAUSE_PROGRAM = "waiting for the program of --before-pause"
    PAUSING = "pausing the guest"
    SYNCING_FINAL = "syncing the dirty log of the paused guest"
    FINAL = "sending the last pages"  # and saving device state
    SAVING = "saving device state"  # the last pages are sent
    SYNCING_AGAIN = "syncing the dirty log after saving"
    RESCANNING = "scanning once more after saving"
    DIGESTING = "comparing digests"
    LOADING = "loading device state at the destination"
    BEFORE_HAND_OVER_PROGRAM = "waiting for the program of --before-hand-over"
    RECORDING = "writing the hand-over to the record"
    RESUMING = "resuming at the destination"
    ASKING = "asking the destination whether it has the guest"
    RETURNING = "writing to the record that the guest stays here"
    COMPARING = "comparing both memories; the guest runs at the destination"
    GOING_ON = "letting the guest go on"
    COMPOSING = "writing the last of the file"
    SUMMING = "digesting the file"
    COMMITTING = "giving the file its name"
    DONE = "done"


def overdue(record: Record, status: MigrationStatus, step: Step, limits: Limits, now_ns: int) -> ParmigError | None:
    """The error of a migration or a pause that is past its limit at *now_ns*, or None."""
    marks = record.marks
    if "pausing" in marks:
        handed_over = status is MigrationStatus.HAND_OVER
        began_ns = record.ready_ns() if handed_over else marks["pausing"]
        limited = limits.switchover_ns and status is not MigrationStatus.FINISHING  # the guest runs already
        if limited and now_ns - began_ns >= limits.switchover_ns:
            return pause_took_too_long(step, limits, handed_over=handed_over)
        return None
    limited = status is MigrationStatus.ACTIVE and limits.timeout_ns and "active" in marks
    limited = limited and not limits.pauses_at_timeout
    return took_too_long(record, limits) if limited and now_ns - marks["active"] >= limits.timeout_ns else None


def pause_took_too_long(step: Step, limits: Limits, *, handed_over: bool) -> LimitExceededError:
    """The error of a pause that is past its limit while *step* is waited for."""
    limit = format_ms(limits.switchover_ns / NS_PER_MS)
    message = f"{step.value} did not end within the {limit} that a switchover may take"
    if not handed_over:
        message += "; see what hangs there, or raise --switchover-timeout"
    return LimitExceededError(message)


def took_too_long(record: Record, limits: Limits) -> LimitExceededError:
    """The error of a migration that is not ready to pause at its time limit."""
    limit = format_ms(limits.timeout_ns / NS_PER_MS)
    return LimitExceededError(
        f"not ready to pause after {limit} and {record.fact_count} rounds; {_outlook(record)}"
        "raise --timeout or --downtime-limit"
    )


def does_not_converge(record: Record, limits: Limits) -> NotConvergingError:
    """The error of a guest that dirties memory as fast as it is sent."""
    bounds = f"--downtime-limit {format_ms(limits.downtime_ns / NS_PER_MS)}"
    if limits.max_downtime_ns:
        bounds += f" and --max-downtime {format_ms(limits.max_downtime_ns / NS_PER_MS)}"
    percent = record.throttle_percent
    throttled, advice = (f", even throttled by {percent} %", "") if percent else ("", " (--auto-converge)")
    return NotConvergingError(
        f"the guest dirties memory as fast as it can be sent{throttled}: {_outlook(record)}beyond {bounds}; "
        f"allow a longer pause, give it more bandwidth, or slow the guest{advice}"
    )


def cannot_throttle(kind: str) -> GuestRefusedError:
    """The error of a guest of *kind* that is to be slowed down, and cannot."""
    return GuestRefusedError(
        f"a {kind} guest cannot be slowed down by parmig; leave out --auto-converge, "
        "and allow a longer pause with --max-downtime where it outruns the network"
    )


def _outlook(record: Record) -> str:
    facts = record.facts
    if not facts:
        return ""
    moved = max(facts, key=lambda round_: round_.sent_bytes)
    rate = moved.sent_bytes * 1e9 / max(1, moved.duration_ns)
    return (
        f"{format_size(facts[-1].remaining_pages * PAGE_BYTES)} remain, at {format_rate(rate)} a pause of "
        f"{format_ms(expected_downtime_ns(facts) / NS_PER_MS)}, "
    )
