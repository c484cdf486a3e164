# SPDX-License-Identifier: Apache-2.0
"""What the channels of this process have sent and may still read, so it must not go before the process does."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from parmig.ram.blocks import Pages
from parmig.transport.transport import Buffer


class UnackedBatch(NamedTuple):
    """A batch that was sent. Its frames must stay as they are until it is acknowledged."""

    sequence: int
    wire_bytes: int
    frames: Sequence[Buffer]
    buffer: Pages | None


batches: list[deque[UnackedBatch]] = []
"""The unacknowledged batches of every channel of this process. They may be read even after the channel is gone."""

buffers: list[Pages] = []
"""All buffers that ever held a payload that was sent, for the same reason."""


def keep(buffer: Pages) -> None:
    """Keep *buffer* as long as this process lives. To keep it again changes nothing."""
    if not any(kept is buffer for kept in buffers):
        buffers.append(buffer)
