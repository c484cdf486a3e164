# SPDX-License-Identifier: Apache-2.0
"""The layout of a record: whatever is cut short or damaged, the newest whole record is found, or it is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from parmig import logs
from parmig.engine.records.handover_record import (
    FILE_BYTES,
    MAX_PAYLOAD_BYTES,
    SLOT_BYTES,
    Handle,
    HandOverRecord,
    RecordState,
    decode_file,
    decode_slot,
    encode_slot,
    session_id,
)
from parmig.errors import RecordError

TOKEN = bytes(range(16))
RECORD = HandOverRecord(
    session=session_id(TOKEN),
    side="source",
    state=RecordState.HANDED_OVER,
    kind="qemu",
    guest="qemu:/run/vm.qmp (process 7)",
    finder=Handle("parmig.guests.qemu.found:find", b"where"),
    peer="tcp://10.0.0.2:4600",
    created_ns=5,
    changed_ns=9,
)
OLD = replace(RECORD, state=RecordState.OPEN)

records = st.builds(
    HandOverRecord,
    session=st.binary(min_size=16, max_size=16),
    side=st.sampled_from(["source", "destination"]),
    state=st.sampled_from(RecordState),
    settled=st.booleans(),
    guest=st.text(max_size=200),
    finder=st.none() | st.builds(Handle, st.text(max_size=50), st.binary(max_size=1024)),
    rescue=st.none() | st.builds(Handle, st.text(max_size=50), st.binary(max_size=1024)),
)


@given(records, st.integers(0, (1 << 64) - 1))
def test_a_slot_has_what_was_written(record: HandOverRecord, sequence: int) -> None:
    slot = encode_slot(record, sequence)
    assert len(slot) == SLOT_BYTES
    assert decode_slot(slot) == (sequence, record)


def test_a_record_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecordError, match=f"expected at most {MAX_PAYLOAD_BYTES}"):
        encode_slot(replace(RECORD, guest="x" * SLOT_BYTES), 1)


@given(st.integers(0, SLOT_BYTES - 1), st.integers(1, 255))
def test_a_slot_with_any_byte_changed_is_not_taken_for_another_record(place: int, change: int) -> None:
    slot = bytearray(encode_slot(RECORD, 3))
    slot[place] ^= change
    assert decode_slot(bytes(slot)) in (None, (3, RECORD))  # the padding means nothing


@given(st.integers(0, SLOT_BYTES), st.booleans())
def test_a_write_that_was_cut_short_leaves_the_record_before_it(written: int, first: bool) -> None:
    old, new = encode_slot(OLD, 4), encode_slot(RECORD, 5)
    torn = new[:written] + encode_slot(OLD, 3)[written:]
    number, sequence, found = decode_file(torn + old if first else old + torn)
    if decode_slot(torn) == (5, RECORD):
        assert (number, sequence, found) == (0 if first else 1, 5, RECORD)
    else:
        assert (number, sequence, found) == (1 if first else 0, 4, OLD)


@pytest.mark.parametrize("data", [b"", bytes(FILE_BYTES), b"PARMIGHO" * 1024, encode_slot(RECORD, 1)[:100]], ids=len)
def test_a_file_without_a_whole_slot_is_an_error(data: bytes) -> None:
    with pytest.raises(RecordError, match="neither of its two slots is whole"):
        decode_file(data)


def test_a_record_of_another_version_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parmig.engine.records.handover_record.VERSION", 2)
    newer = encode_slot(RECORD, 9)
    monkeypatch.undo()
    with pytest.raises(RecordError, match="version 2, this parmig knows 1"):
        decode_file(encode_slot(OLD, 8) + newer)


def test_the_token_of_the_session_is_not_in_the_record_and_the_name_is_that_of_the_log() -> None:
    assert TOKEN not in encode_slot(RECORD, 1)
    logs.begin_side("source")
    logs.note_session(TOKEN)
    assert logs._origin.get().session == RECORD.name


OWNERS = {
    ("source", RecordState.OPEN): "here",
    ("source", RecordState.HANDED_OVER): "undecided",
    ("source", RecordState.RETURNED): "here",
    ("source", RecordState.COMPLETED): "there",
    ("destination", RecordState.OPEN): "there",
    ("destination", RecordState.PREPARED): "undecided",
    ("destination", RecordState.TAKEN): "here",
    ("destination", RecordState.REFUSED): "there",
}


@pytest.mark.parametrize(("side", "state"), OWNERS)
def test_who_owns_the_guest_follows_from_the_state(side: str, state: RecordState) -> None:
    assert replace(RECORD, side=side, state=state).owner == OWNERS[side, state]
