# SPDX-License-Identifier: Apache-2.0
"""A peer that holds the session and sends what it must not; tools/hostile_peer.py does this for longer."""

from __future__ import annotations

import pytest

from tests.keys import keys
from tools.hostile_peer import run, table

TRIES = 5


@pytest.mark.parametrize(
    ("seed", "role", "transport", "with_keys"), [(12, "send", "tcp", True), (8, "receive", "zmq", False)]
)
def test_the_honest_side_ends_as_documented(seed: int, role: str, transport: str, with_keys: bool) -> None:
    done = []
    while not sum(one.messages for one in done):  # a peer may be lucky, and be honest until the end
        assert len(done) < TRIES
        done.append(run(seed + len(done), role, transport, keys=str(keys()) if with_keys else ""))
        assert not done[-1].problem, done[-1].problem
    assert len(list(table(done))) == 2
