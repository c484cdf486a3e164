# SPDX-License-Identifier: Apache-2.0
"""The status machine of a migration: one table, one way to change, QEMU's names where it has them."""

from __future__ import annotations

import enum

from parmig.errors import StatusError


class MigrationStatus(enum.Enum):
    """Where a migration is."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    HAND_OVER = "hand-over"
    FINISHING = "finishing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class StatusEvent(enum.Enum):
    """What moves it on."""

    STARTED = "started"
    CONFIGURED = "configured"
    PAUSED = "paused"
    RAM_COMPLETE = "RAM complete"
    HANDED_OVER = "handed over"
    WENT_ON = "went on"
    SAVED = "saved"
    RESUMED = "resumed"
    ERROR = "error"
    CANCEL = "cancel"
    PEER_LOST = "peer lost"
    NOT_SENT = "hand-over not sent"
    REFUSED = "refused"
    UNDECIDED = "left undecided"


S, E = MigrationStatus, StatusEvent

TRANSITIONS: dict[tuple[MigrationStatus, StatusEvent], MigrationStatus] = {
    (S.NONE, E.STARTED): S.SETUP,
    (S.SETUP, E.CONFIGURED): S.ACTIVE,
    (S.ACTIVE, E.PAUSED): S.PRE_SWITCHOVER,
    (S.PRE_SWITCHOVER, E.RAM_COMPLETE): S.DEVICE,
    (S.DEVICE, E.HANDED_OVER): S.HAND_OVER,
    (S.HAND_OVER, E.RESUMED): S.COMPLETED,
    # A snapshot has no hand-over: the source guest runs again while the file is finished.
    (S.DEVICE, E.WENT_ON): S.FINISHING,
    (S.FINISHING, E.SAVED): S.COMPLETED,
    # Before hand-over every way out leads back to a running source.
    **{
        (status, event): end
        for status in (S.NONE, S.SETUP, S.ACTIVE, S.PRE_SWITCHOVER, S.DEVICE, S.FINISHING)
        for event, end in ((E.ERROR, S.FAILED), (E.PEER_LOST, S.FAILED), (E.CANCEL, S.CANCELLED))
    },
    # A hand-over that never left this host changes nothing.
    (S.HAND_OVER, E.NOT_SENT): S.FAILED,
    # Nor does one that the destination has refused for good.
    (S.HAND_OVER, E.REFUSED): S.FAILED,
    # The destination is ready, and lost the source before it heard of a hand-over, which may have been sent.
    (S.DEVICE, E.UNDECIDED): S.UNKNOWN,
    # After it only the destination knows the outcome; a cancel comes too late and changes nothing.
    (S.HAND_OVER, E.ERROR): S.UNKNOWN,
    (S.HAND_OVER, E.PEER_LOST): S.UNKNOWN,
    (S.HAND_OVER, E.CANCEL): S.HAND_OVER,
}
"""Every move there is; a pair that is missing is an error."""

ENDED = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED, S.UNKNOWN})
"""Statuses that nothing follows."""

BEFORE_PAUSE = frozenset({S.NONE, S.SETUP, S.ACTIVE})
"""Statuses in which the guest runs at the source."""

BEFORE_HAND_OVER = frozenset({S.NONE, S.SETUP, S.ACTIVE, S.PRE_SWITCHOVER, S.DEVICE, S.FINISHING})
"""Statuses in which the source may still resume its guest."""


class StatusMachine:
    """Holds the status and changes it by the table only.

    Attributes:
        history: every status until now, in order; the last one is that of now.
    """

    def __init__(self) -> None:
        self.history: tuple[MigrationStatus, ...] = (MigrationStatus.NONE,)

    @property
    def status(self) -> MigrationStatus:
        """Where the migration is."""
        return self.history[-1]

    def move(self, event: StatusEvent) -> MigrationStatus:
        """Apply *event* and return the new status.

        Raises:
            StatusError: the table has no such move.
        """
        after = TRANSITIONS.get((self.status, event))
        if after is None:
            raise StatusError(f"{event.value!r} cannot happen in status {self.status.value!r}")
        if after is not self.status:
            self.history = (*self.history, after)
        return after

    @property
    def ended(self) -> bool:
        """Whether no other status can follow."""
        return self.status in ENDED


def mermaid() -> str:
    """The table as a Mermaid state diagram; ``docs/architecture.md`` holds its output."""
    lines = ["stateDiagram-v2", "    [*] --> none"]
    lines += [f"    {_name(a)} --> {_name(b)}: {event.value}" for (a, event), b in TRANSITIONS.items()]
    lines += [f"    {_name(status)} --> [*]" for status in MigrationStatus if status in ENDED]
    return "\n".join(lines)


def _name(status: MigrationStatus) -> str:
    return status.value.replace("-", "_")
