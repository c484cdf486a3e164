# SPDX-License-Identifier: Apache-2.0
"""Finds out which paths there are: what the destination offers, and what the source reaches of it."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.messages.peer_messages import Accept
from parmig.engine.paths.paths import ChosenPaths, DevicePair, choose_pairs, pair_up, spread
from parmig.errors import UsageError
from parmig.linux.networks import DeviceAddress, device_to, own_addresses
from parmig.transport.transport import UNIX_SCHEME, parse_uri
from parmig.values import AUTO, AUTO_PATH, Path

TRY_NS = 1_000_000_000
"""How long a connection may take on which a pair is tried; all pairs are tried at once."""

WILDCARDS = ("*", "0.0.0.0", "[::]")


# -- the destination ----------------------------------------------------------------------------


def listening_hosts(config: ReceiveConfig) -> tuple[str, ...]:
    """The hosts at which every receive worker listens.

    Raises:
        UsageError: ``--path auto`` with other addresses, or on a host without any.
    """
    if AUTO not in config.paths:
        return tuple(dict.fromkeys(config.paths)) or (parse_uri(config.listen).host,)
    if len(config.paths) > 1:
        raise UsageError("--path auto takes all addresses of this host; leave out the others, or name them all")
    hosts = tuple(_host(one) for one in own_addresses())
    if not hosts:
        raise UsageError("--path auto found no network device with an address; leave it out, or name an address")
    return hosts


def offered_addresses(config: ReceiveConfig) -> tuple[DeviceAddress, ...]:
    """The addresses at which every receive worker can be reached from another host."""
    if parse_uri(config.listen).scheme == UNIX_SCHEME:
        return ()
    hosts = listening_hosts(config)
    numbers = {entry for host in hosts if host not in WILDCARDS for entry in _resolve(host)}
    families = {":" in host for host in hosts if host in WILDCARDS} | ({False} if "[::]" in hosts else set())
    return tuple(one for one in own_addresses() if one.address in numbers or (":" in one.address) in families)


def _host(one: DeviceAddress) -> str:
    return f"[{one.address}]" if ":" in one.address else one.address


def _resolve(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except (OSError, UnicodeError):
        return set()


# -- the source ---------------------------------------------------------------------------------


def choose_paths(config: SendConfig, accept: Accept, *, anywhere: bool) -> tuple[ChosenPaths, str]:
    """The paths of a migration, and a line for the user, which is empty if there is nothing to choose.

    Args:
        anywhere: every receive worker listens at all addresses of the destination. Those of an older one listen at one
            address each, in turns.
    """
    workers = len(accept.data)
    if config.paths != (AUTO_PATH,):
        if not config.paths:
            return ChosenPaths(), ""
        speeds = [_speed(path, accept.addresses) for path in config.paths]
        limits = [path.rate_bytes_per_s or speed for path, speed in zip(config.paths, speeds, strict=True)]
        turns = [worker % len(config.paths) for worker in range(workers)]
        chosen = ChosenPaths(config.paths, tuple(spread(limits, workers) if anywhere else turns))
        return chosen, chosen.describe(speeds) if len(config.paths) > 1 else ""
    if not anywhere:
        return ChosenPaths(), "the destination is an older parmig: all workers use its address, as without --path auto"
    pairs = search(own_addresses(), accept.addresses, [data.port for data in accept.data])
    chosen_pairs = choose_pairs(pairs, workers)
    if not chosen_pairs:
        return ChosenPaths(), "--path auto found no pair of network devices: all workers use the receiver's address"
    speeds = [pair.bytes_per_s for pair in chosen_pairs]
    chosen = ChosenPaths(tuple(pair.path for pair in chosen_pairs), tuple(spread(speeds, workers)))
    more = len(choose_pairs(pairs, len(pairs))) - len(chosen_pairs)
    left_out = f"; {more} more need more --workers" if more else ""
    return chosen, chosen.describe(speeds) + left_out


def _speed(path: Path, offered: Sequence[DeviceAddress]) -> int:
    """The speed of the slower device of *path*, as far as it is known; else 0."""
    here = [one.bytes_per_s for one in own_addresses() if one.address == path.local.strip("[]")]
    there = [one.bytes_per_s for one in offered if one.address == path.remote.strip("[]")]
    return min((speed for speed in (*here, *there) if speed), default=0)


def search(here: Sequence[DeviceAddress], there: Sequence[DeviceAddress], ports: Sequence[int]) -> list[DevicePair]:
    """The pairs of devices that reach each other: a connection was made, and it left by the device of its address.

    Args:
        here: addresses of this host.
        there: addresses of the other one.
        ports: which listen there at each address.
    """
    tries: dict[int, tuple[socket.socket, DeviceAddress, DeviceAddress]] = {}
    with contextlib.ExitStack() as opened:
        poller = select.poll()
        for local in here:
            for remote in there:
                if device_to(remote.address, local.address) != local.device:
                    continue
                sock = opened.enter_context(_connecting(local.address, remote.address, ports[len(tries) % len(ports)]))
                tries[sock.fileno()] = sock, local, remote
                poller.register(sock, select.POLLOUT)
        reached: dict[tuple[int, int], DevicePair] = {}
        deadline_ns = time.monotonic_ns() + TRY_NS
        waiting = set(tries)
        # Looks at least once: a busy host may get no turn for longer, while the kernel connects.
        while waiting and (found := poller.poll(max(0, deadline_ns - time.monotonic_ns()) // 1_000_000)):
            for fd, _ in found:
                poller.unregister(fd)
                waiting.discard(fd)
                sock, local, remote = tries[fd]
                if _is_connected(sock):
                    reached.setdefault((local.device, remote.device), pair_up(local, remote))
    return [reached[devices] for devices in sorted(reached)]


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _connecting(local: str, remote: str, port: int) -> socket.socket:
    """A socket that connects from *local* to *port* of *remote*; if that fails, it never has a peer."""
    sock = socket.socket(socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.bind((local, 0))
        sock.connect_ex((remote, port))
    return sock
