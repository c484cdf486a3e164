# SPDX-License-Identifier: Apache-2.0
"""One run between two hosts of a cluster: what each side is to do, and what both of them gave."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from parmig.engine.reporting.report import Report
from parmig.errors import HostRefusedError, LimitExceededError, ParmigError
from parmig.experiments.cluster.dask_hosts import DaskHosts, Events, RemoteSide, SideEvent
from parmig.experiments.cluster.side_messages import Ended, Failed, Meeting, Order, Prepared, encode, read_message
from parmig.experiments.factors import Factors
from parmig.experiments.hosts import Spent
from parmig.experiments.outcome import Outcome
from parmig.experiments.parmig_peer import outcome_of
from parmig.experiments.results import Row, flattened
from parmig.experiments.running import figures_of, new_row
from parmig.experiments.sweep import Run, Sweep
from parmig.units import NS_PER_S

BUSY_LIMIT_S = 600.0
"""How long a host may be busy with a run of another program, beyond the limit of a run."""

SPARE_S = 20.0
"""What the answers of both sides may take beyond the limit of a run."""

REASON_S = 2.0
"""How long a better reason may take to arrive. A lost migration is often the symptom of a lost host, which the
scheduler notices when a connection closes: within milliseconds."""

T = TypeVar("T")


class HostPair(NamedTuple):
    """The addresses of the Dask workers of both hosts."""

    source: str
    destination: str


class PairRun:
    """A run under way. A context: leaving it ends both sides."""

    def __init__(self, hosts: DaskHosts, pair: HostPair, run: Run, limit_s: float, events: Events) -> None:
        self._hosts, self._pair, self._factors, self._limit_s = hosts, pair, run.factors, limit_s
        self._events = events
        self._sides: dict[str, RemoteSide] = {}
        self._said: dict[tuple[str, type[Any]], Any] = {}

    def __enter__(self) -> PairRun:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for side in self._sides.values():
                stack.callback(self._hosts.end, side)

    def move(self) -> tuple[Outcome, Row]:
        """Move the guest; what it gave, and what both hosts are like.

        Raises:
            ParmigError: it failed.
            HostRefusedError: a host is busy, or the scheduler is gone.
            KeyboardInterrupt: the events had a None.
        """
        first = self._order("source")
        source = self._start(first)
        prepared = self._wait(source, Prepared, self._limit_s + BUSY_LIMIT_S)
        second = msgspec.structs.replace(self._order("destination"), peer_addresses=prepared.addresses)
        destination = self._start(second)
        meeting = self._wait(destination, Meeting, self._limit_s + BUSY_LIMIT_S)
        self._hosts.tell(source, encode(meeting))
        sent = self._wait(source, Ended, self._limit_s + SPARE_S)
        if sent.answer.get("error"):
            self._fail(source, sent.answer["error"]["message"])
        arrived = self._wait(destination, Ended, self._limit_s + SPARE_S)
        hosts = flattened(sent.host, "host.source.") | flattened(arrived.host, "host.destination.")
        return outcome(self._factors, sent, arrived), hosts

    def _order(self, side: str) -> Order:
        address = urlsplit(getattr(self._pair, side)).hostname or ""
        return Order(side, self._factors, address, self._limit_s)

    def _start(self, order: Order) -> RemoteSide:
        side = self._hosts.start(getattr(self._pair, order.side), order, self._events)
        self._sides[order.side] = side
        return side

    def _wait(self, side: RemoteSide, kind: type[T], limit_s: float) -> T:
        """The message of *kind* of *side*. Those of the other side are kept until they are waited for."""
        deadline = time.monotonic() + limit_s
        while (side.name, kind) not in self._said:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if kind is Ended:
                    raise LimitExceededError("the run did not end within its limit; give a longer run-limit") from None
                raise HostRefusedError(
                    f"{side.host} did not begin a run for {limit_s:g} s; another program uses it, or its Dask worker "
                    "has no free thread; wait, or look at its tasks"
                ) from None
            if event is None:
                raise KeyboardInterrupt
            if event.lost:
                self._lose(event)
            if event.line:
                message = read_message(event.line)
                if isinstance(message, Failed):
                    self._fail(event.side, message.reason)
                self._said[event.side.name, type(message)] = message
            elif (event.side.name, Ended) not in self._said:
                self._fail(event.side, "the program of this side ended early; see the output of its Dask worker")
        answer: T = self._said[side.name, kind]
        return answer

    def _fail(self, side: RemoteSide, reason: str) -> None:
        """Raise *reason*, or a better one that comes soon."""
        deadline = time.monotonic() + REASON_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left_s)
            except queue.Empty:
                break
            if event is None:
                raise KeyboardInterrupt
            if event.lost:
                self._lose(event)
        raise ParmigError(f"{side.host}: {reason}")

    def _lose(self, event: SideEvent) -> None:
        self._hosts.check()
        raise ParmigError(f"{event.side.host}: {event.lost}")


def outcome(factors: Factors, sent: Ended, arrived: Ended) -> Outcome:
    """What a run gave, by the words of both sides.

    Raises:
        ParmigError: the move failed.
    """
    spent = Spent(sent.processor_s, arrived.processor_s, sent.processor_s + arrived.processor_s)
    if factors.peer == "parmig":
        return outcome_of(msgspec.convert(sent.answer, Report), msgspec.convert(arrived.answer, Report), spent)
    return Outcome(
        moved_bytes=sent.answer["bytes"],
        total_time_ms=sent.answer["seconds"] * 1000,
        source_processor_s=spent.source_s,
        destination_processor_s=spent.destination_s,
        processor_s=spent.both_s,
    )


def run_on_pair(hosts: DaskHosts, pair: HostPair, sweep: Sweep, run: Run, events: Events) -> Row:
    """One run, as a row. A failure is part of it.

    Raises:
        HostRefusedError, KeyboardInterrupt: as :meth:`PairRun.move`.
    """
    began = time.monotonic()
    row = new_row(sweep, run) | {"host.source.address": pair.source, "host.destination.address": pair.destination}
    limit_s = sweep.run_limit_ns / NS_PER_S
    try:
        with PairRun(hosts, pair, run, limit_s, events) as under_way:
            given, both = under_way.move()
            row |= figures_of(given) | both
    except HostRefusedError:
        raise
    except (ParmigError, ValueError) as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return row | {"took_s": round(time.monotonic() - began, 3)}
