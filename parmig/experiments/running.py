# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep: one run after the other, each with hosts and processes of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import msgspec

from parmig.errors import HostRefusedError, ParmigError
from parmig.experiments.factors import Factors
from parmig.experiments.fingerprint import fingerprint
from parmig.experiments.hosts import open_hosts
from parmig.experiments.interruption import Interruption
from parmig.experiments.outcome import Outcome
from parmig.experiments.peers import PEERS
from parmig.experiments.qemu_machines import QEMU
from parmig.experiments.results import Results, Row, flattened
from parmig.experiments.sweep import Plan, Run, Sweep
from parmig.units import GIB, MIB, NS_PER_S


class Step(msgspec.Struct, frozen=True):
    """A run that begins, or that has ended.

    Attributes:
        number: of the run, from 1 on.
        total: runs of the whole sweep.
        left_s: how long the rest will take, this run included where it begins; None: not known yet.
        row: what it gave; None: it begins.
    """

    number: int
    total: int
    run: Run
    left_s: float | None
    row: Row | None = None


def run_sweep(
    sweep: Sweep, plan: Plan, results: Results, on_step: Callable[[Step], None], interruption: Interruption
) -> None:
    """Run what *results* do not have yet, on this machine. Each run that ends is in them at once, also one that fails.

    Args:
        on_step: called when a run begins, and when it has ended.
        interruption: ends the run, and with it the sweep.

    Raises:
        HostRefusedError: a program that the sweep needs is not installed, or there can be no lab here.
        KeyboardInterrupt: it was interrupted. What the run had started has ended. The run is not in the results.
    """
    _check_programs(plan)
    course = Course(plan, results, on_step)
    for run in course.left():
        course.begin(run)
        course.end(run, run_once(sweep, run, interruption))


class Course:
    """How far a sweep is.

    Args:
        results: of the runs that have ended; new ones are added.
        on_step: called when a run begins, and when it has ended.
        at_once: how many runs happen at the same time.
    """

    def __init__(self, plan: Plan, results: Results, on_step: Callable[[Step], None], at_once: int = 1) -> None:
        self._results, self._on_step, self.at_once = results, on_step, at_once
        self._numbers = {run.key: number for number, run in enumerate(plan.runs, 1)}
        ended = {row["key"] for row in results.rows}
        self._left = {run.key: run for run in plan.runs if run.key not in ended}
        self._took_s = [float(row["took_s"]) for row in results.rows]

    def left(self) -> list[Run]:
        """The runs that have not ended, in their order."""
        return list(self._left.values())

    def begin(self, run: Run) -> None:
        """*run* begins."""
        self._on_step(self._step(run))

    def end(self, run: Run, row: Row) -> None:
        """*run* has ended, and gave *row*."""
        self._results.add(row)
        del self._left[run.key]
        self._took_s.append(row["took_s"])
        self._on_step(self._step(run, row))

    def _step(self, run: Run, row: Row | None = None) -> Step:
        mean_s = sum(self._took_s) / len(self._took_s) if self._took_s else None
        left_s = None if mean_s is None else len(self._left) * mean_s / self.at_once
        return Step(self._numbers[run.key], len(self._numbers), run, left_s, row)


def _check_programs(plan: Plan) -> None:
    """Raise :class:`HostRefusedError` if a program is missing: else each of its runs would fail."""
    needed = {QEMU for one in plan.combinations if one.guest == "qemu"}
    needed |= {"iperf3" for one in plan.combinations if one.peer == "iperf3"}
    for program in sorted(needed):
        if shutil.which(program) is None:
            raise HostRefusedError(f"{program} is not installed; install it, or leave out what needs it")


def run_once(sweep: Sweep, run: Run, interruption: Interruption) -> Row:
    """One run, as a row. A failure is part of it.

    Raises:
        HostRefusedError, KeyboardInterrupt: as :func:`run_sweep`.
    """
    interruption.check()
    began = time.monotonic()
    row = new_row(sweep, run)
    host = flattened(fingerprint(), "host.")
    with open_hosts(sweep.hosts, run.factors, interruption) as hosts:
        try:
            row |= figures_of(PEERS[run.factors.peer](hosts, run.factors, sweep.run_limit_ns / NS_PER_S))
        except (ParmigError, OSError, ValueError) as error:  # a ValueError: a peer's answer that cannot be read
            interruption.check()  # it may be the reason
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return row | {"took_s": round(time.monotonic() - began, 3)} | host


def new_row(sweep: Sweep, run: Run) -> Row:
    """The row of a run that begins now, as if it will complete."""
    row: Row = {"key": run.key, "repeat": run.repeat, "warm_up": run.repeat == 0, "hosts": sweep.hosts}
    row |= {name: getattr(run.factors, name) for name in Factors.__struct_fields__}
    return row | {"began": time.strftime("%FT%TZ", time.gmtime()), "status": "completed", "reason": None}


def figures_of(outcome: Outcome) -> Row:
    """*outcome* as columns of a row."""
    figures: Row = {name: getattr(outcome, name) for name in Outcome.__struct_fields__ if name != "report"}
    figures["rate_mib_per_s"] = outcome.moved_bytes / MIB / (outcome.total_time_ms / 1000)
    if outcome.processor_s is not None:
        figures["processor_s_per_gib"] = outcome.processor_s / outcome.moved_bytes * GIB
    return figures | flattened(outcome.report, "report.")
