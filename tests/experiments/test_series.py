# SPDX-License-Identifier: Apache-2.0
"""Which runs are drawn together."""

from __future__ import annotations

from typing import Any

from parmig.experiments.factors import Factors, normalised
from parmig.experiments.plots.series import MAX_LINES, panels, pooled
from parmig.units import MIB


def row(time_ms: float = 1.0, **factors: Any) -> dict[str, Any]:
    made = normalised(Factors(**factors))
    fields = {name: getattr(made, name) for name in Factors.__struct_fields__}
    return {**fields, "status": "completed", "warm_up": False, "total_time_ms": time_ms}


def test_lines_differ_in_all_factors_but_that_of_the_axis() -> None:
    rows = [row(peer=peer, workers=workers) for peer in ("parmig", "iperf3") for workers in (4, 1, 2)]
    (panel,) = panels(rows, "workers")
    assert [line.label for line in panel.lines] == ["iperf3", "parmig"]
    assert [list(line.points) for line in panel.lines] == [[1, 2, 4]] * 2


def test_too_many_lines_are_spread_over_panels_in_the_order_of_their_values() -> None:
    sizes = [64 * MIB, 1024 * MIB, 128 * MIB]
    patterns = ("random", "sequential", "hot", "burst")
    rows = [row(memory_bytes=size, pattern=one, workers=n) for size in sizes for one in patterns for n in (1, 2)]
    drawn = panels(rows, "workers")
    assert [panel.title for panel in drawn] == ["memory 64MiB", "memory 128MiB", "memory 1GiB"]
    assert all(len(panel.lines) <= MAX_LINES for panel in drawn)


def test_failed_runs_and_warm_ups_are_not_drawn() -> None:
    rows = [row(), {**row(workers=4), "status": "failed"}, {**row(workers=8), "warm_up": True}]
    (panel,) = panels(rows, None)
    assert [list(line.points.values()) for line in panel.lines] == [[[rows[0]]]]


def test_a_distribution_has_enough_runs_in_each_line() -> None:
    rows = [row(workers=n, pattern=one) for n in (1, 2, 4) for one in ("random", "hot") for _ in range(2)]
    assert pooled(rows, ("pattern", "workers")) == ["pattern"]
    assert pooled(rows[:2], ("pattern", "workers")) == []


def test_a_line_has_the_median_where_it_is_known() -> None:
    rows = [row(3.0), row(1.0), row(2.0), {**row(workers=4), "total_time_ms": None}]
    (panel,) = panels(rows, "workers")
    figures = panel.lines[0].figures("total_time_ms")
    assert {x: figure.median for x, figure in figures.items()} == {2: 2.0}
