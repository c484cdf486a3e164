# SPDX-License-Identifier: Apache-2.0
"""A receiver is killed while memory moves, and another one goes on in its place: what it holds is not sent again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from parmig.config import SendConfig
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.integration.sides import HeldGuest, Migration, OtherSide, until

SHAPE = "memory=64MiB,seed=7"
SLOW = {"workers": 2, "verify": True, "max_bandwidth_bytes_per_s": 40 * MIB}


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


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_receiver_that_is_killed_is_resumed_and_nothing_that_it_holds_is_sent_again(
    tmp_path: Path, transport: str, number: int
) -> None:
    guest = f"{SHAPE},rate={0 if number == 1 else 30}MiB/s"
    config = SendConfig(transport=transport, downtime_limit_ns=30 * NS_PER_MS, **SLOW)
    with receiver(tmp_path, resumable=True) as first, HeldGuest(guest) as source:
        with Migration(source, None, config, uri=first.wait_for("uri")) as at:
            at.at_round(number)
            name = session(tmp_path)
            first.kill()
            with receiver(tmp_path, resume=name) as second:
                if number > 1:
                    until(lambda: at.seen[-1].round > number, "the next round")
                    source.throttle(90)
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
