# SPDX-License-Identifier: Apache-2.0
"""Who may stay before it has proven anything: whatever comes, in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parmig.transport.security.strangers import Strangers, address_of

MOST, SHARE, TIME_TO_SPEAK = 8, 5, 10
ADDRESSES = ["a", "b", "c", "d"]


class Crowd(RuleBasedStateMachine):
    """Connections come and go, and after each arrival whoever is too many is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.strangers: Strangers[int] = Strangers(MOST, SHARE, TIME_TO_SPEAK)
        self.model: dict[int, tuple[str, int]] = {}
        self.now = 0
        self.next = 0

    def count(self, address: str) -> int:
        return sum(one == address for one, _ in self.model.values())

    @rule(address=st.sampled_from(ADDRESSES))
    def arrive(self, address: str) -> None:
        before = {one: self.count(one) for one in ADDRESSES}
        self.strangers.add(self.next, address, self.now)
        self.model[self.next] = (address, self.now)
        victim = self.strangers.surplus(self.now)
        if before[address] < SHARE and sum(before.values()) < MOST:
            assert victim is None, "there was a place"
        if victim is not None:
            loser, since = self.model.pop(victim)
            self.strangers.discard(victim)
            counts = {one: before[one] + (one == address) for one in ADDRESSES}
            assert counts[loser] == max(counts.values()), "only those with the most give up places"
            if before[address] + 1 < max(before.values()):
                assert loser != address, "an address with few is let in"
            newer = [key for key, (one, _) in self.model.items() if one == loser and key > victim]
            assert self.now - since >= TIME_TO_SPEAK or not newer, "nobody loses its time to speak to a newer one"
        self.next += 1

    @rule(passed=st.integers(1, 15))
    def wait(self, passed: int) -> None:
        self.now += passed

    @rule(place=st.integers(0, MOST - 1))
    def leave(self, place: int) -> None:
        if place < len(self.model):
            key = list(self.model)[place]
            del self.model[key]
            self.strangers.discard(key)
        self.strangers.discard(-1)

    @invariant()
    def within_the_limits(self) -> None:
        assert list(self.strangers) == list(self.model)
        assert len(self.strangers) == len(self.model) <= MOST
        assert all(self.count(address) <= SHARE for address in ADDRESSES)
        assert self.strangers.surplus(self.now) is None
        late = self.strangers.expired(self.now - 5)
        assert late == [key for key, (_, since) in self.model.items() if since < self.now - 5]


TestCrowd = Crowd.TestCase


def test_the_kept_are_dropped_last() -> None:
    strangers: Strangers[int] = Strangers(2, 2, 0)
    for key in range(3):
        strangers.add(key, "a", 0)
    assert strangers.surplus(0) == 0
    assert strangers.surplus(0, {0}) == 1
    assert strangers.surplus(0, {0, 1, 2}) == 0


@pytest.mark.parametrize(
    ("other_end", "address"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::1", 5, 0, 0), "::/64"),
        ("", ""),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_what_a_connection_counts_for(other_end: object, address: str) -> None:
    assert address_of(other_end) == address
