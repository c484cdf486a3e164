# SPDX-License-Identifier: Apache-2.0
"""Lets a worker ask the owner of a dirty log to re-arm just the slice that the worker is going to read.

Some logs can only be re-armed by the process that owns them: KVM accepts only the process that made the VM. If all of
a log were re-armed when it is fetched, a page written between then and its turn would be sent twice.

A worker connects to a socket in the abstract name space, which vanishes with its process, and asks for one slice at a
time. The owner answers only processes of its own user and of root.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from parmig.errors import GuestError
from parmig.linux import sockets
from parmig.ram.regions import Region

Rearm = Callable[[Region, bool], None]
"""Re-arms a slice: the pages set in the shared bitmap, or all of them. It raises ValueError or OSError if it cannot."""

_REQUEST = struct.Struct("<B3xIQQ")  # all pages or those of the bitmap, block, first page, pages
_DONE = b"\0"
_FAILED = b"\1"
_WORDS_BYTES = 512
_LIMIT_S = 10


class RearmClient:
    """A worker's connection to the owner of the log.

    Args:
        name: name of the socket, from the dirty log.

    Raises:
        GuestError: the owner is gone.
    """

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_LIMIT_S)
        try:
            self._socket.connect(f"\0{name}")
            if not sockets.has_trusted_peer(self._socket):
                raise PermissionError(f"user {sockets.peer_of(self._socket)[1]} answers in its place")
        except OSError as error:
            self._socket.close()
            raise GuestError(f"the guest's monitor cannot be asked to re-arm its dirty log: {error}") from error

    def rearm(self, span: Region, *, everything: bool) -> None:
        """On return, new writes to the slice are recorded: to pages set in the shared bitmap, or to all.

        Raises:
            GuestError: the owner is gone, does not answer, or cannot do it.
        """
        try:
            self._socket.send(_REQUEST.pack(everything, span.block, span.first_page, span.pages))
            answer = self._socket.recv(_WORDS_BYTES)
        except OSError as error:
            raise GuestError(f"the guest's monitor did not re-arm its dirty log: {error}") from error
        if answer != _DONE:
            raise GuestError(
                answer[1:].decode(errors="replace") or "the guest's monitor ended while it re-armed its dirty log"
            )

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class RearmServer:
    """The owner's end: a thread that answers workers, until close().

    Args:
        rearm: called in that thread.

    Attributes:
        name: name of the socket, for the dirty log.
    """

    def __init__(self, rearm: Rearm) -> None:
        self._rearm = rearm
        self.name = f"parmig-rearm-{os.getpid()}-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen(socket.SOMAXCONN)
        self._stop_sender, self._stop_receiver = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop_receiver, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="rearm", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                match key.fileobj:
                    case self._stop_receiver:
                        return
                    case self._listener:
                        self._accept()
                    case socket.socket() as worker:
                        self._answer(worker)

    def _accept(self) -> None:
        worker, _ = self._listener.accept()
        if sockets.has_trusted_peer(worker):
            self._selector.register(worker, selectors.EVENT_READ)
        else:
            worker.close()

    def _answer(self, worker: socket.socket) -> None:
        try:
            request = worker.recv(_REQUEST.size + 1)
            if len(request) != _REQUEST.size:  # nothing: the worker closed it
                raise ConnectionError
            everything, block, first_page, pages = _REQUEST.unpack(request)
            worker.send(self._handle(Region(block, first_page, pages), bool(everything)))
        except OSError:
            self._selector.unregister(worker)
            worker.close()

    def _handle(self, span: Region, everything: bool) -> bytes:
        try:
            self._rearm(span, everything)
        except (ValueError, OSError) as error:
            return _FAILED + f"the dirty log of {span} cannot be re-armed: {error}".encode()[: _WORDS_BYTES - 1]
        return _DONE

    def close(self) -> None:
        """End the thread, and close all connections."""
        self._stop_sender.close()
        self._thread.join(_LIMIT_S)
        for key in list(self._selector.get_map().values()):
            with suppress(OSError):
                key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
