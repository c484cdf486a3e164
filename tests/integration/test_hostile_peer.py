# SPDX-License-Identifier: Apache-2.0
"""A peer that holds the session and sends what it must not; tools/hostile_peer.py does this for longer."""

from __future__ import annotations

import pytest

from tools.hostile_peer import run, table


@pytest.mark.parametrize(("seed", "role", "transport"), [(11, "send", "tcp"), (8, "receive", "zmq")])
def test_the_honest_side_ends_as_documented(seed: int, role: str, transport: str) -> None:
    done = run(seed, role, transport)
    assert not done.problem, done.problem
    assert done.messages
    assert len(list(table([done]))) == 2
