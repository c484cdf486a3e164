# SPDX-License-Identifier: Apache-2.0
"""Grids, and advice for guests that do not converge."""

from __future__ import annotations

import re

import msgspec
import pytest

from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.prediction.grid import Observed, advice, cell
from parmig.engine.prediction.model import predict
from parmig.engine.prediction.setting import MemoryFacts, Setting
from parmig.engine.prediction.working_set import working_set_of_pattern
from parmig.engine.work.policy import Limits, ThrottleSteps
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB, NS_PER_MS, parse_duration_ns

PAGES = 256 * MIB // PAGE_BYTES
STEPS = ThrottleSteps(20, 10, 99)
SETTING = Setting(limits=Limits(300 * NS_PER_MS))
GUEST = Observed(
    working_set_of_pattern("random", 200 * MIB, PAGES),
    MemoryFacts(PAGES, PAGES),
    {"none": CodecCosts(), "lz4": CodecCosts(0.9, 0.9, 1.8, 0.6), "delta": CodecCosts(0.9, 0.05, 2.0, 1.0)},
)


def test_advice_names_what_would_help_and_only_that() -> None:
    lines = list(advice(GUEST, cell(SETTING, 2, 1, 100 * MIB), Costs(), STEPS))

    options = [re.split(" it would|:", line)[0] for line in lines]
    limit = re.fullmatch(r"with --downtime-limit (\w+)", options[0])
    assert limit is not None
    assert options[1:3] == ["with --auto-converge", "with --compress delta"]
    assert options[3:5] == ["with 2 such paths", "with 4 such paths"]
    assert re.fullmatch(r"with 1\d\d MiB/s", options[5])
    assert "slowed down by up to" in lines[1]
    limits = Limits(parse_duration_ns(limit[1]))
    assert predict(
        GUEST.working_set,
        GUEST.memory,
        msgspec.structs.replace(SETTING, limits=limits, workers=2, rate_bytes_per_s=100.0 * MIB),
        Costs(),
        plays=0,
    ).converges


@pytest.mark.parametrize(
    ("paths", "path_rate", "most", "rate", "paced"),
    [
        (1, 100, 0, 100, False),
        (4, 100, 0, 400, False),
        (4, 100, 150, 150, True),
        (2, 0, 0, 0, False),
    ],
)
def test_the_rate_is_that_of_all_paths_within_the_limit(
    paths: int, path_rate: int, most: int, rate: int, paced: bool
) -> None:
    setting = cell(SETTING, 4, paths, path_rate, most).setting

    assert (setting.rate_bytes_per_s, setting.paced, setting.workers) == (rate, paced, 4)


def test_more_paths_have_a_worker_each() -> None:
    assert cell(SETTING, 2, 1, 100).with_paths(4).setting.workers == 4
