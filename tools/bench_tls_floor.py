# SPDX-License-Identifier: Apache-2.0
"""What Python's ``ssl`` itself reaches: two bare processes on a core each, one connection over loopback, no guest.

usage: python -m tools.bench_tls_floor [--runs 5] [--mib 1024]

``plain``: without TLS. ``memory``: OpenSSL works in memory, 1 MiB at a time at the sender and 256 KiB at the receiver,
as parmig does it. ``socket``: OpenSSL reads and writes the socket itself, 1 MiB a call. ``of_bound`` is as in
``tools.bench_tls``: 1 would mean that nothing but AES was added to ``plain``.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from typing import Any

from parmig.transport.security.fleet import add_hosts
from parmig.transport.security.security import Security
from parmig.transport.tls_connection import ARRIVING_BYTES, LEAVING_BYTES
from parmig.units import MIB
from tools.bench_lab import median, run_benches
from tools.bench_tls import openssl_bytes_per_s

HOST = "127.0.0.1"
CIPHER = "aes-128-gcm" if hasattr(ssl.SSLContext, "set_ciphersuites") else "aes-256-gcm"
"""What both ends agree on; see ``parmig.transport.security.tls``."""

_RECORD_BYTES = 16384

End = Callable[[socket.socket, Security, int], None]


def send_plain(sock: socket.socket, _: Security, size_bytes: int) -> None:
    """Send so many bytes."""
    data = os.urandom(MIB)
    for _at in range(0, size_bytes, MIB):
        sock.sendall(data)


def receive_plain(sock: socket.socket, _: Security, size_bytes: int) -> None:
    """Receive so many bytes."""
    buffer = bytearray(MIB)
    while size_bytes > 0:
        size_bytes -= sock.recv_into(buffer)


def send_by_socket(sock: socket.socket, security: Security, size_bytes: int) -> None:
    """The same, by an SSLSocket."""
    with security.client_context.wrap_socket(sock, server_hostname=HOST) as tls:
        data = memoryview(os.urandom(MIB))
        for _ in range(0, size_bytes, MIB):
            at = 0
            while at < MIB:
                at += tls.send(data[at:])
        tls.recv(1)  # until the other end has all


def receive_by_socket(sock: socket.socket, security: Security, size_bytes: int) -> None:
    """The same, by an SSLSocket."""
    with security.server_context.wrap_socket(sock, server_side=True) as tls:
        buffer = bytearray(MIB)
        while size_bytes > 0:
            size_bytes -= tls.recv_into(buffer)
        tls.send(b".")


def send_by_memory(sock: socket.socket, security: Security, size_bytes: int) -> None:
    """The same, by an SSLObject."""
    tls, _incoming, outgoing = _shaken(security.client_context, sock, host=HOST)
    data = memoryview(os.urandom(LEAVING_BYTES))
    for _ in range(0, size_bytes, LEAVING_BYTES):
        at = 0
        while at < LEAVING_BYTES:
            at += tls.write(data[at:])
        sock.sendall(outgoing.read())


def receive_by_memory(sock: socket.socket, security: Security, size_bytes: int) -> None:
    """The same, by an SSLObject."""
    tls, incoming, _outgoing = _shaken(security.server_context, sock, host="")
    arriving, buffer = memoryview(bytearray(ARRIVING_BYTES)), memoryview(bytearray(_RECORD_BYTES))
    read: Callable[[int, memoryview], int] = tls.read  # type: ignore[assignment] # typeshed knows bytes only
    while size_bytes > 0:
        incoming.write(arriving[: sock.recv_into(arriving)])
        try:
            while True:
                size_bytes -= read(_RECORD_BYTES, buffer)
        except ssl.SSLWantReadError:
            pass


def _shaken(
    context: ssl.SSLContext, sock: socket.socket, host: str
) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A connection in memory whose handshake is done, and its two sides."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=not host, server_hostname=host or None)
    done = False
    while not done:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        if outgoing.pending:
            sock.sendall(outgoing.read())
        if not done:
            incoming.write(sock.recv(4096))
    return tls, incoming, outgoing


ENDS: dict[str, tuple[End, End]] = {
    "plain": (send_plain, receive_plain),
    "memory": (send_by_memory, receive_by_memory),
    "socket": (send_by_socket, receive_by_socket),
}


def mib_per_s(kind: str, security: Security, size_bytes: int) -> float:
    """The rate of one transfer; the receiver is a child on the second core."""
    send, receive = ENDS[kind]
    with socket.create_server((HOST, 0)) as listener:
        caller = socket.create_connection(listener.getsockname())
        answerer, _ = listener.accept()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    child = os.fork()
    if not child:
        os.sched_setaffinity(0, {second})
        caller.close()
        receive(answerer, security, size_bytes)
        os._exit(0)
    answerer.close()
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {first})
    began = time.monotonic()
    with caller:
        send(caller, security, size_bytes)
        os.waitpid(child, 0)
    os.sched_setaffinity(0, everywhere)
    return size_bytes / MIB / (time.monotonic() - began)


def bench_tls_floor(runs: int, mib: int) -> dict[str, Any]:
    """The rate of each kind, as medians, and what it is of the bound."""
    with tempfile.TemporaryDirectory() as fleet:
        (keys,) = add_hosts(fleet, [("localhost", HOST)], 30)
        security = Security(str(keys), (HOST,))
        rates: dict[str, list[float]] = {kind: [] for kind in ENDS}
        for _ in range(runs):
            for kind in ENDS:
                rates[kind].append(mib_per_s(kind, security, mib * MIB))
    aes = openssl_bytes_per_s(CIPHER) / MIB
    found = {kind: median(several) for kind, several in rates.items()}
    bound = 1 / (1 / found["plain"] + 1 / aes)
    return {
        "cipher": CIPHER,
        "aes_mib_per_s": round(aes),
        **{kind: {"mib_per_s": round(rate), "of_bound": round(rate / bound, 2)} for kind, rate in found.items()},
    }


if __name__ == "__main__":
    run_benches(__doc__, {"tls floor": bench_tls_floor}, runs=5, mib=1024)
