# SPDX-License-Identifier: Apache-2.0
"""The status machine moves by its table only, and never from hand-over back to a source that resumes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StatusError
from parmig.status import BEFORE_HAND_OVER, ENDED, TRANSITIONS, MigrationStatus, StatusEvent, StatusMachine, mermaid


@pytest.mark.parametrize(("status", "event"), list(itertools.product(MigrationStatus, StatusEvent)))
def test_every_pair_moves_by_the_table_or_is_an_error_that_changes_nothing(
    status: MigrationStatus, event: StatusEvent
) -> None:
    machine = StatusMachine()
    machine.history = (status,)
    if (status, event) in TRANSITIONS:
        assert machine.move(event) is machine.status is TRANSITIONS[status, event]
    else:
        with pytest.raises(StatusError, match=f"{event.value}.*{status.value}"):
            machine.move(event)
        assert machine.status is status


def reachable(start: MigrationStatus, *, but: tuple[StatusEvent, ...] = ()) -> set[MigrationStatus]:
    found = {start}
    moves = [(before, after) for (before, event), after in TRANSITIONS.items() if event not in but]
    while more := {after for before, after in moves if before in found} - found:
        found |= more
    return found


def test_every_status_can_be_reached() -> None:
    assert reachable(MigrationStatus.NONE) == set(MigrationStatus)


def test_nothing_leaves_an_ended_status() -> None:
    for status in ENDED:
        assert reachable(status) == {status}
        assert not any(before is status for before, _ in TRANSITIONS)


def test_every_status_that_has_not_ended_can_still_end() -> None:
    for status in set(MigrationStatus) - ENDED:
        assert reachable(status) & ENDED


GIVEN_BACK = (StatusEvent.NOT_SENT, StatusEvent.REFUSED)
"""The hand-over never left, or the destination refused it for good."""


def test_only_a_hand_over_that_cannot_be_taken_any_more_leads_to_a_source_that_resumes() -> None:
    for given_back in GIVEN_BACK:
        assert TRANSITIONS[MigrationStatus.HAND_OVER, given_back] is MigrationStatus.FAILED
        assert [before for before, event in TRANSITIONS if event is given_back] == [MigrationStatus.HAND_OVER]
    after = reachable(MigrationStatus.HAND_OVER, but=GIVEN_BACK)
    assert after == {MigrationStatus.HAND_OVER, MigrationStatus.COMPLETED, MigrationStatus.UNKNOWN}
    assert not after & BEFORE_HAND_OVER
    assert not after & {MigrationStatus.FAILED, MigrationStatus.CANCELLED}


@pytest.mark.parametrize("status", sorted(BEFORE_HAND_OVER, key=lambda status: status.value))
def test_before_hand_over_every_trouble_ends_with_a_source_that_resumes(status: MigrationStatus) -> None:
    assert TRANSITIONS[status, StatusEvent.ERROR] is MigrationStatus.FAILED
    assert TRANSITIONS[status, StatusEvent.PEER_LOST] is MigrationStatus.FAILED
    assert TRANSITIONS[status, StatusEvent.CANCEL] is MigrationStatus.CANCELLED


def test_unknown_comes_only_after_hand_over_or_from_a_destination_that_is_ready() -> None:
    unknown = {(before, event) for (before, event), after in TRANSITIONS.items() if after is MigrationStatus.UNKNOWN}
    assert {before for before, event in unknown if event is not StatusEvent.UNDECIDED} == {MigrationStatus.HAND_OVER}
    assert (MigrationStatus.DEVICE, StatusEvent.UNDECIDED) in unknown


@given(st.lists(st.sampled_from([event for event in StatusEvent if event not in GIVEN_BACK]), max_size=40))
def test_no_sequence_of_events_resumes_a_source_after_hand_over(events: list[StatusEvent]) -> None:
    machine = StatusMachine()
    handed_over = False
    for event in events:
        try:
            machine.move(event)
        except StatusError:
            pass
        handed_over |= machine.status is MigrationStatus.HAND_OVER
        assert machine.ended == (machine.status in ENDED)
        assert not (
            handed_over and machine.status in BEFORE_HAND_OVER | {MigrationStatus.FAILED, MigrationStatus.CANCELLED}
        )


def test_the_drawing_has_every_move_and_every_end() -> None:
    def drawn(status: MigrationStatus) -> str:
        return status.value.replace("-", "_")

    lines = [line.strip() for line in mermaid().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> none"]
    wanted = [f"{drawn(before)} --> {drawn(after)}: {event.value}" for (before, event), after in TRANSITIONS.items()]
    wanted += [f"{drawn(status)} --> [*]" for status in ENDED]
    assert sorted(lines[2:]) == sorted(wanted)
