# SPDX-License-Identifier: Apache-2.0
"""A process with valid keys attacks each end of a long-lived one; tools/hostile_sessions.py does this for longer."""

from __future__ import annotations

from tools.hostile_sessions import ENDS, Battle

ROUNDS = 3


def test_every_end_refuses_a_peer_with_valid_keys_as_documented() -> None:
    with Battle(seed=3) as battle:
        for end in ENDS * ROUNDS:
            battle.fight(end)  # raises for a crash, a hang, growth, or a byte outside the blocks
        lines = list(battle.table())
    assert len(lines) == len(ENDS) + 2
    assert battle.sent > 10 * len(ENDS)
    assert sum(row.read for row in battle.rows.values()) > 10 * len(ENDS)
    assert all(row.sessions == ROUNDS for row in battle.rows.values())
