# SPDX-License-Identifier: Apache-2.0
"""What every transport promises, asked over loopback; peers that die, hang or jam are real processes."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest

from parmig.errors import HostRefusedError, PeerLostError, PeerUnreachableError, ProtocolError, UsageError
from parmig.transport import tcp_door
from parmig.transport.polling import Poller
from parmig.transport.registry import TRANSPORTS, open_transport
from parmig.transport.security.curve_keys import CurveKeys, caller_keys
from parmig.transport.security.security import Security
from parmig.transport.tcp_connection import SILENCE_LIMIT_NS
from parmig.transport.tcp_framing import GREETING, encode
from parmig.transport.transport import Endpoint, Incoming, MigrationTransport, parse_uri
from parmig.transport.zeromq import ZmqTransport
from parmig.transport.zeromq_door import arrived_bytes
from parmig.units import MIB, NS_PER_S
from tests.contract import wrapped
from tests.keys import keys
from tests.support import PATIENCE_NS, curve_keys, next_message, wait_until, while_pumping

SCHEMES = ["zmq+tcp with a token", "zmq+tcp with a key", *TRANSPORTS, "tcp with a certificate", wrapped.KIND.scheme]
MAX_BYTES = 4 * MIB
LIMIT_NS = PATIENCE_NS


TOKEN = bytes(range(16))


CURVE = curve_keys()


class Loop:
    """Transports of one scheme, closed together."""

    def __init__(self, scheme: str, stack: ExitStack) -> None:
        self.scheme, _, shown = scheme.partition(" with a ")
        self.token = TOKEN if shown == "token" else b""
        self.curve = CURVE if shown == "key" else (None, None)
        self.keys = str(keys()) if shown == "certificate" else ""
        self.listeners: list[MigrationTransport] = []
        self.names_hosts = self.scheme != "unix"
        self._stack = stack
        self._directory = Path(stack.enter_context(TemporaryDirectory()))
        self._numbers = itertools.count()

    def here(self, port: int = 0) -> Endpoint:
        """An address of this host; without a *port*, one at which nobody listens."""
        if self.names_hosts:
            return Endpoint(self.scheme, "127.0.0.1", port)
        return Endpoint(self.scheme, str(self._directory / f"socket{next(self._numbers)}"), port)

    @contextmanager
    def other_listener(self) -> Iterator[tuple[socket.socket, Endpoint]]:
        """A listener that is no transport of parmig."""
        endpoint = self.here()
        family = socket.AF_INET if self.names_hosts else socket.AF_UNIX
        with socket.socket(family) as server:
            server.bind(("127.0.0.1", 0) if self.names_hosts else endpoint.path)
            server.listen()
            yield server, Endpoint(self.scheme, "127.0.0.1", server.getsockname()[1]) if self.names_hosts else endpoint

    def open(
        self,
        name: str = "channel",
        *,
        heartbeat: bool = False,
        max_bytes: int = MAX_BYTES,
        token: bytes | None = None,
        challenges: bool = False,
        curve: CurveKeys | None = None,
    ) -> MigrationTransport:
        transport = open_transport(
            self.here(),
            name,
            heartbeat=heartbeat,
            max_message_bytes=max_bytes,
            token=self.token if token is None else token,
            security=Security(self.keys) if self.keys else None,
            challenges=challenges,
            curve=self.curve[0] if curve is None else curve,
        )
        self._stack.callback(transport.shutdown)
        return transport

    def listen(self, **how: Any) -> tuple[MigrationTransport, Endpoint]:
        transport = self.open("listener", **how)
        self.listeners.append(transport)
        return transport, transport.bind(self.here())

    def connect(self, endpoint: Endpoint, *, timeout_ns: int = LIMIT_NS, **how: Any) -> MigrationTransport:
        """Connect, while the listeners are read as their owners do."""
        transport = self.open("connector", **({"curve": self.curve[1]} | how))
        while_pumping(lambda: transport.connect(endpoint, timeout_ns=timeout_ns), self._read_listeners)
        return transport

    def _read_listeners(self) -> None:
        for listener in self.listeners:
            assert listener.read(5) is None

    def pair(self) -> tuple[MigrationTransport, MigrationTransport, Endpoint]:
        """A listening channel and its accepted peer."""
        listener, endpoint = self.listen()
        connector = self.connect(endpoint)
        connector.write([b"hello"])
        assert next_message(listener) == [b"hello"]
        listener.accept()
        return listener, connector, endpoint


@pytest.fixture(autouse=True)
def wrapped_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more line in the table of transports."""
    monkeypatch.setitem(TRANSPORTS, wrapped.KIND.scheme, wrapped.KIND)


@pytest.fixture(params=SCHEMES)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    with ExitStack() as stack:
        yield Loop(request.param, stack)


@pytest.fixture
def addressed(loop: Loop) -> Loop:
    """A loop of a transport between hosts."""
    if not loop.names_hosts:
        pytest.skip("this transport has no addresses")
    return loop


def dial(endpoint: Endpoint, timeout: float = 10) -> socket.socket:
    """A bare connection to *endpoint*."""
    if endpoint.scheme != "unix":
        return socket.create_connection((endpoint.host, endpoint.port), timeout=timeout)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(endpoint.path)
    except OSError:
        sock.close()
        raise
    return sock


def lost(transport: MigrationTransport) -> bool:
    """Whether reading finds the connection gone; what still comes is dropped."""
    try:
        transport.read(10)
    except PeerLostError:
        return True
    return False


PEER = """
from parmig.transport.transport import parse_uri
import msgspec, sys, zmq
from parmig.transport.security.curve_keys import CurveKeys
from parmig.transport.transport import parse_uri
from parmig.transport import tcp
from parmig.transport.polling import Poller
from parmig.transport.registry import TRANSPORTS, open_transport
from parmig.transport.security.security import Security
from tests.contract import wrapped
TRANSPORTS[wrapped.KIND.scheme] = wrapped.KIND
role, uri, heartbeat = sys.argv[1], parse_uri(sys.argv[2]), sys.argv[3] == "True"
token = bytes.fromhex(sys.argv[4])
curve = msgspec.json.decode(sys.argv[5], type=CurveKeys | None)
security = Security(sys.argv[6]) if sys.argv[6] else None
transport = open_transport(
    uri, "peer", heartbeat=heartbeat, max_message_bytes=1 << 22, token=token, curve=curve, security=security
)
if role == "listen":
    print(transport.bind(uri).port, flush=True)
    while transport.read(1000) is None:
        pass
    transport.accept()
else:
    transport.connect(uri, timeout_ns=60 * 10**9)
transport.write([b"hello"])
if role == "jam":
    sys.stdin.read()
while True:
    message = transport.read(1000)
    if message is not None:
        transport.write([bytes(frame) for frame in message])
"""


@contextmanager
def peer(
    role: str, endpoint: Endpoint, *, heartbeat: bool = False, loop: Loop | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Another process: ``connect`` and echo, ``jam`` (connect, never read), or ``listen`` and echo."""
    token = loop.token if loop is not None else b""
    curve = loop.curve[role != "listen"] if loop is not None else None
    with subprocess.Popen(
        [
            *(sys.executable, "-c", PEER, role, str(endpoint), str(heartbeat)),
            *(token.hex(), msgspec.json.encode(curve), loop.keys if loop is not None else ""),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def accept_peer(listener: MigrationTransport) -> None:
    assert next_message(listener) == [b"hello"]
    listener.accept()


# -- messages ---------------------------------------------------------------------------------------


def test_each_connection_gets_a_challenge_of_its_own(loop: Loop) -> None:
    listener, endpoint = loop.listen(challenges=True)
    connectors = [loop.connect(endpoint, challenges=True) for _ in range(3)]
    assert len({connector.challenge for connector in connectors}) == 3
    for number in (1, 0, 2):
        connectors[number].write([b"%d" % number])
        assert next_message(listener) == [b"%d" % number]
        assert listener.challenge == connectors[number].challenge
        assert len(listener.challenge) == 32
    listener.accept()
    listener.write([b"welcome"])
    assert next_message(connectors[2]) == [b"welcome"]


def test_who_gets_no_challenge_does_not_connect(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    connector = loop.open(challenges=True)
    with pytest.raises(PeerUnreachableError):
        while_pumping(lambda: connector.connect(endpoint, timeout_ns=NS_PER_S // 4), lambda: listener.read(5))


def test_messages_arrive_whole_and_in_order(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    sent = [[b"%d" % number, b"", bytes([number % 256]) * (number % 7), b"end"] for number in range(150)]
    for frames in sent:
        connector.write(frames)
    assert [next_message(listener) for _ in sent] == sent
    for frames in sent:
        listener.write(frames)
    assert [next_message(connector) for _ in sent] == sent


def test_large_frames_arrive_from_where_they_lie(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    memory = np.random.default_rng(1).integers(0, 256, 8 * MIB, dtype=np.uint8)
    frames = [b"header", memory[: 3 * MIB].data, bytearray(b"small"), memory[4 * MIB :].data]
    connector.write(frames)
    assert next_message(listener) == [bytes(frame) for frame in frames]


def test_frames_stay_valid_while_they_are_referenced(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    for number in range(5):
        connector.write([bytes([number]) * MIB])
    held: list[list[memoryview]] = []

    def take() -> bool:
        message = listener.read(100)
        if message is not None:
            held.append(message)
        return len(held) == 5

    wait_until(take, "five messages")
    assert [bytes(message[0]) == bytes([number]) * MIB for number, message in enumerate(held)] == [True] * 5


def test_nothing_to_read_is_none(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    assert listener.read() is None
    assert connector.read(1) is None


def test_what_is_to_be_polled_tells_of_a_message(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    poller = Poller(listener)
    while poller.poll(0):  # the monitor tells of connections too
        listener.read()
    connector.write([b"x"])
    assert poller.poll(10_000)
    assert next_message(listener) == [b"x"]


def take(listener: MigrationTransport) -> Incoming:
    """The next message, which must come; its payload may not be here yet."""
    found: list[Incoming] = []

    def receive() -> bool:
        incoming = listener.receive(100)
        found.extend([] if incoming is None else [incoming])
        return bool(found)

    wait_until(receive, "a message")
    return found[0]


PAYLOAD = [bytes(100_000), b"", os.urandom(3 * MIB), b"tail"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_payload_goes_where_the_receiver_says(loop: Loop, kept: bool) -> None:
    """A message whose head came first: into pieces of any length, a great many of them, too."""
    listener, connector, _ = loop.pair()
    whole = b"".join(PAYLOAD)
    for sizes in ([len(whole)], [1, 0, 7, len(whole) - 8], [1024] * (len(whole) // 1024) + [len(whole) % 1024]):
        connector.write([b"head", *PAYLOAD], kept=kept)
        incoming = take(listener)
        assert (bytes(incoming.head), incoming.payload_bytes, incoming.frame_count) == (b"head", len(whole), 5)
        memory = bytearray(len(whole) + 2)
        left, targets = memoryview(memory)[1:-1], []
        for size in sizes:
            targets.append(left[:size])
            left = left[size:]
        half = len(targets) // 2
        for part in (targets[:half], targets[half:]):
            incoming.into(part)
        assert memory == b"\0" + whole + b"\0"
    connector.write([b"next"])
    assert next_message(listener) == [b"next"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_payload_is_handed_out_in_its_frames(loop: Loop, kept: bool) -> None:
    listener, connector, _ = loop.pair()
    for frames in ([b"head", *PAYLOAD], [b"head"], [b"", b"small"], [b"other head", *PAYLOAD[::-1]]):
        connector.write(frames, kept=kept)
        incoming = take(listener)
        assert bytes(incoming.head) == frames[0]
        assert [bytes(frame) for frame in incoming.frames()] == frames[1:]


def test_a_payload_that_nobody_takes_is_dropped(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    for number in range(3):
        connector.write([b"%d" % number, *PAYLOAD])
    connector.write([b"last"])
    assert [bytes(take(listener).head) for _ in range(4)] == [b"0", b"1", b"2", b"last"]


def test_frames_that_are_free_at_once_may_change_at_once(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    memory = bytearray(b"x" * MIB)
    connector.write([b"head", memory], kept=True)
    if connector.frames_free_at == "return":
        memory[:] = bytes(MIB)
    assert next_message(listener) == [b"head", b"x" * MIB]


# -- peers that go away -----------------------------------------------------------------------------


@pytest.mark.parametrize("heartbeat", [False, True])
def test_a_killed_peer_is_lost_to_the_listener(loop: Loop, heartbeat: bool) -> None:
    listener, endpoint = loop.listen(heartbeat=heartbeat)
    with peer("connect", endpoint, heartbeat=heartbeat, loop=loop) as process:
        accept_peer(listener)
        assert not lost(listener)
        process.kill()
        wait_until(lambda: lost(listener), "the loss of a killed peer")
        with pytest.raises(PeerLostError, match="listener"):
            listener.write([b"x"])


@pytest.mark.parametrize("heartbeat", [False, True])
def test_a_killed_peer_is_lost_to_the_connector(loop: Loop, heartbeat: bool) -> None:
    here = loop.here()
    with peer("listen", here, heartbeat=heartbeat, loop=loop) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        connector = loop.connect(Endpoint(here.scheme, here.host, port), heartbeat=heartbeat)
        connector.write([b"hello"])
        assert next_message(connector) == [b"hello"]
        process.kill()
        wait_until(lambda: lost(connector), "the loss of a killed peer")
        with pytest.raises(PeerLostError, match="connector"):
            connector.write([b"x"])


def test_what_was_sent_before_a_loss_can_still_be_read(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    for number in range(20):
        connector.write([b"%d" % number])
    connector.shutdown(linger_ms=5000)
    assert [next_message(listener) for _ in range(20)] == [[b"%d" % number] for number in range(20)]
    wait_until(lambda: lost(listener), "the loss")


def test_a_loss_wakes_whoever_polls(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    poller = Poller(listener)
    connector.shutdown()

    def woken_and_lost() -> bool:
        assert poller.poll(10_000), "nothing to poll for 10 s"
        return lost(listener)

    wait_until(woken_and_lost, "the loss")


def test_a_peer_that_is_stopped_is_lost_on_a_channel_with_heartbeats() -> None:
    with ExitStack() as stack:
        loop = Loop("tcp", stack)
        listener, endpoint = loop.listen(heartbeat=True)
        with peer("connect", endpoint, heartbeat=True) as process:
            accept_peer(listener)
            listener.write([b"ping"])
            assert next_message(listener) == [b"ping"]
            os.kill(process.pid, signal.SIGSTOP)
            wait_until(lambda: lost(listener), "the loss of a stopped peer")


def test_a_peer_that_is_busy_is_not_lost_on_a_channel_with_heartbeats() -> None:
    """Longer than the limit of silence: the other end is not read meanwhile, and says nothing itself."""
    with ExitStack() as stack:
        loop = Loop("tcp", stack)
        listener, endpoint = loop.listen(heartbeat=True)
        connector = loop.connect(endpoint, heartbeat=True)
        connector.write([b"hello"])
        accept_peer(listener)
        until_s = time.monotonic() + SILENCE_LIMIT_NS / NS_PER_S + 1
        while time.monotonic() < until_s:
            assert listener.read(50) is None
        assert connector.read() is None
        listener.write([b"still here"])
        assert next_message(connector) == [b"still here"]


def test_a_jammed_peer_never_blocks_the_writer(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    with peer("jam", endpoint, loop=loop):
        accept_peer(listener)
        frame = bytes(64 * 1024)
        with pytest.raises(PeerLostError):  # noqa: PT012  which write it is does not matter
            for _ in range(10_000):
                listener.write([frame])


# -- strangers --------------------------------------------------------------------------------------


def test_nobody_comes_in_after_the_peer(loop: Loop) -> None:
    listener, connector, endpoint = loop.pair()
    for _ in range(3):
        with pytest.raises(OSError):
            dial(endpoint, 0.2).close()
    with pytest.raises(PeerUnreachableError):
        loop.connect(endpoint, timeout_ns=NS_PER_S // 5)
    connector.write([b"still here"])
    assert next_message(listener) == [b"still here"]
    listener.write([b"and here"])
    assert next_message(connector) == [b"and here"]


def test_strangers_do_not_disturb(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(4096), b"\xff\0\0\0\0\0\0\0\1\x7f", GREETING + b"\xff" * 8):
        with dial(endpoint) as stranger:
            with suppress(OSError):  # it may have been shut out already
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
            stranger.setblocking(False)
            wait_until(lambda one=stranger: ended(one, listener), "the end of the stranger's connection")
    connector = loop.connect(endpoint)
    connector.write([b"hello"])
    accept_peer(listener)
    listener.write([b"and here"])
    assert next_message(connector) == [b"and here"]


def ended(stranger: socket.socket, listener: MigrationTransport) -> bool:
    """Whether the listener, which is read here, closed the stranger's connection."""
    assert listener.read(5) is None
    try:
        return stranger.recv(4096) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_stranger_before_the_peer_is_not_accepted(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    stranger = loop.connect(endpoint)
    stranger.write([b"let me in"])
    assert next_message(listener) == [b"let me in"]
    with pytest.raises(PeerLostError, match="nobody was accepted"):
        listener.write([b"x"])
    right = loop.connect(endpoint)
    right.write([b"hello"])
    assert next_message(listener) == [b"hello"]
    listener.accept()
    wait_until(lambda: lost(stranger), "the end of the stranger's connection")
    right.write([b"data"])
    assert next_message(listener) == [b"data"]
    listener.write([b"answer"])
    assert next_message(right) == [b"answer"]


@pytest.mark.parametrize(
    "loop", ["zmq+tcp", "zmq+tcp with a token"], indirect=True
)  # tcp reads one message of a stranger
def test_what_a_stranger_said_before_the_peer_was_accepted_is_dropped(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    stranger = loop.connect(endpoint)
    stranger.write([b"let me in"])
    assert next_message(listener) == [b"let me in"]
    right = loop.connect(endpoint)
    right.write([b"hello"])
    assert next_message(listener) == [b"hello"]
    stranger.write([b"and me"])
    poller = Poller(listener)
    assert poller.poll(10_000)
    listener.accept()
    right.write([b"data"])
    assert next_message(listener) == [b"data"]


@pytest.mark.parametrize("token", [bytes(16), TOKEN[:-1], TOKEN + b"\0"])
def test_who_says_another_token_is_not_let_in(token: bytes) -> None:
    with ExitStack() as stack:
        loop = Loop("zmq+tcp with a token", stack)
        listener, endpoint = loop.listen()
        with pytest.raises(PeerUnreachableError):
            loop.connect(endpoint, timeout_ns=NS_PER_S // 2, token=token)
        connector = loop.connect(endpoint)
        connector.write([b"hello"])
        accept_peer(listener)


@pytest.mark.parametrize("shown", ["another key", "no key", "a token"])
def test_who_has_another_key_is_not_let_in(shown: str) -> None:
    with ExitStack() as stack:
        loop = Loop("zmq+tcp with a key", stack)
        listener, endpoint = loop.listen()
        keys = caller_keys(bytes(16), 1)._replace(peer=CURVE[1].peer) if shown == "another key" else None
        stranger = ZmqTransport(
            "stranger", max_message_bytes=MAX_BYTES, curve=keys, token=TOKEN if shown == "a token" else b""
        )
        stack.callback(stranger.shutdown)
        with pytest.raises(PeerUnreachableError):
            while_pumping(lambda: stranger.connect(endpoint, timeout_ns=NS_PER_S // 2), lambda: listener.read(5))
        loop.connect(endpoint).write([b"hello"])
        accept_peer(listener)


@pytest.mark.parametrize("listens", ["zmq+tcp", "zmq+tcp with a token", "zmq+tcp with a key"])
def test_who_has_a_key_speaks_to_that_of_its_peer_only(listens: str) -> None:
    with ExitStack() as stack:
        loop = Loop(listens, stack)
        _, endpoint = loop.listen()
        with pytest.raises(PeerUnreachableError):
            loop.connect(endpoint, curve=curve_keys()[1], timeout_ns=NS_PER_S // 2)


@pytest.mark.parametrize("scheme", ["zmq+tcp", "zmq+tcp with a key"])
def test_the_bytes_of_each_message_are_counted_exactly(scheme: str) -> None:
    """Else a peer could send without limit, or a long migration would end by an error."""
    with ExitStack() as stack:
        listener, connector, _ = Loop(scheme, stack).pair()
        sizes = [0, 1, 60, 221, 222, 223, 254, 255, 256, 1000, 70_000]
        for sender, receiver in ((connector, listener), (listener, connector)):
            assert isinstance(receiver, ZmqTransport)
            for size in sizes:
                sender.write([bytes(size), bytes(size // 2)])
                assert list(map(len, next_message(receiver))) == [size, size // 2]
                assert receiver._taken_bytes == arrived_bytes(receiver._peer_fd)


def test_a_listener_whose_message_never_ends_is_refused() -> None:
    ready = b"\5READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = Endpoint("zmq+tcp", "127.0.0.1", server.getsockname()[1])
        transport = ZmqTransport("sender", max_message_bytes=MAX_BYTES, max_ahead_bytes=1000)

        def serve() -> None:
            server.accept()[0].close()  # it was only probed
            with server.accept()[0] as peer, suppress(OSError):
                peer.sendall(b"\xff" + bytes(8) + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + bytes(32))
                peer.sendall(bytes([4, len(ready)]) + ready)
                heard = b""
                while b"DEALER" not in heard:
                    heard += peer.recv(1000)
                while True:
                    peer.sendall(b"\1\1x" * 1000)  # short frames, each with more to follow

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            transport.connect(endpoint, timeout_ns=LIMIT_NS)
            assert transport.attend_ms is not None
            with pytest.raises(ProtocolError, match="bytes ahead, allowed are 1000"):
                transport.read(10_000)
        finally:
            transport.shutdown()
            thread.join()


def test_the_end_of_a_stranger_is_not_taken_for_the_end_of_a_peer_that_got_its_descriptor() -> None:
    """All of it between two steps of one read: the events wait while the peer's hello is taken."""
    with ExitStack() as stack:
        loop = Loop("zmq+tcp", stack)
        listener, endpoint = loop.listen()
        assert isinstance(listener, ZmqTransport)
        door = listener._door
        assert door is not None
        peer = stack.enter_context(socket.socket())
        stranger = stack.enter_context(socket.create_connection((endpoint.host, endpoint.port)))
        wait_until(lambda: listener.read() is None and bool(door._strangers), "the stranger to be accepted")
        (number,) = door._strangers
        thin_out = door.thin_out

        def meanwhile() -> None:
            door.thin_out = thin_out  # type: ignore[method-assign]
            thin_out()
            stranger.close()
            wait_until(lambda: not is_open(number), "the stranger's descriptor to be closed")
            with ExitStack() as taken:  # all that are free below it
                while (free := os.dup(peer.fileno())) < number:
                    taken.callback(os.close, free)
                os.close(free)
                assert free == number
                peer.connect((endpoint.host, endpoint.port))
                wait_until(lambda: is_open(number), "the peer to be accepted")
            peer.sendall(GREETING_BY_HAND)
            said = b""
            while b"READY" not in said:
                said += peer.recv(4096)
            peer.sendall(HELLO_BY_HAND)
            assert listener._socket is not None
            assert listener._socket.poll(10_000)

        door.thin_out = meanwhile  # type: ignore[method-assign]
        assert next_message(listener) == [b"hello"]
        assert listener._last[1] == number
        listener.accept()
        assert listener.read(50) is None
        peer.sendall(b"\0\5again")
        assert next_message(listener) == [b"again"]


GREETING_BY_HAND = b"\xff" + bytes(8) + b"\x7f" + b"\3\0" + b"NULL".ljust(20, b"\0") + bytes(32)  # ZMTP 3.0
HELLO_BY_HAND = b"\x04\x1c\5READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER" + b"\0\5hello"


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_who_stands_in_the_door_longest_makes_room(loop: Loop) -> None:
    """Many connections that say nothing: the peer gets in all the same, and they are shut out then."""
    listener, endpoint = loop.listen()
    with ExitStack() as stack:
        strangers = []
        for _ in range(200):
            one = stack.enter_context(dial(endpoint))
            one.setblocking(False)
            strangers.append(one)
            assert listener.read() is None
        connector = loop.connect(endpoint)
        connector.write([b"hello"])
        accept_peer(listener)
        for one in strangers:
            wait_until(lambda one=one: ended(one, listener), "the end of the stranger's connection")
        connector.write([b"data"])
        assert next_message(listener) == [b"data"]


def test_a_listener_that_had_no_room_is_asked_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may close the connection before the connector says its first word."""
    listener, endpoint = loop.listen()
    kind = type(loop.open("dials nothing"))
    if not hasattr(kind, "_dial"):
        pytest.skip("libzmq connects again by itself")
    real = kind._dial
    dialled = []

    def dial_in_vain_first(*where: Any) -> socket.socket:
        dialled.append(where)
        if len(dialled) > 1:
            return real(*where)
        closed, other_end = socket.socketpair()
        other_end.close()
        return closed

    monkeypatch.setattr(kind, "_dial", staticmethod(dial_in_vain_first))
    loop.connect(endpoint).write([b"hello"])
    accept_peer(listener)
    assert len(dialled) == 2


def test_a_flood_does_not_push_out_who_had_no_time_to_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_door, "TIME_TO_SPEAK_NS", tcp_door.FIRST_MESSAGE_NS)
    with ExitStack() as stack:
        listener, endpoint = Loop("tcp", stack).listen()
        address = (endpoint.host, endpoint.port)
        right = stack.enter_context(socket.create_connection(address, timeout=10))
        right.sendall(GREETING)
        right.setblocking(False)
        heard: list[bytes] = []

        def greeted() -> bool:
            assert listener.read(5) is None
            with suppress(BlockingIOError):
                heard.append(right.recv(len(GREETING)))
            return bool(heard)

        wait_until(greeted, "the listener's greeting")
        assert heard == [GREETING]
        for _ in range(2 * tcp_door.MAX_STRANGERS):
            stack.enter_context(socket.create_connection(address, timeout=10))
            assert listener.read() is None
        right.sendall(encode([b"hello"]))
        assert next_message(listener) == [b"hello"]


def test_who_spoke_while_the_listener_did_not_look_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener on a busy host may get no turn for longer than a stranger has to speak."""
    monkeypatch.setattr(tcp_door, "FIRST_MESSAGE_NS", NS_PER_S // 50)
    with ExitStack() as stack:
        listener, endpoint = Loop("tcp", stack).listen()
        right = stack.enter_context(socket.create_connection((endpoint.host, endpoint.port), timeout=10))
        right.sendall(GREETING)
        assert listener.read() is None
        assert right.recv(len(GREETING)) == GREETING
        right.sendall(encode([b"hello"]))
        time.sleep(2 * tcp_door.FIRST_MESSAGE_NS / NS_PER_S)
        assert next_message(listener) == [b"hello"]


def test_one_address_leaves_room_for_another_one() -> None:
    """Its connections are new, so they need not make room for each other."""
    with ExitStack() as stack:
        loop = Loop("tcp", stack)
        listener, endpoint = loop.listen()
        for _ in range(4 * tcp_door.SHARE):
            crowd = stack.enter_context(socket.socket())
            crowd.bind(("127.0.0.2", 0))
            crowd.connect((endpoint.host, endpoint.port))
        loop.connect(endpoint).write([b"hello"])
        accept_peer(listener)


def test_a_listener_that_is_read_only_when_it_says_so_lets_its_peer_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections fill it: it wakes when the first of them have had their time."""
    monkeypatch.setattr(tcp_door, "FIRST_MESSAGE_NS", NS_PER_S // 4)
    with ExitStack() as stack:
        loop = Loop("tcp", stack)
        listener, endpoint = loop.listen()
        poller = Poller(listener)
        for _ in range(2 * tcp_door.SHARE):
            stack.enter_context(socket.create_connection((endpoint.host, endpoint.port), timeout=10))
        messages: list[list[memoryview]] = []

        def wake() -> None:
            if poller.poll(100) and (message := listener.read()) is not None:
                messages.append(message)

        def call() -> None:
            while not messages:  # on a busy host its own time may be up before it has spoken
                connector = loop.open()
                connector.connect(endpoint, timeout_ns=LIMIT_NS)
                connector.write([b"hello"])
                while not messages and not lost(connector):
                    pass

        while_pumping(call, wake)
        assert messages == [[b"hello"]]


def test_a_message_beyond_the_limit_ends_its_senders_connection_only(loop: Loop) -> None:
    listener, endpoint = loop.listen()
    stranger, right = loop.connect(endpoint), loop.connect(endpoint)
    stranger.write([bytes(MAX_BYTES + 1)])

    def gone() -> bool:
        assert listener.read() is None
        return lost(stranger)

    wait_until(gone, "the end of the stranger's connection")
    right.write([b"hello"])
    accept_peer(listener)
    right.write([bytes(MAX_BYTES)])
    assert len(next_message(listener)[0]) == MAX_BYTES


def test_a_peer_beyond_the_limit_is_lost(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    connector.write([bytes(MAX_BYTES + 1)])
    wait_until(lambda: lost(listener), "the loss of the peer")


# -- nobody there -----------------------------------------------------------------------------------


def test_nobody_at_an_address_is_told_with_the_address(loop: Loop) -> None:
    with loop.other_listener() as (_, endpoint):
        pass  # free again
    with pytest.raises(PeerUnreachableError, match=f"channel: no peer answers at {re.escape(str(endpoint))}"):
        loop.open().connect(endpoint, timeout_ns=NS_PER_S // 5)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "a\u2028b", "x" * 300])
def test_a_name_that_does_not_exist_is_unreachable(addressed: Loop, host: str) -> None:
    with pytest.raises(PeerUnreachableError, match=f"{host}:4600".replace(".", r"\.")):
        addressed.open().connect(Endpoint(addressed.scheme, host, 4600), timeout_ns=NS_PER_S // 5)


def test_a_listener_that_never_answers_is_unreachable(loop: Loop) -> None:
    with (
        loop.other_listener() as (_, endpoint),
        pytest.raises(PeerUnreachableError, match=f"{re.escape(str(endpoint))} answers, but does not speak"),
    ):
        loop.open().connect(endpoint, timeout_ns=NS_PER_S // 5)


def test_a_local_address_that_is_not_ours_is_told(loop: Loop) -> None:
    _, endpoint = loop.listen()
    with pytest.raises(PeerUnreachableError, match=r"from 192\.0\.2\.77"):
        loop.open().connect(endpoint, local="192.0.2.77", timeout_ns=NS_PER_S // 5)


def test_the_local_address_is_used(addressed: Loop) -> None:
    with addressed.other_listener() as (server, endpoint):
        with pytest.raises(PeerUnreachableError):
            addressed.open().connect(endpoint, local="127.0.0.9", timeout_ns=NS_PER_S)
        server.settimeout(10)
        for _ in range(2 if addressed.scheme == "zmq+tcp" else 1):  # with ZeroMQ first a probe, then the channel
            connection, address = server.accept()
            connection.close()
            assert address[0] == "127.0.0.9"


def test_a_port_in_use_is_told(loop: Loop) -> None:
    what = "127.0.0.1:.*in use.*another port" if loop.names_hosts else "socket.*another process listens"
    with loop.other_listener() as (_, endpoint), pytest.raises(HostRefusedError, match=what) as caught:
        loop.open().bind(endpoint)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-host.invalid", "a..b", "a\u2028b"])
def test_an_address_that_is_not_ours_cannot_be_listened_on(addressed: Loop, host: str) -> None:
    with pytest.raises(HostRefusedError, match="cannot listen on") as caught:
        addressed.open().bind(Endpoint(addressed.scheme, host, 0))
    assert host in str(caught.value)


def test_all_addresses_can_be_listened_on(addressed: Loop) -> None:
    listener = addressed.open()
    endpoint = listener.bind(Endpoint(addressed.scheme, "0.0.0.0", 0))
    assert endpoint.port
    addressed.listeners.append(listener)
    addressed.connect(Endpoint(addressed.scheme, "127.0.0.1", endpoint.port)).write([b"x"])
    assert next_message(listener) == [b"x"]


# -- closing ----------------------------------------------------------------------------------------


def nothing_is_said(endpoint: Endpoint, listener: MigrationTransport) -> bool:
    """Whether a connection to *endpoint* is refused, closed or never answered."""
    try:
        with dial(endpoint, 0.1) as late:
            assert listener.read(20) is None
            return late.recv(1) == b""
    except OSError:
        return True


@pytest.mark.parametrize("number", range(3))
def test_each_of_several_addresses_leads_to_the_same_listener(addressed: Loop, number: int) -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "[::1]"]
    listener = addressed.open("listener")
    addressed.listeners.append(listener)
    bound = listener.bind(Endpoint(addressed.scheme, ",".join(hosts), 0))
    connector = addressed.connect(Endpoint(addressed.scheme, hosts[number], bound.port))
    connector.write([b"hello"])
    assert next_message(listener) == [b"hello"]
    listener.accept()
    for host in hosts:
        late = Endpoint(addressed.scheme, host.strip("[]"), bound.port)
        assert nothing_is_said(late, listener)
    listener.write([b"welcome"])
    assert next_message(connector) == [b"welcome"]


def test_of_several_addresses_one_that_is_not_ours_is_refused(addressed: Loop) -> None:
    with pytest.raises(HostRefusedError, match=r"127\.0\.0\.1,192\.0\.2\.1"):
        addressed.open("listener").bind(Endpoint(addressed.scheme, "127.0.0.1,192.0.2.1", 0))


def test_closing_twice_is_fine_and_a_closed_channel_is_lost(loop: Loop) -> None:
    listener, connector, _ = loop.pair()
    calls: list[Callable[[MigrationTransport], object]] = [lambda one: one.write([b"x"]), lambda one: one.read()]
    for transport in (listener, connector, loop.open()):
        transport.shutdown()
        transport.shutdown()
        assert transport.pollables() == []
        for call in calls:
            with pytest.raises(PeerLostError, match="closed"):
                call(transport)


def test_an_unknown_scheme_is_refused(loop: Loop) -> None:
    with pytest.raises(UsageError, match="unknown transport 'pigeon'"):
        open_transport(Endpoint("pigeon", "host", 1), "x", heartbeat=False, max_message_bytes=1)


@pytest.mark.parametrize("text", ["zmq+tcp://host:1", "zmq+tcp://[::1]:65535", "tcp://10.0.0.1:0", "unix:///a/b.3"])
def test_an_address_reads_as_it_is_written(text: str) -> None:
    assert str(parse_uri(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:1",
        "zmq+tcp://host",
        "zmq+tcp://:1",
        "://host:1",
        "zmq+tcp://host:65536",
        "zmq+tcp://host:-1",
        "zmq+tcp://::1:5",
        "a://b:١",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="zmq"):
        parse_uri(text)


def test_a_file_is_no_peer() -> None:
    with pytest.raises(UsageError, match=r"file:///x' is a file.*use parmig save"):
        parse_uri("file:///x")
