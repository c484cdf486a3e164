# SPDX-License-Identifier: Apache-2.0
"""Opens a data channel for the first time, on a host that may be too busy to give this process its turn."""

from __future__ import annotations

import time
from collections.abc import Callable

from parmig.errors import PeerLostError
from parmig.ram.channel_opening import Caller
from parmig.ram.flow import SendChannel
from parmig.units import NS_PER_S

SLOW_NS = NS_PER_S
"""Whoever takes longer from connecting to its first message may have been dropped for its silence: a receiver waits 2 s
(``FIRST_MESSAGE_NS`` of ``transport.tcp_door``)."""


def open_channel(
    connect: Callable[[int], SendChannel], caller: Caller, *, limit_ns: int, epoch: int = 0
) -> SendChannel:
    """A channel that has been welcomed. The caller owns it.

    Args:
        connect: makes a channel on a new connection, within so many nanoseconds.
        caller, epoch: as for :meth:`SendChannel.open`.
        limit_ns: how long the connection may take, and again the welcome.

    Raises:
        PeerUnreachableError: nobody answers.
        PeerLostError: the connection was lost although this process was quick.
        LimitExceededError: no welcome within *limit_ns*.
    """
    deadline_ns = time.monotonic_ns() + limit_ns
    while True:
        began_ns = time.monotonic_ns()
        channel = connect(max(deadline_ns - began_ns, 0))
        spoke_ns = time.monotonic_ns()
        try:
            channel.open(caller, limit_ns=limit_ns, epoch=epoch)
            return channel
        except PeerLostError:
            if spoke_ns - began_ns < SLOW_NS or time.monotonic_ns() >= deadline_ns:
                raise
