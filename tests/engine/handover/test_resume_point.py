# SPDX-License-Identifier: Apache-2.0
"""What a receiver leaves for another one: private, locked, checked, and removed in time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.engine.handover import resume_point
from parmig.engine.handover.resume_point import (
    KEPT_NS,
    ResumePoint,
    ResumeState,
    decode_state,
    encode_state,
    resumable_sessions,
    session_name,
)
from parmig.engine.records.handover_record import HandOverRecord, RecordState, session_id
from parmig.engine.records.record_store import RecordStore
from parmig.errors import HostRefusedError, RecordError
from tests.engine.agreement.test_agreement import WISH


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(str(tmp_path / "records")) as opened:
        yield opened


def state_of(token: bytes) -> ResumeState:
    return ResumeState(token=token, wish=WISH, endpoint="tcp://127.0.0.1:4600", state_port=1, data_ports=(2, 3))


def killed(store: RecordStore, state: RecordState = RecordState.OPEN) -> str:
    """A session whose receiver was killed."""
    point = ResumePoint.create(store)
    record = HandOverRecord(session=session_id(point.token), side="destination", state=state, changed_ns=time.time_ns())
    store.create(record).close()
    point.write(state_of(point.token))
    point.give_back()
    return record.name


def test_what_was_kept_is_found_and_only_its_owner_may_read_it(store: RecordStore) -> None:
    session = killed(store)
    assert resumable_sessions(store) == [session]
    assert os.stat(f"{store.directory}/{session}-destination.resume").st_mode & 0o777 == 0o600
    point = ResumePoint.take(store, session)
    assert point.state == state_of(point.token)
    assert session_name(point.token) == session
    point.close()
    assert resumable_sessions(store) == []


def test_it_is_not_taken_while_a_process_of_the_killed_receiver_lives(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_point, "LOCK_LIMIT_S", 0.05)
    point = ResumePoint.create(store)
    point.write(state_of(point.token))
    worker = os.dup(point.fd)  # as a worker inherits it
    point.give_back()
    session = session_name(point.token)
    with pytest.raises(HostRefusedError, match=f"a process of session {session} still runs here"):
        ResumePoint.take(store, session)
    os.close(worker)
    ResumePoint.take(store, session).close()


def test_what_is_damaged_or_of_another_version_is_refused() -> None:
    whole = encode_state(state_of(bytes(16)))
    for place in (0, 12, 20, 40, len(whole) - 1):
        with pytest.raises(RecordError, match="was changed or damaged"):
            decode_state(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "FILE")
    for data in (b"", whole[:20], whole[:-1], whole + b"x"):
        with pytest.raises(RecordError, match=r"not all of it|was changed or damaged"):
            decode_state(data, "FILE")
    with pytest.raises(RecordError, match="has version 2, this parmig knows 1"):
        decode_state(whole[:11] + b"\2" + whole[12:], "FILE")


def test_a_file_with_the_name_of_another_session_is_refused(store: RecordStore) -> None:
    session = killed(store)
    path = f"{store.directory}/{session}-destination.resume"
    os.rename(path, f"{store.directory}/00000000-destination.resume")
    with pytest.raises(RecordError, match=f"is that of session {session}"):
        ResumePoint.take(store, "00000000")


def test_leftovers_are_removed_and_nothing_else(store: RecordStore) -> None:
    kept, loaded, old = killed(store), killed(store, RecordState.PREPARED), killed(store)
    long_ago = time.time_ns() - KEPT_NS - 1
    os.utime(f"{store.directory}/{old}-destination.resume", ns=(long_ago, long_ago))
    running = ResumePoint.create(store)
    ResumePoint.create(store).close()
    assert resumable_sessions(store) == sorted([kept, session_name(running.token)])
    assert loaded not in resumable_sessions(store)
    running.close()


def test_a_disk_that_cannot_take_it_is_named(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    point = ResumePoint.create(store)
    monkeypatch.setattr(os, "pwrite", lambda *_: 1)
    with pytest.raises(HostRefusedError, match="No space left on device; make room there"):
        point.write(state_of(point.token))
    point.close()
