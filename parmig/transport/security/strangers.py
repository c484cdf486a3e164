# SPDX-License-Identifier: Apache-2.0
"""Who may stay connected to a listening channel before it has proven anything. Pure.

All strangers together, and those of one address, may hold so many connections. An address with more than its share, or
the one with the most where all places are taken, gives up one of its own: its oldest, if that has had its time to
speak, else its newest. So an address cannot push out another one, and a flood cannot push out a sender of its own
address before the sender's message can arrive. Loopback, and hosts behind one translated address (NAT), are one
address: they get a share, and are not shut out.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

_IPV6_NETWORK_BITS = 64
"""One host may have all addresses of such a network."""


class Stranger(NamedTuple):
    """One connection: the address that it counts for, and since when it is there."""

    address: str
    since_ns: int


class Strangers(Generic[K]):
    """The connections of one listening channel that have proven nothing yet, oldest first.

    Args:
        most: how many may stay.
        share: how many of them may be of one address.
        time_to_speak_ns: how long each may stay whatever comes after it, unless it came when its address had too many.
    """

    def __init__(self, most: int, share: int, time_to_speak_ns: int) -> None:
        self._most = most
        self._share = share
        self._time_to_speak_ns = time_to_speak_ns
        self._all: dict[K, Stranger] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._all))

    def __contains__(self, key: K) -> bool:
        return key in self._all

    def add(self, key: K, address: str, now_ns: int) -> None:
        """Note the connection *key*, which was made just now by *address*."""
        self.discard(key)
        self._all[key] = Stranger(address, now_ns)
        self._counts[address] += 1

    def discard(self, key: K) -> None:
        """Forget the connection *key*, if it is there."""
        stranger = self._all.pop(key, None)
        if stranger is not None:
            self._counts[stranger.address] -= 1
            if not self._counts[stranger.address]:
                del self._counts[stranger.address]

    def expired(self, before_ns: int) -> list[K]:
        """The connections that were made before *before_ns*."""
        return [key for key, stranger in self._all.items() if stranger.since_ns < before_ns]

    def times_ns(self) -> Iterator[int]:
        """When each connection was made, oldest first."""
        return (stranger.since_ns for stranger in self._all.values())

    def surplus(self, now_ns: int, kept: Collection[K] = ()) -> K | None:
        """The connection to drop next, because there are too many; None: there are not.

        Args:
            kept: not to be dropped, unless all of the same address are among these.
        """
        if not self._counts:
            return None
        address, count = max(self._counts.items(), key=lambda item: item[1])
        if count <= self._share and len(self._all) <= self._most:
            return None
        candidates = [(key, one.since_ns) for key, one in self._all.items() if one.address == address]
        others = [item for item in candidates if item[0] not in kept] or candidates
        oldest, since_ns = others[0]
        return oldest if since_ns + self._time_to_speak_ns <= now_ns else others[-1][0]


def address_of(other_end: Any) -> str:
    """The address that a connection counts for.

    Args:
        other_end: as ``socket.getpeername`` returns it: a tuple that begins with the host, or, of a Unix socket, text.
    """
    host = str(other_end[0]) if isinstance(other_end, tuple) else ""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_NETWORK_BITS), strict=False))
