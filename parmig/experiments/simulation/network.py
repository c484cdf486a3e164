# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a scenario have, as resources, and what a byte of a guest needs of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parmig.engine.paths.paths import spread
from parmig.experiments.simulation.scenario import Guests, Host, Nic, Scenario
from parmig.experiments.simulation.sharing import FlowKind, Resource
from parmig.ram.credit import credit_bytes
from parmig.units import GIB, NS_PER_S

FRAME_BYTES = 38
"""What Ethernet adds to a packet: preamble, addresses, checksum, and the gap to the next one."""

HEADERS_BYTES = 52
"""What a packet has beside its payload: IPv4, TCP, and TCP's time stamp."""

CREDIT, BANDWIDTH = "credit of a channel", "max-bandwidth"


def payload_part(nic: Nic) -> float:
    """The part of a device's rate that carries payload: 0.941 with packets of 1500 bytes, 0.991 with 9000."""
    return (nic.mtu - HEADERS_BYTES) / (nic.mtu + FRAME_BYTES)


class Network:
    """All resources of a scenario.

    Attributes:
        resources: each with its number.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.resources: list[Resource] = []
        self._places: dict[tuple[str, str], int] = {}
        for host in scenario.hosts:
            for number, nic in enumerate(host.nics):
                payload = nic.rate_bytes_per_s * payload_part(nic)
                for direction in ("out", "in"):
                    self._add(host, f"NIC {number} {direction}", f"NICs of {host.name}, {direction}", payload)
            self._add(host, "processors", f"processors of {host.name}", host.processors)
            self._add(host, "memory", f"memory of {host.name}", host.memory_rate_bytes_per_s or math.inf)

    def _add(self, host: Host, name: str, group: str, capacity: float) -> int:
        self.resources.append(Resource(f"{host.name}: {name}", group, capacity))
        self._places[host.name, name] = len(self.resources) - 1
        return len(self.resources) - 1

    def add_guest(self, guests: Guests, name: str) -> tuple[int, int]:
        """Add what one guest has for itself: its limit of the rate, and its lock; their numbers, -1 for none."""
        _, destination = self._scenario.ways(guests)
        limit = self._scenario.send.max_bandwidth_bytes_per_s
        limited = self._add(destination, f"{BANDWIDTH} of {name}", BANDWIDTH, limit) if limit else -1
        locked = destination.lock_rate_bytes_per_s
        return limited, self._add(destination, f"lock of {name}", "memory lock of a guest", 1.0) if locked else -1

    def wire_part(self, *, again: bool) -> float:
        """Bytes on the wire for each byte of a page; *again*: of a page that was sent before."""
        codec = self._scenario.loaded_costs.codec(self._scenario.send.compress)
        return codec.rewritten_ratio if again else codec.ratio

    def worker_paths(self, guests: Guests) -> list[int]:
        """The number of the path of each worker."""
        pairs = [self._pair(guests, path) for path in range(self._scenario.paths(guests))]
        speeds = [min(nic.rate_bytes_per_s for nic in pair) for pair in pairs]
        return spread(speeds, self._scenario.send.workers)

    def _pair(self, guests: Guests, path: int) -> Sequence[Nic]:
        return [host.nics[path] for host in self._scenario.ways(guests)]

    def kind(self, guests: Guests, path: int, own: tuple[int, int], *, again: bool) -> FlowKind:
        """What a worker on *path* needs.

        Args:
            own: as :meth:`add_guest` returned it.
            again: it sends pages that were sent before.
        """
        source, destination = self._scenario.ways(guests)
        wire = self.wire_part(again=again)
        send_s, receive_s = worker_s_per_byte(self._scenario, again=again)
        place = self._places
        needs = [
            (place[source.name, f"NIC {path} out"], wire),
            (place[destination.name, f"NIC {path} in"], wire),
            (place[source.name, "processors"], send_s),
            (place[destination.name, "processors"], receive_s),
        ]
        needs += [(place[host.name, "memory"], 1.0) for host in (source, destination) if host.memory_rate_bytes_per_s]
        limited, lock = own
        if limited >= 0:
            needs.append((limited, wire))
        if lock >= 0:
            needs.append((lock, 1 / destination.lock_rate_bytes_per_s))
        most, limit = 1 / send_s, f"one processor of {source.name} a worker"
        if receive_s > send_s:
            most, limit = 1 / receive_s, f"one processor of {destination.name} a worker"
        round_trip_s = sum(nic.delay_ns for nic in self._pair(guests, path)) / NS_PER_S
        by_credit = credit_bytes(self._scenario.send.batch_bytes) / (wire * round_trip_s) if round_trip_s else math.inf
        if by_credit < most:
            most, limit = by_credit, CREDIT
        return FlowKind(tuple(needs), most, limit, lock)


def worker_s_per_byte(scenario: Scenario, *, again: bool = False) -> tuple[float, float]:
    """Processor time of a send worker and of a receive worker for a byte of a page."""
    costs = scenario.loaded_costs
    codec = costs.codec(scenario.send.compress)
    cold = scenario.moving.free_memory == "cold" and not again
    receive_s = costs.destination_s_per_gib + codec.decode_s_per_gib + (costs.cold_s_per_gib if cold else 0.0)
    return (costs.source_s_per_gib + codec.encode_s_per_gib) / GIB, receive_s / GIB
