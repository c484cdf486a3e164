# SPDX-License-Identifier: Apache-2.0
"""Predictions of ``parmig predict`` beside measured migrations: ``python -m tools.bench_prediction``.

usage: python -m tools.bench_prediction [--part 1/2] [--repeats 2] [--observe 5] [--costs FILE] [--json FILE]

Each guest is observed once, by the code of ``parmig predict``. Then it is moved several times, over loopback with a
limit of the rate, which also holds on a busy machine. What fixed steps cost on this machine is measured first, with
guests that write nothing, unless ``--costs`` has it; these runs are in no table. ``--json FILE`` appends all runs, and
prints the table of all runs that FILE has, so that the parts can be run one after the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from parmig.config import SendConfig
from parmig.engine.predicting.costs_file import read_costs_file
from parmig.engine.predicting.predict_config import PredictConfig
from parmig.engine.predicting.predictor import Predictor
from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.grid import Observed
from parmig.engine.prediction.model import predict
from parmig.engine.prediction.setting import Setting
from parmig.engine.reporting.report import Report
from parmig.engine.work.policy import Limits
from parmig.errors import NotConvergingError
from parmig.guests.registry import open_guest
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tools.bench_lab import median, migrate_by_commands

MEMORY_MIB = 128
WORKERS = 2
GUESTS = (
    "rate=10MiB/s",
    "rate=25MiB/s",
    "rate=40MiB/s",
    "rate=60MiB/s,pattern=hot",
    "rate=120MiB/s,pattern=hot",
    "rate=25MiB/s,pattern=sequential",
    "rate=30MiB/s,touched=25%",
    "rate=20MiB/s,pattern=burst",
)
"""How the guests write: so that some pauses are short, and some as long as their limit."""

SETTINGS = ((48, 250), (64, 250), (64, 1000))
"""Limits of the rate in MiB/s and of the pause in ms."""

IDLE_RUNS = 4
PERCENTILE = 0.9


def move(guest: str, rate_mib: int, limit_ms: int) -> Report:
    """The report of one migration by commands."""
    limits = ("--max-bandwidth", f"{rate_mib}MiB/s", "--downtime-limit", f"{limit_ms}ms")
    return migrate_by_commands(guest, f"synthetic:memory={MEMORY_MIB}MiB", SendConfig(workers=WORKERS), *limits)


def measured_costs() -> Costs:
    """What fixed steps cost here, by moving a guest that writes nothing."""
    reports = [move(f"synthetic:memory={MEMORY_MIB}MiB", 256, 250) for _ in range(IDLE_RUNS)]
    defaults = Costs()
    rest_ms = []
    for report in reports:
        rounds_ms = sum(round_.duration_ms for round_ in report.rounds if not round_.paused)
        rest_ms.append(report.total_time_ms - report.setup_time_ms - (report.downtime_ms or 0.0) - rounds_ms)
    return msgspec.structs.replace(
        defaults,
        setup_s=median([report.setup_time_ms for report in reports]) / 1000,
        setup_worker_s=0.0,
        end_s=max(0.0, median(rest_ms) / 1000 - defaults.count_s),
        end_worker_s=0.0,
        pause_s=median([report.downtime_ms or 0.0 for report in reports]) / 1000,
    )


def observe(guest: str, seconds: float) -> Observed:
    """What ``parmig predict`` learns of *guest*."""
    config = PredictConfig(max_bandwidth_bytes_per_s=MIB, observe_ns=round(seconds * NS_PER_S))
    with open_guest(guest, incoming=False) as opened:
        predictor = Predictor(opened, config)
        predictor.start()
    assert predictor.observed is not None
    return predictor.observed


def runs(guests: Sequence[str], repeats: int, seconds: float, costs: Costs) -> Iterator[dict[str, Any]]:
    """Predict and move each guest in each setting, *repeats* times."""
    for options in guests:
        guest = f"synthetic:memory={MEMORY_MIB}MiB,{options}"
        observed = observe(guest, seconds)
        for rate_mib, limit_ms in SETTINGS * repeats:
            setting = Setting(
                limits=Limits(limit_ms * NS_PER_MS),
                rate_bytes_per_s=rate_mib * MIB,
                workers=WORKERS,
                source_processors=WORKERS,
                one_host=True,
                paced=True,
            )
            expected = predict(observed.working_set, observed.memory, setting, costs)
            row = {"guest": options, "rate_mib": rate_mib, "limit_ms": limit_ms, "converged": False}
            row["expected"] = msgspec.to_builtins(expected)
            try:
                report = move(guest, rate_mib, limit_ms)
            except NotConvergingError:
                pass
            else:
                row |= {"converged": True, "total_s": report.total_time_ms / 1000}
                row["downtime_s"] = (report.downtime_ms or 0.0) / 1000
                row["rounds"] = [[r.dirty_pages, r.duration_ms, r.paused] for r in report.rounds]
            yield row


def errors(rows: Sequence[dict[str, Any]], what: str) -> list[float]:
    """The relative errors of *what*, of migrations that converged as predicted."""
    alike = [row for row in rows if row["converged"] and row["expected"]["converges"]]
    return [row["expected"][what]["value"] / row[what] - 1 for row in alike]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print each guest and setting with its medians, and the errors of all."""
    print(f"{'guest':34} {'rate':>4} {'limit':>5} {'runs':>4} {'total':>16} {'error':>7} {'pause':>16} {'error':>7}")
    keys = dict.fromkeys((row["guest"], row["rate_mib"], row["limit_ms"]) for row in rows)
    for key in keys:
        same = [row for row in rows if (row["guest"], row["rate_mib"], row["limit_ms"]) == key]
        converged = [row for row in same if row["converged"]]
        print(f"{key[0]:34} {key[1]:4} {key[2]:5} {len(same):4}", end=" ")
        if not converged:
            print(f"does not converge; predicted to in {100 * same[0]['expected']['probability']:.0f} % of the cases")
            continue
        for what, unit in (("total_s", 1.0), ("downtime_s", 1000.0)):
            real = median([row[what] for row in converged]) * unit
            expected = median([row["expected"][what]["value"] for row in converged]) * unit
            print(f"{expected:7.1f}/{real:7.1f} {expected / real - 1:+8.0%}", end=" ")
        print()
    for what, limit in (("total_s", 0.0), ("downtime_s", 0.0), ("downtime_s", 0.1)):
        long = [row for row in rows if row.get(what, 0.0) >= limit]
        sizes = np.abs(errors(long, what))
        name = what.removesuffix("_s") + (f" of pauses from {limit * 1000:.0f} ms on" if limit else "")
        if len(sizes):
            print(f"{name}: {len(sizes)} runs, error {median(sizes.tolist()):.1%} (median),", end=" ")
            print(f"{np.quantile(sizes, PERCENTILE):.1%} (90th percentile)")
    agree = sum(row["converged"] == row["expected"]["converges"] for row in rows)
    print(f"converges or not: right in {agree} of {len(rows)} runs")
    within = [
        row["expected"][what]["low"] <= row[what] <= row["expected"][what]["high"]
        for row in rows
        for what in ("total_s",)
        if row["converged"] and row["expected"]["converges"]
    ]
    print(f"total time within its interval: {sum(within)} of {len(within)} runs")


def main() -> None:
    """Run a part, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--observe", type=float, default=5.0)
    parser.add_argument("--costs", default="")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    costs = read_costs_file(given.costs) if given.costs else measured_costs()
    rows = []
    if given.json is not None and given.json.exists():
        rows = [json.loads(line) for line in given.json.read_text().splitlines()]
    for row in runs(GUESTS[part - 1 :: parts], given.repeats, given.observe, costs):
        rows.append(row)
        print(".", end="", flush=True, file=sys.stderr)
        if given.json is not None:
            with given.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(file=sys.stderr)
    show(rows)


if __name__ == "__main__":
    main()
