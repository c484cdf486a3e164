# SPDX-License-Identifier: Apache-2.0
"""Sockets: unix(7), tcp(7), socket filters (include/uapi/linux/filter.h)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Sequence

_UCRED = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id at the other end of this Unix socket, in our namespaces (SO_PEERCRED).

    The kernel took them when that process called ``connect()``, or ``listen()`` if this process connected.
    """
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def has_trusted_peer(connection: socket.socket) -> bool:
    """Whether root or the user of this process is at the other end of this Unix socket; see :func:`peer_of`."""
    return peer_of(connection)[1] in (0, os.geteuid())


_DESCRIPTOR = struct.Struct("=i")


def send_with_descriptors(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send *data*, a few bytes, with duplicates of *fds* (SCM_RIGHTS). Raises OSError."""
    packed = b"".join(map(_DESCRIPTOR.pack, fds))
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])


def receive_with_descriptors(connection: socket.socket, most_bytes: int, most_fds: int) -> tuple[bytes, list[int]]:
    """Bytes that have arrived on this Unix socket, and the descriptors that came with them, which the caller closes.

    Raises:
        OSError: nothing is there (BlockingIOError), the connection is gone, or more than *most_fds* came at once; all
            of these are closed.
    """
    room = socket.CMSG_SPACE(most_fds * _DESCRIPTOR.size)
    data, ancillary, flags, _ = connection.recvmsg(most_bytes, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % _DESCRIPTOR.size
            fds += (fd for (fd,) in _DESCRIPTOR.iter_unpack(content[:whole]))
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, f"over {most_fds} descriptors came at once")
    return data, fds


def unacknowledged_bytes(connection: socket.socket) -> int:
    """How many bytes sent on this connection the peer's kernel has not acknowledged yet (TIOCOUTQ, tcp(7)).

    On a Unix socket: bytes that the peer has not read yet.
    """
    size_bytes: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return size_bytes


_TCP_INFO_SILENCE = struct.Struct("@24xI28xI")  # struct tcp_info: tcpi_unacked at byte 24, tcpi_last_ack_recv at 56


def silence_ms(connection: socket.socket) -> int:
    """For how long the peer's host has acknowledged nothing, while segments are under way to it; 0: none are.

    A peer that only makes no room has none under way: the kernel then probes for room. What was sent after a long
    silence counts as long as the silence, so look more than once.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SILENCE.size)
    unacknowledged, silent_ms = _TCP_INFO_SILENCE.unpack(info)
    return int(silent_ms) if unacknowledged else 0


_BYTES_RECEIVED = struct.Struct("@128xQ")  # struct tcp_info of linux/tcp.h up to tcpi_bytes_received


def received_bytes(connection: socket.socket) -> int:
    """How many bytes arrived on this TCP connection since it was made, read or not (TCP_INFO, tcp(7))."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(info)[0])


_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SOCK_FPROG = struct.Struct("@HP")  # struct sock_fprog of linux/filter.h: number of instructions, where they are
_BPF_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, steps if true, steps if false, constant
_BPF_LOAD_LENGTH = 0x80  # BPF_LD | BPF_W | BPF_LEN
_BPF_IF_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_BPF_KEEP = 0x06  # BPF_RET | BPF_K: keep so many bytes of the packet
_TCP_HEADER_MAX_BYTES = 60


def drop_all_packets(sock: socket.socket) -> None:
    """Have the kernel drop whatever arrives at *sock*. A listener then gets no new connections; accepted ones go on.

    Raises:
        PermissionError: filters on TCP sockets need CAP_NET_ADMIN here (Linux 6.18).
    """
    _attach(sock, [(_BPF_KEEP, 0, 0, 0)])


def drop_large_packets(sock: socket.socket, max_bytes: int) -> None:
    """Have the kernel drop TCP segments with more than *max_bytes* of data, before they take memory.

    On a listener, the connections that it accepts from now on inherit the filter (sk_clone_lock in net/core/sock.c).

    Raises:
        PermissionError: as :func:`drop_all_packets`.
    """
    _attach(
        sock,
        [
            (_BPF_LOAD_LENGTH, 0, 0, 0),
            (_BPF_IF_GREATER, 0, 1, max_bytes + _TCP_HEADER_MAX_BYTES),
            (_BPF_KEEP, 0, 0, 0),
            (_BPF_KEEP, 0, 0, 0xFFFF_FFFF),
        ],
    )


def drop_no_packets(sock: socket.socket) -> None:
    """Remove the filter of *sock*, which must have one."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _attach(sock: socket.socket, instructions: list[tuple[int, int, int, int]]) -> None:
    program = ctypes.create_string_buffer(b"".join(_BPF_INSTRUCTION.pack(*instruction) for instruction in instructions))
    pointer = _SOCK_FPROG.pack(len(instructions), ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


_TCP_ULP = 31  # include/uapi/linux/tcp.h


def probe_kernel_tls() -> str | None:
    """Why the kernel does not offer TLS (Documentation/networking/tls.rst), or None: it does, on a connected pair.

    The kernel may load its module ``tls`` for that, where it is allowed to.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as caller:
        try:
            caller.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as error:
            return error.strerror or str(error)
    return None
