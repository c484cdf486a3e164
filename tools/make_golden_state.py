# SPDX-License-Identifier: Apache-2.0
"""Write ``tests/golden/state.qevm``: a stream of devices that use every kind of field.

The file guards the format: parmig must go on to write these bytes, and to read them. Write it again only for an
intended change of the format::

    python -m tools.make_golden_state
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from parmig.state import (
    U16,
    U32,
    U64,
    Bool,
    BoolArray,
    Buffer,
    Byte,
    Length,
    Limit,
    Since,
    StateRegistry,
    Subsection,
    U16Array,
    Until,
    migration_state,
    migration_struct,
    state_of,
)

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "state.qevm"
MACHINE = "golden-1"
ERROR = Subsection("error", needed=lambda queue: queue.error != 0)
ALARM = Subsection("alarm", needed=lambda timer: timer.armed, version=2)


@migration_struct("queue")
@dataclass
class Queue:
    """A part of a device, with a part of its own that is seldom there."""

    size: U16 = 256
    ready: Bool = False
    error: Annotated[Byte, ERROR] = 0


@migration_state("timer", version=3, minimum_version=2, priority=1)
@dataclass
class Timer:
    """Plain fields, a subsection, and fields that came and went."""

    ticks: U64 = 0
    armed: Bool = False
    period_khz: Annotated[U32, Until(2)] = 0
    period_ns: Annotated[U32, Since(3)] = 0
    deadline_ns: Annotated[U64, ALARM] = 0


@migration_state("net")
@dataclass
class Net:
    """Buffers, arrays and structs, fixed, counted, and with their length in another field."""

    mac: Annotated[Buffer, Length(6)] = bytes(6)
    status: Byte = 0
    label: Annotated[Buffer, Limit(64)] = b""
    vlans: list[U16] = field(default_factory=list)
    table: Annotated[U16Array, Length(4)] = field(default_factory=lambda: np.zeros(4, np.uint16))
    filters: BoolArray = field(default_factory=lambda: np.zeros(0, np.bool_))
    peers_size: Byte = 0
    peers: Annotated[list[Annotated[Buffer, Length(2)]], Length("peers_size")] = field(default_factory=list)
    names: list[Buffer] = field(default_factory=list)
    control: Queue = field(default_factory=Queue)
    queues: Annotated[list[Queue], Length(2)] = field(default_factory=lambda: [Queue(), Queue()])
    more: list[Queue] = field(default_factory=list)


def devices() -> list[Timer | Net]:
    """The devices that are in the file, with their values."""
    net = Net(
        mac=b"\x52\x54\0\0\0\1",
        status=1,
        label=b"eth0",
        vlans=[1, 4095],
        table=np.array([1, 2, 3, 65535], np.uint16),
        filters=np.array([True, False]),
        peers_size=2,
        peers=[b"ab", b"cd"],
        names=[b"", b"host"],
        control=Queue(64, True),
        queues=[Queue(1), Queue(2, error=9)],
        more=[Queue(3), Queue(4, True)],
    )
    return [net, Timer(7, True, period_ns=1000, deadline_ns=2**40), Timer(8)]


def registry_of(members: list[Timer | Net]) -> StateRegistry:
    """*members* registered, each kind numbered from 0 on."""
    registry = StateRegistry()
    for index, device in enumerate(members):
        registry.register(state_of(device, sum(isinstance(other, type(device)) for other in members[:index])))
    return registry


def main() -> None:
    """Write the file."""
    FILE.write_bytes(registry_of(devices()).save_all(machine=MACHINE))
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
