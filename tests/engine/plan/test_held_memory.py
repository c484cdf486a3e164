# SPDX-License-Identifier: Apache-2.0
"""What a restarted destination holds: asked for in parts, answered, and nothing else is."""

from __future__ import annotations

import pytest

from parmig.engine.messages.digest_messages import MAX_DIGESTS, Digests, DigestsRequest
from parmig.engine.messages.worker_messages import CheckHeld, DigestPages
from parmig.engine.plan import events
from parmig.engine.plan.destination_events import SendMessage
from parmig.engine.plan.events import AskDigests, Instruct
from parmig.engine.plan.held_events import WorkerCheckedHeld
from parmig.engine.plan.held_memory import AHEAD, MAX_ASKED, SILENCE_LIMIT_NS, HeldAnswers, HeldCheckRun
from parmig.errors import LimitExceededError, ProtocolError
from parmig.ram.regions import Region

HUGE = Region(0, 0, MAX_DIGESTS + 64)
REGIONS = [HUGE, *(Region(1, number * 64, 64) for number in range(20))]


def digests(part: AskDigests) -> events.PeerDigests:
    pages = min(MAX_DIGESTS, REGIONS[part.region].pages - part.first)
    return events.PeerDigests(part.region, part.first, bytes(8 * pages))


def test_all_parts_of_all_regions_are_compared_once_and_few_are_under_way() -> None:
    check = HeldCheckRun(REGIONS, 2, {3}, now_ns=0)
    todo = check.begin()
    compared: list[tuple[int, int]] = []
    while todo:
        assert sum(isinstance(one, AskDigests) for one in todo) <= 2 * AHEAD
        match todo.pop(0):
            case AskDigests() as asked:
                todo += check.heard(digests(asked), 1)
            case Instruct(worker=worker, instruction=CheckHeld(region=region, first=first)):
                compared.append((region, first))
                todo += check.checked(WorkerCheckedHeld(worker, region, 1, 2, region == 5), 1)
    assert check.over
    assert sorted(compared) == [(0, 0), (0, MAX_DIGESTS), *((number, 0) for number in range(1, 21) if number != 3)]
    assert (check.proven_pages, check.again_pages, check.unarmed) == (21, 42, {5})


def test_what_a_dead_worker_did_not_end_its_successor_does() -> None:
    check = HeldCheckRun(REGIONS, 1, set(), now_ns=0)
    asked = check.begin()[0]
    assert isinstance(asked, AskDigests)
    assert check.replaced(0) == []
    given = check.heard(digests(asked), 1)
    assert given == check.replaced(0) == [Instruct(0, CheckHeld(0, 0, bytes(8 * MAX_DIGESTS)))]


@pytest.mark.parametrize(
    "answer", [events.PeerDigests(7, 0, bytes(512)), events.PeerDigests(0, 64, b""), events.PeerDigests(0, 0, b"short")]
)
def test_digests_that_were_not_asked_for_break_the_protocol(answer: events.PeerDigests) -> None:
    check = HeldCheckRun(REGIONS, 1, set(), now_ns=0)
    check.begin()
    with pytest.raises(ProtocolError):
        check.heard(answer, 1)


def test_silence_is_an_error_but_not_in_an_outage() -> None:
    check = HeldCheckRun(REGIONS, 1, set(), now_ns=0)
    assert check.overdue(SILENCE_LIMIT_NS, interrupted=True) is None
    assert check.overdue(2 * SILENCE_LIMIT_NS - 1, interrupted=False) is None
    assert isinstance(check.overdue(2 * SILENCE_LIMIT_NS, interrupted=False), LimitExceededError)


def test_the_destination_answers_and_repeats_what_a_dead_worker_owes() -> None:
    answers = HeldAnswers(REGIONS, 2)
    assert answers.hear(DigestsRequest(1, 0)) == [Instruct(1, DigestPages(1, 0, 64, held=True))]
    last = Instruct(0, DigestPages(0, MAX_DIGESTS, 64, held=True))
    assert answers.hear(DigestsRequest(0, MAX_DIGESTS)) == [last]
    assert answers.replaced(0) == [last]
    assert answers.answer(events.WorkerDigestedPages(0, MAX_DIGESTS, b"x")) == [
        SendMessage(Digests(0, MAX_DIGESTS, b"x"))
    ]
    assert answers.replaced(0) == []


@pytest.mark.parametrize(
    "asked", [DigestsRequest(-1, 0), DigestsRequest(21, 0), DigestsRequest(1, 64), DigestsRequest(0, 8)]
)
def test_what_is_not_there_is_refused(asked: DigestsRequest) -> None:
    with pytest.raises(ProtocolError):
        HeldAnswers(REGIONS, 2).hear(asked)


def test_a_source_that_asks_without_end_is_refused() -> None:
    regions = [Region(0, number * 64, 64) for number in range(MAX_ASKED + 1)]
    answers = HeldAnswers(regions, 2)
    for number in range(MAX_ASKED):
        answers.hear(DigestsRequest(number, 0))
    with pytest.raises(ProtocolError):
        answers.hear(DigestsRequest(MAX_ASKED, 0))
