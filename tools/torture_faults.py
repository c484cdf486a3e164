# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a tortured migration: processes, links, space, and the user. Every fault ends by itself."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from parmig.experiments.netlab import Lab, Link
from tools.torture_commands import filled
from tools.torture_plan import Fault

_T = TypeVar("_T")

MARK = "PARMIG_TORTURE"
"""The environment variable by which every process of a run is found, whoever its parent is. It names the side."""

ANSWER_LIMIT_S = 60.0
"""How long the end of a cancelled command is waited for. Whether it is soon enough is judged by others."""

DATA_PORTS = 20
"""How many ports above the one of the control channel a receiver may use: one for device state, then the workers."""


@dataclass
class Victims:
    """What faults may hit.

    Attributes:
        lab: the links.
        run: name of the run; MARK is this and a side, ``send`` or ``receive``.
        port: of the control channel.
        monitor: the destination's monitor; None: it is one of the command's processes.
        memory: the file system of the destination's memory; None: it cannot be full.
        records: the file system of both sides' records and temporary files.
    """

    lab: Lab
    run: str
    port: int
    monitor: psutil.Process | None
    memory: Path | None
    records: Path

    def family(self) -> list[tuple[str, psutil.Process]]:
        """Every process of both commands that is there, with its side and name, oldest first."""
        return family(self.run)

    def commands(self) -> list[tuple[str, psutil.Process]]:
        """The first process of each command."""
        first: dict[str, psutil.Process] = {}
        for role, process in self.family():
            first.setdefault(role.partition("'")[0], process)
        return sorted(first.items())


def family(run: str) -> list[tuple[str, psutil.Process]]:
    """Every process of *run* that is there, with its side and name, oldest first."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            of_run, _, side = process.environ().get(MARK, "").partition("/")
            if of_run == run and process.status() != psutil.STATUS_ZOMBIE:
                members.append((process.create_time(), f"{side}'s {process.name()}", process))
    return [(role, process) for _, role, process in sorted(members, key=lambda member: member[:2])]


@dataclass
class Faults:
    """Lets *faults* happen, each in a thread of its own; a context manager that waits until all are over.

    Attributes:
        happened: what happened to whom.
        answers_s: how long each cancelled command took to end.
        errors: of the torture itself.
    """

    victims: Victims
    faults: Sequence[Fault]
    happened: list[str] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
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
            with getattr(self, fault.kind)(fault):
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
        began = time.monotonic()
        self._note(f"cancelled {side}")
        with contextlib.suppress(psutil.NoSuchProcess):  # the end that is waited for
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() - began < ANSWER_LIMIT_S:
                time.sleep(0.005)
        self.answers_s.append(time.monotonic() - began)
        yield

    @contextlib.contextmanager
    def kill_monitor(self, fault: Fault) -> Iterator[None]:
        """Kill the destination's monitor."""
        if self.victims.monitor is not None:
            self.victims.monitor.kill()
            self._note("killed the destination's monitor")
        yield

    @contextlib.contextmanager
    def fill_memory(self, fault: Fault) -> Iterator[None]:
        """Leave no space for the destination's memory."""
        if self.victims.memory is None:
            yield
            return
        with filled(self.victims.memory):
            self._note("filled the file system of the destination's memory")
            yield

    @contextlib.contextmanager
    def fill_records(self, fault: Fault) -> Iterator[None]:
        """Leave no space for records and temporary files."""
        with filled(self.victims.records):
            self._note("filled the file system of the records")
            yield

    @contextlib.contextmanager
    def flip(self, fault: Fault) -> Iterator[None]:
        """Change a byte of what the control channel, device state or a worker sends next."""
        kinds = ("the control channel", "device state", "pages", "other pages")
        chosen = int(fault.draw * len(kinds))
        links = self.victims.lab.links
        for link in links:
            link.flip(self.victims.port + chosen, fault.draw * 997 % 1)
        yield
        self._over.wait()  # the channel may be silent for long
        if [port for link in links for port in link.flipped()]:
            self._note(f"changed a byte of {kinds[chosen]}")

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


def _pick(things: Sequence[_T], fault: Fault) -> _T:
    if not things:
        raise psutil.NoSuchProcess(0)
    return things[int(fault.draw * len(things))]
