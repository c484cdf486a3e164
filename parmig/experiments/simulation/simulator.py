# SPDX-License-Identifier: Apache-2.0
"""Runs a scenario in simulated time: guests leave their hosts in an order, so many at once."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import simpy

from parmig.experiments.simulation.dirty_pages import (
    DirtyPages,
    RandomDirtyPages,
    TracedDirtyPages,
    share_pages,
    writes_of,
)
from parmig.experiments.simulation.flows import Flows
from parmig.experiments.simulation.move import Means, Move
from parmig.experiments.simulation.network import Network
from parmig.experiments.simulation.results import (
    FENCES,
    SCANS,
    SETUP,
    GuestResult,
    Result,
    Timeline,
    advice,
    limited_parts,
    uses,
)
from parmig.experiments.simulation.scenario import Guests, Range, Scenario
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.credit import credit_bytes
from parmig.ram.regions import Regions, cut, region_pages_for
from parmig.ram.traces.trace_file import read_trace
from parmig.units import MIB, NS_PER_MS, NS_PER_S

MOST_REGIONS = 64
"""A worker owns at most so many regions. A real one has them for up to 4 GiB, and more for more memory, of which each
costs the plan a third of a millisecond: 12 TiB would take a minute for each round. The last bundle of a round lasts at
most this part of it."""


class Guest(msgspec.Struct, frozen=True):
    """One guest: what was drawn for it.

    Attributes:
        seed: of its own.
    """

    name: str
    guests: Guests
    memory_bytes: int
    dirty_rate_bytes_per_s: int
    seed: int


def guests_of(scenario: Scenario) -> list[Guest]:
    """All guests of *scenario* in the order in which they leave. The same seed draws the same."""
    drawn: list[Guest] = []
    counts = Counter(guests.name for guests in scenario.guests for _ in range(guests.count))
    numbers: Counter[str] = Counter()
    for number, guests in enumerate(scenario.guests):
        draw = random.Random(f"{scenario.seed} {number} {guests.name}")
        for _ in range(guests.count):
            numbers[guests.name] += 1
            name = guests.name if counts[guests.name] == 1 else f"{guests.name}-{numbers[guests.name]}"
            memory = _draw(draw, guests.memory_bytes) // MIB * MIB
            drawn.append(Guest(name, guests, memory, _draw(draw, guests.dirty_rate_bytes_per_s), draw.getrandbits(32)))
    if scenario.evacuation.order != "listed":
        drawn.sort(key=lambda guest: guest.memory_bytes, reverse=scenario.evacuation.order == "largest-first")
    return drawn


def _draw(draw: random.Random, between: Range) -> int:
    """A value of the range: each factor is as likely, as with sizes of guests."""
    low, high = between
    if low == high:
        return low
    return round(math.exp(draw.uniform(math.log(max(1, low)), math.log(high))))


def simulate(scenario: Scenario) -> tuple[Result, Timeline]:
    """What happens in *scenario*. It takes no real time but that of the computation.

    Raises:
        TraceError: a trace cannot be read.
    """
    env = simpy.Environment()
    network = Network(scenario)
    guests = guests_of(scenario)
    own = [network.add_guest(guest.guests, guest.name) for guest in guests]
    flows = Flows(env, network.resources)
    turns = {
        host.name: simpy.Resource(env, scenario.evacuation.at_once or max(1, len(guests))) for host in scenario.hosts
    }
    results = [
        env.process(_leave(env, scenario, network, flows, guest, owned, turns))
        for guest, owned in zip(guests, own, strict=True)
    ]
    env.run(env.all_of(results))
    return _summary(scenario, network, flows, [cast(GuestResult, process.value) for process in results])


def _summary(
    scenario: Scenario, network: Network, flows: Flows, results: Sequence[GuestResult]
) -> tuple[Result, Timeline]:
    total_s = max(result.ended_s for result in results)
    used_s = flows.used_s()
    limited_part = limited_parts(results)
    bottleneck = next(iter(limited_part))
    result = Result(
        description=scenario.description,
        total_s=total_s,
        moved=sum(each.error is None for each in results),
        failed=sum(each.error is not None for each in results),
        bottleneck=bottleneck,
        bottleneck_part=limited_part[bottleneck],
        advice=advice(bottleneck),
        limited=limited_part,
        guests=tuple(results),
        use=tuple(uses(network.resources, flows.samples, used_s, total_s)),
    )
    return result, Timeline(tuple(network.resources), tuple(flows.samples))


def _leave(
    env: simpy.Environment,
    scenario: Scenario,
    network: Network,
    flows: Flows,
    guest: Guest,
    own: tuple[int, int],
    turns: dict[str, simpy.Resource],
) -> simpy.events.ProcessGenerator:
    """One guest: it waits for its turn, and moves; returns its result."""
    source, destination = scenario.ways(guest.guests)
    with turns[source.name].request() as turn:
        yield turn
        move = _move(env, scenario, network, flows, guest, own)
        yield env.process(move.run())
    return _result(guest, move, (source.name, destination.name), dict(flows.limited_s[guest.name]))


def _move(
    env: simpy.Environment, scenario: Scenario, network: Network, flows: Flows, guest: Guest, own: tuple[int, int]
) -> Move:
    paths = network.worker_paths(guest.guests)
    kinds = {
        path: tuple(
            flows.add_kind(network.kind(guest.guests, path, own, again=again), guest.name) for again in (False, True)
        )
        for path in sorted(set(paths))
    }
    block = RamBlock("ram", guest.memory_bytes)
    pages = max(region_pages_for([block], len(paths)), block.pages // (MOST_REGIONS * len(paths)) // 64 * 64)
    regions = cut([block], pages)
    means = Means(
        env,
        flows,
        [kinds[path] for path in paths],  # type: ignore[misc]
        credit_bytes(scenario.send.batch_bytes),
        (network.wire_part(again=False), network.wire_part(again=True)),
        scenario.loaded_costs,
    )
    dirty = _dirty_pages(scenario, guest, regions)
    zero_part = share_pages(guest.guests.zero, guest.memory_bytes) / block.pages
    return Move(means, scenario.send, regions, zero_part, dirty)


def _dirty_pages(scenario: Scenario, guest: Guest, regions: Regions) -> DirtyPages:
    firsts = np.array([*(region.first_page for region in regions), guest.memory_bytes // PAGE_BYTES])
    if guest.guests.trace:
        trace = read_trace(Path(scenario.directory, guest.guests.trace))
        return TracedDirtyPages(trace.written, trace.interval_ns / NS_PER_S, firsts, guest.seed)
    writes = writes_of(guest.guests, guest.memory_bytes, guest.dirty_rate_bytes_per_s)
    chance = np.random.default_rng(guest.seed)
    return RandomDirtyPages(writes, firsts, bursts=guest.guests.pattern == "burst", chance=chance)


def _result(guest: Guest, move: Move, way: tuple[str, str], limited_s: dict[str, float]) -> GuestResult:
    record = move.record
    downtime_ms = record.downtime_ms()
    rest_s = max(0.0, move.ended_s - move.began_s - move.setup_s - move.end_s - sum(limited_s.values()))
    scans_s = min(rest_s, move.scans_s)
    return GuestResult(
        name=guest.name,
        source=way[0],
        destination=way[1],
        memory_bytes=guest.memory_bytes,
        began_s=move.began_s,
        ended_s=move.ended_s,
        setup_s=move.setup_s,
        paused_s=record.marks["stopped"] / NS_PER_S if "stopped" in record.marks else None,
        downtime_s=None if downtime_ms is None else downtime_ms * NS_PER_MS / NS_PER_S,
        sent_bytes=sum(each.sent_pages for each in record.rounds) * PAGE_BYTES,
        wire_bytes=round(move.wire_bytes),
        max_throttle_percent=record.max_throttle_percent,
        rounds=tuple(record.rounds),
        error=None if move.error is None else str(move.error),
        limited_s={**limited_s, SETUP: move.setup_s + move.end_s, SCANS: scans_s, FENCES: rest_s - scans_s},
    )
