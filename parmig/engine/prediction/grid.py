# SPDX-License-Identifier: Apache-2.0
"""Predictions for a grid of settings, and what would let a guest converge that does not. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import msgspec

from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.prediction.model import Prediction, predict
from parmig.engine.prediction.setting import MemoryFacts, Setting
from parmig.engine.prediction.working_set import WorkingSet
from parmig.engine.work.policy import ThrottleSteps
from parmig.units import MIB, NS_PER_MS, NS_PER_S, format_ms, format_rate, write_duration_ns

LONGEST_PAUSE_NS = 30 * NS_PER_S
"""A longer pause is no advice: ``--switchover-timeout`` ends it."""

FASTEST = 64
"""The rate that would be enough is looked for up to so many times the given one."""


_Expected = Callable[[Setting], Prediction]
"""What the model expects of a setting."""


class Observed(msgspec.Struct, frozen=True):
    """What is known of a guest: how it writes, what it holds, and what codecs make of its pages, by name."""

    working_set: WorkingSet
    memory: MemoryFacts
    codecs: Mapping[str, CodecCosts]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the grid; see :func:`cell`."""

    paths: int
    path_bytes_per_s: float
    most_bytes_per_s: float
    setting: Setting

    def with_paths(self, paths: int) -> Cell:
        """The same with another number of paths, and a worker for each at least."""
        workers = max(paths, self.setting.workers)
        return cell(self.setting, workers, paths, self.path_bytes_per_s, self.most_bytes_per_s)


def cell(setting: Setting, workers: int, paths: int, path_bytes_per_s: float, most_bytes_per_s: float = 0) -> Cell:
    """A cell of the grid.

    Args:
        setting: its limits, codec and processors.
        path_bytes_per_s: what each path carries; 0: no limit.
        most_bytes_per_s: ``--max-bandwidth``; 0: no limit.
    """
    rates = [rate for rate in (path_bytes_per_s * paths, most_bytes_per_s) if rate]
    rate = min(rates, default=0.0)
    setting = msgspec.structs.replace(
        setting, workers=workers, rate_bytes_per_s=rate, paced=bool(most_bytes_per_s) and rate == most_bytes_per_s
    )
    return Cell(paths=paths, path_bytes_per_s=path_bytes_per_s, most_bytes_per_s=most_bytes_per_s, setting=setting)


def advice(observed: Observed, stuck: Cell, costs: Costs, steps: ThrottleSteps) -> Iterator[str]:
    """What to change so that *stuck*, which does not converge, would: each line was computed by the model.

    Args:
        steps: how ``--auto-converge`` slows a guest down.
    """
    setting = stuck.setting

    def expected(changed: Setting) -> Prediction:
        return predict(observed.working_set, observed.memory, changed, costs, plays=0)

    def line(option: str, changed: Setting) -> Iterator[str]:
        prediction = expected(changed)
        if prediction.converges:
            slowed = max(round_.throttle_percent for round_ in prediction.course)
            extra = f", the guest slowed down by up to {slowed} %" if slowed else ""
            total, pause = (format_ms(one.value * 1000) for one in (prediction.total_s, prediction.downtime_s))
            yield f"with {option} it would: {total} in all, a pause of {pause}{extra}"

    limit_ns = _enough_limit_ns(expected, setting)
    if limit_ns:
        limits = msgspec.structs.replace(setting.limits, downtime_ns=limit_ns)
        yield from line(
            f"--downtime-limit {write_duration_ns(limit_ns)}", msgspec.structs.replace(setting, limits=limits)
        )
    if setting.limits.throttle is None:
        limits = msgspec.structs.replace(setting.limits, throttle=steps)
        yield from line("--auto-converge", msgspec.structs.replace(setting, limits=limits))
    for name, codec in observed.codecs.items():
        if name not in (setting.codec, "none"):
            yield from line(f"--compress {name}", msgspec.structs.replace(setting, codec=name, codec_costs=codec))
    for paths in (2 * stuck.paths, 4 * stuck.paths):
        more = stuck.with_paths(paths).setting
        if more.rate_bytes_per_s > setting.rate_bytes_per_s:
            yield from line(f"{paths} such paths", more)
    rate = _enough_rate(expected, setting)
    if rate:
        yield from line(f"{format_rate(rate)}", msgspec.structs.replace(setting, rate_bytes_per_s=rate))


def _enough_limit_ns(expected: _Expected, setting: Setting) -> int:
    """A downtime limit, in whole tenths of a second, with which it converges; 0: none that is of use."""
    limit_ns = setting.limits.downtime_ns
    while True:
        changed = msgspec.structs.replace(setting, limits=msgspec.structs.replace(setting.limits, downtime_ns=limit_ns))
        prediction = expected(changed)
        if prediction.converges:
            return limit_ns
        needed_ns = max(limit_ns * 1.1, prediction.downtime_s.value * 1.05 * NS_PER_S)
        limit_ns = math.ceil(needed_ns / (100 * NS_PER_MS)) * 100 * NS_PER_MS
        if limit_ns > LONGEST_PAUSE_NS:
            return 0


def _enough_rate(expected: _Expected, setting: Setting) -> float:
    """A rate with which it converges, to 5 %, in whole MiB/s; 0: none that is found."""
    low = setting.rate_bytes_per_s
    high = low * FASTEST

    def converges(rate: float) -> bool:
        return expected(msgspec.structs.replace(setting, rate_bytes_per_s=rate)).converges

    if not low or not converges(high):
        return 0.0
    while high > 1.05 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if converges(middle) else (middle, high)
    return math.ceil(high / MIB) * float(MIB)
