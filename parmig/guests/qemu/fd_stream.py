# SPDX-License-Identifier: Apache-2.0
"""A socket pair that carries QEMU's own migration, in either direction: QEMU has one end, parmig the other."""

from __future__ import annotations

import socket

from parmig.errors import GuestError
from parmig.guests.qemu.qmp import Qmp
from parmig.units import MIB

FD_NAME = "parmig"
"""What the descriptor is called inside QEMU while it waits for ``fd:``."""

SOCKET_BYTES = 4 * MIB
"""Wanted buffer of the socket pair: device state (0.5 MiB) fits, so that QEMU never waits for its reader."""


def make_stream(qmp: Qmp) -> socket.socket:
    """A non-blocking socket whose other end QEMU holds as FD_NAME. The caller closes it.

    Raises:
        GuestError: QEMU does not take it.
    """
    own_end, qemu_end = socket.socketpair()
    try:
        for end in (own_end, qemu_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)  # the kernel caps it at wmem_max
        qmp.execute_with_fd("getfd", qemu_end.fileno(), fdname=FD_NAME)
    except BaseException:
        own_end.close()
        raise
    finally:
        qemu_end.close()
    own_end.setblocking(False)
    return own_end


def failure_words(qmp: Qmp) -> str:
    """QEMU's reason for its failed migration; never raises."""
    try:
        return str(qmp.execute("query-migrate").get("error-desc", "no reason given; see QEMU's standard error"))
    except GuestError as error:
        return f"{error}; see QEMU's standard error"
