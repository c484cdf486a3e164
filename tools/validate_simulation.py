# SPDX-License-Identifier: Apache-2.0
"""Compare the simulation with measured runs that its costs do not come from, and with published figures.

    python -m tools.validate_simulation --costs COSTS.toml DIR...
    python -m tools.validate_simulation --published

The first prints a table of the runs in each DIR, which ``parmig bench`` has written with ``hosts = "lab"``, and the
median and the 90th percentile of the errors. The second simulates two published series of measurements.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from parmig.config import SendConfig
from parmig.engine.predicting.costs_file import read_costs_file
from parmig.engine.prediction.costs import Costs
from parmig.experiments.factors import Factors, varied, written
from parmig.experiments.results import load_results, measured
from parmig.experiments.simulation.measured_runs import Comparison, compare
from parmig.experiments.simulation.scenario import Guests, Host, Nic, Scenario
from parmig.experiments.simulation.simulator import simulate
from parmig.units import GIB, MIB

LONG_MS = 60
"""Shorter pauses consist of fixed costs, most of which is waiting for a processor."""


def main(arguments: Sequence[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="compare the simulation with measurements")
    parser.add_argument("--costs", type=Path, help="a file that parmig simulate --calibrate has written")
    parser.add_argument("--published", action="store_true", help="compare with published figures")
    parser.add_argument("directories", metavar="DIR", nargs="*", type=Path, help="what parmig bench has written")
    given = parser.parse_args(arguments)
    if given.published:
        print("\n".join([*_cloud_hypervisor(), "", *_vmotion()]))
    if given.directories:
        costs = read_costs_file(str(given.costs or ""))
        rows = [row for directory in given.directories for row in measured(load_results(directory)[1])]
        comparisons = compare(rows, costs, os.cpu_count() or 1)
        print("\n".join([*_table(comparisons), "", *_summary(comparisons)]))
    return 0


def _table(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each combination of factors: medians of its runs, and the simulation."""
    fields = varied([each.factors for each in comparisons])
    cells: dict[str, list[Comparison]] = defaultdict(list)
    for each in comparisons:
        cells[", ".join(f"{name} {text}" for name, text in written(each.factors, fields).items())].append(each)
    lines = ["| factors | runs | total ms | simulated | error | downtime ms | simulated | error | rounds | simulated |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for label, runs in cells.items():
        total = median(run.measured_total_ms for run in runs)
        downtime = median(run.measured_downtime_ms for run in runs)
        first = runs[0]
        pause = first.simulated_downtime_ms
        paused = "- | -" if pause is None else f"{pause:.0f} | {pause / downtime - 1:+.1%}"
        lines.append(
            f"| {label} | {len(runs)} | {total:.0f} | {first.simulated_total_ms:.0f} "
            f"| {first.simulated_total_ms / total - 1:+.1%} | {downtime:.0f} | {paused} "
            f"| {median(run.measured_rounds for run in runs):g} | {first.simulated_rounds:g} |"
        )
    return lines


def _summary(comparisons: Sequence[Comparison]) -> list[str]:
    """The errors of all runs, and of what differs from run to run although nothing was changed."""
    lines = [f"| errors of {len(comparisons)} runs | median | 90th percentile | within 15 % |", "|---|---|---|---|"]
    long = [each for each in comparisons if each.measured_downtime_ms >= LONG_MS]
    short = [each for each in comparisons if each.measured_downtime_ms < LONG_MS]
    figures: dict[str, Sequence[float | None]] = {
        "total time": [each.total_error for each in comparisons],
        "the same: measured, from the median of runs that are alike": _spread(comparisons, _total_ms),
        f"downtime of {LONG_MS} ms or more": [each.downtime_error for each in long],
        "the same: measured, from their median": _spread(long, _downtime_ms),
        f"downtime below {LONG_MS} ms": [each.downtime_error for each in short],
        "the same: measured, from their median ": _spread(short, _downtime_ms),
    }
    for name, errors in figures.items():
        off = np.abs([error for error in errors if error is not None])
        if len(off):
            middle, most = np.percentile(off, [50, 90])
            lines.append(f"| {name} ({len(off)}) | {middle:.1%} | {most:.1%} | {np.mean(off <= 0.15):.0%} |")
    failed = [each for each in comparisons if each.error is not None]
    return [*lines, *(f"simulated as failed: {each.key}: {each.error}" for each in failed)]


def _spread(comparisons: Sequence[Comparison], figure: Callable[[Comparison], float]) -> list[float]:
    """How far runs are from the median of those with the same factors, as parts of it."""
    alike: dict[Factors, list[float]] = defaultdict(list)
    for each in comparisons:
        alike[each.factors].append(figure(each))
    return [value / median(values) - 1 for values in alike.values() if len(values) > 1 for value in values]


def _total_ms(each: Comparison) -> float:
    return each.measured_total_ms


def _downtime_ms(each: Comparison) -> float:
    return each.measured_downtime_ms


# -- published figures --------------------------------------------------------------------------


def _cloud_hypervisor() -> list[str]:
    """A guest of 50 GB over 100 Gbit/s with 1 to 16 connections: cloud-hypervisor pull request 7669.

    One figure comes from the table: what a connection carries, which is half of what two carry.
    """
    published = {1: 1617, 2: 3752, 4: 7238, 8: 11503, 16: 10684}
    lines = ["| connections | published MiB/s | simulated | error |", "|---|---|---|---|"]
    costs = _costs_of_worker(published[2] * MIB / 2)
    # iperf carried 11.5 GiB/s over the link, which is 98.8 Gbit/s: packets are large.
    nic = Nic(rate_bytes_per_s=100 * 10**9 // 8, mtu=9000)
    for connections, rate in published.items():
        found = _rate(costs, nic, connections) / MIB
        lines.append(f"| {connections} | {rate} | {found:.0f} | {found / rate - 1:+.1%} |")
    return lines


def _vmotion() -> list[str]:
    """One NIC of 40 Gbit/s with 1 to 3 VMkernel interfaces: Broadcom's knowledge base, article 323379.

    Two figures come from the table: what one interface carries alone, and the lock that two share.
    """
    published = {1: 18.0, 2: 28.0, 3: 36.0}
    lines = ["| interfaces | published Gbit/s | simulated | error |", "|---|---|---|---|"]
    alone = published[1] * 1e9 / 8
    held_s = ((2 / (published[2] * 1e9 / 8) - 1 / alone) / alone) ** 0.5
    nic = Nic(rate_bytes_per_s=40 * 10**9 // 8, mtu=9000)
    for interfaces, rate in published.items():
        found = _rate(_costs_of_worker(alone), nic, interfaces, lock_rate=round(1 / held_s)) * 8 / 1e9
        lines.append(f"| {interfaces} | {rate:g} | {found:.1f} | {found / rate - 1:+.1%} |")
    return lines


def _costs_of_worker(bytes_per_s: float) -> Costs:
    """Costs of which only what a worker carries matters."""
    each = GIB / bytes_per_s
    return Costs(
        setup_s=0.0,
        setup_worker_s=0.0,
        round_s=0.0,
        count_s=0.0,
        pause_s=0.0,
        end_s=0.0,
        end_worker_s=0.0,
        source_s_per_gib=each,
        destination_s_per_gib=each,
    )


def _rate(costs: Costs, nic: Nic, workers: int, *, lock_rate: int = 0) -> float:
    """Bytes a second of an idle guest of 50 GB in its first round."""
    hosts = tuple(
        Host(name=name, processors=64, lock_rate_bytes_per_s=lock_rate, nics=(nic,))
        for name in ("source", "destination")
    )
    guests = Guests(memory_bytes=(50 * 10**9 // MIB * MIB,) * 2)
    send = SendConfig(workers=workers)
    result, _ = simulate(Scenario(hosts=hosts, guests=(guests,), send=send, loaded_costs=costs))
    first = result.guests[0].rounds[0]
    return result.guests[0].memory_bytes / (first.duration_ms / 1000)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
