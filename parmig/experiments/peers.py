# SPDX-License-Identifier: Apache-2.0
"""The peers: functions that move the memory of one run, each by another program."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parmig.errors import LimitExceededError, ParmigError
from parmig.experiments import parmig_peer
from parmig.experiments.bare_pair import started_pairs
from parmig.experiments.factors import Factors
from parmig.experiments.free_memory import prepared
from parmig.experiments.hosts import Host, Hosts, Spent
from parmig.experiments.outcome import Outcome
from parmig.experiments.qemu_machines import fill_random, qemu_pair
from parmig.experiments.qemu_migration import qemu_migrate
from parmig.units import NS_PER_MS

Peer = Callable[[Hosts, Factors, float], Outcome]
"""Moves the memory of a run once; the number is the limit in seconds."""


def move_by_qemu(hosts: Hosts, factors: Factors, limit_s: float) -> Outcome:
    """QEMU's own migration, with channels of multifd or without."""
    with qemu_pair(hosts, factors) as (source, destination), prepared(factors.free_memory, factors.memory_bytes):
        before = hosts.processor_s()
        answer = qemu_migrate(
            source,
            destination,
            factors.workers if factors.peer == "qemu-multifd" else 0,
            address=hosts.destination.addresses[0],
            downtime_limit_ms=factors.downtime_limit_ns // NS_PER_MS,
            auto_converge=factors.auto_converge,
            limit_s=limit_s,
        )
        outcome = _outcome(hosts, before, factors.memory_bytes, answer["wall_ms"])
    outcome.setup_time_ms = answer.get("setup-time")
    outcome.downtime_ms = answer.get("downtime")
    outcome.wire_bytes = answer["ram"]["transferred"]
    outcome.report = {"qemu": answer}
    return outcome


def move_by_iperf3(hosts: Hosts, factors: Factors, limit_s: float) -> Outcome:
    """The network alone: as many bytes as the guest has, which nobody stores."""
    address = hosts.destination.addresses[0]
    before = hosts.processor_s()
    with iperf3_listening(hosts.destination, address):
        received = iperf3_send(hosts.source, factors, address, limit_s)
    return _outcome(hosts, before, received["bytes"], received["seconds"] * 1000)


@contextlib.contextmanager
def iperf3_listening(host: Host, address: str) -> Iterator[subprocess.Popen[str]]:
    """A server of iperf3 on *host*, for one client.

    Raises:
        ParmigError: it does not listen.
    """
    argv = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", address]
    with host.running(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        if not any("listening" in line for line in server.stdout or ()):
            raise ParmigError("iperf3 does not listen; another program has its port 5201, or the address is not there")
        yield server


def iperf3_send(host: Host, factors: Factors, address: str, limit_s: float) -> dict[str, Any]:
    """Send as many bytes as the guest has to *address*; what iperf3 says that arrived: ``bytes`` and ``seconds``.

    Raises:
        ParmigError: it failed, or took longer than *limit_s*.
    """
    argv = ["iperf3", "--client", address, "--parallel", str(factors.workers), "--json"]
    argv += ["--bytes", str(factors.memory_bytes)]
    with host.running(argv, stdout=subprocess.PIPE) as client:
        try:
            answer = json.loads(client.communicate(timeout=limit_s)[0])
        except subprocess.TimeoutExpired as error:
            raise LimitExceededError("iperf3 did not end within the limit of a run") from error
    if "sum_received" not in answer["end"]:
        raise ParmigError(f"iperf3 failed: {answer.get('error', 'without a message')}")
    received: dict[str, Any] = answer["end"]["sum_received"]
    return received


def move_by_pairs(hosts: Hosts, factors: Factors, limit_s: float) -> Outcome:
    """Bare pairs carry a file of random data into a new one. Their processes run before the time begins."""
    with tempfile.TemporaryDirectory(prefix="parmig-run-", dir="/dev/shm") as directory:
        source, destination = Path(directory, "source"), Path(directory, "destination")
        for path in (source, destination):
            with path.open("wb") as file:
                file.truncate(factors.memory_bytes)
        fill_random(source, factors.memory_bytes, spare_firmware=False)
        with (
            prepared(factors.free_memory, factors.memory_bytes),
            started_pairs(
                source,
                destination,
                factors.workers,
                limit_s=limit_s,
                addresses=hosts.destination.addresses,
                enter_source=hosts.source.entered,
                enter_destination=hosts.destination.entered,
            ) as carry,
        ):
            before = hosts.processor_s()
            total_ms = carry() * 1000
        return _outcome(hosts, before, factors.memory_bytes, total_ms)


PEERS: dict[str, Peer] = {
    "parmig": parmig_peer.move,
    "qemu-precopy": move_by_qemu,
    "qemu-multifd": move_by_qemu,
    "iperf3": move_by_iperf3,
    "bare": move_by_pairs,
}


def _outcome(hosts: Hosts, before: Spent, moved_bytes: int, total_ms: float) -> Outcome:
    spent = hosts.processor_s_since(before)
    return Outcome(
        moved_bytes=moved_bytes,
        total_time_ms=total_ms,
        source_processor_s=spent.source_s,
        destination_processor_s=spent.destination_s,
        processor_s=spent.both_s,
    )
