# SPDX-License-Identifier: Apache-2.0
"""A receiver is killed while memory moves, and another one goes on in its place: what it holds is not sent again."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.destination.resumed_receiver import ResumedReceiver
from parmig.engine.records.handover_record import HandOverRecord, RecordState, session_id
from parmig.engine.records.record_store import RecordStore
from parmig.units import MIB
from tests.integration.sides import LISTEN, HeldGuest, Migration, OtherSide, until
from tests.keys import keys

SHAPE = "memory=64MiB,seed=7"
SLOW = {"workers": 2, "verify": True, "max_bandwidth_bytes_per_s": 40 * MIB, "switchover": "manual"}


@contextmanager
def receiver(home: Path, *, guest: str = SHAPE, **fields: Any) -> Iterator[OtherSide]:
    """A receiver in a process of its own. Its memory file and its records are in *home*, and outlive it."""
    records = home / "records"
    options = {"records": str(records), "directory": str(home), "guest": guest, "receive": fields}
    with OtherSide("receive", **options) as side:
        yield side


def session(home: Path) -> str:
    """The session that can be resumed."""
    return until(lambda: [path.name[:8] for path in (home / "records").glob("*.resume")], "a session")[0]


def holds(pid: int, name: str) -> bool:
    """Whether process *pid* has a file with this name open."""
    return any(os.readlink(entry).endswith(name) for entry in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize(("transport", "number", "secured"), [("tcp", 1, True), ("zmq", 2, True)])
def test_a_receiver_that_is_killed_is_resumed_and_nothing_that_it_holds_is_sent_again(
    tmp_path: Path, transport: str, number: int, secured: bool
) -> None:
    guest = f"{SHAPE},rate={0 if number == 1 else 30}MiB/s"
    with_keys = {"keys": str(keys())} if secured else {}
    config = SendConfig(transport=transport, **SLOW, **with_keys)
    with (
        receiver(tmp_path, resumable=True, **with_keys) as first,
        HeldGuest(guest) as source,
        Migration(source, None, config, uri=first.wait_for("uri")) as at,
    ):
        at.at_round(number)
        name = session(tmp_path)
        holders = [one for one in first.remember_family() if holds(one.pid, f"{name}-destination.resume")]
        assert len(holders) == 2, "not every worker holds the lock"
        first.kill()
        with receiver(tmp_path, resume=name, **with_keys) as second:
            if number > 1:
                until(lambda: at.seen[-1].round > number, "the next round")
            at.switch_over("control", "worker 0", "worker 1")
            sent, received = at.sent(), second.wait_for("report")
    assert (sent.status, sent.error, sent.verified) == ("completed", None, True)
    assert received["status"] == "completed"
    assert not list((tmp_path / "records").glob("*.resume"))
    (restart,) = sent.restarts
    assert restart.proven_pages > 0
    again = sent.rounds[number]
    if number == 1:
        assert again.sent_pages == restart.again_pages
        assert restart.proven_pages + restart.again_pages == 64 * 256
    assert {"control", "worker 0", "worker 1"} <= {outage.channel for outage in sent.outages}


def refused(home: Path, name: str, *, guest: str = SHAPE, **fields: Any) -> tuple[str, str]:
    """Type and message of the error of a receiver that is to resume *name* and does not."""
    config = ReceiveConfig(listen=LISTEN, state_dir=str(home / "records"), resume=name)
    with HeldGuest(guest, incoming=True) as other:
        report = ResumedReceiver(other, msgspec.structs.replace(config, **fields)).receive_loop()
    assert report.status == "failed"
    assert report.error is not None
    return report.error.type, report.error.message


def test_what_does_not_fit_is_refused_and_what_is_damaged_is_sent_again(tmp_path: Path) -> None:
    config = SendConfig(**SLOW)
    with receiver(tmp_path, resumable=True) as first, HeldGuest(f"{SHAPE},rate=0") as source:
        uri = first.wait_for("uri")
        with Migration(source, None, config, uri=uri) as at:
            at.at_round(1)
            name = session(tmp_path)
            kind, message = refused(tmp_path, name)
            assert (kind, "in use by a running parmig" in message) == ("HostRefusedError", True), message
            until(lambda: any(one.handled_pages > 8000 for one in at.seen), "half of the memory")
            first.kill()

            kind, message = refused(tmp_path, "12345678")
            assert (kind, f"but {name}" in message) == ("UsageError", True), message
            assert refused(tmp_path, "nonsense")[0] == "UsageError"
            kind, message = refused(tmp_path, name, listen="tcp://127.0.0.1:1")
            assert (kind, f"--listen {uri}" in message) == ("UsageError", True), message
            kind, message = refused(tmp_path, name, guest="memory=32MiB")
            assert (kind, "memory size" in message) == ("GuestRefusedError", True), message

            path = tmp_path / "records" / f"{name}-destination.resume"
            assert path.stat().st_mode & 0o777 == 0o600
            whole = path.read_bytes()
            for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
                path.write_bytes(damaged)
                assert refused(tmp_path, name)[0] == "RecordError"
            path.write_bytes(whole)

            memory = tmp_path / "ram0"
            with memory.open("r+b") as file:
                file.seek(os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA))
                file.write(b"damaged")
            with receiver(tmp_path, resume=name) as second:
                at.switch_over()
                sent = at.sent()
                assert second.wait_for("report")["status"] == "completed"
    assert (sent.status, sent.error, sent.verified) == ("completed", None, True)
    (restart,) = sent.restarts
    assert restart.proven_pages + restart.again_pages == 64 * 256


def test_a_guest_that_was_loaded_is_not_resumed(tmp_path: Path) -> None:
    records = tmp_path / "records"
    with RecordStore(str(records)) as store:
        for state in (RecordState.OPEN, RecordState.PREPARED):
            token = secrets.token_bytes(16)
            record = HandOverRecord(session=session_id(token), side="destination", state=state)
            store.create(record).close()
            kind, message = refused(tmp_path, record.name)
            assert kind == "HostRefusedError"
            assert ("parmig recover" in message) == (state is RecordState.PREPARED), message
