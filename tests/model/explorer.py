# SPDX-License-Identifier: Apache-2.0
"""Visits every state that can be reached, and checks it. The shortest way to a violation is reported."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from tests.model.hosts import Hosts, ViolationError


class Explored(NamedTuple):
    """What was found.

    Attributes:
        states: how many different ones.
        ends: what they came to, and how often.
        violation: what must not happen, and did; empty: nothing.
        way: the actions that lead there.
    """

    states: int
    ends: Counter[str]
    violation: str
    way: list[str]


def explore(first: Hosts, max_states: int = 1_000_000) -> Explored:
    """Visit all states from *first* on, the nearest first."""
    ways: dict[tuple[object, ...], tuple[tuple[object, ...] | None, str]] = {first.key(): (None, "")}
    waiting = deque([first])
    ends: Counter[str] = Counter()

    def way_to(key: tuple[object, ...] | None) -> list[str]:
        steps: list[str] = []
        while key is not None:
            key, step = ways[key]
            steps.append(step)
        return [step for step in reversed(steps) if step]

    while waiting:
        state = waiting.popleft()
        key = state.key()
        actions = list(state.actions())
        if not list(state.steps()):  # nothing goes on any more, but for faults
            try:
                ends[state.judge()] += 1
            except ViolationError as violation:
                return Explored(len(ways), ends, str(violation), way_to(key))
        for name, act in actions:
            after = state.copy()
            try:
                act(after)
                after.check()
            except ViolationError as violation:
                return Explored(len(ways), ends, str(violation), [*way_to(key), name])
            after_key = after.key()
            if after_key not in ways:
                ways[after_key] = (key, name)
                waiting.append(after)
                assert len(ways) <= max_states, "there are more states than expected"
    return Explored(len(ways), ends, "", [])
