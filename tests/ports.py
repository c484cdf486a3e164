# SPDX-License-Identifier: Apache-2.0
"""Ports for tests that must name some before anybody listens there."""

from __future__ import annotations

import os
import socket

FIRST, SLOTS, SLOT_PORTS = 10000, 200, 100
"""Below the ports that the kernel gives to connections, 32768 and above, so that no connection takes one meanwhile."""


def free_ports(count: int) -> tuple[int, int]:
    """The first and the last of so many ports in a row at 127.0.0.1 that nobody uses.

    Processes whose numbers are less than 200 apart get ports of different hundreds, so that two test processes never
    choose the same ones.
    """
    begin = FIRST + os.getpid() % SLOTS * SLOT_PORTS
    for first in range(begin, begin + SLOT_PORTS - count + 1):
        if all(map(_is_free, range(first, first + count))):
            return first, first + count - 1
    raise AssertionError(f"no {count} free ports in a row from {begin} on")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
