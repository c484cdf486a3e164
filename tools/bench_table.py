# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and slopes of the runs of :mod:`tools.bench_peers`, as data and as text. No run happens here.

A run is a dictionary, as the JSON file has it. A cell is what runs have in common besides the contender: memory size,
condition, fill and placement.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

CELL = ("memory_mib", "condition", "fill", "placement")
CONTENDER = ("contender", "count")
RATES = ("mib_per_s", "without_setup_mib_per_s")
FLOOR, QEMU, NETWORK = "floor", "qemu", "iperf3"
COUNTED = {"floor": "pairs", "floor-pwrite": "pairs", "iperf3": "streams", "qemu": "channels"}
"""What the number of a contender counts, in the order of tables; of all others, it counts workers."""

Row = dict[str, Any]


def label(row: Row) -> str:
    """``qemu, 2 channels``."""
    noun = COUNTED.get(row["contender"], "workers")
    return f"{row['contender']}, {row['count']} {noun if row['count'] != 1 else noun[:-1]}"


def medians(runs: Sequence[Row]) -> list[Row]:
    """A row for each cell and contender: the medians, and the ratios to the best floor and the best QEMU of the cell.

    ``over_iperf3`` is the ratio to iperf3 with as many streams. The best is the one with the highest median. Ratios are
    of ``mib_per_s``, the rate of the whole move.
    """
    rows = [_median_row(same) for same in _grouped(runs, CELL + CONTENDER)]
    for cell in cells(rows):
        for peer, name in ((FLOOR, "over_floor"), (QEMU, "over_qemu")):
            best = max((row["mib_per_s"] for row in cell if row["contender"] == peer), default=None)
            for row in cell:
                row[name] = round(row["mib_per_s"] / best, 2) if best else None
        network = {row["count"]: row["mib_per_s"] for row in cell if row["contender"] == NETWORK}
        for row in cell:
            streams = network.get(row["count"])
            row["over_iperf3"] = round(row["mib_per_s"] / streams, 2) if streams else None
    return rows


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """*rows* by cell."""
    return _grouped(rows, CELL)


def runs_of(runs: Sequence[Row], row: Row) -> list[Row]:
    """The runs that the median *row* is of."""
    return [run for run in runs if all(run[key] == row[key] for key in CELL + CONTENDER)]


def slopes(rows: Sequence[Row]) -> list[Row]:
    """Processor seconds for each further GiB, from the smallest to the largest memory; what starting costs falls out.

    Args:
        rows: of :func:`medians`.
    """
    result = []
    without_size = (*CELL[1:], *CONTENDER)
    for same in _grouped(rows, without_size):
        small, large = same[0], same[-1]
        if large["memory_mib"] > small["memory_mib"] and None not in (small["processor_s"], large["processor_s"]):
            gib = (large["memory_mib"] - small["memory_mib"]) / 1024
            slope = (large["processor_s"] - small["processor_s"]) / gib
            from_to = {"from_mib": small["memory_mib"], "to_mib": large["memory_mib"]}
            result.append(
                {key: small[key] for key in without_size} | from_to | {"processor_s_per_gib": round(slope, 2)}
            )
    return result


def write_table(runs: Sequence[Row]) -> str:
    """All medians as text, cell by cell, then the slopes."""
    rows = medians(runs)
    lines = []
    for cell in cells(rows):
        head = cell[0]
        lines.append(f"\n{cell_title(head)}, medians of {_spread([row['runs'] for row in cell])}")
        lines.append(
            f"  {'':24}{'MiB/s':>7}{'lowest..highest':>17}{'no set-up':>11}{'floor':>7}{'QEMU':>7}"
            f"{'iperf3':>8}{'s/GiB':>7}"
        )
        for row in cell:
            extremes = f"{row['lowest_mib_per_s']}..{row['highest_mib_per_s']}"
            lines.append(
                f"  {label(row):24}{row['mib_per_s']:7}{extremes:>17}{row['without_setup_mib_per_s']:11}"
                f"{_figure(row['over_floor']):>7}{_figure(row['over_qemu']):>7}{_figure(row['over_iperf3']):>8}"
                f"{_figure(row['processor_s_per_gib']):>7}"
            )
    for title, same in itertools.groupby(
        slopes(rows), key=lambda row: f"{row['condition']}, {row['fill']}, {row['placement']}"
    ):
        lines.append(f"\nprocessor seconds for each further GiB: {title}")
        lines += [
            f"  {label(row):24}{row['processor_s_per_gib']:7}   ({row['from_mib']} to {row['to_mib']} MiB)"
            for row in same
        ]
    return "\n".join(lines).lstrip("\n")


def cell_title(row: Row) -> str:
    """What the runs of a cell have in common."""
    filler = {"outside": "filled from outside", "guest": "filled through the guest"}[row["fill"]]
    return f"{row['condition']}, {filler}, {row['placement']}, {row['memory_mib']} MiB"


def _median_row(same: Sequence[Row]) -> Row:
    row = {key: same[0][key] for key in CELL + CONTENDER} | {"runs": len(same)}
    row |= {name: round(median(run[name] for run in same)) for name in RATES}
    row["lowest_mib_per_s"] = min(run["mib_per_s"] for run in same)
    row["highest_mib_per_s"] = max(run["mib_per_s"] for run in same)
    for name in ("source_processor_s", "destination_processor_s", "processor_s", "processor_s_per_gib"):
        known = [run[name] for run in same if run[name] is not None]
        row[name] = round(median(known), 3) if known else None
    return row


def _grouped(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """*rows* that agree in *keys*, the groups in order: peers first, then parmig."""

    def factors(row: Row) -> tuple[Any, ...]:
        peers = list(COUNTED)
        rank = peers.index(row["contender"]) if row["contender"] in COUNTED else len(peers)
        return tuple((rank, row[key]) if key == "contender" else row[key] for key in keys)

    return [list(same) for _, same in itertools.groupby(sorted(rows, key=factors), key=factors)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spread(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
