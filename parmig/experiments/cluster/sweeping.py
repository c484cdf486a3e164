# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep on a cluster: as many runs at a time as there are pairs of hosts."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from parmig.errors import HostRefusedError, UsageError
from parmig.experiments.cluster.dask_hosts import RESOURCE, DaskHosts, Events, connected
from parmig.experiments.cluster.pair_run import HostPair, run_on_pair
from parmig.experiments.interruption import Interruption
from parmig.experiments.results import Results, Row
from parmig.experiments.running import Course, Step
from parmig.experiments.sweep import Plan, Run, Sweep

PEERS = ("parmig", "iperf3")
"""What runs in a cluster. Both sides of the others share files of one machine."""

HOSTS_LIMIT_S = 30.0
"""How long there may be fewer than two hosts. A nanny of Dask starts a worker again within seconds."""

_POLL_S = 0.2


def run_sweep(
    address: str,
    sweep: Sweep,
    plan: Plan,
    results: Results,
    on_step: Callable[[Step], None],
    interruption: Interruption,
) -> None:
    """Run what *results* do not have yet on the cluster whose scheduler is at *address*.

    Args:
        on_step: called when a run begins, and when it has ended, in this thread.
        interruption: ends all runs, and with them the sweep.

    Raises:
        UsageError: the sweep has peers that do not run in a cluster, or *address* is none.
        HostRefusedError: the scheduler does not answer, or there are fewer than two hosts, or one does not answer.
        KeyboardInterrupt: it was interrupted. What the runs had started has ended. They are not in the results.
    """
    other = sorted({one.peer for one in plan.combinations} - set(PEERS))
    if other:
        raise UsageError(f"{', '.join(other)} cannot run in a cluster; leave out these peers: {', '.join(PEERS)} can")
    with connected(address) as hosts:
        _Sweeping(hosts, sweep, Course(plan, results, on_step), interruption).run()


class _Sweeping:
    """The runs under way, each in a thread of its own."""

    def __init__(self, hosts: DaskHosts, sweep: Sweep, course: Course, interruption: Interruption) -> None:
        self._hosts, self._sweep, self._course, self._interruption = hosts, sweep, course, interruption
        self._busy: dict[Future[Row], tuple[HostPair, Run, Events]] = {}

    def run(self) -> None:
        """Run all that are left."""
        waiting = self._course.left()
        with ThreadPoolExecutor() as threads, self._interruption.calling(self._end_all):
            try:
                alone_since = time.monotonic()
                while waiting or self._busy:
                    self._interruption.check()
                    for pair in self._free_pairs()[: len(waiting)]:
                        self._begin(threads, pair, waiting.pop(0))
                    if self._busy:
                        self._collect()
                        alone_since = time.monotonic()
                    elif time.monotonic() - alone_since > HOSTS_LIMIT_S:
                        raise HostRefusedError(
                            f"the cluster has fewer than two workers with the resource {RESOURCE}; "
                            f"start them by: dask worker SCHEDULER --resources {RESOURCE}=1"
                        )
                    else:
                        time.sleep(_POLL_S)
            except BaseException:
                self._end_all()
                raise

    def _free_pairs(self) -> list[HostPair]:
        """Pairs of hosts that have no run of this sweep. Hosts may come and go at any time."""
        used = {host for pair, _, _ in self._busy.values() for host in pair}
        free = [host for host in self._hosts.hosts() if host not in used]
        return [HostPair(*free[at : at + 2]) for at in range(0, len(free) - 1, 2)]

    def _begin(self, threads: ThreadPoolExecutor, pair: HostPair, run: Run) -> None:
        events: Events = queue.SimpleQueue()
        self._course.begin(run)
        future = threads.submit(run_on_pair, self._hosts, pair, self._sweep, run, events)
        self._busy[future] = pair, run, events
        self._course.at_once = max(self._course.at_once, len(self._busy))

    def _collect(self) -> None:
        """Wait until a run has ended, and take in what has."""
        ended, _ = wait(self._busy, return_when=FIRST_COMPLETED)
        self._interruption.check()  # it may be why they ended
        for future in ended:
            _, run, _ = self._busy.pop(future)
            self._course.end(run, future.result())

    def _end_all(self) -> None:
        for _, _, events in tuple(self._busy.values()):
            events.put(None)
