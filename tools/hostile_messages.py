# SPDX-License-Identifier: Apache-2.0
"""What a hostile peer sends in place of a message: damaged, cut, repeated, reordered, or no message at all."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from parmig.transport.transport import Buffer
from tools.fuzzing import damaged

KEPT_MESSAGES = 32
BURSTS = (0, 5, 50, 500)


class Mangler:
    """Decides what is sent in place of a message.

    Args:
        chance: of this process.
        share: how many of the messages are replaced.
        after: so many messages are sent as they are first.
        bursts: how many more messages follow a replaced one; one of these numbers.
    """

    def __init__(self, chance: random.Random, share: float, after: int, bursts: Sequence[int] = BURSTS) -> None:
        self._chance = chance
        self._share = share
        self._left = after
        self._bursts = bursts
        self._kept: deque[list[bytes]] = deque(maxlen=KEPT_MESSAGES)

    def replace(self, frames: Sequence[Buffer]) -> list[list[bytes]] | None:
        """The messages to send instead of *frames*; None: send it as it is."""
        message = [bytes(memoryview(frame).cast("B")) for frame in frames]
        self._kept.append(message)
        self._left -= 1
        if self._left >= 0 or self._chance.random() > self._share:
            return None
        replaced = []
        for _ in range(1 + self._chance.choice(self._bursts)):
            replaced += self._one(message)
        return replaced

    def _one(self, message: list[bytes]) -> list[list[bytes]]:
        chance = self._chance
        at = chance.randrange(len(message))
        match chance.randrange(8):
            case 0 | 1 | 2:
                return [[*message[:at], damaged(message[at], chance), *message[at + 1 :]]]
            case 3:
                return [[*message[:at], message[at][: chance.randrange(len(message[at]) + 1)], *message[at + 1 :]]]
            case 4:
                return [message, chance.choice(self._kept)]
            case 5:
                return [chance.choice(self._kept), message]
            case 6:
                return [[*message, chance.randbytes(chance.randrange(1, 300))][:8]]
            case _:
                return [[chance.randbytes(chance.randrange(1, 5000))]]
