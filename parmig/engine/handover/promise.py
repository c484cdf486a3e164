# SPDX-License-Identifier: Apache-2.0
"""What the destination promises the source: its record, and the port at which a source that was lost asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import replace

from parmig.engine.destination_plan.destination_end import DestinationEnd
from parmig.engine.guest_thread import GuestThread
from parmig.engine.handover.questions import AnswerPort
from parmig.engine.handover.record_keeper import RecordKeeper, first_record
from parmig.engine.plan.events import Recorded, RecordFailed
from parmig.engine.records.handover_record import RecordState
from parmig.engine.records.record_file import RecordFile
from parmig.engine.records.record_store import RecordStore
from parmig.errors import ParmigError
from parmig.guests.guest import Guest
from parmig.status import MigrationStatus
from parmig.transport.security.security import Security
from parmig.transport.transport import Endpoint


class Promise:
    """The record of one session at the destination, from its beginning.

    Args:
        store: where the record is; not owned.
        guest: asked in *thread* how it is found again; not owned.
        thread: see above.
        token: of the session.
        endpoint: where the source found this side, and asks if it was lost.
        security: of that port.
        file: the record of a receiver in whose place this one goes on; None: there is none yet.

    Attributes:
        outlives: whether the guest's monitor lives on when this process ends.
        ran_ns: when the guest ran here; 0: it does not.
        session: its name.

    Raises:
        HostRefusedError: the record cannot be written.
        ParmigError: the guest did not answer, or the record is too large.
    """

    def __init__(
        self,
        store: RecordStore,
        guest: Guest,
        thread: GuestThread,
        token: bytes,
        endpoint: Endpoint,
        file: RecordFile | None = None,
        security: Security | None = None,
    ) -> None:
        record = replace(thread.call(first_record, guest, token, "destination"), here=str(endpoint))
        if file is not None:
            file.write(process=record.process, guest=record.guest, finder=record.finder, boot=record.boot)
        self._keeper = RecordKeeper(file or store.create(record))
        self._endpoint = endpoint
        self._security = security
        self._port: AnswerPort | None = None
        self.outlives = record.finder is not None
        self.ran_ns = 0
        self.session = record.name

    def write(self, state: RecordState, *, run: bool) -> Recorded | RecordFailed:
        """Write *state*, and return what the plan hears of it.

        Args:
            run: whether the guest is to run.
        """
        return self._keeper.write(state, runs=run)

    def listen(self, show: Callable[[str], None]) -> None:
        """Let the source that was lost ask. Calling it twice is fine.

        Args:
            show: shows the user a line.
        """
        if self._port is not None:
            return
        try:
            self._port = AnswerPort(self._endpoint, self._keeper.record.session, self._security)
        except ParmigError as error:
            show(f"the source that was lost cannot ask here: {error}")
        else:
            show(f"session {self._keeper.record.name} at {self._endpoint}")

    def pollables(self) -> list[int]:
        """What to poll."""
        return self._port.pollables() if self._port is not None else []

    def heard(self) -> bool:
        """Whether the source has asked."""
        return self._port is not None and self._port.heard()

    def answer(self) -> None:
        """Answer the source by what is on record."""
        if self._port is not None:
            since_ns = time.monotonic_ns() - self.ran_ns if self.ran_ns else 0
            self._port.answer(self._keeper.record.owner, since_ns)

    def end(self, plan: DestinationEnd, *, discarded: bool) -> None:
        """Close the record, and note in it whether everything is done that follows from the decision.

        Args:
            plan: that has ended.
            discarded: the copy is gone, or was left as it is on purpose.
        """
        done = plan.status is MigrationStatus.COMPLETED if plan.handed_over else discarded
        if done and self._keeper.record.state in (RecordState.TAKEN, RecordState.REFUSED):
            self._keeper.settle()
        self._keeper.close(keep=plan.promised or not done)

    def close(self) -> None:
        """Stop listening. An answer that was given last still leaves."""
        if self._port is not None:
            self._port.close()
