# SPDX-License-Identifier: Apache-2.0
"""When to pause with ``--switchover predicted``: once no further round is expected to make the pause shorter. Pure.

The limits of the policy hold as always: the pause begins only if it is expected to be short enough, and whoever gives
up, gives up as the policy does. Between these, the policy looks at the rounds that were, and this at those to come:

- A guest in a quiet moment is paused in it, even if rounds have become smaller until now.
- A guest whose rounds become much smaller gets more of them, even if it could be paused already.
- A guest that outruns the network, and may be paused for longer (``--max-downtime``), need not stall first.

Waiting never makes the whole migration shorter: what a round sends before the pause, the pause would send as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.prediction.outlook import downtimes_ahead_ns
from parmig.engine.work.policy import (
    EXTRA_ROUNDS,
    FEW_PAGES,
    Limits,
    RoundFacts,
    Verdict,
    bandwidth_bytes_per_s,
    decide,
    expected_downtime_ns,
    good_rounds,
)
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

AHEAD = 8
"""A guest outruns the network if none of so many rounds would allow a pause within the limit."""

WORTHWHILE = 0.85
"""Another round is worth it if it is expected to make the pause shorter by 15 %. The model's error is as large."""

LEARNT_ROUNDS = 3
"""A guest is taken to outrun the network after three rounds at the earliest, when three points of its working set are
known."""


def decide_predicted(rounds: Sequence[RoundFacts], limits: Limits, elapsed_ns: int, total_pages: int) -> Verdict:
    """What to do after the last of *rounds*, as :func:`~parmig.engine.work.policy.decide`.

    Args:
        rounds: at least one.
        elapsed_ns: since the first round began.
        total_pages: of the memory.
    """
    verdict = decide(rounds, limits, elapsed_ns)
    if not limits.predicted or limits.pause_now or verdict in (Verdict.TIMEOUT, Verdict.HOLD):
        return verdict
    timed_out = bool(limits.timeout_ns) and elapsed_ns >= limits.timeout_ns
    now_ns = expected_downtime_ns(rounds)
    if timed_out or now_ns > max(limits.downtime_ns, limits.max_downtime_ns):
        return verdict
    if now_ns <= limits.downtime_ns:
        if rounds[-1].remaining_pages <= FEW_PAGES or good_rounds(rounds, limits) > 2 * EXTRA_ROUNDS:
            return Verdict.PAUSE
        return Verdict.CONTINUE if _gains(rounds, now_ns, total_pages) else Verdict.PAUSE
    if len(rounds) < LEARNT_ROUNDS or verdict is Verdict.PAUSE:
        return verdict
    ahead_ns = downtimes_ahead_ns(rounds, total_pages, AHEAD)
    outruns = min(ahead_ns) > limits.downtime_ns and ahead_ns[0] >= WORTHWHILE * now_ns
    return Verdict.PAUSE if outruns else verdict


def _gains(rounds: Sequence[RoundFacts], now_ns: float, total_pages: int) -> bool:
    """Whether another round is expected to make the pause shorter by as much as it is worth."""
    few_ns = FEW_PAGES * PAGE_BYTES * NS_PER_S / bandwidth_bytes_per_s(rounds)
    (next_ns,) = downtimes_ahead_ns(rounds, total_pages, 1)
    return next_ns < WORTHWHILE * now_ns and now_ns - next_ns > few_ns
