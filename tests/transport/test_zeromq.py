# SPDX-License-Identifier: Apache-2.0
"""What only the ZeroMQ transport does; what all transports do is in ``tests/contract/test_transports.py``."""

from __future__ import annotations

import threading

import zmq

from parmig.transport.security.session_proof import CHALLENGE_BYTES
from parmig.transport.transport import Endpoint
from parmig.transport.zeromq import SCHEME, ZmqTransport
from parmig.units import NS_PER_S

LIMIT_S = 60
CHALLENGE = bytes(range(CHALLENGE_BYTES))


def listen(port: int) -> tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes], int]:
    """A listener that lets anybody in; its context, which the caller destroys; and its port."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.setsockopt(zmq.RCVTIMEO, LIMIT_S * 1000)
    sock.bind(f"tcp://127.0.0.1:{port or '*'}")
    bound: bytes = sock.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return context, sock, int(bound.decode().rpartition(":")[2])


def test_whoever_is_shut_out_at_the_knock_connects_again() -> None:
    context, sock, port = listen(0)
    transport = ZmqTransport("sender", max_message_bytes=1 << 16, challenges=True)
    endpoint = Endpoint(SCHEME, "127.0.0.1", port)
    caller = threading.Thread(target=transport.connect, args=(endpoint,), kwargs={"timeout_ns": LIMIT_S * NS_PER_S})
    caller.start()
    try:
        sock.recv_multipart()
        context.destroy(linger=0)  # the connection ends, and the port is free
        context, sock, _ = listen(port)
        origin, _ = sock.recv_multipart()
        sock.send_multipart([origin, CHALLENGE])
        caller.join(LIMIT_S)
        assert transport.challenge == CHALLENGE
    finally:
        caller.join()
        transport.shutdown()
        context.destroy(linger=0)
