# SPDX-License-Identifier: Apache-2.0
"""The honest process of ``tools/hostile_sessions.py``: serves one session after the other with parmig's own ends.

Each end is what the commands use: ports, TLS, CURVE, proofs, readers and plans. Only what is behind them is missing:
the guest, and the processes of workers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from parmig.config import SendConfig
from parmig.engine.agreement.agreement import check_configure
from parmig.engine.channels.state_channel import StateReceiver, StateSender
from parmig.engine.destination.admission import Admission
from parmig.engine.messages import peer_messages as control
from parmig.engine.source.introduction import Introduction, agreed
from parmig.engine.source.state_opening import say_hello
from parmig.errors import ParmigError, PeerRefusedError, ProtocolError
from parmig.ram import in_flight
from parmig.ram.channel_opening import Caller
from parmig.ram.codecs.registry import names
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.ram.receive_channel import ReceiveChannel
from parmig.transport.polling import Poller
from parmig.transport.security.security import Security
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.units import NS_PER_S
from tests.engine.peer_examples import CONFIGURE
from tools.fuzz_messages import BATCH_BYTES, INFO, TRAITS, Destination, batch_messages
from tools.hostile_orders import (
    ACCEPT,
    MAX_STATE_BYTES,
    PROTOCOL,
    STATE_ROLE,
    WISH,
    WORKER,
    Order,
    Outcome,
    open_pages,
    open_state,
)
from tools.hostile_plan import HeardPlan

_POLL_MS = 50
_REST_MS = 5
"""How long to look for what is left once the hostile side has ended: it is on this host."""
_LIMIT_NS = 5 * NS_PER_S


def serve(pipe: Connection, keys: str) -> None:
    """Serve sessions as long as orders come from *pipe*; *keys* is the directory of keys."""
    faulthandler.register(signal.SIGUSR1)
    honest = _Honest(pipe, Security(keys, ("127.0.0.1",)))
    with contextlib.suppress(EOFError):
        while True:
            order = pipe.recv()
            pipe.send(honest.run(order))
    honest.close()


class _Honest:
    """The honest ends.

    Args:
        pipe: to the hostile process, which sends None when it has ended its part.
        security: of all channels.
    """

    def __init__(self, pipe: Connection, security: Security) -> None:
        self._pipe = pipe
        self._security = security
        self._read = 0
        self._ended = False
        self._destination = Destination()
        self._admission = self._new_admission()

    def close(self) -> None:
        """Give everything back."""
        self._admission.close()
        self._destination.close()

    def run(self, order: Order) -> Outcome:
        """Serve one session."""
        self._read, self._ended, error, why, crash = 0, False, "", "", ""
        ends: dict[str, Callable[[Order, contextlib.ExitStack], None]] = {
            "admission": self._admit,
            "control": self._control,
            "state": self._state,
            "pages": self._pages,
            "accept": self._introduce,
            "answers": self._send_pages,
            "state answers": self._send_state,
        }
        try:
            with contextlib.ExitStack() as stack:
                ends[order.kind](order, stack)
        except ParmigError as problem:
            error, why = type(problem).__name__, str(problem)
        except Exception as problem:
            error, crash = type(problem).__name__, traceback.format_exc()
        in_flight.batches.clear()  # a worker has one channel, and keeps its batches as long as it lives
        while not self._ended:
            self._ended = self._pipe.recv() is None
        return Outcome(self._read, error, why, crash)

    # -- what all ends share --------------------------------------------------------------------

    def _listens(self, where: Endpoint) -> None:
        self._pipe.send(str(where))

    def _counted(self, transport: MigrationTransport, how: str = "read") -> Any:
        """*transport*, whose messages are counted; *how* it is read."""
        hear = getattr(transport, how)

        def counting(timeout_ms: int = 0) -> Any:
            message = hear(timeout_ms)
            self._read += message is not None
            return message

        setattr(transport, how, counting)
        return transport

    def _while_hostile(self, step: Callable[[], object], *watched: Any) -> None:
        """Call *step* whenever there may be something to read, until the hostile side has ended and nothing is left."""
        poller = Poller(*watched, self._pipe.fileno()) if not self._ended else Poller(*watched)
        while True:
            before = self._read
            step()
            if self._read != before:
                continue
            ready = poller.poll(_REST_MS if self._ended else _POLL_MS)
            if self._ended and not ready:
                return
            if not self._ended and self._pipe.poll():
                self._ended = self._pipe.recv() is None
                poller.unwatch(self._pipe.fileno())

    # -- the destination's ends -----------------------------------------------------------------

    def _new_admission(self) -> Admission:
        admission = Admission(Endpoint("tcp", "127.0.0.1", 0), lambda _: None, self._security)
        admission.listen()
        return admission

    def _hear(self, admission: Admission) -> control.Configure | None:
        admission.refused = ""
        wish = admission.hear()
        self._read += bool(wish is not None or admission.refused)
        return wish

    def _admit(self, order: Order, stack: contextlib.ExitStack) -> None:
        """A port that refuses everybody, the same for all sessions."""
        self._listens(self._admission.endpoint)

        def step() -> None:
            if (wish := self._hear(self._admission)) is None:
                return
            mismatches = check_configure(wish, INFO, CONFIGURE.blocks, TRAITS)
            if wish.check:
                self._admission.answer_check(mismatches)
            else:
                self._admission.refuse("this receiver takes nobody")

        self._while_hostile(step, *self._admission.pollables())

    def _control(self, order: Order, stack: contextlib.ExitStack) -> None:
        """A port, and the plan of the destination behind it."""
        admission = self._new_admission()
        stack.callback(admission.close)
        self._listens(admission.endpoint)
        wishes: list[control.Configure] = []

        def wait() -> None:
            if (wish := self._hear(admission)) is not None:
                wishes.append(wish)

        while not (wishes or self._ended):
            wait()
            Poller(*admission.pollables(), self._pipe.fileno()).poll(_POLL_MS)
            self._ended = self._pipe.poll() and self._pipe.recv() is None
        if not wishes:
            return
        channel = admission.admit()
        stack.callback(channel.close)
        self._counted(channel.transport)
        channel.write(ACCEPT)
        plan = HeardPlan(channel)
        self._while_hostile(plan.step, channel.transport)

    def _state(self, order: Order, stack: contextlib.ExitStack) -> None:
        transport = open_state(order, self._security)
        where = transport.bind(order.endpoint)
        proof = SessionProof(order.secret, STATE_ROLE)
        receiver = StateReceiver(
            self._counted(transport), order.secret, lambda _: None, max_bytes=MAX_STATE_BYTES, proof=proof
        )
        stack.callback(receiver.close)
        self._listens(where)
        self._while_hostile(receiver.receive, transport)
        if sum(map(len, receiver.held())) > MAX_STATE_BYTES:
            raise AssertionError("more device state was kept than --max-state allows")

    def _pages(self, order: Order, stack: contextlib.ExitStack) -> None:
        """A receive worker's channel, which outlives its connections, and what places its pages."""
        made: list[MigrationTransport] = []

        def opened() -> MigrationTransport:
            transport = open_pages(order, self._security, listens=True)
            stack.callback(transport.shutdown)
            made.append(self._counted(transport, "receive"))
            return made[-1]

        channel = ReceiveChannel(
            opened,
            order.endpoint,
            Caller(order.secret, WORKER, PROTOCOL, proves=True),
            credit_bytes=credit_bytes(BATCH_BYTES),
            outlives=True,
            connected=lambda: None,
            lost=lambda _: None,
            resumed=lambda _: None,
            wake_fd=self._pipe.fileno(),
        )
        placing = self._destination.begin()
        stack.callback(self._destination.check)
        self._listens(channel.listen())
        while not self._ended:
            channel.poll()
            while channel.take(placing):
                pass
            self._ended = self._pipe.poll() and self._pipe.recv() is None
        while Poller(made[-1]).poll(_REST_MS) and channel.take(placing):
            pass

    # -- the source's ends ----------------------------------------------------------------------

    def _introduce(self, order: Order, stack: contextlib.ExitStack) -> None:
        """A source that introduces itself, and hears what follows."""
        config = SendConfig(keys=self._security.directory, transport="tcp", connect_timeout_ns=NS_PER_S)
        introduction = Introduction(order.endpoint, config, stack, lambda: None)
        try:
            wish, answer = introduction.ask(WISH)
        except (PeerRefusedError, ProtocolError):
            self._read += 1
            raise
        self._read += 1
        agreed(answer, wish, INFO)
        channel = introduction.control
        assert channel is not None
        self._counted(channel.transport)
        self._while_hostile(channel.read, channel.transport)

    def _send_pages(self, order: Order, stack: contextlib.ExitStack) -> None:
        """A send worker's channel."""
        transport = open_pages(order, self._security, listens=False)
        stack.callback(transport.shutdown)
        transport.connect(order.endpoint, timeout_ns=_LIMIT_NS)
        never_fd = os.eventfd(0)
        stack.callback(os.close, never_fd)
        channel = SendChannel(
            self._counted(transport, "read" if order.endpoint.scheme == "tcp" else "receive"),
            "send worker 0",
            batch_bytes=BATCH_BYTES,
            credit_bytes=credit_bytes(BATCH_BYTES),
            interrupt_fd=never_fd,
            interrupt=lambda: None,
        )
        channel.open(Caller(order.secret, WORKER, PROTOCOL, proves=True), limit_ns=_LIMIT_NS)
        (*batches, _) = batch_messages(0, names()[0])
        for round_ in range(8):
            for batch in batches:
                channel.send_batch(batch, sum(map(len, batch)), None)
            channel.fence(round_)

    def _send_state(self, order: Order, stack: contextlib.ExitStack) -> None:
        """The source's end of the state channel."""
        transport = open_state(order, self._security)
        stack.callback(transport.shutdown)
        transport.connect(order.endpoint, timeout_ns=_LIMIT_NS)
        say_hello(self._counted(transport), order.secret, SessionProof(order.secret, STATE_ROLE))
        sender = StateSender(transport)
        for _ in range(16):
            sender.write(bytes(100_000))
        self._while_hostile(sender.attend, transport)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2])
