# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parmig.ram.ack_rate import FIRST_HOLD_BYTES, HOLD_NS, MIN_BATCH_BYTES, MIN_HOLD_BYTES, AckRate
from parmig.units import KIB, MIB, NS_PER_MS, NS_PER_S

CREDIT = 24 * MIB


def busy(bytes_per_s: int, seconds: float, *, batch_bytes: int = MIB, began_ns: int = 0) -> AckRate:
    """A channel that always had two batches under way."""
    acks = AckRate()
    acks.sent(batch_bytes)
    for number in range(int(seconds * bytes_per_s / batch_bytes)):
        acks.sent(batch_bytes)
        acks.acked(batch_bytes, began_ns + number * batch_bytes * NS_PER_S // bytes_per_s)
    return acks


@given(st.integers(MIB, 1000 * MIB))
def test_a_steady_channel_has_its_rate(bytes_per_s: int) -> None:
    assert abs(busy(bytes_per_s, 3).bytes_per_s / bytes_per_s - 1) < 0.01


def test_the_rate_is_unknown_until_something_was_measured() -> None:
    acks = AckRate()
    assert acks.load.rate_bytes_per_s == 0
    assert acks.allows(FIRST_HOLD_BYTES, CREDIT)
    assert not acks.allows(FIRST_HOLD_BYTES + 1, CREDIT)
    assert acks.batch_bytes(4 * MIB) == 2 * MIB
    acks.sent(MIB)
    acks.acked(MIB, 10**9)  # the round trip says nothing
    assert acks.bytes_per_s == 0


def test_time_without_work_does_not_count() -> None:
    acks = busy(100 * MIB, 1)
    now_ns = 2 * NS_PER_S
    acks.acked(MIB, now_ns)  # nothing is under way now
    before = acks.bytes_per_s
    acks.sent(MIB)
    acks.acked(MIB, now_ns + 100 * NS_PER_S)
    assert acks.bytes_per_s == before


def test_a_path_that_becomes_slower_is_known_within_seconds() -> None:
    acks = busy(100 * MIB, 10)
    for number in range(30):
        acks.sent(MIB)
        acks.acked(MIB, 10 * NS_PER_S + (number + 1) * NS_PER_S // 10)
    assert acks.bytes_per_s < 12 * MIB


@given(st.integers(100 * KIB, 2000 * MIB))
def test_a_slow_channel_holds_little_and_sends_small_batches(bytes_per_s: int) -> None:
    acks = busy(bytes_per_s, 5, batch_bytes=256 * KIB)
    held = next(size for size in range(CREDIT, 0, -64 * KIB) if acks.allows(size - acks.load.unacked_bytes, CREDIT))
    rate = acks.bytes_per_s
    if rate:
        assert held <= max(MIN_HOLD_BYTES, rate * HOLD_NS // NS_PER_S)
        assert held >= min(CREDIT, max(MIN_HOLD_BYTES, rate * HOLD_NS // NS_PER_S)) - 64 * KIB
        batch_bytes = acks.batch_bytes(4 * MIB)
        assert MIN_BATCH_BYTES <= batch_bytes <= 4 * MIB
        assert batch_bytes <= max(MIN_BATCH_BYTES, held // 4)


def test_the_load_counts_what_was_sent_and_what_is_under_way() -> None:
    acks = AckRate()
    acks.sent(3 * MIB)
    acks.sent(MIB)
    acks.acked(3 * MIB, NS_PER_MS)
    assert (acks.load.wire_bytes, acks.load.unacked_bytes) == (4 * MIB, MIB)
