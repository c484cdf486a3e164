# SPDX-License-Identifier: Apache-2.0
"""The main stream: device state as bytes, on a channel of its own, bounded and digested.

Messages, first byte of the first frame: ``H`` hello with the session; ``E`` early bytes (the guest still
ran, they may be loaded at once); ``D`` bytes of the paused guest (held until released); ``A`` from the
destination: u64 big-endian, all bytes taken so far.

With the feature ``session-proof`` the hello is ``H`` as a claim, and the destination answers ``H`` as its confirmation
(``transport.security.session_proof``).
"""

from __future__ import annotations

import hmac
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import xxhash

from parmig.engine.messages.peer_messages import MAX_STATE_CHUNK_BYTES
from parmig.errors import LimitExceededError, PeerLostError, ProtocolError, StateError
from parmig.transport.security.session_proof import CLAIM_BYTES, SessionProof
from parmig.transport.transport import MigrationTransport
from parmig.units import MIB, NS_PER_S, format_size

WINDOW_BYTES = 8 * MIB
"""At most this much state is unacknowledged. It bounds the queues of both sides."""

HELD_IN_MEMORY_BYTES = 16 * MIB
"""The destination holds this much state in memory until it is released. More goes to a temporary file."""

HELLO_BYTES = 1 + max(16, CLAIM_BYTES)
"""A stranger may send no more than a hello."""

MESSAGES_A_TURN = 16
"""The most messages that one call of :meth:`StateReceiver.receive` takes: 16 MiB, or this many strangers."""

NO_STATE = xxhash.xxh3_128_hexdigest(b"")
"""The digest of a state without a byte."""

STALL_LIMIT_NS = 30 * NS_PER_S

_TAKEN = struct.Struct(">cQ")


def state_hello(session: bytes) -> bytes:
    """The first message of the state channel."""
    return b"H" + session


class StateSender:
    """The source's end, used by the guest's thread only (:meth:`abort` by any). A ``StateSink``.

    Args:
        transport: connected, and the hello is sent; owned by the caller.
    """

    def __init__(self, transport: MigrationTransport) -> None:
        self._transport = transport
        self._digest = xxhash.xxh3_128()
        self._aborted = threading.Event()
        self._taken_bytes = 0
        self.size_bytes = 0
        self.early = True

    @property
    def digest(self) -> str:
        """xxh3-128 of everything written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a copy of *data*; wait while too much is unacknowledged.

        Raises:
            PeerLostError: aborted, or the destination is gone.
            LimitExceededError: the destination takes nothing any more.
        """
        view = memoryview(data).cast("B")
        self._digest.update(view)
        for at in range(0, len(view), MAX_STATE_CHUNK_BYTES):
            chunk = bytes(view[at : at + MAX_STATE_CHUNK_BYTES])
            self._transport.write([b"E" if self.early else b"D", chunk])
            self.size_bytes += len(chunk)
            self._keep_within(WINDOW_BYTES)

    def attend(self) -> None:
        """Notice whether the connection lives. Any thread may call this before the first write.

        Raises:
            PeerLostError: it does not.
        """
        self._take_answers(0)

    def _keep_within(self, window_bytes: int) -> None:
        progress = time.monotonic_ns()
        self._take_answers(0)
        while self.size_bytes - self._taken_bytes > window_bytes:
            if self._aborted.is_set():
                raise PeerLostError("the state channel was closed")
            if self._take_answers(100):
                progress = time.monotonic_ns()
            elif time.monotonic_ns() - progress > STALL_LIMIT_NS:
                raise LimitExceededError("the destination no longer takes device state")

    def _take_answers(self, timeout_ms: int) -> bool:
        """Read the destination's acknowledgements, and return whether there were any."""
        taken = self._taken_bytes
        while (message := self._transport.read(timeout_ms)) is not None:
            if len(message) != 1 or len(message[0]) != _TAKEN.size:
                raise ProtocolError(f"unexpected answer of {len(message)} frames on the state channel")
            kind, taken_bytes = _TAKEN.unpack(message[0])
            if kind != b"A" or not self._taken_bytes <= taken_bytes <= self.size_bytes:
                raise ProtocolError(
                    f"the state channel received answer {kind!r} of {taken_bytes} bytes, "
                    f"expected at most {self.size_bytes}"
                )
            self._taken_bytes = taken_bytes
            timeout_ms = 0
        return self._taken_bytes != taken

    def abort(self) -> None:
        """Make a waiting write fail."""
        self._aborted.set()


class StateReceiver:
    """The destination's end, used by the loop's thread.

    Args:
        transport: listening; owned by the caller.
        session: the secret of the session.
        early: called with bytes that may be loaded at once.
        max_bytes: the limit of all state.
        proof: what the hello is checked with; None: it has the session itself.
        lasting: makes a channel that outlives its connection of the one that was accepted; this object owns it.

    Attributes:
        connected: whether the source has sent its hello.
        size_bytes: how many bytes came so far.
    """

    def __init__(
        self,
        transport: MigrationTransport,
        session: bytes,
        early: Callable[[bytes], None],
        *,
        max_bytes: int,
        proof: SessionProof | None = None,
        lasting: Callable[[MigrationTransport], MigrationTransport] = lambda transport: transport,
    ) -> None:
        self._transport = transport
        self._session = session
        self._proof = proof
        self._early = early
        self._digest = xxhash.xxh3_128()
        self._held = tempfile.SpooledTemporaryFile(max_size=HELD_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by close()
        self._max_bytes = max_bytes
        self._lasting = lasting
        self.connected = False
        self.size_bytes = 0

    def pollables(self) -> list[int]:
        """What to poll."""
        return self._transport.pollables()

    @property
    def digest(self) -> str:
        """xxh3-128 of everything that came so far."""
        return self._digest.hexdigest()

    def receive(self) -> None:
        """Take messages that have arrived, at most MESSAGES_A_TURN of them.

        Raises:
            PeerLostError: the source is gone.
            ProtocolError: a message that may not come here.
            StateError: the state is too large, or cannot be kept.
        """
        for _ in range(MESSAGES_A_TURN):
            message = self._transport.read()
            if message is None:
                return
            if self.connected:
                self._take(message)
            elif len(message) == 1:
                self._let_in(message[0])
            # anything else is from a stranger, and is dropped

    def _let_in(self, hello: memoryview) -> None:
        """Accept the sender of *hello* if it is the source."""
        transport = self._transport
        if self._proof is None:
            answer = b""
            known = hmac.compare_digest(hello, state_hello(self._session))
        else:
            claimed = self._proof.check_claim(transport.challenge, hello)
            known = claimed is not None and claimed.said == b"H"
            answer = self._proof.confirm(transport.challenge, claimed.nonce, b"H") if claimed is not None else b""
        if not known:
            return
        transport.accept()
        if answer:
            transport.write([answer])
        self._transport = self._lasting(transport)
        self.connected = True

    def _take(self, message: list[memoryview]) -> None:
        kind = bytes(message[0][:1])
        if kind not in (b"E", b"D") or len(message) != 2 or len(message[1]) > MAX_STATE_CHUNK_BYTES:
            raise ProtocolError(f"unexpected message of kind {kind!r} with {len(message)} frames on the state channel")
        check_size(self.size_bytes + len(message[1]), self._max_bytes)
        self._digest.update(message[1])
        self.size_bytes += len(message[1])
        if kind == b"E":
            self._early(bytes(message[1]))
        else:
            try:
                self._held.write(message[1])
            except OSError as error:
                raise StateError(
                    f"cannot keep {format_size(self.size_bytes)} of device state in {tempfile.gettempdir()}: "
                    f"{error.strerror}; free some space there, or set TMPDIR to another directory"
                ) from error
        self._transport.write([_TAKEN.pack(b"A", self.size_bytes)])

    def held(self) -> Iterator[bytes]:
        """The held bytes, in pieces."""
        self._held.seek(0)
        while piece := self._held.read(MAX_STATE_CHUNK_BYTES):
            yield piece

    def close(self) -> None:
        """Close the channel, and drop what is held."""
        self._transport.shutdown()
        self._held.close()


def check_size(size_bytes: int, max_bytes: int) -> None:
    """Raise StateError if *size_bytes* of device state are more than *max_bytes*."""
    if size_bytes > max_bytes:
        raise StateError(
            f"the source has {format_size(size_bytes)} of device state or more, expected at most "
            f"{format_size(max_bytes)}; receive with a larger --max-state if the guest needs it"
        )
