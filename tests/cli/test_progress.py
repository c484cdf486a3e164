# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest
from rich.console import Console
from rich.live import Live

from parmig.cli.display import PlainProgress
from parmig.cli.drawing import LiveProgress, drawing
from parmig.cli.progress import plain_line
from parmig.engine.reporting.report import Progress
from parmig.logs import printable
from parmig.units import MIB, NS_PER_S

FULL = Progress(
    status="active",
    round=2,
    total_pages=100,
    handled_pages=40,
    remaining_bytes=60 * MIB,
    rate_bytes_per_s=100.0 * MIB,
    worker_rates_bytes_per_s=(60.0 * MIB, 40.0 * MIB),
    time_left_ms=600.0,
    throttle_percent=30,
)


def test_a_line_has_all_that_is_known() -> None:
    assert plain_line(FULL) == (
        "active, round 2, 40/100 pages, 100 MiB/s, 60 MiB remaining, 600.0 ms left, throttled by 30 %, "
        "workers 60 MiB/s 40 MiB/s"
    )


SEVERAL_PATHS = msgspec.structs.replace(FULL, path_rates_bytes_per_s={"a-b": 60.0 * MIB, "c-d": 40.0 * MIB})


def test_several_paths_are_shown_instead_of_workers() -> None:
    assert plain_line(SEVERAL_PATHS).endswith(", paths a-b 60 MiB/s c-d 40 MiB/s")
    console = Console(width=140, color_system=None)
    with console.capture() as captured:
        console.print(drawing(SEVERAL_PATHS, 140))
    assert captured.get().splitlines()[1].strip() == "paths   a-b 60 MiB/s   c-d 40 MiB/s"


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert plain_line(Progress(status="setup")) == "setup"


def test_lines_come_at_changes_and_otherwise_once_a_second() -> None:
    lines: list[str] = []
    now = 10 * NS_PER_S
    show = PlainProgress(lines.append, clock=lambda: now)
    for step, (round_, written) in enumerate([(1, 1), (1, 1), (2, 2), (2, 2), (2, 2), (2, 3), (2, 3)]):
        now = 10 * NS_PER_S + step * NS_PER_S // 3
        show(Progress(status="active", round=round_))
        assert len(lines) == written, step


def test_a_message_is_always_written() -> None:
    lines: list[str] = []
    show = PlainProgress(lines.append, clock=lambda: 0)
    for _ in range(2):
        show(Progress(status="active", message="worker 1 was lost"))
    assert lines == ["worker 1 was lost", "active", "worker 1 was lost"]


HOSTILE = "\x1b]0;owned\x07 \x1b[2J\r\n\u2028 ok"


def test_words_of_a_peer_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parmig.cli.progress._drawn", False)  # and so it is again afterwards
    console = Console(width=140, force_terminal=True, color_system=None)
    with console.capture() as captured, Live(console=console, auto_refresh=False) as live:
        LiveProgress(live)(Progress(status=HOSTILE, message=HOSTILE))
    lines: list[str] = []
    PlainProgress(lambda line: lines.append(printable(line)))(Progress(status=HOSTILE))
    for told in (captured.get(), *lines):
        assert r"\x1b]0;owned\x07 \x1b[2J\r\n\u2028 ok" in told
        assert "\x1b]" not in told
        assert "\x1b[2J" not in told


def test_a_terminal_gets_the_same_figures() -> None:
    console = Console(width=140, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(drawing(FULL, 140))
    for words in ("active", "round 2", "40/100 pages", "0: 60 MiB/s", "1: 40 MiB/s"):
        assert words in captured.get()


@pytest.mark.parametrize(("columns", "bar"), [(140, 30), (100, 25), (84, 9), (60, 8), (30, 8)])
def test_a_narrow_terminal_keeps_the_status_and_the_round_whole(columns: int, bar: int) -> None:
    console = Console(width=columns, color_system=None)
    with console.capture() as captured:
        console.print(drawing(msgspec.structs.replace(FULL, throttle_percent=0), columns))
    head = captured.get().splitlines()[0]
    assert head.startswith("active  round 2  ━")
    assert len(head.rstrip()) <= columns
    assert head[len("active  round 2  ") + bar + 2 :].startswith("40")
    assert head.rstrip().endswith("…") == (columns < 84)
