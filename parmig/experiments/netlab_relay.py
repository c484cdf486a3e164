# SPDX-License-Identifier: Apache-2.0
"""The relay of a link with a delay: passes each frame of a TAP device on to the others, later.

usage: python -m parmig.experiments.netlab_relay DELAY_NS FD FD [FD ...]

:mod:`.netlab` starts it with descriptors of the devices. A line ``flip PORT DRAW`` on its standard input lets it change
a byte (:mod:`.netlab_flip`); when it has, it prints the port. It ends when that input is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections import deque
from collections.abc import Sequence

from parmig.experiments.netlab_flip import Flipper
from parmig.units import MIB, NS_PER_MS

MAX_QUEUED_BYTES = 64 * MIB
"""Frames beyond this are dropped, as by a router whose queue is full: 2.5 Gbit/s for 200 ms."""

FRAMES_A_TURN = 64
_MAX_FRAME_BYTES = 65_536


def relay(delay_ns: int, taps: Sequence[int], orders_fd: int) -> None:
    """Pass frames on until *orders_fd* is closed at its other end.

    Args:
        taps: descriptors of the devices, not blocking.
        orders_fd: brings the orders to change a byte.
    """
    flipper = Flipper()
    queue: deque[tuple[int, int, bytes]] = deque()  # when it is due, from which device, the frame
    queued_bytes = 0
    poller = select.epoll()
    for fd in (*taps, orders_fd):
        poller.register(fd, select.EPOLLIN)
    with poller:
        while True:
            left_ns = max(0, queue[0][0] - time.monotonic_ns()) if queue else 0
            ready = poller.poll(left_ns / NS_PER_MS / 1000 if queue else None)
            now = time.monotonic_ns()
            for fd, _ in ready:
                if fd == orders_fd:
                    orders = os.read(fd, _MAX_FRAME_BYTES).decode()
                    if not orders:
                        return
                    for order in orders.splitlines():
                        flipper.ask(int(order.split()[1]), float(order.split()[2]))
                    continue
                with contextlib.suppress(BlockingIOError):
                    for _ in range(FRAMES_A_TURN):
                        frame = os.read(fd, _MAX_FRAME_BYTES)
                        if queued_bytes + len(frame) <= MAX_QUEUED_BYTES:
                            queue.append((now + delay_ns, fd, frame))
                            queued_bytes += len(frame)
            while queue and queue[0][0] <= now:
                _, source, frame = queue.popleft()
                queued_bytes -= len(frame)
                frame, port = flipper.pass_on(frame)
                if port:
                    sys.stdout.write(f"{port}\n")
                    sys.stdout.flush()
                for fd in taps:
                    if fd != source:
                        with contextlib.suppress(OSError):  # a queue of the kernel is full, or the device is down
                            os.write(fd, frame)


if __name__ == "__main__":
    relay(int(sys.argv[1]), [int(fd) for fd in sys.argv[2:]], sys.stdin.fileno())
