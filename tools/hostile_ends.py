# SPDX-License-Identifier: Apache-2.0
"""The hostile ends of ``tools/hostile_sessions.py``: they hold valid keys and the secret of each session.

Each one plays its part in the protocol, with messages damaged, cut, repeated, reordered, replayed from earlier
sessions, or replaced by bytes that are none. Over TCP also the framing below the messages is damaged.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from parmig.engine.messages import peer_messages as control
from parmig.errors import TransportError
from parmig.ram import channel_messages as channel
from parmig.ram.channel_opening import Caller, Opening, read_opening
from parmig.ram.codecs.registry import names
from parmig.ram.credit import credit_bytes
from parmig.transport.registry import open_control
from parmig.transport.security.security import Security
from parmig.transport.security.session_proof import CHALLENGE_BYTES, NONCE_BYTES, SessionProof
from parmig.transport.tcp import TcpTransport
from parmig.transport.tcp_framing import encode
from parmig.transport.transport import MigrationTransport
from parmig.units import NS_PER_S
from tests.engine.peer_examples import CONFIGURE, EXAMPLES
from tools.fuzz_messages import BATCH_BYTES, batch_messages
from tools.fuzzing import damaged
from tools.hostile_messages import Mangler
from tools.hostile_orders import (
    ACCEPT,
    ANSWERS,
    PROTOCOL,
    STATE_ROLE,
    STORY,
    WISH,
    WORKER,
    Order,
    open_pages,
    open_state,
)

_LIMIT_NS = 5 * NS_PER_S
_AGAIN_NS = NS_PER_S // 4
"""For a later connection of a channel, which the honest side may have ended."""
_LINGER_MS = 300
"""For ZeroMQ, until all has left. TCP would wait for the acknowledgement of the last byte, which takes 40 ms."""
_IDLE_MS = 200
"""If the honest side says nothing for so long, it waits for the rest of a message."""
_ANSWER_MS = 50


class Hostile:
    """All hostile ends, over many sessions.

    Args:
        security: valid keys.
        chance: of everything that is done.
        over: whether the honest side has ended the session.

    Attributes:
        sent: messages that an honest peer would not have sent at this place.
    """

    def __init__(self, security: Security, chance: random.Random, over: Callable[[], bool]) -> None:
        self._security = security
        self._over = over
        self._chance = chance
        self._mangler = Mangler(chance, 0, 1 << 60)
        self._recorded: deque[list[bytes]] = deque(maxlen=64)
        self.sent = 0

    def begin(self, kind: str, *, honest: bool) -> None:
        """Begin a session of *kind*; *honest*: every message is sent as it is."""
        chance = self._chance
        share = 0.0 if honest else chance.choice((0.1, 0.3, 1.0))
        after = 0 if kind == "admission" else chance.choice((0, 0, 1, 2, 4, 8))
        self._mangler = Mangler(chance, share, after, bursts=(0, 0, 1, 4))
        self._honest = honest

    # -- sending --------------------------------------------------------------------------------

    def _write(self, transport: MigrationTransport, frames: Sequence[Any]) -> None:
        """Send *frames*, or something else."""
        messages = self._mangler.replace(frames)
        self._recorded.append([bytes(frame) for frame in frames])
        if messages is None:
            transport.write(frames)
            return
        for message in messages:
            self.sent += 1
            match self._chance.randrange(10):
                case 0 if isinstance(transport, TcpTransport) and transport._peer is not None:
                    transport._peer.write(damaged(encode(message), self._chance))
                case 1:
                    transport.write(self._chance.choice(self._recorded))
                case _:
                    transport.write(message)

    def _open(self, transport: MigrationTransport, claim: bytes) -> None:
        """Prove the session, and wait for the answer. The claim may be replayed on another connection."""
        self._recorded.append([claim])
        transport.write([claim])
        transport.read(1000)

    def _prelude(self, order: Order, connect: Any, first: bytes) -> None:
        """Connections that open with something else than *first*."""
        while not self._honest and self._chance.random() < 0.4:
            with contextlib.suppress(TransportError), _closing(connect(order)) as transport:
                message = self._chance.choice([damaged(first, self._chance), *(m[0] for m in self._recorded)])
                self.sent += 1
                transport.write([message])
                transport.read(_ANSWER_MS)

    # -- the source's ends ----------------------------------------------------------------------

    def attack(self, order: Order) -> None:
        """Connect to the honest end at the order's endpoint, and do harm."""
        how = {"admission": self._ask, "control": self._control, "state": self._state, "pages": self._pages}
        with contextlib.suppress(TransportError):
            how[order.kind](order)

    def _connect_control(self, order: Order) -> MigrationTransport:
        transport = open_control(
            order.endpoint, "control channel", max_message_bytes=control.MAX_CONTROL_BYTES, security=self._security
        )
        return _connected(transport, order)

    def _ask(self, order: Order) -> None:
        for _ in range(4):
            with _closing(self._connect_control(order)) as transport:
                message = self._chance.choice((CONFIGURE, WISH, *EXAMPLES))
                self._write(transport, [control.encode_control(message)])
                with contextlib.suppress(TransportError):
                    transport.read(_ANSWER_MS)

    def _control(self, order: Order) -> None:
        with _closing(self._connect_control(order)) as transport:
            transport.write([control.encode_control(WISH)])
            transport.read(1000)
            story = list(STORY) if self._honest or self._chance.random() < 0.7 else self._chance.choices(STORY, k=9)
            for message in story:
                self._write(transport, [control.encode_control(message)])

    def _state(self, order: Order) -> None:
        proof, nonce = SessionProof(order.secret, STATE_ROLE), os.urandom(NONCE_BYTES)

        def connect(order: Order) -> MigrationTransport:
            return _connected(open_state(order, self._security), order)

        self._prelude(order, connect, proof.claim(bytes(CHALLENGE_BYTES), nonce, b"H"))
        with _closing(connect(order)) as transport:
            self._open(transport, proof.claim(transport.challenge, nonce, b"H"))
            for number in range(24):
                self._write(transport, [b"ED"[number > 12 :][:1], self._chance.randbytes(self._chance.randrange(9000))])

    def _pages(self, order: Order) -> None:
        caller = Caller(order.secret, WORKER, PROTOCOL, proves=True)

        def connect(order: Order, timeout_ns: int = _LIMIT_NS) -> MigrationTransport:
            return _connected(open_pages(order, self._security, listens=False), order, timeout_ns)

        self._prelude(order, connect, Opening(caller, channel.HELLO, 0, bytes(CHALLENGE_BYTES)).message)
        for epoch in range(1 if self._honest else self._chance.randrange(1, 4)):
            if self._over():
                return
            with _closing(connect(order, _AGAIN_NS if epoch else _LIMIT_NS)) as transport:
                kind = self._chance.choice((channel.RESUME, channel.RESTART)) if epoch else channel.HELLO
                self._open(transport, Opening(caller, kind, epoch, transport.challenge).message)
                for message in batch_messages(self._chance.randrange(2), self._chance.choice(names())):
                    self._write(transport, message)
                while transport.read(_ANSWER_MS) is not None:
                    pass  # who leaves before the answers is not heard to the end

    # -- the destination's ends -----------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, order: Order) -> Any:
        """Listen for the honest end of *order*; gives where, and what then does harm."""
        transport: MigrationTransport
        match order.kind:
            case "answers":
                transport = open_pages(order, self._security, listens=True)
            case "state answers":
                transport = open_state(order, self._security)
            case _:
                transport = open_control(
                    order.endpoint,
                    "control channel",
                    max_message_bytes=control.MAX_CONTROL_BYTES,
                    first_message_bytes=control.MAX_CONFIGURE_BYTES,
                    security=self._security,
                )
        how = {"accept": self._accept, "answers": self._answer_pages, "state answers": self._answer_state}
        try:
            where = transport.bind(order.endpoint)

            def harm() -> None:
                with contextlib.suppress(TransportError):
                    how[order.kind](order, transport)
                _close(transport)

            yield where, harm
        finally:
            transport.shutdown()

    def _first(self, transport: MigrationTransport) -> Any:
        """The first message; its sender is let in."""
        until = time.monotonic_ns() + _LIMIT_NS
        while (message := transport.receive(_ANSWER_MS)) is None:
            if time.monotonic_ns() > until:
                raise TimeoutError("the honest side does not connect")
        transport.accept()
        return message

    def _accept(self, order: Order, transport: MigrationTransport) -> None:
        self._first(transport)
        chance = self._chance
        first: control.ControlMessage = ACCEPT
        if not self._honest and chance.random() < 0.3:
            first = chance.choice(EXAMPLES)
        for message in (first, *(ANSWERS[:4] if self._honest else chance.choices(ANSWERS, k=8))):
            self._write(transport, [control.encode_control(message)])

    def _answer_pages(self, order: Order, transport: MigrationTransport) -> None:
        first = self._first(transport)
        opened = read_opening(first, Caller(order.secret, WORKER, PROTOCOL, proves=True), transport.challenge)
        if opened is None:
            raise AssertionError("the honest side does not prove its session")
        self._write(transport, [opened.answer(channel.welcome(credit_bytes(BATCH_BYTES)))])
        placed = 0
        while (message := transport.read(_IDLE_MS)) is not None:
            if message[0][0] == channel.FENCE:
                answer = channel.answer_fence(message[0], placed)
            else:
                placed += 1
                answer = channel.ack(placed)
            before = self.sent
            self._write(transport, [answer])
            if self.sent != before and self._chance.random() < 0.2:
                return

    def _answer_state(self, order: Order, transport: MigrationTransport) -> None:
        proof = SessionProof(order.secret, STATE_ROLE)
        hello = self._first(transport).head
        claimed = proof.check_claim(transport.challenge, hello)
        if claimed is None:
            raise AssertionError("the honest side does not prove its session")
        self._write(transport, [proof.confirm(transport.challenge, claimed.nonce, b"H")])
        taken = 0
        while (message := transport.read(_IDLE_MS)) is not None:
            taken += sum(map(len, message[1:]))
            self._write(transport, [b"A" + taken.to_bytes(8, "big")])


def _connected(transport: MigrationTransport, order: Order, timeout_ns: int = _LIMIT_NS) -> MigrationTransport:
    """*transport*, connected to the honest end."""
    try:
        transport.connect(order.endpoint, timeout_ns=timeout_ns)
    except BaseException:
        transport.shutdown()
        raise
    return transport


def _close(transport: MigrationTransport) -> None:
    transport.shutdown(1 if isinstance(transport, TcpTransport) else _LINGER_MS)


@contextlib.contextmanager
def _closing(transport: MigrationTransport) -> Iterator[MigrationTransport]:
    """*transport*, which is closed in the end, once what was queued has left."""
    try:
        yield transport
    finally:
        _close(transport)
