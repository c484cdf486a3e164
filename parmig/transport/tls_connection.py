# SPDX-License-Identifier: Apache-2.0
"""One TCP connection inside TLS: the same messages and bounds, and no byte of parmig before both sides are trusted.

OpenSSL works in memory here. So it neither waits nor touches the socket, a stranger's handshake takes part in the turns
of a listener, and one call of the kernel carries many records. An object of it must not be used by two threads at once:
``_lock`` is held for every call.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from parmig.errors import PeerNotTrustedError
from parmig.transport.security.security import Security
from parmig.transport.security.tls import judge, why_failed
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_framing import GREETING, TLS_ALERT, Inbox
from parmig.units import KIB

MAX_HANDSHAKE_BYTES = 64 * KIB
"""How much of a peer is read before its handshake is done: a chain of certificates has a few KiB."""

HANDSHAKE_CHUNK_BYTES = 4 * KIB

ARRIVING_BYTES = 256 * KIB
"""How much is read at once: 16 records."""

LEAVING_BYTES = 1024 * KIB
"""Once this much is encrypted it is sent, in 64 records or more. With 256 KiB here and 64 KiB above, every other call
woke the other side: 497 MiB/s with a core a side, against 610 (medians of ``tools.bench_tls``, one worker); four times
as much is no faster."""

_ALERT = TLS_ALERT + b"\x03\x00\x02\x02\x46"
"""A fatal alert, ``protocol_version``. A parmig without keys recognizes it."""

_NOT_LET_IN = (
    "the receiver knows the authority of this host's certificate, but does not let this host in; "
    "allow its name or fingerprint by --peer there, or use the keys that the migration began with"
)
_LEFT = "the sender left when it saw this host's certificate; its own output says why"

T = TypeVar("T")


class TlsConnection(Connection):
    """One connection inside TLS.

    Args:
        sock: connected; this object closes it.
        inbox: takes what arrives.
        security: whom to trust.
        host: that this side has connected to, without brackets; empty: this side has listened.

    Raises:
        HostRefusedError: the files of *security* cannot be used.
    """

    def __init__(self, sock: socket.socket, inbox: Inbox, security: Security, host: str = "") -> None:
        super().__init__(sock, inbox)
        self._security = security
        self._calls = bool(host)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = security.client_context if host else security.server_context
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not host, server_hostname=host.partition("%")[0] or None
        )
        self._arriving = memoryview(b"")
        self._handshake_bytes = 0
        self._records = memoryview(b"")  # encrypted, and not with the kernel yet
        self._owed_bytes = 0  # how much of the front of the queue was encrypted, and is not taken out of it yet

    # -- the handshake --------------------------------------------------------------------------

    def greet(self, challenge: bytes = b"") -> None:
        """Begin the handshake. The greeting and *challenge* follow as soon as the peer is trusted."""
        with self._lock:
            self.challenge = challenge
            try:
                self._shake_hands()
            except BlockingIOError:
                pass  # reading goes on
            except OSError as error:
                self._end_by(error)

    def _shake_hands(self) -> None:
        """Go on with the handshake.

        Raises:
            BlockingIOError: it is not done yet.
            OSError: it has failed.
        """
        self._with_records(self._tls.do_handshake)
        try:
            self.encryption = judge(self._tls, self._security, calling=self._calls)
        except PeerNotTrustedError as error:
            self._end_tls()
            raise self._distrusted(str(error)) from error
        self._arriving = memoryview(bytearray(ARRIVING_BYTES))
        self._queue(GREETING + self.challenge)
        self._flush()

    def _distrusted(self, reason: str) -> OSError:
        self.distrust = reason
        return ConnectionAbortedError(errno.ECONNABORTED, reason)

    # -- what arrives ---------------------------------------------------------------------------

    def _take_bytes(self, most_bytes: int) -> bytes:
        with self._lock:
            if self.encryption is None:
                self._shake_hands()
            data = self._with_records(lambda: self._tls.read(most_bytes)) or b""
            if not data and not self.inbox.greeted:
                raise self._distrusted(_NOT_LET_IN if self._calls else _LEFT)
            return data

    def _take_into(self, targets: list[memoryview]) -> int:
        with self._lock:
            return self._with_records(lambda: self._decrypt_into(targets)) or 0

    def _decrypt_into(self, targets: list[memoryview]) -> int:
        """Decrypt what is in memory. Raises as ``SSLObject.read`` if that is nothing."""
        count = 0
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment] # typeshed knows bytes only
        try:
            for target in targets:
                while size := len(target):
                    record_bytes = read(size, target)  # never more than one record
                    if not record_bytes:
                        return count
                    count += record_bytes
                    target = target[record_bytes:]
        except ssl.SSLWantReadError:
            if not count:
                raise
        return count

    def _holds_more(self) -> bool:
        return self._incoming.pending > 0 or self._tls.pending() > 0

    def _with_records(self, step: Callable[[], T]) -> T | None:
        """The result of *step*, which OpenSSL takes, with as many records as it needs; None: the peer has ended TLS.

        Raises:
            BlockingIOError: more records are needed, and none are there.
            OSError: the connection is gone, or is not what it should be.
        """
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError as error:
                if self.encryption is None:
                    raise ConnectionAbortedError(errno.ECONNABORTED, "TLS ended in the handshake") from error
                return None
            except ssl.SSLEOFError as error:
                raise ConnectionAbortedError(errno.ECONNABORTED, "it was cut off, without an end of TLS") from error
            except ssl.SSLError as error:
                raise self._broken_tls(error) from error
            finally:
                self._send_records_if_possible()  # an alert, or a part of the handshake
            self._take_records()

    def _broken_tls(self, error: ssl.SSLError) -> OSError:
        reason = "" if self.inbox.greeted else why_failed(error, self._security, calling=self._calls)
        if reason:
            return self._distrusted(reason)
        return OSError(errno.EPROTO, f"what arrives is not TLS 1.3 as agreed: {error.reason or error}")

    def _take_records(self) -> None:
        """Take what has arrived from the socket to memory."""
        if self.encryption is not None:
            size = self._sock.recv_into(self._arriving)
            data = self._arriving[:size]
        else:
            data = memoryview(self._sock.recv(HANDSHAKE_CHUNK_BYTES))
            self._check_handshake(bytes(data[: len(GREETING)]), len(data))
        if len(data):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _check_handshake(self, begin: bytes, size_bytes: int) -> None:
        if not self._handshake_bytes and begin and GREETING.startswith(begin):
            if self._calls:
                reason = "the receiver has no keys, and nothing is sent unencrypted with --keys; start it with --keys"
            else:
                self._records = memoryview(_ALERT)
                self._send_records_if_possible()
                reason = "the sender has no keys; give it --keys, as on this host"
            raise self._distrusted(reason)
        self._handshake_bytes += size_bytes
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            raise OSError(errno.EPROTO, f"the handshake has over {MAX_HANDSHAKE_BYTES} bytes")

    # -- what leaves ----------------------------------------------------------------------------

    def _give(self, pieces: list[memoryview]) -> int:
        if not self._owed_bytes:
            self._owed_bytes = self._encrypt(pieces)
        self._send_records()
        owed_bytes, self._owed_bytes = self._owed_bytes, 0
        return owed_bytes

    def _encrypt(self, pieces: list[memoryview]) -> int:
        """Encrypt the first bytes of *pieces*; returns how many."""
        count = 0
        for piece in pieces:
            while len(piece):
                if count >= LEAVING_BYTES:
                    return count
                written = self._tls.write(piece)  # all of it, in several records
                count += written
                piece = piece[written:]
        return count

    def _send_records(self) -> None:
        """Give the kernel all records. Raises BlockingIOError if it does not take all of them now, or OSError."""
        while len(self._records) or self._outgoing.pending:
            if not len(self._records):
                self._records = memoryview(self._outgoing.read())
            self._records = self._records[self._sock.send(self._records) :]

    def _send_records_if_possible(self) -> None:
        if self._outgoing.pending or len(self._records):
            try:
                self._send_records()
            except OSError:  # a connection that is gone shows at the next read, and may still hold something to read
                pass

    def say_no_more(self) -> None:
        with self._lock:
            self._end_tls()
        super().say_no_more()

    def _end_tls(self) -> None:
        """Send the end of TLS, so that the peer does not take it for a cut."""
        try:
            self._tls.unwrap()
        except (OSError, ValueError):  # the peer has not ended it, too
            pass
        self._send_records_if_possible()
