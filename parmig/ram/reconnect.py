# SPDX-License-Identifier: Apache-2.0
"""Connects a data channel again after its connection was lost. Which batches then follow, the channel decides."""

from __future__ import annotations

import time
from collections.abc import Callable

from parmig.errors import PeerLostError, PeerUnreachableError, ProtocolError, TransportError
from parmig.ram.channel_messages import RESUME, RESUMED, Answer
from parmig.ram.channel_opening import Caller, Opening
from parmig.transport.transport import MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S, format_ms

FIRST_WAIT_NS, LONGEST_WAIT_NS = 50 * NS_PER_MS, NS_PER_S
"""The waits between two attempts: each is twice as long as the one before. The first is short because the destination
often needs a moment to notice the loss; the longest is what an outage may last longer than its cause."""

ATTEMPT_NS = NS_PER_S
"""How long one attempt may take to connect, and again to be answered."""

_READ_MS = 100


class Reconnect:
    """Makes new connections of one channel to its receive worker.

    Args:
        name: what errors call the channel.
        caller: what the receive worker knows it by.
        dial: makes a connection within so many nanoseconds.
        limit_ns: how long one outage may last.
        epoch: that of the first connection.
        lost: called with the reason when an outage begins.
        resumed: called with the length of the outage, and with how many bytes were sent again.

    Attributes:
        epoch: the number of the last attempt.
    """

    def __init__(
        self,
        name: str,
        caller: Caller,
        dial: Callable[[int], MigrationTransport],
        limit_ns: int,
        *,
        epoch: int = 0,
        lost: Callable[[str], None],
        resumed: Callable[[int, int], None],
    ) -> None:
        self._name = name
        self._caller = caller
        self._dial = dial
        self._limit_ns = limit_ns
        self._lost = lost
        self._resumed = resumed
        self.epoch = epoch

    def again(
        self,
        cause: PeerLostError,
        take_up: Callable[[MigrationTransport, int], int],
        wait: Callable[[int], None],
    ) -> None:
        """Connect until *take_up* succeeds.

        Args:
            cause: what ended the last connection.
            take_up: goes on with a new connection, given the last batch that the destination has placed. Returns how
                many bytes were sent again. It owns the connection, also if it raises PeerLostError.
            wait: waits so many nanoseconds, and raises to give up.

        Raises:
            PeerLostError: the outage lasted too long.
            ProtocolError: the peer does not answer as a receive worker does.
        """
        began_ns = time.monotonic_ns()
        self._lost(str(cause))
        wait_ns = FIRST_WAIT_NS
        while True:
            wait(0)
            try:
                again_bytes = take_up(*self._connect(wait))
                break
            except TransportError as error:
                why = error
            if time.monotonic_ns() + wait_ns - began_ns > self._limit_ns:
                limit = format_ms(self._limit_ns / NS_PER_MS)
                raise PeerLostError(
                    f"{self._name}: no new connection within {limit} ({why}), after this: {cause}; "
                    "check the network between both hosts, or allow more time by --reconnect-timeout"
                ) from why
            wait(wait_ns)
            wait_ns = min(2 * wait_ns, LONGEST_WAIT_NS)
        self._resumed(time.monotonic_ns() - began_ns, again_bytes)

    def _connect(self, wait: Callable[[int], None]) -> tuple[MigrationTransport, int]:
        """A new connection, and the last batch that the destination has placed."""
        transport = self._dial(ATTEMPT_NS)
        try:
            self.epoch += 1
            opening = Opening(self._caller, RESUME, self.epoch, transport.challenge)
            transport.write([opening.message])
            deadline_ns = time.monotonic_ns() + ATTEMPT_NS
            while time.monotonic_ns() < deadline_ns:
                wait(0)
                message = transport.read(_READ_MS)
                if message is not None:
                    return transport, self._placed(opening.decode_answer(message))
            raise PeerUnreachableError(f"{self._name}: the destination did not answer on the new connection")
        except BaseException:
            transport.shutdown()
            raise

    def _placed(self, answer: Answer | None) -> int:
        if answer is None or (answer.kind, answer.value) != (RESUMED, self.epoch):
            raise ProtocolError(f"{self._name}: the destination did not take up the channel, but answered {answer}")
        return answer.sequence
