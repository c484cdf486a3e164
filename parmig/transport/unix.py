# SPDX-License-Identifier: Apache-2.0
"""``unix:///PATH``: the messages and bounds of ``tcp``, on a socket in the file system of this host.

Only root and the user of this process may connect: the file belongs to that user alone, and the kernel reports who is
at the other end (``SO_PEERCRED``). Both ends check it. Control channels also carry descriptors.

One receiver listens at several sockets: PATH is the control channel, PATH.1 and so on are the others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from parmig.errors import HostRefusedError
from parmig.linux import sockets, trusted_files
from parmig.transport.tcp import TcpTransport
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_framing import Inbox
from parmig.transport.tcp_listen import BACKLOG, Listener
from parmig.transport.transport import Endpoint
from parmig.transport.unix_connection import UnixConnection

MAX_PATH_BYTES = 107
"""``sun_path`` of unix(7), without its last zero."""

MAX_NUMBER_BYTES = len(".65")
"""What the sockets of 64 workers and of the device state add to the path of the control channel."""

_LOCK_S = 2.0
"""How long to wait for another process that listens in the same directory. It holds the lock for a moment."""


class UnixTransport(TcpTransport):
    """One channel over a Unix stream socket."""

    _file: tuple[str, int, int] | None = None  # path, device and inode of the socket that is listened at

    # -- opening --------------------------------------------------------------------------------

    def _listen_at(self, endpoint: Endpoint) -> tuple[Listener, Endpoint]:
        path = endpoint.path
        most_bytes = MAX_PATH_BYTES - (0 if endpoint.port else MAX_NUMBER_BYTES)
        if len(os.fsencode(path)) > most_bytes:
            size = f"the path has {len(os.fsencode(path))} bytes, expected at most {most_bytes}"
            raise HostRefusedError(f"cannot listen on {endpoint}: {size}; choose a shorter one")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file gets the mode of the socket, less the umask: it is never open to others.
            os.fchmod(listener.fileno(), 0o600)
            with _alone_in(os.path.dirname(path)):
                _remove_dead(path)
                listener.bind(path)
                listener.listen(BACKLOG)
            status = os.lstat(path)
            self._file = (path, status.st_dev, status.st_ino)
        except (OSError, UnicodeError, ValueError) as error:
            listener.close()
            number = getattr(error, "errno", None)
            why, advice = os.strerror(number) if number else str(error), "choose another path"
            if number == errno.EADDRINUSE:
                why, advice = "another process listens there", "end that one, or choose another path"
            elif number == errno.EEXIST:
                why, advice = "there is a file that is no socket", "remove it, or choose another path"
            raise HostRefusedError(f"cannot listen on {endpoint}: {why}; {advice}") from error
        return Listener([listener]), endpoint

    @staticmethod
    def _dial(endpoint: Endpoint, local: str, timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if local:
                raise OSError(errno.EINVAL, "a socket file has no local address")
            if len(os.fsencode(endpoint.path)) > MAX_PATH_BYTES:
                raise OSError(errno.ENAMETOOLONG, f"the path is longer than {MAX_PATH_BYTES} bytes")
            sock.settimeout(timeout_s)
            entry = trusted_files.find(endpoint.path)
            try:
                sock.connect(trusted_files.name_of(entry.fd))
            finally:
                os.close(entry.fd)
            if not sockets.has_trusted_peer(sock):
                raise OSError(errno.EPERM, f"user {sockets.peer_of(sock)[1]} listens there, expected root or this user")
        except BaseException:
            sock.close()
            raise
        return sock

    def _lets_in(self, sock: socket.socket) -> bool:
        return sockets.has_trusted_peer(sock)

    def _open_connection(self, sock: socket.socket, max_message_bytes: int, host: str = "") -> Connection:
        return UnixConnection(sock, Inbox(self._max_message_bytes, max_message_bytes))

    # -- descriptors ----------------------------------------------------------------------------

    def send_descriptors(self, fds: Sequence[int]) -> None:
        if isinstance(self._peer, UnixConnection):
            self._peer.send_descriptors(fds)

    def take_descriptors(self) -> list[int]:
        """As for every transport; before a peer is accepted, that is the message of a stranger."""
        connection = self._speaker
        return connection.take_descriptors() if isinstance(connection, UnixConnection) else []

    def peer_pid(self) -> int:
        return self._peer.peer_pid() if isinstance(self._peer, UnixConnection) else 0

    # -- the end --------------------------------------------------------------------------------

    def _close_port(self) -> None:
        super()._close_port()
        file, self._file = self._file, None
        if file is not None:
            path, *own = file
            with suppress(OSError):
                status = os.lstat(path)
                if [status.st_dev, status.st_ino] == own:  # another process may listen there by now
                    os.unlink(path)


@contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Keep other processes from listening in *directory* meanwhile: two could remove each other's sockets.

    Raises:
        OSError: there is no such directory, or another process does not finish.
    """
    fd = trusted_files.open_file(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _remove_dead(path: str) -> None:
    """Remove the socket at *path* if nobody listens there any more.

    Raises:
        OSError: EADDRINUSE: somebody does. EEXIST: it is no socket.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener whose queue is full lives
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
