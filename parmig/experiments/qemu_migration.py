# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration, as a peer: one guest moved by one QEMU to another."""

from __future__ import annotations

import time
from typing import Any

from parmig.errors import GuestError
from parmig.experiments.free_memory import touch_memory
from parmig.guests.qemu.qmp_events import Listener
from parmig.units import NS_PER_MS

LIMIT_S = 120.0


def qemu_migrate(
    source: Any,
    destination: Any,
    channels: int,
    *,
    touch_bytes: int = 0,
    address: str = "127.0.0.1",
    downtime_limit_ms: int = 300,
    auto_converge: bool = False,
    limit_s: float = LIMIT_S,
) -> dict[str, Any]:
    """One migration between two QEMUs by QEMU itself over TCP: multifd with *channels*, or without (0).

    It waits for events: to ask in a loop would take QEMU processor time.

    Args:
        source, destination: have ``ask(command, **arguments)`` and ``listen(*events)`` of a QMP monitor.
        touch_bytes: see :func:`.touch_memory`.
        address: of the destination.
        limit_s: how long each side may wait for its end.

    Returns:
        the source's ``query-migrate``, with ``wall_ms`` from the command until the destination has loaded everything:
        the source reports "completed" while megabytes are still in its sockets.

    Raises:
        GuestError: the migration failed, or took too long.
    """
    capabilities = [
        {"capability": "multifd", "state": channels > 0},
        {"capability": "events", "state": True},
        {"capability": "auto-converge", "state": auto_converge},
    ]
    parameters: dict[str, Any] = {"max-bandwidth": 1 << 40, "downtime-limit": downtime_limit_ms}
    if channels:
        parameters["multifd-channels"] = channels
    for machine in (destination, source):
        machine.ask("migrate-set-capabilities", capabilities=capabilities)
        machine.ask("migrate-set-parameters", **parameters)
    destination.ask("migrate-incoming", uri=f"tcp:{address}:0")
    port = destination.ask("query-migrate")["socket-address"][0]["port"]
    touch_memory(touch_bytes)
    with source.listen("MIGRATION") as sent, destination.listen("MIGRATION") as loaded:
        began_ns = time.monotonic_ns()
        source.ask("migrate", uri=f"tcp:{address}:{port}")
        _await_completed(sent, limit_s)
        ended_ns = _await_completed(loaded, limit_s)
    return {**source.ask("query-migrate"), "wall_ms": (ended_ns - began_ns) / NS_PER_MS}


def _await_completed(events: Listener, limit_s: float) -> int:
    """When QEMU's migration had completed, on the clock of ``time.monotonic_ns()``."""
    while (event := events.get(limit_s)).status != "completed":
        if event.status == "failed":
            raise GuestError(f"QEMU's own migration failed: {event.data}")
    return event.at_ns
