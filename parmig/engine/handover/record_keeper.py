# SPDX-License-Identifier: Apache-2.0
"""Keeps the record of one running session: carries out what a plan decides about it, within a limit."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from parmig.engine.guest_thread import GuestThread
from parmig.engine.plan.events import Recorded, RecordFailed
from parmig.engine.records.handover_record import Handle, HandOverRecord, RecordState, Side, session_id
from parmig.engine.records.record_file import RecordFile
from parmig.errors import ParmigError, RecordError
from parmig.guests.guest import Guest, Rescue
from parmig.version import __version__

_logger = logging.getLogger(__name__)

WRITE_LIMIT_S = 2.0
"""How long a write may take; it takes 0.2 ms. A disk that hangs must not keep the guest paused."""


def boot_id() -> str:
    """Of the running kernel: another one after each boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def first_record(guest: Guest, token: bytes, side: Side, **more: Any) -> HandOverRecord:
    """The record of a session that begins.

    Args:
        guest: asked how its monitor is found.
        token: of the session.
        side: of this host.
        more: further fields.
    """
    place = guest.whereabouts()
    now_ns = time.time_ns()
    return HandOverRecord(
        session=session_id(token),
        side=side,
        state=RecordState.OPEN,
        kind=guest.info().kind,
        guest=place.text if place is not None else "",
        finder=Handle(place.program, place.setup) if place is not None else None,
        boot=boot_id(),
        process=os.getpid(),
        created_ns=now_ns,
        changed_ns=now_ns,
        parmig=__version__,
        **more,
    )


class RecordKeeper:
    """The record of a session that runs.

    Args:
        file: with the newest record; owned from here on.
    """

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._thread = GuestThread("parmig-record")

    @property
    def record(self) -> HandOverRecord:
        """What was written last."""
        return self._file.record

    @property
    def path(self) -> str:
        """Of the file."""
        return self._file.path

    def write(self, state: RecordState, rescue: Rescue | None = None, **changes: Any) -> Recorded | RecordFailed:
        """Write *state*, and return what the plan hears of it.

        Args:
            rescue: the newest way to let the guest run here again; None: as before.
            changes: of other fields.
        """
        if rescue is not None:
            changes["rescue"] = Handle(rescue.program, rescue.setup)
        try:
            self._thread.call(self._write, state, changes, limit_s=WRITE_LIMIT_S)
        except ParmigError as error:
            _logger.error("%s was not recorded: %s", state.value, error)
            failure = error if isinstance(error, RecordError) else RecordError(f"the record {self.path}: {error}")
            return RecordFailed(state, failure)
        return Recorded(state)

    def _write(self, state: RecordState, changes: dict[str, Any]) -> None:
        self._file.write(state=state, **changes)

    def settle(self) -> None:
        """Note that everything that follows from the state is done. A failure is only logged."""
        self.write(self.record.state, settled=True)

    def close(self, *, keep: bool) -> None:
        """Close the file, and remove it unless it is to be kept. Calling it twice is fine.

        Args:
            keep: something depends on it, or people may ask for it.
        """
        if not keep:
            self._file.remove()
        if self._thread.close(WRITE_LIMIT_S):
            self._file.close()
