# SPDX-License-Identifier: Apache-2.0
"""Predictions of whole migrations."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.prediction.model import Prediction, predict
from parmig.engine.prediction.setting import MemoryFacts, Setting
from parmig.engine.prediction.working_set import WorkingSet, working_set_of_pattern
from parmig.engine.work.policy import SCANS_OF_PAUSE, Limits, ThrottleSteps
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import GIB, MIB, NS_PER_MS, NS_PER_S

PAGES = GIB // PAGE_BYTES
MEMORY = MemoryFacts(PAGES, PAGES)
COSTS = Costs()
LIMITS = Limits(300 * NS_PER_MS)
SETTING = Setting(limits=LIMITS, rate_bytes_per_s=100 * MIB)


def predicted(rate_mib: float, setting: Setting = SETTING, costs: Costs = COSTS, plays: int = 0) -> Prediction:
    """The prediction for a guest of 1 GiB that writes so much at random."""
    return predict(working_set_of_pattern("random", rate_mib * MIB, PAGES), MEMORY, setting, costs, plays=plays)


def test_an_idle_guest_takes_its_memory_over_the_rate_and_what_steps_cost() -> None:
    result = predicted(0)

    wire_s = PAGES * (PAGE_BYTES + 16) / (100 * MIB)
    steps_s = COSTS.setup_s + COSTS.setup_worker_s + COSTS.round_s + COSTS.count_s + COSTS.end_s + COSTS.end_worker_s
    assert result.total_s.value == pytest.approx(wire_s + steps_s + result.downtime_s.value, rel=1e-6)
    assert result.downtime_s.value == pytest.approx(COSTS.pause_s + SCANS_OF_PAUSE * COSTS.scan_s_per_gib)
    assert result.rounds.value == 3
    assert result.wire_bytes.value == pytest.approx(PAGES * (PAGE_BYTES + 16))
    assert result.converges


def test_a_guest_that_outruns_the_network_does_not_converge() -> None:
    result = predicted(150)

    assert not result.converges
    assert "rounds stop getting smaller" in result.reason
    assert result.downtime_s.value > 1


def test_a_larger_downtime_limit_lets_it_converge() -> None:
    outrun = predicted(150)
    limit_ns = round(outrun.downtime_s.value * 1.1 * NS_PER_S)

    assert predicted(150, msgspec.structs.replace(SETTING, limits=Limits(limit_ns))).converges


def test_throttling_lets_it_converge() -> None:
    limits = msgspec.structs.replace(LIMITS, throttle=ThrottleSteps(20, 10, 99))

    result = predicted(150, msgspec.structs.replace(SETTING, limits=limits))

    assert result.converges
    assert result.course[-1].throttle_percent >= 40


def test_a_time_limit_ends_it() -> None:
    result = predicted(80, msgspec.structs.replace(SETTING, limits=Limits(1 * NS_PER_MS, timeout_ns=NS_PER_S)))

    assert not result.converges
    assert "time limit" in result.reason


def test_processors_limit_what_the_network_does_not() -> None:
    fast = Setting(limits=LIMITS)
    cold = msgspec.structs.replace(fast, cold=True)
    more = msgspec.structs.replace(fast, workers=4, source_processors=4, destination_processors=4)
    shared = msgspec.structs.replace(more, one_host=True)

    one_s, cold_s, more_s, shared_s = (predicted(0, setting).total_s.value for setting in (fast, cold, more, shared))

    assert cold_s > one_s + 2.9
    assert more_s < one_s - 0.5
    assert more_s < shared_s < one_s


def test_a_codec_shortens_what_the_network_limits() -> None:
    codec = CodecCosts(0.5, 0.1, 1.0, 1.0)

    result = predicted(150, msgspec.structs.replace(SETTING, codec="delta", codec_costs=codec))

    assert result.converges
    assert result.wire_bytes.value < 0.8 * GIB


def test_missing_and_zero_pages_cost_little() -> None:
    ws = working_set_of_pattern("random", 0, PAGES)

    full = predict(ws, MEMORY, SETTING, COSTS, plays=0)
    sparse = predict(ws, MemoryFacts(PAGES, PAGES // 10, PAGES // 2), SETTING, COSTS, plays=0)

    assert sparse.total_s.value < full.total_s.value / 4


def test_intervals_hold_the_value_and_are_reproducible() -> None:
    result = predicted(40, plays=20)

    assert result == predicted(40, plays=20)
    assert result.probability == 1.0
    for estimate in (result.total_s, result.downtime_s, result.rounds, result.wire_bytes):
        assert estimate.low <= estimate.value <= estimate.high


def test_a_guest_of_which_little_is_known_has_wide_intervals() -> None:
    guest = working_set_of_pattern("random", 40 * MIB, PAGES)
    unsure = WorkingSet(guest.curve, scales_s=(0.1, 1.0), spread=(0.5, 0.5))

    costs = msgspec.structs.replace(COSTS, spread=0.0)

    sure = predict(guest, MEMORY, SETTING, costs)
    wide = predict(unsure, MEMORY, SETTING, costs)

    assert wide.total_s.high - wide.total_s.low > 2 * (sure.total_s.high - sure.total_s.low)


@given(st.floats(0, 90), st.integers(20, 400), st.integers(20, 400))
def test_a_faster_network_never_sends_for_longer(rate_mib: float, first: int, second: int) -> None:
    slow, fast = (
        predicted(rate_mib, msgspec.structs.replace(SETTING, rate_bytes_per_s=float(rate * MIB)))
        for rate in sorted((first, second))
    )

    assert fast.course[0].duration_s <= slow.course[0].duration_s
    assert fast.course[0].remaining_pages <= slow.course[0].remaining_pages
    assert fast.converges or not slow.converges
