# SPDX-License-Identifier: Apache-2.0
"""A simulated data channel: what a worker has passed on and the destination has not placed yet.

A worker runs ahead of its link: it may scan and pass on its next regions while the channel holds no more than it
carries in HOLD_NS, within its credit. So a page is often scanned long before it is placed, and what the guest writes
meanwhile is dirty in the next round. With a hold of 0.4 s that is much of a short round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import simpy

from parmig.experiments.simulation.flows import Flow, Flows
from parmig.ram.ack_rate import FIRST_HOLD_BYTES, HOLD_NS, MIN_BYTES, MIN_HOLD_BYTES, ChannelLoad
from parmig.units import NS_PER_S


class _Piece:
    """Bytes that were passed on together. Its flow begins when those before it have ended."""

    def __init__(self, kind: int, size_bytes: float, wire_part: float) -> None:
        self.kind, self.size_bytes, self.wire_part = kind, size_bytes, wire_part
        self.flow: Flow | None = None
        self.marks: list[tuple[float, simpy.Event]] = []


class Channel:
    """A channel of one worker.

    Args:
        flows: not owned.
        credit_bytes: what may be under way at most.
    """

    def __init__(self, env: simpy.Environment, flows: Flows, credit_bytes: int) -> None:
        self._env, self._flows = env, flows
        self._credit_bytes = credit_bytes
        self._pieces: deque[_Piece] = deque()
        self._sent_bytes = self._placed_bytes = self._rate = 0.0

    def send(self, kind: int, size_bytes: float, wire_part: float) -> None:
        """Pass on *size_bytes* of guest memory; each is *wire_part* bytes on the wire."""
        if not size_bytes:
            return
        self._sent_bytes += size_bytes * wire_part
        self._pieces.append(_Piece(kind, size_bytes, wire_part))
        if len(self._pieces) == 1:
            self._begin()

    def may_go_on(self) -> simpy.Event:
        """Happens when the channel holds so little that its worker may pass on more."""
        return self._left(self._hold_bytes)

    def empty(self) -> simpy.Event:
        """Happens when all is placed."""
        return self._left(0.0)

    @property
    def load(self) -> ChannelLoad:
        """What the channel has carried and has to carry, as a worker reports it."""
        known = self._placed_bytes + self._carried_bytes >= MIN_BYTES
        unacked = self._sent_bytes - self._placed_bytes - self._carried_bytes
        return ChannelLoad(round(self._rate) if known else 0, max(0, round(unacked)), round(self._sent_bytes))

    def _left(self, wire_bytes: float) -> simpy.Event:
        """Happens when at most so many bytes are under way."""
        reached = self._env.event()
        for piece in reversed(self._pieces):
            left = wire_bytes / piece.wire_part
            if left < piece.size_bytes:
                if piece.flow is None:
                    piece.marks.append((left, reached))
                else:
                    self._flows.notify(piece.flow, left, reached)
                return reached
            wire_bytes -= piece.size_bytes * piece.wire_part
        return reached.succeed()

    @property
    def _hold_bytes(self) -> float:
        if self._placed_bytes + self._carried_bytes < MIN_BYTES:
            return min(self._credit_bytes, FIRST_HOLD_BYTES)
        return min(self._credit_bytes, max(MIN_HOLD_BYTES, self._rate * HOLD_NS / NS_PER_S))

    @property
    def _carried_bytes(self) -> float:
        """Of the first piece, on the wire."""
        if not self._pieces or (flow := self._pieces[0].flow) is None:
            return 0.0
        piece = self._pieces[0]
        self._rate = self._flows.share(piece.kind) * piece.wire_part or self._rate
        return (piece.size_bytes - self._flows.left(flow)) * piece.wire_part

    def _begin(self) -> None:
        piece = self._pieces[0]
        piece.flow = self._flows.carry(piece.kind, piece.size_bytes)
        for left, reached in piece.marks:
            self._flows.notify(piece.flow, left, reached)
        _when(piece.flow.done, self._ended)

    def _ended(self) -> None:
        piece = self._pieces.popleft()
        self._placed_bytes += piece.size_bytes * piece.wire_part
        if self._pieces:
            self._begin()


def _when(event: simpy.Event, call: Callable[[], None]) -> None:
    event.callbacks.append(lambda _: call())
