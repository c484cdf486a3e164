# SPDX-License-Identifier: Apache-2.0
"""What ``parmig recover`` does next, fact by fact."""

from __future__ import annotations

import pytest

from parmig.engine.handover.recovery import Act, Facts, Look, next_step
from parmig.engine.records.handover_record import RecordState

S = RecordState
SOURCE = Facts("source", S.HANDED_OVER)
READY = Facts("destination", S.PREPARED)

CASES = {
    "a source that handed over asks": (SOURCE, Act.ASK),
    "also if its monitor is gone": (SOURCE._replace(guest=Look.GONE), Act.ASK),
    "the destination has it": (SOURCE._replace(answer="here"), S.COMPLETED),
    "the destination refused it": (SOURCE._replace(answer="there"), S.RETURNED),
    "no answer": (SOURCE._replace(answer="silent"), Act.STOP),
    "the destination cannot say": (SOURCE._replace(answer="undecided"), Act.STOP),
    "it runs on both": (SOURCE._replace(answer="here", guest=Look.RUNNING), Act.STOP),
    "the user says here": (SOURCE._replace(decide="here"), S.RETURNED),
    "the user says there": (SOURCE._replace(decide="there"), S.COMPLETED),
    "the user says there, and it runs here": (SOURCE._replace(decide="there", guest=Look.RUNNING), Act.STOP),
    "a returned guest runs": (Facts("source", S.RETURNED), Act.RUN),
    "and then it is noted": (Facts("source", S.RETURNED, guest=Look.RUNNING, done=True), Act.SETTLE),
    "a returned guest without a monitor": (Facts("source", S.RETURNED, guest=Look.GONE), Act.SETTLE),
    "a returned guest whose monitor hangs": (Facts("source", S.RETURNED, guest=Look.UNREACHABLE), Act.STOP),
    "a source that never handed over": (Facts("source", S.OPEN), Act.RUN),
    "a completed source": (Facts("source", S.COMPLETED), Act.SETTLE),
    "a settled source": (Facts("source", S.COMPLETED, settled=True), Act.END),
    "a ready destination waits for the question": (READY, Act.SERVE),
    "the question refuses": (READY._replace(asked=True), S.REFUSED),
    "the copy is gone": (READY._replace(guest=Look.GONE), S.REFUSED),
    "somebody continued the copy": (READY._replace(guest=Look.RUNNING), S.TAKEN),
    "the copy does not answer": (READY._replace(guest=Look.UNREACHABLE), Act.STOP),
    "the user says it runs here": (READY._replace(decide="here"), S.TAKEN),
    "but it is gone": (READY._replace(decide="here", guest=Look.GONE), Act.STOP),
    "the user says it runs there": (READY._replace(decide="there"), S.REFUSED),
    "but it runs here": (READY._replace(decide="there", guest=Look.RUNNING), Act.STOP),
    "a taken guest runs": (Facts("destination", S.TAKEN), Act.RUN),
    "unless it was paused before": (Facts("destination", S.TAKEN, runs=False), Act.SETTLE),
    "a taken guest that runs": (Facts("destination", S.TAKEN, guest=Look.RUNNING), Act.SETTLE),
    "a taken guest without a monitor": (Facts("destination", S.TAKEN, guest=Look.GONE), Act.SETTLE),
    "a refused copy is discarded": (Facts("destination", S.REFUSED), Act.DISCARD),
    "a refused copy that is gone": (Facts("destination", S.REFUSED, guest=Look.GONE), Act.SETTLE),
    "a refused copy that runs": (Facts("destination", S.REFUSED, guest=Look.RUNNING), Act.STOP),
    "a destination that was never ready": (Facts("destination", S.OPEN), Act.SETTLE),
    "a settled destination": (Facts("destination", S.TAKEN, settled=True), Act.END),
    "which still answers": (Facts("destination", S.TAKEN, settled=True, listens=True), Act.SERVE),
    "and has answered": (Facts("destination", S.TAKEN, settled=True, listens=True, asked=True), Act.END),
}


@pytest.mark.parametrize("name", CASES)
def test_the_next_step_follows_from_the_facts(name: str) -> None:
    facts, step = CASES[name]
    assert next_step(facts) == step
