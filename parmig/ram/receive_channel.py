# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a data channel: lets its send worker in, and lets it in again after a loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from parmig.errors import HostRefusedError, PeerLostError
from parmig.ram import channel_messages as messages
from parmig.ram.channel_opening import Caller, read_opening
from parmig.ram.shared import NOBODY_YET
from parmig.transport.polling import Poller
from parmig.transport.transport import Endpoint, Incoming, MigrationTransport

RETRY_MS = 100
"""How often to try again to listen where somebody else listens at the moment."""


class Placing(Protocol):
    """What handles the messages of a send worker."""

    def placed(self) -> int:
        """The last batch that is in place; NOBODY_YET: only a send worker that begins anew may come."""

    def restart(self) -> None:
        """Another send worker begins: its batches count from 1."""

    def migrate_ram_receive(self, message: Incoming) -> bytes:
        """Handle *message* and return the answer."""


class ReceiveChannel:
    """Takes the messages of one send worker, over one connection after the other.

    Nobody listens while a connection lives. When it is lost, it is closed before the port is opened again, and with it
    goes everything that it had not delivered. So nothing of an old connection is placed after a new one began.

    Args:
        open_transport: makes an unconnected transport.
        endpoint: where to listen.
        caller: the only one that is let in.
        credit_bytes: how much it may have unacknowledged.
        outlives: whether the channel goes on after a loss.
        goes_on: whether another process has had this channel before.
        connected: called when the send worker is in for the first time, before it is answered.
        lost: called with the reason when a connection is lost.
        resumed: called with the length of the outage in nanoseconds.
        wake_fd: watched during :meth:`poll`.
    """

    def __init__(
        self,
        open_transport: Callable[[], MigrationTransport],
        endpoint: Endpoint,
        caller: Caller,
        *,
        credit_bytes: int,
        outlives: bool,
        goes_on: bool = False,
        connected: Callable[[], None],
        lost: Callable[[str], None],
        resumed: Callable[[int], None],
        wake_fd: int,
    ) -> None:
        self._open_transport = open_transport
        self._endpoint = endpoint
        self._caller = caller
        self._credit_bytes = credit_bytes
        self._outlives = outlives
        self._note_connected, self._note_lost, self._note_resumed = connected, lost, resumed
        self._wake_fd = wake_fd
        self._transport: MigrationTransport | None = None
        self._poller = Poller(wake_fd)
        self._peer_is_in = False
        self._epoch = 0 if goes_on else -1
        self._lost_ns = time.monotonic_ns()

    def listen(self) -> Endpoint:
        """Listen, and return where.

        Raises:
            HostRefusedError: this host cannot listen there.
        """
        transport = self._open_transport()
        try:
            self._endpoint = transport.bind(self._endpoint)
        except BaseException:
            transport.shutdown()
            raise
        self._transport = transport
        self._poller = Poller(transport, self._wake_fd)
        return self._endpoint

    def peer_pid(self) -> int:
        """The process of the send worker, if it is on this host and known; else 0."""
        return self._transport.peer_pid() if self._transport is not None else 0

    def poll(self) -> bool:
        """Wait until there may be something to do. Returns False if nothing has come, and the wait ended early."""
        if self._transport is None:
            try:
                self.listen()
            except HostRefusedError:  # somebody took the port meanwhile
                return bool(Poller(self._wake_fd).poll(RETRY_MS))
        return bool(self._poller.poll())

    def take(self, placing: Placing) -> bool:
        """Take one message, if one has come, and have *placing* handle it; returns whether one had.

        Raises:
            PeerLostError: the connection is lost, and the channel does not outlive it.
        """
        if self._transport is None:
            return False
        try:
            incoming = self._transport.receive()
            if incoming is None:
                return False
            if self._peer_is_in:
                self._transport.write([placing.migrate_ram_receive(incoming)])
            else:
                self._greet(self._transport, incoming, placing)
            return True
        except PeerLostError as error:
            self._lose(error)
            return False

    def _greet(self, transport: MigrationTransport, first: Incoming, placing: Placing) -> None:
        """Let in the sender of *first* if it is the right one. Anything else comes from a stranger, and is dropped."""
        opened = read_opening(first, self._caller, transport.challenge)
        first_time = self._epoch < 0
        if opened is None or opened.epoch <= self._epoch or (opened.kind == messages.HELLO) != first_time:
            return
        if opened.kind == messages.RESUME and placing.placed() == NOBODY_YET:
            return  # it does not know that its batches are lost
        transport.accept()
        self._epoch, self._peer_is_in = opened.epoch, True
        if first_time:
            self._note_connected()
            transport.write([opened.answer(messages.welcome(self._credit_bytes))])
        else:
            if opened.kind == messages.RESTART:
                placing.restart()
                transport.write([opened.answer(messages.welcome(self._credit_bytes))])
            else:
                transport.write([opened.answer(messages.resumed(opened.epoch, placing.placed()))])
            self._note_resumed(time.monotonic_ns() - self._lost_ns)

    def _lose(self, error: PeerLostError) -> None:
        """Close the connection, and whatever it still holds."""
        if self._transport is not None:
            self._transport.shutdown()
            self._transport = None
        if not (self._outlives and self._epoch >= 0):
            raise error
        if self._peer_is_in:
            self._lost_ns = time.monotonic_ns()
            self._peer_is_in = False
            self._note_lost(str(error))
