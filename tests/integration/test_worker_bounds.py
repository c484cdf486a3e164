# SPDX-License-Identifier: Apache-2.0
"""What whoever reaches a data port can make a receive worker keep: a real worker, and its resident memory."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from parmig.engine.messages.peer_messages import PROTOCOL_VERSION
from parmig.engine.messages.worker_messages import WorkerConnected, WorkerFailed, WorkerReady
from parmig.engine.pool import WorkerPool
from parmig.ram.channel_opening import Caller
from parmig.ram.credit import credit_bytes
from parmig.units import MIB
from tests.engine.test_pool import PAGES, RECEIVE, REGIONS, data_channel, receive_setup, said_by
from tests.integration.test_strangers import strangers
from tests.support import PATIENCE_NS, PATIENCE_S, mapped, shared_area, wait_until

TOKEN = bytes(16)
HELLO = struct.pack(">BxHI16s", 1, 0, PROTOCOL_VERSION, TOKEN)
BATCH_BYTES = 4 * MIB
MORE_BYTES = 40 * MIB
"""What a worker may grow by: the 32 MiB that are promised, and what comes in until it looks, on a busy machine."""


@contextmanager
def worker(transport: str = "zmq+tcp") -> Iterator[tuple[WorkerPool, int, Callable[[], int]]]:
    """A receive worker that listens, its port, and what asks how much its memory has grown at most."""
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        setup = receive_setup(
            memory, uri=f"{transport}://127.0.0.1:0", batch_bytes=BATCH_BYTES, credit_bytes=credit_bytes(BATCH_BYTES)
        )
        pool.start(setup, [shared.fd, memory.fd])
        (ready,) = said_by(pool)
        assert isinstance(ready.event, WorkerReady)
        process = psutil.Process(pool._processes[0].pid)
        before = most = process.memory_info().rss

        def grown_bytes() -> int:
            nonlocal most
            try:
                most = max(most, process.memory_info().rss)
            except psutil.NoSuchProcess:
                pass
            return most - before

        yield pool, ready.event.port, grown_bytes


@contextmanager
def let_in(port: int) -> Iterator[socket.socket]:
    """A connection to a worker after ZMTP's handshake with the token, by hand: libzmq sends whole messages only."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\3\0" + b"PLAIN".ljust(20, b"\0") + bytes(32))
        password = TOKEN.hex().encode()
        said = b"\5HELLO" + b"\6parmig" + bytes([len(password)]) + password
        peer.sendall(bytes([4, len(said)]) + said)
        heard = b""
        while b"WELCOME" not in heard:
            heard += peer.recv(4096)
        said = b"\x08INITIATE" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        peer.sendall(bytes([4, len(said)]) + said)
        while b"READY" not in heard:
            heard += peer.recv(4096)
        yield peer


@pytest.mark.parametrize("transport", ["zmq+tcp", "tcp"])
@pytest.mark.parametrize("kind", ["command", "frames", "endless"])
def test_strangers_at_a_data_port_are_kept_small_and_the_peer_gets_in(kind: str, transport: str) -> None:
    with worker(transport) as (pool, port, grown_bytes), strangers(kind, 32, port):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert grown_bytes() < MORE_BYTES
            time.sleep(0.002)
        with data_channel(port, transport, BATCH_BYTES) as channel:
            channel.open(Caller(TOKEN, 0, PROTOCOL_VERSION), limit_ns=PATIENCE_NS)
            (said,) = said_by(pool)
            assert isinstance(said.event, WorkerConnected)
        assert grown_bytes() < MORE_BYTES


@pytest.mark.parametrize(
    ("frame_bytes", "words"), [(MIB, "bytes ahead, allowed are"), (1, "without a whole message")], ids=["long", "short"]
)
def test_a_peer_with_a_message_that_never_ends_is_ended(frame_bytes: int, words: str) -> None:
    """It knows the token and says hello; then frame after frame of one message."""
    with worker() as (pool, port, grown_bytes), let_in(port) as peer:
        peer.sendall(b"\0" + bytes([len(HELLO)]) + HELLO)
        (said,) = said_by(pool)
        assert isinstance(said.event, WorkerConnected)
        stop = threading.Event()

        def send() -> None:
            length = struct.pack(">BQ", 3, frame_bytes) if frame_bytes > 255 else bytes([1, frame_bytes])
            frames = (length + bytes(frame_bytes)) * (MIB // frame_bytes)
            with suppress(OSError):
                while not stop.is_set():
                    peer.sendall(frames)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            found: list[object] = []

            def failed() -> bool:
                grown_bytes()
                found.extend(pool.read())
                return bool(found)

            wait_until(failed, "the end of the worker")
        finally:
            stop.set()
            thread.join()
        event = found[0].event  # type: ignore[attr-defined]
        assert isinstance(event, WorkerFailed)
        assert event.error.type == "ProtocolError"
        assert words in event.error.message
        assert grown_bytes() < 2 * MORE_BYTES + credit_bytes(BATCH_BYTES)


def test_a_peer_with_a_message_over_tcp_that_never_ends_costs_nothing() -> None:
    with worker("tcp") as (_, port, grown_bytes), socket.create_connection(("127.0.0.1", port)) as peer:
        greeting = b"parmig2\n"
        peer.sendall(greeting + struct.pack(">II", 1, len(HELLO)) + HELLO)
        head = bytes(40)
        peer.sendall(struct.pack(">IIII", 3, len(head), 4 * MIB, 4 * MIB) + head)
        peer.settimeout(PATIENCE_S)
        with pytest.raises(OSError):  # noqa: PT012
            while True:  # refused by its head: the worker ends
                peer.sendall(bytes(MIB))
        assert grown_bytes() < MORE_BYTES
