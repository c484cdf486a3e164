# SPDX-License-Identifier: Apache-2.0
"""The sending end of a data channel: numbers batches, keeps within the credit, waits for fences, survives losses.

At most ``credit_bytes`` and ``MAX_UNACKED`` batches are unacknowledged at any time. This bounds memory on both sides.

Pages are sent from where they are. With most transports, only the acknowledgement shows that they were read. A peer
that acknowledges too early must not make this process read memory that is gone, so the payload is in guest memory or
in buffers of ``ram.in_flight``, which both stay as long as the process lives. It only gets other bytes of the guest.

After a loss the channel connects again, and sends again what the destination has not placed. A buffer holds what it
held: it changes only after its acknowledgement. Guest memory may hold newer bytes. Those pages are dirty, so the next
round sends them again; a paused guest writes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from parmig.errors import LimitExceededError, PeerLostError, ProtocolError
from parmig.ram import channel_messages as messages
from parmig.ram import in_flight
from parmig.ram.ack_rate import AckRate
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.channel_messages import HELLO, RESTART, Answer, decode_answer
from parmig.ram.channel_opening import Caller, Opening
from parmig.ram.credit import CREDIT_BATCHES
from parmig.ram.in_flight import UnackedBatch
from parmig.ram.reconnect import Reconnect
from parmig.transport.polling import Poller
from parmig.transport.transport import Buffer, MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S

MIN_CREDIT_BYTES = 4096

MAX_UNACKED = 64
"""Most batches in flight, even if they are small. It is below the high-water mark of the transport."""

BUFFERS = CREDIT_BATCHES
"""Private buffers of a channel for gathered or encoded pages: as many as there are whole batches in the credit."""

_POLL_MS = 200

STALL_LIMIT_NS = 30 * NS_PER_S
"""If no acknowledgement comes for this long, the destination hangs. A 4 MiB batch takes 30 s only below 140 KiB/s."""


class SendChannel:
    """The sending end: numbers batches, stays within the credit, waits for fences.

    Args:
        transport: connected to the receive worker; the channel closes it only after a loss.
        name: for errors.
        batch_bytes: size of the buffers that :meth:`take_buffer` hands out.
        credit_bytes: the most credit that the destination may grant, as agreed.
        interrupt_fd: watched during every wait.
        interrupt: called when it is readable, and before each batch; raises to end the wait.
        reconnect: connects again after a loss; None: a loss is an error.
        reserve: returns from when on so many bytes may be sent again, by the rate limit.
    """

    def __init__(
        self,
        transport: MigrationTransport,
        name: str,
        *,
        batch_bytes: int,
        credit_bytes: int,
        interrupt_fd: int,
        interrupt: Callable[[], None],
        reconnect: Reconnect | None = None,
        reserve: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._transport = transport
        self._name = name
        self._interrupt, self._interrupt_fd = interrupt, interrupt_fd
        self._reconnect = reconnect
        self._reserve = reserve
        self._poller = Poller(transport, interrupt_fd)
        self._batch_pages = batch_bytes // PAGE_BYTES
        self._agreed_bytes = credit_bytes
        self._buffers: list[Pages] = []
        self._buffers_made = 0
        self._unacked: deque[UnackedBatch] = deque()
        in_flight.batches.append(self._unacked)
        self.acks = AckRate()  # what is under way, and how fast it arrives
        self._credit_bytes = 0
        self._sequence = self._fenced_sequence = 0
        self._decode = decode_answer
        self._fence_round = self._fenced_round = -1
        self.waiting_ns = self._resumed_ns = 0

    def open(self, caller: Caller, *, limit_ns: int, epoch: int = 0) -> None:
        """Send the hello of *caller*, or its restart with *epoch*, and wait for the welcome.

        Raises:
            LimitExceededError: no answer within *limit_ns*.
        """
        opening = Opening(caller, RESTART if epoch else HELLO, epoch, self._transport.challenge)
        self._decode = opening.decode_answer
        self._transport.write([opening.message])
        deadline = time.monotonic_ns() + limit_ns
        self._wait(lambda: self._credit_bytes > 0, "the welcome of the receive worker", lambda: deadline)

    # -- batches --------------------------------------------------------------------------------

    def next_sequence(self) -> int:
        """The sequence number of the batch that is sent next."""
        return self._sequence + 1

    def take_buffer(self) -> Pages:
        """A private buffer for one batch, shape (pages, 4096). It returns to the channel when it may change again."""
        if not self._buffers and self._buffers_made < BUFFERS:
            self._buffers_made += 1
            return np.empty((self._batch_pages, PAGE_BYTES), dtype=np.uint8)
        if not self._buffers:
            self._wait(lambda: bool(self._buffers), "a free batch buffer")
        return self._buffers.pop()

    def send_batch(self, frames: Sequence[Buffer], wire_bytes: int, buffer: Pages | None) -> None:
        """Send one batch, first waiting for credit.

        Args:
            frames: header and payload; the payload is in guest memory or in *buffer*.
            wire_bytes: size of all frames.
            buffer: the private buffer that holds the payload, if any. It is kept as long as this process lives.
        """
        if buffer is not None:
            in_flight.keep(buffer)
        self._interrupt()
        if self._unacked and not self._has_credit(wire_bytes):
            self._wait(lambda: not self._unacked or self._has_credit(wire_bytes), "credit")
        self._sequence += 1
        until_ack = self._reconnect is not None or self._transport.frames_free_at == "ack"
        self._unacked.append(UnackedBatch(self._sequence, wire_bytes, frames, buffer if until_ack else None))
        self.acks.sent(wire_bytes)
        self._write(frames, kept=True)
        if buffer is not None and not until_ack:
            self._buffers.append(buffer)

    def _write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        try:
            self._transport.write(frames, kept=kept)
        except PeerLostError as error:
            self._recover(error)

    def _has_credit(self, wire_bytes: int) -> bool:
        return len(self._unacked) < MAX_UNACKED and self.acks.allows(wire_bytes, self._credit_bytes)

    def sleep_until(self, instant_ns: int) -> None:
        """Wait for *instant_ns* (the rate limit), and handle acknowledgements and interruptions meanwhile."""
        while (left := instant_ns - time.monotonic_ns()) > 0:
            self._poll(max(1, left // NS_PER_MS) if left >= NS_PER_MS else 0, left)

    def idle(self) -> None:
        """Wait until there may be an instruction, and handle what arrives on the connection meanwhile."""
        began = time.monotonic_ns()
        self._poller.poll(_POLL_MS if self._unacked else None)  # a silent connection has to be looked at
        self.waiting_ns += time.monotonic_ns() - began
        self._drain()

    def fence(self, round_: int) -> None:
        """End a round: returns when the receive worker has placed everything that was sent.

        If nothing was sent since the last fence, it returns without asking. Most rounds of the pause are like this,
        and a round trip between four busy processes takes milliseconds.
        """
        if self._sequence == self._fenced_sequence:
            return
        self._fence_round = round_
        self._write([messages.fence(round_, self._sequence)])
        self._wait(lambda: self._fenced_round == round_, f"the fence of round {round_}")
        if self._unacked:
            left = f"batch {self._unacked[0].sequence} unacknowledged"
            raise ProtocolError(f"{self._name}: fence of round {round_} passed with {left}")
        self._fenced_sequence = self._sequence

    def last_batch_ns(self) -> int:
        """Wait until all batches are acknowledged; returns the time between the last two acknowledgements.

        Both batches were under way together, so this is what the last one took on the link or at the destination.
        """
        self._wait(lambda: len(self._unacked) <= 1, "the acknowledgement of a batch")
        began = time.monotonic_ns()
        self._wait(lambda: not self._unacked, "the acknowledgement of a batch")
        return time.monotonic_ns() - began

    # -- waiting --------------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], what: str, deadline: Callable[[], int] | None = None) -> None:
        progress = time.monotonic_ns()
        due = len(self._unacked)
        self._drain()
        while not done():
            now = time.monotonic_ns()
            if len(self._unacked) != due:
                due, progress = len(self._unacked), now
            limit = deadline() if deadline else max(progress, self._resumed_ns) + STALL_LIMIT_NS
            if now >= limit:
                batch = self._unacked[0].sequence if self._unacked else self._sequence
                raise LimitExceededError(
                    f"{self._name}: the wait for {what} took too long, at batch {batch} of {self._sequence}; "
                    "check whether the destination hangs"
                )
            self._poll(_POLL_MS, limit - now)

    def _poll(self, timeout_ms: int, limit_ns: int) -> None:
        began = time.monotonic_ns()
        if timeout_ms:
            self._poller.poll(min(timeout_ms, max(1, limit_ns // NS_PER_MS)))
        else:
            time.sleep(limit_ns / NS_PER_S)
        self.waiting_ns += time.monotonic_ns() - began
        self._interrupt()
        self._drain()

    def _drain(self) -> None:
        try:
            while (message := self._transport.read()) is not None:
                self._handle(message)
        except PeerLostError as error:
            self._recover(error)

    def _handle(self, message: list[memoryview]) -> None:
        match self._decode(message):
            case Answer(messages.ACK, _, sequence):
                self._acknowledge(sequence)
            case Answer(messages.FENCED, round_, sequence):
                words = f"{self._name}: the fence of round {round_}"
                if sequence != self._sequence:
                    raise ProtocolError(f"{words} names batch {sequence}, expected {self._sequence}")
                if round_ != self._fence_round:
                    raise ProtocolError(f"{words} was answered, expected round {self._fence_round}")
                self._acknowledge(sequence)
                self._fenced_round = round_
            case Answer(messages.WELCOME, credit) if not self._credit_bytes:
                if not MIN_CREDIT_BYTES <= credit <= self._agreed_bytes:
                    words = f"credit of {credit} bytes, expected at most {self._agreed_bytes}"
                    raise ProtocolError(f"{self._name}: the welcome has a {words}")
                self._credit_bytes, self._decode = credit, decode_answer
            case _:
                raise ProtocolError(f"{self._name}: unexpected message of {messages.describe(message)}")

    def _acknowledge(self, sequence: int) -> None:
        if sequence > self._sequence:
            raise ProtocolError(f"{self._name}: batch {sequence} was acknowledged, expected at most {self._sequence}")
        while self._unacked and self._unacked[0].sequence <= sequence:
            batch = self._unacked.popleft()
            self.acks.acked(batch.wire_bytes, time.monotonic_ns())
            if batch.buffer is not None:
                self._buffers.append(batch.buffer)

    # -- after a loss ---------------------------------------------------------------------------

    def _recover(self, cause: PeerLostError) -> None:
        """Connect again, and send again what was not placed. Raises PeerLostError if that is not to be."""
        self._transport.shutdown()
        if self._reconnect is None or not self._credit_bytes:
            raise cause
        began_ns = time.monotonic_ns()
        self._reconnect.again(cause, self._take_up, self._rest)
        self._resumed_ns = time.monotonic_ns()
        self.waiting_ns += self._resumed_ns - began_ns

    def _take_up(self, transport: MigrationTransport, placed_sequence: int) -> int:
        """Go on with *transport*; returns how many bytes were sent again."""
        self._transport.shutdown()
        self._transport = transport
        self._poller = Poller(transport, self._interrupt_fd)
        oldest = self._unacked[0].sequence if self._unacked else self._sequence + 1
        if placed_sequence + 1 < oldest:
            words = f"the destination has placed batch {placed_sequence}, and acknowledged more before"
            raise ProtocolError(f"{self._name}: {words}")
        self._acknowledge(placed_sequence)
        for batch in self._unacked:
            self._rest(self._reserve(batch.wire_bytes) - time.monotonic_ns())
            transport.write(batch.frames, kept=True)
        if self._fence_round != self._fenced_round:
            transport.write([messages.fence(self._fence_round, self._sequence)])
        return self.acks.load.unacked_bytes

    def _rest(self, duration_ns: int) -> None:
        """Wait for *duration_ns*, and handle interruptions only."""
        until_ns = time.monotonic_ns() + duration_ns
        self._interrupt()
        while (left_ns := until_ns - time.monotonic_ns()) > 0:
            Poller(self._interrupt_fd).poll(max(1, left_ns // NS_PER_MS))
            self._interrupt()
