# SPDX-License-Identifier: Apache-2.0
"""A receiver that goes on in place of one that was killed (``parmig receive --resume``)."""

from __future__ import annotations

import re

from msgspec.structs import replace

from parmig.engine.agreement.agreement import check_configure
from parmig.engine.channels.securing import security_of
from parmig.engine.destination.receiver import WAITING, MigrationReceiver
from parmig.engine.destination.resuming import Resuming
from parmig.engine.destination.session import ReceiveSession
from parmig.engine.handover.resume_point import ResumePoint, ResumeState, resumable_sessions
from parmig.engine.one_host.memory_files import in_order_of
from parmig.engine.records.handover_record import NAME_CHARACTERS, RecordState, session_id
from parmig.engine.records.record_file import RecordFile
from parmig.engine.records.record_store import RecordStore
from parmig.engine.reporting.mismatch import joined
from parmig.engine.reporting.report import Progress
from parmig.errors import GuestRefusedError, HostRefusedError, RecordError, UsageError
from parmig.transport.security.security import Security
from parmig.transport.transport import Endpoint, parse_uri


class ResumedReceiver(MigrationReceiver):
    """Takes up the session ``config.resume``. Nobody but its source is let in."""

    def _listen(self) -> None:
        pass  # the session does, once its workers listen

    def _await_source(self) -> ReceiveSession:
        """Take up the session.

        Raises:
            UsageError: there is no such session, or another option does not fit to it.
            HostRefusedError: its time is over, or it is in use.
            GuestRefusedError: the guest here is another one.
            RecordError: what it left is damaged.
        """
        store, session = self._store, self._config.resume
        assert store is not None
        record = _open_record(store, session)
        try:
            point = ResumePoint.take(store, session)
            try:
                return self._take_up(store, record, point)
            except BaseException:
                point.give_back()
                raise
        except BaseException:
            record.close()
            raise

    def _take_up(self, store: RecordStore, record: RecordFile, point: ResumePoint) -> ReceiveSession:
        state = point.state
        assert state is not None
        if record.record.session != session_id(state.token):
            raise RecordError(f"the files of session {self._config.resume} do not belong together; one was replaced")
        endpoint = self._endpoint(state)
        security = self._security(state, endpoint)
        wish = state.wish
        info, memory = self._look_at_guest()
        traits = self._thread.call(self._guest.traits)
        mismatches = check_configure(wish, info, [part.block for part in memory], traits)
        if mismatches:
            raise GuestRefusedError(f"this is not the guest of session {record.record.name}: {joined(mismatches)}")
        self._thread.call(self._guest.prepare_incoming)
        self._show(Progress(status=WAITING, message=f"session {record.record.name}: goes on at {endpoint}"))
        return ReceiveSession(
            wish,
            info,
            in_order_of(wish.blocks, memory, info),
            self._config,
            None,
            endpoint,
            in_place=(),
            store=store,
            resuming=Resuming(point, record, security),
            guest=self._guest,
            thread=self._thread,
            progress=self._show,
        )

    def _endpoint(self, state: ResumeState) -> Endpoint:
        """Where the source looks for this side.

        Raises:
            UsageError: it is not where the user wants to listen.
        """
        there, here = parse_uri(state.endpoint), self._admission.endpoint
        if (here.scheme, here.host) != (there.scheme, there.host) or here.port not in (0, there.port):
            raise UsageError(f"the source of this session looks for it at {there}, not at {here}; --listen {there}")
        return there

    def _security(self, state: ResumeState, endpoint: Endpoint) -> Security | None:
        """What secures the channels of the session.

        Raises:
            UsageError: it began with keys and is to go on without, or the other way round.
        """
        security = security_of(self._config, endpoint)
        if (security is not None) != bool(state.pinned):
            raise UsageError(f"this session began with{'' if state.pinned else 'out'} --keys, and must go on so")
        return security and replace(security, pinned=state.pinned)


def _open_record(store: RecordStore, session: str) -> RecordFile:
    """The record of *session*, whose guest is not loaded yet."""
    if not re.fullmatch(rf"[0-9a-f]{{{NAME_CHARACTERS}}}", session):
        raise UsageError(f"{session!r} is no session; write its {NAME_CHARACTERS} letters and digits")
    begun = resumable_sessions(store)
    name = f"{session}-destination.record"
    if not any(entry.name == name for entry in store.entries()):
        raise UsageError(f"there is no session {session} in {store.directory}, but {', '.join(begun) or 'none'}")
    file = store.open(name)
    state = file.record.state
    if state is RecordState.OPEN and session in begun:
        return file
    file.close()
    if state is RecordState.OPEN:
        raise HostRefusedError(
            f"session {session} cannot be resumed: it had no --resumable, or its guest was being loaded; "
            "the guest stays at the source. End this guest, and begin a new migration"
        )
    raise HostRefusedError(
        f"session {session} cannot be resumed: its guest was loaded here, and it is {state.value}; run parmig recover"
    )
