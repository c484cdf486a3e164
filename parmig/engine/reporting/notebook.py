# SPDX-License-Identifier: Apache-2.0
"""Finds out what has happened on the source since it was looked at last. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.reporting.notes import ChangeNote, ChannelsNote, Note, RoundNote, StatusNote, ThrottleNote
from parmig.engine.reporting.record import Record
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS

_BEFORE_THE_PLAN = (MigrationStatus.NONE, MigrationStatus.SETUP)
"""The statuses that a plan has passed when it is made. The desk has noted them (``Desk.post_progress``)."""


class Notebook:
    """Remembers what was noted of one record.

    A look without news compares five values, so it may be taken in each turn of the loop, in the pause too.

    Args:
        record: of the source's plan.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._statuses = self._rounds = self._changes = self._throttle_percent = 0
        self._interrupted: tuple[str, ...] = ()

    def look(self, statuses: Sequence[MigrationStatus], now_ns: int) -> list[Note]:
        """What is new at *now_ns*.

        Args:
            statuses: every status of the plan until now. A busy host may have taken two steps since the last look.
        """
        record = self._record
        at_ms = (now_ns - record.began_ns) / NS_PER_MS
        notes: list[Note] = []
        if record.round_count > self._rounds:
            notes += [RoundNote(at_ms=at_ms, round=one) for one in record.rounds[self._rounds - record.round_count :]]
            self._rounds = record.round_count
        if len(record.changes) > self._changes:
            new = record.change_reports()[self._changes :]
            notes += [ChangeNote(at_ms=one.at_ms, change=one.change) for one in new]
            self._changes = len(record.changes)
        if record.throttle_percent != self._throttle_percent:
            self._throttle_percent = record.throttle_percent
            notes.append(ThrottleNote(at_ms=at_ms, throttle_percent=self._throttle_percent))
        if (interrupted := record.outages.interrupted) != self._interrupted:
            self._interrupted = interrupted
            notes.append(ChannelsNote(at_ms=at_ms, interrupted=list(interrupted)))
        if len(statuses) > self._statuses:
            new_statuses = [status for status in statuses[self._statuses :] if status not in _BEFORE_THE_PLAN]
            notes += [StatusNote(at_ms=at_ms, status=status.value) for status in new_statuses]
            self._statuses = len(statuses)
        return notes
