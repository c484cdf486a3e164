# SPDX-License-Identifier: Apache-2.0
"""When to pause, go on, or give up. Pure functions of the rounds so far."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import msgspec

from parmig.config import LiveConfig, SendConfig
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S
from parmig.values import MANUAL, PAUSE, PREDICTED

SHRINK_WORTHWHILE = 0.75
"""Once the downtime limit is met, another round is worth it while each round leaves under 3/4 of the pages that the
round before left: it costs little and shortens the pause."""

FEW_PAGES = 64
"""This many pages (256 KiB) are not worth another round: at 1 GiB/s they take a quarter of a millisecond, less than the
round's fence. With 512 here (2 MiB) the pause would be longer by the 2 ms that these take."""

EXTRA_ROUNDS = 4
"""At most this many rounds follow the first one that meets the downtime limit."""

STALL_ROUNDS = 4
"""After this many rounds without a new minimum of what remains, the guest is taken to outrun the network.
Three can be bad luck with a bursting guest; KubeVirt's stall detection waits longer, by a timer."""

STALL_IMPROVEMENT = 0.95
"""A minimum counts as new when it is at least 5 % lower."""

LOCAL_MINIMUM = 1.1
"""A stalled migration pauses when what remains is within 10 % of the lowest seen: a local minimum."""

THROTTLE_TRIGGER = 0.5
"""A guest that dirtied more than half of what a round sent is throttled, or throttled more. QEMU's threshold."""

THROTTLE_ROUNDS = 2
"""Throttling begins after this many such rounds in a row, as in QEMU: a single one may be a burst."""


SCANS_OF_PAUSE = 2
"""The workers read the whole dirty log twice while the guest stands still: for its last pages, and after its state is
saved. The second time costs less where the kernel keeps the log (0.6 instead of 2 ms for a GiB) and as much with other
logs, so it is counted in full."""


class RoundFacts(msgspec.Struct, frozen=True):
    """What policy knows of a finished round.

    Attributes:
        sent_bytes: guest bytes that the round handled as data.
        duration_ns: of the round, fence included.
        scan_ns: of the slowest worker, in the dirty log.
        remaining_pages: dirty when the round was over.
        throttle_percent: how far the guest was slowed down meanwhile; never less than in the round before.
    """

    sent_bytes: int
    duration_ns: int
    scan_ns: int
    remaining_pages: int
    throttle_percent: int = 0


class ThrottleSteps(msgspec.Struct, frozen=True):
    """How a guest is slowed down, in percent of the time that its virtual CPUs would run."""

    initial_percent: int
    increment_percent: int
    max_percent: int


class Limits(msgspec.Struct, frozen=True):
    """The limits in force. Zero is no limit, except for ``downtime_ns``.

    Attributes:
        throttle: how the guest is slowed down, if ``throttles``; None: not at all.
        pause_now: pause after this round, whatever remains.
        manual: pause only if ``pause_now``, or at the time limit.
        predicted: pause when the model says so; see ``prediction.switchover``.
        pauses_at_timeout: at the time limit the guest is paused; otherwise the command fails.
    """

    downtime_ns: int
    max_downtime_ns: int = 0
    timeout_ns: int = 0
    throttle: ThrottleSteps | None = None
    switchover_ns: int = 0
    throttles: bool = True
    pause_now: bool = False
    manual: bool = False
    predicted: bool = False
    pauses_at_timeout: bool = False


class Verdict(enum.Enum):
    """What to do next."""

    CONTINUE = "continue"
    PAUSE = "pause"
    HOLD = "hold"
    STALLED = "stalled"
    TIMEOUT = "timeout"


def bandwidth_bytes_per_s(rounds: Sequence[RoundFacts]) -> float:
    """The rate to expect of a whole round, with its scan and its fence."""
    measured = _measured_round(rounds)
    return _rate_bytes_per_s(measured.sent_bytes, measured.duration_ns)


def _measured_round(rounds: Sequence[RoundFacts]) -> RoundFacts:
    """The latest round that moved enough to measure the rate, else the largest.

    A round of a few pages measures fences, not the network.
    """
    enough = 16 * FEW_PAGES * PAGE_BYTES
    measurable = [facts for facts in rounds if facts.sent_bytes >= enough]
    return measurable[-1] if measurable else max(rounds, key=lambda facts: facts.sent_bytes)


def _rate_bytes_per_s(sent_bytes: int, took_ns: int) -> float:
    return sent_bytes * NS_PER_S / max(1, took_ns) if sent_bytes else math.inf  # nothing had to be sent at all


def expected_downtime_ns(rounds: Sequence[RoundFacts]) -> float:
    """How long a pause now would take: the scans, and what remains at the rate that the pages had beside their scan.

    Where a slow network hides the scan, its time is counted all the same, so the pause is not longer than this.
    """
    last, measured = rounds[-1], _measured_round(rounds)
    rate_bytes_per_s = _rate_bytes_per_s(measured.sent_bytes, measured.duration_ns - measured.scan_ns)
    return SCANS_OF_PAUSE * last.scan_ns + last.remaining_pages * PAGE_BYTES * NS_PER_S / rate_bytes_per_s


def decide(rounds: Sequence[RoundFacts], limits: Limits, elapsed_ns: int) -> Verdict:
    """What to do after the last of *rounds*.

    Args:
        rounds: at least one.
        elapsed_ns: since the first round began.
    """
    timed_out = bool(limits.timeout_ns) and elapsed_ns >= limits.timeout_ns
    if limits.pause_now or (timed_out and limits.pauses_at_timeout):
        return Verdict.PAUSE
    verdict = _decide_alone(rounds, limits, timed_out=timed_out)
    return Verdict.HOLD if limits.manual and verdict in (Verdict.PAUSE, Verdict.STALLED) else verdict


def _decide_alone(rounds: Sequence[RoundFacts], limits: Limits, *, timed_out: bool) -> Verdict:
    """What to do if nobody else decides."""
    remaining = rounds[-1].remaining_pages
    if expected_downtime_ns(rounds) <= limits.downtime_ns:
        return Verdict.PAUSE if not _still_shrinking(rounds, limits) else Verdict.CONTINUE
    if timed_out:
        return Verdict.TIMEOUT
    if not is_stalled(rounds) or next_throttle_percent(rounds, limits) > rounds[-1].throttle_percent:
        return Verdict.CONTINUE
    if not limits.max_downtime_ns:
        return Verdict.STALLED
    lowest = min(facts.remaining_pages for facts in rounds[-2 * STALL_ROUNDS :])
    if expected_downtime_ns(rounds) <= limits.max_downtime_ns:
        return Verdict.PAUSE if remaining <= lowest * LOCAL_MINIMUM else Verdict.CONTINUE
    return Verdict.STALLED if len(rounds) >= 4 * STALL_ROUNDS else Verdict.CONTINUE


def next_throttle_percent(rounds: Sequence[RoundFacts], limits: Limits) -> int:
    """How far to slow the guest down in the round after the last of *rounds*; never less than in that one.

    A guest whose pause would be short enough is not slowed down any further, however fast it writes.
    """
    last, steps = rounds[-1], limits.throttle
    if steps is None or not limits.throttles or expected_downtime_ns(rounds) <= limits.downtime_ns:
        return last.throttle_percent
    needed = 1 if last.throttle_percent else THROTTLE_ROUNDS
    outruns = len(rounds) >= needed and all(
        facts.remaining_pages * PAGE_BYTES > facts.sent_bytes * THROTTLE_TRIGGER for facts in rounds[-needed:]
    )
    if not outruns and not is_stalled(rounds):
        return last.throttle_percent
    step = steps.increment_percent if last.throttle_percent else steps.initial_percent
    return min(last.throttle_percent + step, steps.max_percent)


def good_rounds(rounds: Sequence[RoundFacts], limits: Limits) -> int:
    """How many of the latest rounds in a row would have allowed a pause."""
    good = 0
    for end in range(len(rounds), 0, -1):
        if expected_downtime_ns(rounds[:end]) > limits.downtime_ns:
            break
        good += 1
    return good


def _still_shrinking(rounds: Sequence[RoundFacts], limits: Limits) -> bool:
    """Whether another round would shorten a pause that is already short enough."""
    remaining = rounds[-1].remaining_pages
    if remaining <= FEW_PAGES:
        return False
    if good_rounds(rounds, limits) > EXTRA_ROUNDS:
        return False
    return len(rounds) < 2 or remaining < rounds[-2].remaining_pages * SHRINK_WORTHWHILE


def is_stalled(rounds: Sequence[RoundFacts]) -> bool:
    """Whether what remains has not reached a new minimum for STALL_ROUNDS rounds at the guest's present speed."""
    rounds = [facts for facts in rounds if facts.throttle_percent == rounds[-1].throttle_percent]
    if len(rounds) <= STALL_ROUNDS:
        return False
    before = min(facts.remaining_pages for facts in rounds[:-STALL_ROUNDS])
    lately = min(facts.remaining_pages for facts in rounds[-STALL_ROUNDS:])
    return lately >= before * STALL_IMPROVEMENT


def limits_of(config: LiveConfig) -> Limits:
    """The limits that the user has set. A guest that is saved is never slowed down."""
    limits = Limits(
        config.downtime_limit_ns,
        config.max_downtime_ns,
        config.timeout_ns,
        switchover_ns=config.switchover_timeout_ns,
        manual=config.switchover == MANUAL,
        predicted=config.switchover == PREDICTED,
        pauses_at_timeout=config.on_timeout == PAUSE,
    )
    if not isinstance(config, SendConfig):
        return limits
    return msgspec.structs.replace(limits, throttle=throttle_steps(config), throttles=config.auto_converge)


def throttle_steps(config: SendConfig) -> ThrottleSteps:
    """How ``--auto-converge`` slows a guest down."""
    return ThrottleSteps(
        config.throttle_initial_percent, config.throttle_increment_percent, config.throttle_max_percent
    )
