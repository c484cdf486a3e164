# SPDX-License-Identifier: Apache-2.0
"""What both sides of a run in a cluster say to parmig bench, and hear from it: lines of JSON."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.errors import HostRefusedError
from parmig.experiments.factors import Factors

Pair = tuple[str, str]
"""Addresses of the source and of the destination that reach each other."""


class Order(msgspec.Struct, frozen=True):
    """What a side has to do.

    Attributes:
        side: ``source`` or ``destination``.
        address: by which the other host reaches this one.
        limit_s: seconds that the run may take.
        peer_addresses: (destination) what :class:`Prepared` of the source says.
    """

    side: str
    factors: Factors
    address: str
    limit_s: float
    peer_addresses: tuple[str, ...] = ()


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The source has its guest, and waits for a :class:`Meeting`.

    Attributes:
        addresses: of the host, each with the length of its network: ``10.0.0.7/24``. The first is that of the order.
    """

    addresses: tuple[str, ...]


class Meeting(msgspec.Struct, frozen=True, tag="meeting"):
    """The destination listens.

    Attributes:
        place: where: a URI, or a port.
        pairs: one for each path.
    """

    place: str
    pairs: tuple[Pair, ...]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A side has done its part.

    Attributes:
        answer: what its program said: of parmig the report.
        processor_s: seconds of processor time of the side's processes since it was ready.
        host: what it was measured on.
    """

    answer: dict[str, Any]
    processor_s: float
    host: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A side could not do its part."""

    reason: str


Message = Prepared | Meeting | Ended | Failed


def encode(message: Message | Order) -> str:
    """*message* as a line."""
    return msgspec.json.encode(message).decode() + "\n"


def read_message(line: str) -> Message:
    """The message in *line*.

    Raises:
        ValueError: it is none.
    """
    message: Message = msgspec.json.decode(line, type=Message)
    return message


def pairs_between(source: Sequence[str], destination: Sequence[str], count: int) -> tuple[Pair, ...]:
    """*count* pairs of addresses, each in a network of its own.

    The first pair are the first addresses of both: the hosts are known by them. The others share a network.

    Args:
        source, destination: as in :class:`Prepared`.

    Raises:
        HostRefusedError: the hosts share fewer networks.
    """
    here, there = [[ipaddress.ip_interface(one) for one in addresses] for addresses in (source, destination)]
    pairs = [(here[0], there[0])]
    used = {here[0].network, there[0].network}
    for one in here[1:]:
        other = next((other for other in there[1:] if other.network == one.network), None)
        if other is not None and one.network not in used:
            used.add(one.network)
            pairs.append((one, other))
    if len(pairs) < count:
        raise HostRefusedError(
            f"{here[0].ip} and {there[0].ip} share {len(pairs)} networks, and the run needs {count}; "
            "give fewer paths, or hosts with more network devices"
        )
    return tuple((in_uri(str(one.ip)), in_uri(str(other.ip))) for one, other in pairs[:count])


def in_uri(address: str) -> str:
    """*address* as a URI has it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
