# SPDX-License-Identifier: Apache-2.0
"""Runs of a sweep as scenarios, and how far the simulation is from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from parmig.config import SendConfig
from parmig.engine.prediction.costs import Costs
from parmig.errors import UsageError
from parmig.experiments.factors import Factors
from parmig.experiments.results import Row
from parmig.experiments.simulation.dirty_pages import share_pages
from parmig.experiments.simulation.network import FRAME_BYTES
from parmig.experiments.simulation.results import GuestResult
from parmig.experiments.simulation.scenario import TOGETHER, Guests, Host, Moving, Nic, Scenario
from parmig.experiments.simulation.simulator import simulate
from parmig.experiments.table import factors_of
from parmig.ram.blocks import PAGE_BYTES

MTU = 1500
"""Of the lab's links."""

SHAPED_BYTES = 14
"""What the lab's shaper counts of a packet beside its content: the addresses. A NIC's rate counts FRAME_BYTES."""


MS = 1000


class Comparison(msgspec.Struct, frozen=True):
    """A run that was measured and simulated. Times are in milliseconds; a downtime is None if there was none.

    Attributes:
        key: of the run.
        error: why it failed in a simulation; None: in none.
    """

    key: str
    factors: Factors
    measured_total_ms: float
    simulated_total_ms: float
    measured_downtime_ms: float
    simulated_downtime_ms: float | None
    measured_rounds: int
    simulated_rounds: float
    error: str | None

    @property
    def total_error(self) -> float:
        """Of the simulated total time, as a part of the measured one; below 0: too short."""
        return self.simulated_total_ms / self.measured_total_ms - 1

    @property
    def downtime_error(self) -> float | None:
        """The same of the downtime."""
        if self.simulated_downtime_ms is None:
            return None
        return self.simulated_downtime_ms / self.measured_downtime_ms - 1


def scenario_of(factors: Factors, costs: Costs, processors: int) -> Scenario:
    """The run of *factors* as a scenario.

    Args:
        processors: of each host.

    Raises:
        UsageError: it is of a kind that is not simulated.
    """
    if factors.peer != "parmig" or factors.guest == "qemu" or not factors.link_rate_bytes_per_s:
        raise UsageError("only runs of parmig over links with a rate are simulated, of guests whose writes are known")
    rate = factors.link_rate_bytes_per_s * (MTU + FRAME_BYTES) // (MTU + SHAPED_BYTES)
    nics = (Nic(rate_bytes_per_s=rate, delay_ns=factors.link_delay_ns, mtu=MTU),) * factors.paths
    hosts = tuple(Host(name=name, processors=processors, nics=nics) for name in ("source", "destination"))
    touched = factors.touched if factors.guest == "synthetic" else "100%"
    filled = 0 if factors.fill == "zero" else share_pages(touched, factors.memory_bytes) * PAGE_BYTES
    untouched = factors.memory_bytes - filled
    guests = Guests(
        memory_bytes=(factors.memory_bytes, factors.memory_bytes),
        zero=f"{untouched / factors.memory_bytes:.6%}",
        dirty_rate_bytes_per_s=(factors.dirty_rate_bytes_per_s, factors.dirty_rate_bytes_per_s),
        pattern=factors.pattern,
        touched=touched,
        layout=TOGETHER,
    )
    send = SendConfig(
        workers=factors.workers,
        compress=factors.compress,
        batch_bytes=factors.batch_bytes,
        downtime_limit_ns=factors.downtime_limit_ns,
        max_downtime_ns=factors.max_downtime_ns,
        auto_converge=factors.auto_converge,
    )
    moving = Moving(free_memory="cold" if factors.free_memory == "cold" else "warm")
    return Scenario(hosts=hosts, guests=(guests,), send=send, moving=moving, loaded_costs=costs)


def compare(
    rows: Sequence[Row], costs: Costs, processors: int, seeds: Sequence[int] = range(1, 10)
) -> list[Comparison]:
    """Simulate each of *rows*, all of which completed, with each of *seeds*, and compare it with the medians.

    Raises:
        UsageError: as :func:`scenario_of`.
    """
    simulated: dict[Factors, list[GuestResult]] = {}
    comparisons = []
    for row in rows:
        factors = factors_of(row)
        if factors not in simulated:
            scenario = scenario_of(factors, costs, processors)
            results = [simulate(msgspec.structs.replace(scenario, seed=seed))[0] for seed in seeds]
            simulated[factors] = [result.guests[0] for result in results]
        guests = simulated[factors]
        downtimes = [guest.downtime_s * MS for guest in guests if guest.downtime_s is not None]
        comparisons.append(
            Comparison(
                key=row["key"],
                factors=factors,
                measured_total_ms=row["total_time_ms"],
                simulated_total_ms=median(guest.total_s * MS for guest in guests),
                measured_downtime_ms=row["downtime_ms"],
                simulated_downtime_ms=median(downtimes) if downtimes else None,
                measured_rounds=len(row["report.rounds"]),
                simulated_rounds=median(len(guest.rounds) for guest in guests),
                error=next((guest.error for guest in guests if guest.error is not None), None),
            )
        )
    return comparisons
