# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from parmig.engine.observing import event_file
from parmig.engine.observing.event_file import EventFile
from parmig.engine.plan import events as c
from parmig.engine.reporting.change import Change
from parmig.engine.reporting.notebook import Notebook
from parmig.engine.reporting.notes import Note, RoundNote, StatusNote, notes_at_end
from parmig.engine.reporting.report import DowntimePhases, Progress, Report
from parmig.engine.steering.desk import Desk
from parmig.errors import HostRefusedError
from parmig.status import StatusEvent
from tests.engine.plan.test_plan import Walk

MS = 1_000_000


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_thing_that_happens_is_noted_once() -> None:
    walk = Walk()
    book = Notebook(walk.plan.record)
    seen: list[Note] = []

    def look() -> list[str]:
        new = book.look(walk.plan.machine.history, walk.now_ms * MS)
        seen.extend(new)
        return [type(note).__name__ for note in new]

    told = walk.begin()
    assert look() == ["StatusNote"]
    assert look() == []
    walk.take(c.LimitsChanged(Change(timeout_ns=7)), 50)
    walk.take(c.ChannelLost("state", "cut"))
    assert look() == ["ChangeNote", "ChannelsNote"]
    walk.take(c.ChannelResumed("state"))
    walk.send(told, until_ms=120, pages=1280)
    assert look() == ["RoundNote", "ChannelsNote"]
    walk.plan.record.throttle(20)
    assert look() == ["ThrottleNote"]
    assert look() == []
    walk.plan.machine.move(StatusEvent.PAUSED)
    walk.plan.machine.move(StatusEvent.RAM_COMPLETE)
    assert look() == ["StatusNote", "StatusNote"], "none is left out if two come at once"
    statuses = [note.status for note in seen if isinstance(note, StatusNote)]
    assert statuses == ["active", "pre-switchover", "device"]
    rounds = [note for note in seen if isinstance(note, RoundNote)]
    assert [(note.at_ms, note.round) for note in rounds] == [(120, walk.plan.record.rounds[0])]


def test_the_end_has_the_phases_and_the_report() -> None:
    report = Report(parmig="0", side="source", total_time_ms=9.0, downtime_ms=3.0)
    report.downtime_phases_ms = DowntimePhases(pause=1.0, resume=2.0)
    *phases, end = notes_at_end(report)
    assert [(note.phase, note.took_ms) for note in phases if note.took_ms] == [("pause", 1.0), ("resume", 2.0)]  # type: ignore[attr-defined]
    assert end.report is report  # type: ignore[attr-defined]
    assert len(notes_at_end(Report(parmig="0", side="source"))) == 1


def test_a_desk_passes_on_a_status_that_is_new() -> None:
    seen: list[Note] = []
    desk = Desk(lambda: None)
    desk.listeners.append(seen.extend)
    for status in ("setup", "active", "active", "completed"):
        desk.post_progress(Progress(status=status))
    assert [note.status for note in seen if isinstance(note, StatusNote)] == ["active", "completed"]


def test_events_are_appended_and_private(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for status in ("active", "failed"):
        events = EventFile(str(path))
        events.take([StatusNote(at_ms=1.5, status=status)])
        events.close()
    assert lines(path) == [{"event": "status", "at_ms": 1.5, "status": status} for status in ("active", "failed")]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_takes_nothing_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "CLOSE_LIMIT_S", 0.1)
    monkeypatch.setattr(event_file, "MAX_WAITING", 5)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    events = EventFile(str(path))
    note = StatusNote(at_ms=1.5, status="x" * 10_000)
    for _ in range(50):
        events.take([note])
    events.close()
    assert events._dropped > 0
    while events._thread.is_alive():  # it ends once somebody reads
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1 << 16)
    os.close(reader)


@pytest.mark.parametrize("path", ["/nowhere/events", "/"])
def test_a_file_that_cannot_be_written_is_refused(path: str) -> None:
    with pytest.raises(HostRefusedError, match="cannot write events"):
        EventFile(path)
