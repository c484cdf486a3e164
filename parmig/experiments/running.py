# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep: one run after the other, each with hosts and processes of its own."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec

from parmig.errors import HostRefusedError, ParmigError
from parmig.experiments.factors import Factors
from parmig.experiments.fingerprint import describe_host
from parmig.experiments.hosts import open_hosts
from parmig.experiments.interruption import Interruption
from parmig.experiments.outcome import Outcome
from parmig.experiments.peers import PEERS
from parmig.experiments.qemu_machines import QEMU
from parmig.experiments.results import Results, Row, flattened
from parmig.experiments.sweep import Plan, Run, Sweep
from parmig.units import GIB, MIB, NS_PER_S
from parmig.version import __version__


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
    """Run what *results* do not have yet. Each run that ends is in them at once, also one that fails.

    Args:
        on_step: called when a run begins, and when it has ended.
        interruption: ends the run, and with it the sweep.

    Raises:
        HostRefusedError: a program that the sweep needs is not installed, or there can be no lab here.
        KeyboardInterrupt: it was interrupted. What the run had started has ended. The run is not in the results.
    """
    _check_programs(plan)
    ended = {row["key"] for row in results.rows}
    took = [float(row["took_s"]) for row in results.rows]
    for number, run in enumerate(plan.runs, 1):
        if run.key in ended:
            continue

        def left_s(begun: int) -> float | None:
            left = sum(one.key not in ended for one in plan.runs[begun:])
            return left * sum(took) / len(took) if took else None

        on_step(Step(number, len(plan.runs), run, left_s(number - 1)))
        row = run_once(sweep, run, interruption)
        results.add(row)
        ended.add(run.key)
        took.append(row["took_s"])
        on_step(Step(number, len(plan.runs), run, left_s(number), row))


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
    row: Row = {"key": run.key, "repeat": run.repeat, "warm_up": run.repeat == 0, "hosts": sweep.hosts}
    row |= {name: getattr(run.factors, name) for name in Factors.__struct_fields__}
    row |= {"began": time.strftime("%FT%TZ", time.gmtime()), "status": "completed", "reason": None}
    host = flattened(_fingerprint() | {"load_average": list(describe_host()["load_average"])}, "host.")
    with open_hosts(sweep.hosts, run.factors, interruption) as hosts:
        try:
            row |= _figures(PEERS[run.factors.peer](hosts, run.factors, sweep.run_limit_ns / NS_PER_S))
        except (ParmigError, OSError, ValueError) as error:  # a ValueError: a peer's answer that cannot be read
            interruption.check()  # it may be the reason
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return row | {"took_s": round(time.monotonic() - began, 3)} | host


def _figures(outcome: Outcome) -> Row:
    figures: Row = {name: getattr(outcome, name) for name in Outcome.__struct_fields__ if name != "report"}
    figures["rate_mib_per_s"] = outcome.moved_bytes / MIB / (outcome.total_time_ms / 1000)
    if outcome.processor_s is not None:
        figures["processor_s_per_gib"] = outcome.processor_s / outcome.moved_bytes * GIB
    return figures | flattened(outcome.report, "report.")


@functools.cache
def _fingerprint() -> dict[str, Any]:
    """What does not change while a sweep runs."""
    versions = {"parmig": __version__}
    for program, argument in ((QEMU, "--version"), ("iperf3", "--version")):
        if shutil.which(program):
            answer = subprocess.run([program, argument], stdout=subprocess.PIPE, text=True, check=False)
            versions[program.partition("-")[0]] = answer.stdout.partition("\n")[0]
    return {name: value for name, value in describe_host().items() if name != "load_average"} | versions
