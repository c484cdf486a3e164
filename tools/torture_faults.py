# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a tortured migration: processes, links, space, and the user. Every fault ends by itself."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

from parmig.experiments.netlab import Lab, Link

_T = TypeVar("_T")

MARK = "PARMIG_TORTURE"
"""The environment variable by which every process of a run is found, whoever its parent is. It names the side."""

LONGEST_S = 6.0
"""A stopped process goes on, and a broken link comes back, after at most this long."""


@dataclass
class Victims:
    """What faults may hit.

    Attributes:
        lab: the links.
        run: name of the run; MARK is this and a side, ``send`` or ``receive``.
        monitor: the destination's monitor; None: nobody may kill it.
        fill: takes all space that the destination's memory could need, until the block ends; None: it cannot.
    """

    lab: Lab
    run: str
    monitor: psutil.Process | None = None
    fill: Callable[[], contextlib.AbstractContextManager[None]] | None = None

    def family(self) -> list[tuple[str, psutil.Process]]:
        """Every process of both commands that is there, with its side and name, oldest first."""
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                run, _, side = process.environ().get(MARK, "").partition("/")
                if run == self.run and process.status() != psutil.STATUS_ZOMBIE:
                    members.append((process.create_time(), f"{side}'s {process.name()}", process))
        return [(role, process) for _, role, process in sorted(members, key=lambda member: member[:2])]

    def commands(self) -> list[tuple[str, psutil.Process]]:
        """The first process of each command."""
        first: dict[str, psutil.Process] = {}
        for role, process in self.family():
            first.setdefault(role.partition("'")[0], process)
        return sorted(first.items())


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once.

    Attributes:
        kind: one of KINDS.
        at_s: when, after the sender began.
        lasts_s: until it ends, where it can.
        draw: a number below 1 that chooses its victim among those that there are then.
    """

    kind: str
    at_s: float
    lasts_s: float
    draw: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.at_s:.2f} s for {self.lasts_s:.1f} s"


@dataclass
class Faults:
    """Lets *faults* happen, each in a thread of its own; a context manager that waits until all are over.

    Attributes:
        happened: what happened to whom.
    """

    victims: Victims
    faults: list[Fault]
    happened: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def __enter__(self) -> Faults:
        self._began = time.monotonic()
        self._over = threading.Event()
        self._links = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(fault,)) for fault in self.faults]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Let nothing new happen, and end what lasts."""
        self._over.set()

    def _run(self, fault: Fault) -> None:
        if self._over.wait(max(0.0, self._began + fault.at_s - time.monotonic())):
            return
        try:
            with KINDS[fault.kind](self, fault):
                self._over.wait(fault.lasts_s)
        except psutil.NoSuchProcess:
            pass  # it ended before
        except Exception as error:
            self.errors.append(error)

    def _note(self, what: str) -> None:
        self.happened.append(f"{what} at {time.monotonic() - self._began:.2f} s")

    # -- the kinds --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def kill(self, fault: Fault) -> Iterator[None]:
        """Kill any process of either command."""
        role, process = _pick(self.victims.family(), fault)
        process.kill()
        self._note(f"killed {role}")
        yield

    @contextlib.contextmanager
    def stop(self, fault: Fault) -> Iterator[None]:
        """Stop any process of either command for a while."""
        role, process = _pick(self.victims.family(), fault)
        process.suspend()
        self._note(f"stopped {role}")
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    @contextlib.contextmanager
    def cancel(self, fault: Fault) -> Iterator[None]:
        """Interrupt one of the commands, as Ctrl-C does."""
        side, process = _pick(self.victims.commands(), fault)
        process.send_signal(signal.SIGINT)
        self._note(f"cancelled {side}")
        yield

    @contextlib.contextmanager
    def kill_monitor(self, fault: Fault) -> Iterator[None]:
        """Kill the destination's monitor."""
        if self.victims.monitor is not None:
            self.victims.monitor.kill()
            self._note("killed the destination's monitor")
        yield

    @contextlib.contextmanager
    def fill(self, fault: Fault) -> Iterator[None]:
        """Leave no space for the destination's memory."""
        if self.victims.fill is None:
            yield
            return
        with self.victims.fill():
            self._note("filled the destination's file system")
            yield

    @contextlib.contextmanager
    def cut(self, fault: Fault) -> Iterator[None]:
        """Pull the cable of a link, or of all."""
        with self._broken(fault, "cut", Link.cut):
            yield

    @contextlib.contextmanager
    def blackhole(self, fault: Fault) -> Iterator[None]:
        """Let a link, or all of them, deliver nothing."""
        with self._broken(fault, "blackholed", Link.blackhole):
            yield

    @contextlib.contextmanager
    def slow(self, fault: Fault) -> Iterator[None]:
        """Give a link a hundredth of its rate for a while."""
        link = _pick(self.victims.lab.links, fault)
        rate = link.line.rate_bytes_per_s
        with self._links:
            link.slow(max(125_000, rate // 100))
        self._note(f"slowed link {link.number}")
        try:
            yield
        finally:
            with self._links:
                link.slow(rate)

    @contextlib.contextmanager
    def flap(self, fault: Fault) -> Iterator[None]:
        """Cut and restore a link again and again."""
        link = _pick(self.victims.lab.links, fault)
        self._note(f"link {link.number} flaps")
        ends = time.monotonic() + fault.lasts_s
        while time.monotonic() < ends and not self._over.wait(0.3):
            with self._links:
                link.cut()
            self._over.wait(0.3)
            with self._links:
                link.restore()
        yield

    @contextlib.contextmanager
    def _broken(self, fault: Fault, word: str, break_: Callable[[Link], None]) -> Iterator[None]:
        links = self.victims.lab.links
        chosen = links if fault.draw < 0.3 else [_pick(links, fault)]
        with self._links:
            for link in chosen:
                break_(link)
        self._note(f"{word} {'all links' if len(chosen) == len(links) else f'link {chosen[0].number}'}")
        try:
            yield
        finally:
            with self._links:
                for link in chosen:
                    link.restore()


KINDS = {
    kind.__name__: kind
    for kind in (
        Faults.kill,
        Faults.stop,
        Faults.cancel,
        Faults.kill_monitor,
        Faults.fill,
        Faults.cut,
        Faults.blackhole,
        Faults.slow,
        Faults.flap,
    )
}


def draw_faults(chance: random.Random, within_s: float) -> list[Fault]:
    """One to three faults at any time within *within_s*."""
    kinds = sorted(KINDS)
    weights = [3 if kind in ("kill", "stop") else 1 for kind in kinds]
    return [
        Fault(
            chance.choices(kinds, weights)[0],
            chance.uniform(0, within_s),
            chance.uniform(0.2, LONGEST_S),
            chance.random(),
        )
        for _ in range(chance.randint(1, 3))
    ]


def _pick(things: Sequence[_T], fault: Fault) -> _T:
    if not things:
        raise psutil.NoSuchProcess(0)
    return things[int(fault.draw * len(things))]
