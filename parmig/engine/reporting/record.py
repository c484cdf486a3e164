# SPDX-License-Identifier: Apache-2.0
"""Keeps what is measured during a migration, and makes the figures of the report of it. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from parmig.engine.reporting.change import Change, ChangeReport
from parmig.engine.reporting.outages import CONTROL, Outages
from parmig.engine.reporting.report import (
    DowntimePhases,
    PathReport,
    RamReport,
    RestartReport,
    RoundReport,
    WorkerReport,
)
from parmig.engine.work.homes import Nearness
from parmig.engine.work.policy import RoundFacts
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.shared import WorkerCounters
from parmig.units import MIB, NS_PER_MS, NS_PER_S

FIRST_ROUNDS, LAST_ROUNDS = 100, 900
"""So many rounds are in the report. The others are in its sums only, since a guest may be held for days, with a round
each second."""

MAX_FACTS = 256
"""So many rounds the policy looks at, and at the first one."""


class Record:
    """Instants, rounds and counters of one migration, all on ``time.monotonic_ns()`` of the source.

    Attributes:
        rounds: finished rounds: the first and the last ones.
        round_count: how many rounds have finished.
        facts: finished rounds as the policy sees them: the first and the last ones.
        fact_count: how many there were.
        marks: instants by name; see :meth:`phases` for those of the pause.
        state_save_ns: how long the guest took to save its device state, beside the final round.
        throttle_percent: how far the guest is slowed down now.
        max_throttle_percent: the highest value of that so far.
        outages: times without a connection.
        changes: what the user has changed, and when.
        began_ns: when the command began; whoever makes the plan sets it.
        restarts: what was found out after the destination's receiver was started again, each with its instant.
    """

    def __init__(self, workers: int, total_pages: int) -> None:
        self.rounds: list[RoundReport] = []
        self.facts: list[RoundFacts] = []
        self.round_count = self.fact_count = 0
        self._left_out = RoundReport(round=0)
        self.marks: dict[str, int] = {}
        self.throttle_percent = self.max_throttle_percent = 0
        self.load_ns = self.state_save_ns = 0
        self.stolen = [0] * workers
        self.nearness: Sequence[Nearness] = ()
        self.outages = Outages(workers)
        self.changes: list[tuple[int, Change]] = []
        self.began_ns = 0
        self.restarts: list[tuple[int, RestartReport]] = []
        self._first_given_up = False
        self._total_pages = total_pages
        self._now: list[WorkerCounters] = [WorkerCounters() for _ in range(workers)]
        self._before = list(self._now)
        self._round_began_ns = 0
        self._settle_ns = self._stood_ns = self._check_ns = self._check_began_ns = 0

    def mark(self, name: str, now_ns: int) -> None:
        """Remember that *name* happened now."""
        self.marks[name] = now_ns

    def throttle(self, percent: int) -> None:
        """Note how far the guest is slowed down from now on."""
        self.throttle_percent = percent
        self.max_throttle_percent = max(self.max_throttle_percent, percent)

    def begin_round(self, now_ns: int) -> None:
        """Note that a round begins."""
        self._round_began_ns = now_ns
        self._settle_ns = self._stood_ns = self._check_ns = self._check_began_ns = 0
        self._before = list(self._now)

    def settled(self, took_ns: int) -> None:
        """Note how long the guest took to settle in this round."""
        self._settle_ns = took_ns

    def fenced(self, worker: int, counters: WorkerCounters) -> None:
        """Note the totals of one worker at its fence."""
        self._now[worker] = counters

    def end_round(self, now_ns: int, *, paused: bool, stolen: Sequence[int], given_up: bool = False) -> RoundReport:
        """Note that all workers passed the fence, or that the round was *given_up*; return its report."""
        self._first_given_up |= given_up and not self.round_count
        self._stood_ns = self.outages.standstill_ns(self._round_began_ns, now_ns)
        moved = [now.minus(before) for now, before in zip(self._now, self._before, strict=True)]
        self.stolen = [a + b for a, b in zip(self.stolen, stolen, strict=True)]
        sent, zero = sum(m.sent_pages for m in moved), sum(m.zero_pages for m in moved)
        skipped = sum(m.skipped_pages for m in moved)
        report = RoundReport(
            round=self.round_count + 1,
            began_ms=(self._round_began_ns - self.began_ns) / NS_PER_MS,
            dirty_pages=sent + zero + (skipped if not self.round_count else 0),
            sent_pages=sent,
            zero_pages=zero,
            skipped_pages=skipped,
            wire_bytes=sum(m.wire_bytes for m in moved),
            scan_ms=max(m.scan_ns for m in moved) / NS_PER_MS,
            settle_ms=self._settle_ns / NS_PER_MS,
            duration_ms=(now_ns - self._round_began_ns) / NS_PER_MS,
            paused=paused,
            throttle_percent=self.throttle_percent,
        )
        self.rounds.append(report)
        self.round_count += 1
        if len(self.rounds) > FIRST_ROUNDS + LAST_ROUNDS:
            self._leave_out(self.rounds.pop(FIRST_ROUNDS))
        return report

    def _leave_out(self, report: RoundReport) -> None:
        """Keep only the figures of a round that the sums need."""
        for name in ("sent_pages", "zero_pages", "skipped_pages", "wire_bytes", "duration_ms"):
            setattr(self._left_out, name, getattr(self._left_out, name) + getattr(report, name))

    @property
    def dirty_pages(self) -> int:
        """How many pages were dirty after the last round; before it, all may be."""
        return self.facts[-1].remaining_pages if self.facts else self._total_pages

    def remaining(self, pages: int) -> None:
        """Note how many pages were dirty after the last round."""
        last = self.rounds[-1]
        self.fact_count += 1
        del self.facts[1 : 2 - MAX_FACTS]
        self.facts.append(
            RoundFacts(
                sent_bytes=last.sent_pages * PAGE_BYTES,
                # Waiting for the guest's disks, for a connection, or for a check says nothing of the network's rate.
                duration_ns=round((last.duration_ms - last.settle_ms) * NS_PER_MS) - self._stood_ns - self._check_ns,
                scan_ns=round(last.scan_ms * NS_PER_MS),
                remaining_pages=pages,
                throttle_percent=last.throttle_percent,
            )
        )

    def restarted(self, now_ns: int) -> None:
        """Note that the destination's receiver was started again. What remains to be sent, nobody knows for now."""
        lost_ns = self.outages.since_ns(CONTROL, now_ns)
        self.restarts.append((lost_ns, RestartReport(lasted_ms=(now_ns - lost_ns) / NS_PER_MS)))
        if self.fact_count < self.round_count:
            self.remaining(self._total_pages)

    def begin_check(self, now_ns: int) -> None:
        """Note that the memories are compared from now on."""
        self._check_began_ns = now_ns

    def checked_held(self, proven_pages: int, again_pages: int, now_ns: int) -> None:
        """Note what the restarted destination holds, and what is to be sent again. Meanwhile nothing was sent."""
        _, report = self.restarts[-1]
        report.check_ms = (now_ns - self._check_began_ns) / NS_PER_MS
        report.proven_pages, report.again_pages = proven_pages, again_pages
        self._check_ns = now_ns - self._check_began_ns
        if self.facts:
            self.facts[-1] = msgspec.structs.replace(self.facts[-1], remaining_pages=again_pages)

    # -- for the report -------------------------------------------------------------------------

    def restart_reports(self, start_ns: int) -> list[RestartReport]:
        """The restarts of the receiver, in a migration that began at *start_ns*."""
        for began_ns, report in self.restarts:
            report.began_ms = (began_ns - start_ns) / NS_PER_MS
        return [report for _, report in self.restarts]

    def phases(self) -> DowntimePhases:
        """The downtime in its phases. Each begins where the one before it ends, so they add up.

        The device state is saved beside the final round, and only what outlasts that round is a phase of its own.
        """
        at = [
            *(self.marks[name] for name in ("stopped", "paused", "final", "saved", "rescanned", "verified", "loaded")),
            self.ready_ns(),
            self.marks["resumed"],
        ]
        pause, final, save, rescan, verify, load, hook, resume = (
            (after - before) / NS_PER_MS for before, after in itertools.pairwise(at)
        )
        scan = min(final, next(r.scan_ms for r in self.rounds if r.paused))
        loading = min(load, self.load_ns / NS_PER_MS)
        return DowntimePhases(
            pause=pause,
            final_scan=scan,
            final_pages=final - scan,
            state_save=save,
            post_save_scan=rescan,
            verify=verify,
            state_transfer=load - loading,
            state_load=loading,
            hook=hook,
            resume=resume,
        )

    def ready_ns(self) -> int:
        """When nothing was left to do before the hand-over."""
        return self.marks.get("hooked", self.marks["loaded"])

    def downtime_ms(self) -> float | None:
        """From the instant the guest stopped to the news that it runs again; None if that never came."""
        if "resumed" not in self.marks:
            return None
        return (self.marks["resumed"] - self.marks["stopped"]) / NS_PER_MS

    def verify_ms(self) -> float | None:
        """How long both memories were compared after the hand-over; None: they were not."""
        if "compared" not in self.marks:
            return None
        return (self.marks["compared"] - self.marks["comparing"]) / NS_PER_MS

    def throughput_mib_per_s(self) -> float:
        """Guest bytes handled in round 1 divided by its duration; 0 if the destination was restarted in it."""
        if not self.rounds or not self.rounds[0].duration_ms or self._first_given_up:
            return 0.0
        return self._total_pages * PAGE_BYTES / MIB / (self.rounds[0].duration_ms * NS_PER_MS / NS_PER_S)

    def change_reports(self) -> list[ChangeReport]:
        """What the user has changed."""
        began_ns = self.began_ns
        return [ChangeReport(at_ms=(at_ns - began_ns) / NS_PER_MS, change=change) for at_ns, change in self.changes]

    def ram(self) -> RamReport:
        """All rounds together."""
        rounds = [self._left_out, *self.rounds]
        return RamReport(
            total_bytes=self._total_pages * PAGE_BYTES,
            wire_bytes=sum(r.wire_bytes for r in rounds),
            sent_pages=sum(r.sent_pages for r in rounds),
            zero_pages=sum(r.zero_pages for r in rounds),
            skipped_pages=sum(r.skipped_pages for r in rounds),
        )

    def per_path(self, paths: Sequence[str]) -> list[PathReport]:
        """What the workers of each path did, with *paths* by worker."""
        seconds = sum(r.duration_ms for r in [self._left_out, *self.rounds]) * NS_PER_MS / NS_PER_S
        reports = {path: PathReport(path=path) for path in paths}
        for path, counters in zip(paths, self._now, strict=False):
            reports[path].workers += 1
            reports[path].wire_bytes += counters.wire_bytes
        for report in reports.values():
            report.rate_mib_per_s = report.wire_bytes / MIB / seconds if seconds else 0.0
        return list(reports.values())

    def per_worker(self, paths: Sequence[str], cpus: Sequence[Sequence[int]] = ()) -> list[WorkerReport]:
        """What each worker did."""
        return [
            WorkerReport(
                worker=worker,
                path=paths[worker] if worker < len(paths) else "",
                cpus=list(cpus[worker]) if worker < len(cpus) else [],
                sent_pages=counters.sent_pages,
                wire_bytes=counters.wire_bytes,
                busy_ms=counters.busy_ns / NS_PER_MS,
                waiting_ms=counters.waiting_ns / NS_PER_MS,
                stolen_regions=self.stolen[worker],
                **(self.nearness[worker]._asdict() if self.nearness else {}),
            )
            for worker, counters in enumerate(self._now)
        ]
