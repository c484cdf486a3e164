# SPDX-License-Identifier: Apache-2.0
"""The options of ``parmig trace record``."""

from __future__ import annotations

from typing import Annotated

from parmig.config import TRACKERS, Config
from parmig.errors import UsageError
from parmig.options import DURATION, option
from parmig.ram.traces.trace_format import INTERVAL_NS_RANGE, INTERVALS_MAX
from parmig.units import NS_PER_MS, NS_PER_S, write_duration_ns


class TraceConfig(Config, frozen=True, kw_only=True):
    """How a trace is recorded."""

    interval_ns: Annotated[
        int,
        option("Look this often which pages were written.", DURATION, ge=INTERVAL_NS_RANGE[0], le=INTERVAL_NS_RANGE[1]),
    ] = 100 * NS_PER_MS
    duration_ns: Annotated[int, option("Record for this long.", DURATION, gt=0)] = 10 * NS_PER_S
    tracker: Annotated[str, option("How parmig finds out which pages the guest writes.", choices=TRACKERS)] = "auto"
    replace: Annotated[bool, option("Replace FILE if it exists.", name="force")] = False

    @property
    def intervals(self) -> int:
        """How many intervals the trace gets: those that begin within the duration."""
        return -(-self.duration_ns // self.interval_ns)

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first option whose value is not allowed."""
        super().check()
        if self.intervals > INTERVALS_MAX:
            raise UsageError(
                f"--duration {write_duration_ns(self.duration_ns)} has {self.intervals} intervals of "
                f"{write_duration_ns(self.interval_ns)}, expected at most {INTERVALS_MAX}; give a longer --interval"
            )
