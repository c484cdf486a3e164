# SPDX-License-Identifier: Apache-2.0
"""How large a batch may be, and how much of them a channel may have unacknowledged. Both sides agree on it. Pure."""

from __future__ import annotations

from parmig.units import KIB

CREDIT_BATCHES = 6
"""Batches in flight on a channel: 24 MiB at the default size. On loopback with 2 cores, 4, 5, 6 and 8 batches of 4 MiB
reached 1539, 1557, 1576 and 1632 MiB/s (medians of 4): four processes share the cores, and the queued batches bridge
their turns. With eight, the receive worker would exceed its 32 MiB."""

HEADER_BYTES = 16 * KIB
"""What the header of a batch counts in the credit: a table of 2,000 runs."""

LONG_BATCH_TIMES = 4
"""A long batch has at most this many times the pages of the agreed largest batch: 16 MiB at the default size. Whatever
its size, a batch costs 1.2 ms of processor time in Python on both sides together, because the copies have taken the
caches. 2 pairs of processes on 2 cores carried 1 GiB with batches of 4, 8 and 16 MiB at 1181, 1239 and 1316 MiB/s, for
1.84, 1.73 and 1.64 s of processor time (medians of 4)."""

LONG_BATCH_RUNS = 4
"""A long batch has at most this many runs of pages, as they are. It is sent from guest memory, and placed as it
arrives, so neither side needs memory for it."""

_LONG_CREDIT_BATCHES = 2
"""Long batches in flight: one is placed while the next arrives. 2, 3 and 6 reached the same rate within the noise."""


def long_batch_bytes(batch_bytes: int) -> int:
    """The most guest bytes in a long batch if other batches have at most *batch_bytes*."""
    return LONG_BATCH_TIMES * batch_bytes


def credit_bytes(batch_bytes: int) -> int:
    """How many bytes a channel may have unacknowledged, for batches of this size."""
    return CREDIT_BATCHES * (batch_bytes + HEADER_BYTES)


def long_credit_bytes(batch_bytes: int) -> int:
    """How many bytes of long batches a channel may have unacknowledged if other batches have this size."""
    return _LONG_CREDIT_BATCHES * (long_batch_bytes(batch_bytes) + HEADER_BYTES)
