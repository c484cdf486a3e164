# SPDX-License-Identifier: Apache-2.0
"""Everything that can happen around a hand-over, one step at a time: never two owners, never none once both are back.

The explorer runs the plans, the rules of ``parmig recover`` and the check of the guardian themselves. The tests of its
mutations show that it would notice if a record were written behind what must follow it.
"""

from __future__ import annotations

import pytest

from parmig.engine.records.handover_record import RecordState
from tests.model.explorer import explore
from tests.model.hosts import Hosts


def test_without_a_fault_the_guest_moves() -> None:
    explored = explore(Hosts(faults=0))
    assert explored.violation == ""
    assert set(explored.ends) == {"destination"}


def test_whatever_goes_wrong_once_or_twice_one_owns_the_guest_and_it_runs() -> None:
    explored = explore(Hosts(faults=2))
    assert explored.violation == "", "\n".join(explored.way)
    assert {"source", "destination", "source, without its monitor", "destination, without its monitor"} == set(
        explored.ends
    )


def test_an_older_peer_that_cannot_ask_is_as_safe() -> None:
    explored = explore(Hosts(faults=1, may_ask=False))
    assert explored.violation == "", "\n".join(explored.way)


@pytest.mark.parametrize(
    "behind", [RecordState.HANDED_OVER, RecordState.PREPARED, RecordState.TAKEN, RecordState.REFUSED]
)
def test_a_record_that_is_written_behind_its_step_is_noticed(behind: RecordState) -> None:
    explored = explore(Hosts(faults=2, behind=behind))
    assert explored.violation
    assert explored.way


def test_a_guardian_that_is_not_disarmed_is_stopped_by_the_record_and_else_noticed() -> None:
    reads = explore(Hosts(faults=1, disarms=False))
    assert reads.violation == "", "\n".join(reads.way)
    blind = explore(Hosts(faults=1, disarms=False, guardian_reads=False))
    assert blind.violation == "both run"
    assert any("source process crashes" in step for step in blind.way)
