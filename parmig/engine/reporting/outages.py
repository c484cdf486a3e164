# SPDX-License-Identifier: Apache-2.0
"""Keeps the outages of a migration: which channel was without a connection, when, and for how long. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from parmig.engine.reporting.report import OutageReport
from parmig.units import NS_PER_MS, format_ms

MAX_LISTED = 100
"""The most outages that the report lists. A flapping link can make thousands; the totals count them all."""


CONTROL, STATE = "control", "state"
"""What the channels of control and device state are called in progress and report."""


def of_worker(worker: int) -> str:
    """What the data channel of *worker* is called."""
    return f"worker {worker}"


def lost_line(channel: str, reason: str) -> str:
    """What to show when an outage begins."""
    return f"{channel}: {reason}; connecting again"


def resumed_line(channel: str, lasted_ns: int) -> str:
    """What to show when an outage has ended."""
    return f"{channel}: connected again after {format_ms(lasted_ns / NS_PER_MS)}"


@dataclass
class _Outage:
    channel: str
    reason: str
    began_ns: int
    ended_ns: int | None = None
    route: str = ""
    again_bytes: int = 0

    def report(self, start_ns: int, now_ns: int) -> OutageReport:
        ended_ns = now_ns if self.ended_ns is None else self.ended_ns
        return OutageReport(
            channel=self.channel,
            began_ms=(self.began_ns - start_ns) / NS_PER_MS,
            lasted_ms=(ended_ns - self.began_ns) / NS_PER_MS,
            ended=self.ended_ns is not None,
            reason=self.reason,
            route=self.route,
            again_bytes=self.again_bytes,
        )


class Outages:
    """The outages of all channels of one side.

    Args:
        workers: how many channels carry pages.

    Attributes:
        count: how many outages there were.
        again_bytes: how much was sent again after them.
    """

    def __init__(self, workers: int) -> None:
        self.count = self.again_bytes = 0
        self._data = {of_worker(worker) for worker in range(workers)}
        self._listed: list[_Outage] = []
        self._open: dict[str, _Outage] = {}
        self._standstills: list[tuple[int, int]] = []
        self._standing_since_ns: int | None = None

    @property
    def interrupted(self) -> tuple[str, ...]:
        """The channels that have no connection now."""
        return tuple(sorted(self._open))

    def since_ns(self, channel: str, now_ns: int) -> int:
        """Since when *channel* has no connection; *now_ns* if it has one."""
        outage = self._open.get(channel)
        return now_ns if outage is None else outage.began_ns

    def lost(self, channel: str, now_ns: int, reason: str) -> None:
        """Note that *channel* has lost its connection, if that is news."""
        if channel in self._open:
            return
        outage = self._open[channel] = _Outage(channel, reason, now_ns)
        self.count += 1
        if len(self._listed) < MAX_LISTED:
            self._listed.append(outage)
        if self._standing_since_ns is None and self._data <= self._open.keys():
            self._standing_since_ns = now_ns

    def resumed(self, channel: str, now_ns: int, *, route: str = "", again_bytes: int = 0) -> None:
        """Note that *channel* has a connection again."""
        outage = self._open.pop(channel, None)
        if outage is None:
            return
        outage.ended_ns, outage.route, outage.again_bytes = now_ns, route, again_bytes
        self.again_bytes += again_bytes
        if self._standing_since_ns is not None and channel in self._data:
            self._standstills.append((self._standing_since_ns, now_ns))
            self._standing_since_ns = None

    def standstill_ns(self, since_ns: int, now_ns: int) -> int:
        """For how long between both instants no channel could carry pages."""
        spans = list(self._standstills)
        if self._standing_since_ns is not None:
            spans.append((self._standing_since_ns, now_ns))
        return sum(max(0, min(end, now_ns) - max(begin, since_ns)) for begin, end in spans)

    def reports(self, start_ns: int, now_ns: int, *, completed: bool = False) -> list[OutageReport]:
        """All outages of a migration that began at *start_ns*. One that has not ended is as long as it is now.

        Args:
            completed: the migration has completed. Connections that are lost now were closed by the peer at its end.
        """
        listed = [outage for outage in self._listed if outage.ended_ns is not None or not completed]
        return [outage.report(start_ns, now_ns) for outage in listed]
