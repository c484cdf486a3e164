# SPDX-License-Identifier: Apache-2.0
"""The program that does one side of a run on a host of a cluster: ``python -m parmig.experiments.cluster.side``.

It reads an :class:`.Order` from standard input, and the source a :class:`.Meeting` after it. It writes messages to
standard output. SIGTERM, or the end of its input, ends what it runs. The kernel sends SIGTERM when the parent is gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import signal
import socket
import sys
import time
from typing import Any

import msgspec
import psutil

from parmig.errors import ParmigError
from parmig.experiments import parmig_peer
from parmig.experiments.cluster.side_messages import (
    Ended,
    Failed,
    Meeting,
    Message,
    Order,
    Prepared,
    encode,
    pairs_between,
)
from parmig.experiments.fingerprint import fingerprint
from parmig.experiments.free_memory import prepared
from parmig.experiments.hosts import Host
from parmig.experiments.interruption import Interruption
from parmig.experiments.peers import iperf3_listening, iperf3_send
from parmig.experiments.sides import Side, two_sides
from parmig.linux import process


def main() -> None:
    """Do what the order says; the last message says how it ended."""
    process.die_with_parent(signal.SIGTERM)
    interruption = Interruption()
    signal.signal(signal.SIGTERM, lambda *_: interruption.ask())
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    part = _destination if order.side == "destination" else _source
    end: Message
    try:
        with contextlib.ExitStack() as stack:
            side = stack.enter_context(two_sides(pinned=False))[order.side == "destination"]
            host = Host(side.entered, (), interruption)
            end = part(stack, side, host, order)
    except KeyboardInterrupt:
        end = Failed("it was ended")
    except (ParmigError, OSError, ValueError) as error:  # a ValueError: an answer that cannot be read
        end = Failed("it was ended" if interruption.asked else f"{type(error).__name__}: {error}")
    _say(end)


def _source(stack: contextlib.ExitStack, side: Side, host: Host, order: Order) -> Ended:
    factors, deadline = order.factors, time.monotonic() + order.limit_s
    guest = parmig_peer.source_guest(stack, host, factors) if factors.peer == "parmig" else ""
    _say(Prepared(_addresses(order.address)))
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    meeting = msgspec.json.decode(line, type=Meeting)
    began_s = _used_s(side)
    if factors.peer == "parmig":
        report = parmig_peer.send(host, factors, guest, meeting.place, meeting.pairs, deadline)
        answer = msgspec.to_builtins(report)
    else:
        answer = iperf3_send(host, factors, meeting.pairs[0][1], deadline - time.monotonic())
    return Ended(answer, _used_s(side) - began_s, _describe(order))


def _destination(stack: contextlib.ExitStack, side: Side, host: Host, order: Order) -> Ended:
    factors, deadline = order.factors, time.monotonic() + order.limit_s
    pairs = pairs_between(order.peer_addresses, _addresses(order.address), factors.paths)
    answer = {}
    if factors.peer == "parmig":
        guest = parmig_peer.destination_guest(stack, host, factors)
        stack.enter_context(prepared(factors.free_memory, factors.memory_bytes))
        began_s = _used_s(side)
        with parmig_peer.receiving(host, guest, pairs) as receiver:
            _say(Meeting(receiver.uri, pairs))
            answer = msgspec.to_builtins(receiver.report(deadline))
    else:
        began_s = _used_s(side)
        with iperf3_listening(host, pairs[0][1]) as server:
            _say(Meeting("", pairs))
            server.wait(max(0.0, deadline - time.monotonic()))
    return Ended(answer, _used_s(side) - began_s, _describe(order))


def _addresses(first: str) -> tuple[str, ...]:
    """The addresses of this host as :class:`.Prepared` has them, *first* at the front."""
    found = {first: f"{first}/32"}
    for entry in (entry for entries in psutil.net_if_addrs().values() for entry in entries):
        if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address and entry.netmask:
            interface = ipaddress.ip_interface(f"{entry.address}/{_prefix(entry.netmask)}")
            if entry.address == first or not (interface.is_loopback or interface.is_link_local):
                found[entry.address] = interface.with_prefixlen
    return tuple(found.values())


def _prefix(netmask: str) -> int:
    return int(ipaddress.ip_address(netmask)).bit_count()


def _used_s(side: Side) -> float:
    """Processor time of the side's processes so far; without a cgroup that of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    counted = side.processor_s()
    return used.ru_utime + used.ru_stime if counted is None else counted


def _describe(order: Order) -> dict[str, Any]:
    return {"name": socket.gethostname(), "address": order.address} | fingerprint()


def _say(message: Message) -> None:
    sys.stdout.write(encode(message))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
