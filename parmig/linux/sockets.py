# SPDX-License-Identifier: Apache-2.0
"""Sockets: unix(7), tcp(7), socket filters (include/uapi/linux/filter.h)."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import termios

_UCRED = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of this Unix socket, as our namespaces number them (SO_PEERCRED).

    They are of the instant in which it called ``connect()``, or ``listen()`` where we connected.
    """
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def unacknowledged_bytes(connection: socket.socket) -> int:
    """What was sent on this TCP connection and not acknowledged by the peer's kernel yet (TIOCOUTQ, tcp(7))."""
    found: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return found


_BYTES_RECEIVED = struct.Struct("@128xQ")  # struct tcp_info of linux/tcp.h up to tcpi_bytes_received


def received_bytes(connection: socket.socket) -> int:
    """What has arrived on this TCP connection since it was made, read by a process or not (TCP_INFO, tcp(7))."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(info)[0])


_SO_ATTACH_FILTER = 26
_SOCK_FPROG = struct.Struct("@HP")  # struct sock_fprog of linux/filter.h: number of instructions, where they are
_BPF_KEEP_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes of the packet


def drop_all_packets(sock: socket.socket) -> None:
    """Have the kernel drop whatever arrives at *sock*. On a listener: no new connections; existing ones continue."""
    program = ctypes.create_string_buffer(_BPF_KEEP_NOTHING)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _SOCK_FPROG.pack(1, ctypes.addressof(program)))
