# SPDX-License-Identifier: Apache-2.0
"""The transports by URI scheme. A new transport is a file and a line of the table here.

A transport for pages is imported when it is first opened. The command line only reads the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple

from parmig.errors import UsageError
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import UNIX_SCHEME, Endpoint, MigrationTransport

CONTROL_SCHEME = "tcp"
"""The scheme of the control channel and the state channel between hosts, whatever transport carries the pages."""


class TransportKind(NamedTuple):
    """One line of the table.

    Attributes:
        scheme: its name in URIs.
        name: its name in ``--transport``, and when the two sides agree on a transport.
        factory: ``module:class``; its constructor takes the arguments of :func:`open_transport`.
        places: whether its messages place their payload, so that no memory is needed for it.
    """

    scheme: str
    name: str
    factory: str
    places: bool = False


_KINDS = (
    TransportKind("zmq+tcp", "zmq", "parmig.transport.zeromq:ZmqTransport"),
    TransportKind("tcp", "tcp", "parmig.transport.tcp:TcpTransport", places=True),
    TransportKind(UNIX_SCHEME, "unix", "parmig.transport.unix:UnixTransport", places=True),
)

TRANSPORTS = {kind.scheme: kind for kind in _KINDS}


AUTO = "auto"
"""What a user gives to leave the choice to parmig."""

AUTO_TRANSPORT = "tcp"
"""What ``auto`` chooses. 1 GiB between 2 pairs of processes on 2 cores over loopback (medians of 8 in turns): ``tcp``
1265 MiB/s with 1.60 s of processor time for each GiB, ``zmq`` 1254 MiB/s with 1.78 s. Both receive 4 MiB a message, but
ZeroMQ allocates it and fills it in a thread of its own; TCP fills the guest's pages, or a buffer in the cache."""


OLDEST_TRANSPORT = "zmq"
"""What every release of parmig knows."""


def data_transports() -> tuple[str, ...]:
    """The names of the transports that can carry pages."""
    return tuple(kind.name for kind in TRANSPORTS.values())


def transport_choices() -> tuple[str, ...]:
    """What ``--transport`` takes."""
    return (AUTO, *data_transports())


def transport_name(choice: str) -> str:
    """The name of the transport that a user's *choice* means."""
    return AUTO_TRANSPORT if choice == AUTO else choice


def chosen_transport(choice: str, control: Endpoint, paths: Sequence[object] = ()) -> str:
    """The name of the transport that carries pages between this host and a receiver at *control*.

    Args:
        choice: of the user.
        paths: addresses that the user gave.

    Raises:
        UsageError: there is no such transport, or it does not fit *control*.
    """
    data_scheme(choice)
    if control.scheme != UNIX_SCHEME:
        if choice == "unix":
            raise UsageError(f"--transport unix is for receivers at unix:///PATH, not at {control}; leave it out")
        return transport_name(choice)
    if choice not in (AUTO, "unix"):
        raise UsageError(f"--transport {choice} needs an address, and {control} has none; leave it out")
    if paths:
        raise UsageError(f"--path needs addresses, and {control} has none; leave it out")
    return "unix"


def data_scheme(choice: str) -> str:
    """The scheme of the transport that *choice* means.

    Raises:
        UsageError: there is no such transport.
    """
    name = transport_name(choice)
    for kind in TRANSPORTS.values():
        if kind.name == name:
            return kind.scheme
    raise UsageError(f"unknown transport {choice!r}; expected one of {', '.join(transport_choices())}")


def places_payload(name: str) -> bool:
    """Whether messages of the transport *name* place their payload."""
    return any(kind.name == name and kind.places for kind in _KINDS)


def needs_curve(scheme: str) -> bool:
    """Whether keys encrypt a transport of *scheme* by ZeroMQ's CURVE. The others between hosts have TLS."""
    return scheme == "zmq+tcp"


def open_transport(endpoint: Endpoint, name: str, **options: Any) -> MigrationTransport:
    """A new, unconnected channel of the endpoint's scheme.

    Args:
        endpoint: only its scheme matters here.
        name: what errors call the channel.
        options: keyword arguments of :class:`MigrationTransport`.

    Raises:
        UsageError: the scheme is not known.
    """
    _check_scheme(endpoint)
    transport: MigrationTransport = resolve_name(TRANSPORTS[endpoint.scheme].factory)(name, **options)
    return transport


def transport_imports(scheme: str) -> tuple[str, ...]:
    """What a process that opens a channel of *scheme* will import; nothing if the scheme is unknown."""
    return (TRANSPORTS[scheme].factory,) if scheme in TRANSPORTS else ()


def control_scheme(endpoint: Endpoint) -> str:
    """The scheme of the control channel and the state channel of a receiver at *endpoint*."""
    return UNIX_SCHEME if endpoint.scheme == UNIX_SCHEME else CONTROL_SCHEME


def open_control(endpoint: Endpoint, name: str, **options: Any) -> TcpTransport:
    """A channel for control or device state: a Unix socket, or plain TCP, also at an address of another scheme.

    Args:
        endpoint: as in :func:`open_transport`.
        name: what errors call the channel.
        options: as in :func:`open_transport`.

    Raises:
        UsageError: the scheme is not known.
    """
    _check_scheme(endpoint)
    factory: type[TcpTransport] = resolve_name(TRANSPORTS[control_scheme(endpoint)].factory)
    return factory(name, **options)


def _check_scheme(endpoint: Endpoint) -> None:
    if endpoint.scheme not in TRANSPORTS:
        raise UsageError(
            f"unknown transport {endpoint.scheme!r} in {endpoint}; expected one of {', '.join(TRANSPORTS)}"
        )
