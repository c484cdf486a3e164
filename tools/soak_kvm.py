# SPDX-License-Identifier: Apache-2.0
"""Moves a running KVM guest back and forth many times, and looks after each time whether anything was lost or left.

usage: python -m tools.soak_kvm [COUNT] [--options OPTIONS] [--workers 2] [--tracker auto] [--cancel-every N]

Each time the source, paused at hand-over, and the destination, paused once it went on, let the guest's program
compare memory with registers. Lines of the serial port must follow each other without a gap, and their ticks and
interrupts must only grow. This process must have as many descriptors, children, threads and mappings of guest memory
as before.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psutil

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from parmig.errors import CancelledError
from parmig.guests.kvm.kvm_guest import KvmGuest, open_kvm
from parmig.status import MigrationStatus
from tools.bench_lab import describe_host, median, migrate_guests, phases_median, to_json

OPTIONS = "memory=64MiB,vcpus=2,program=increment,rate=40MiB/s"
LIMIT_S = 30.0


class Discard:
    """A sink that drops the state."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop *data*."""


class Beat(msgspec.Struct, frozen=True):
    """A line of the serial port: its number, and the ticks and interrupts that the guest had counted by then."""

    number: int
    ticks: int
    interrupts: int


def beats(text: str) -> list[Beat]:
    """The lines in *text*, all of them whole but perhaps the last.

    Raises:
        ValueError: a line is no such line.
    """
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        word, *numbers = line.split(" ")
        if word != "beat" or len(numbers) != 3:
            raise ValueError(f"expected a line 'beat NUMBER TICKS INTERRUPTS', found {line!r}")
        lines.append(Beat(*(int(number, 16) for number in numbers)))
    return lines


class Witness:
    """What was seen of one guest's serial port, wherever it ran."""

    def __init__(self) -> None:
        self.last = Beat(0, 0, 0)

    def look(self, guest: KvmGuest) -> None:
        """Take the lines that came since the last look.

        Raises:
            AssertionError: a line is missing or goes back.
        """
        for beat in beats(guest.serial_text()):
            if beat.number <= self.last.number:
                continue
            if beat.number != self.last.number + 1 or beat.ticks < self.last.ticks:
                raise AssertionError(f"serial port: {beat} follows {self.last}")
            if beat.interrupts < self.last.interrupts:
                raise AssertionError(f"interrupts went back: {beat} follows {self.last}")
            self.last = beat

    def wait(self, guest: KvmGuest, lines: int) -> None:
        """Wait until *lines* more lines came."""
        wanted = self.last.number + lines
        until = time.monotonic() + LIMIT_S
        while self.last.number < wanted:
            if time.monotonic() > until:
                raise AssertionError(f"the guest wrote no {lines} lines in {LIMIT_S:g} s, the last is {self.last}")
            time.sleep(0.01)
            self.look(guest)


def belongings() -> dict[str, int]:
    """What this process has that a migration could leave behind."""
    mappings = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(psutil.Process().children(recursive=True)),
        "threads": threading.active_count(),
        "mappings of memory files": sum("memfd:parmig" in line for line in mappings),
    }


def _cancel_soon(sender: Any, _: Any) -> None:
    """Cancel once pages move; a migration that was quicker than that is not cancelled."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        plan = sender._plan
        if plan is not None and (plan.status is MigrationStatus.ACTIVE or plan.machine.ended):
            break
        time.sleep(0.0005)
    sender.cancel()


def move(source: KvmGuest, options: str, config: SendConfig, *, cancel: bool = False) -> tuple[KvmGuest, Report | None]:
    """Move *source* once.

    Returns:
        the guest where it runs now (the other one is checked and closed), and the report; None: it was cancelled.
    """
    with ExitStack() as stack:
        destination = open_kvm(options, incoming=True)
        stack.callback(destination.close)
        try:
            report, _ = migrate_guests(source, destination, config, _cancel_soon if cancel else None)
        except CancelledError:
            return source, None
        source.check()
        source.close()
        stack.pop_all()
        return destination, report


def warm_up(options: str, config: SendConfig) -> None:
    """Move a guest once, so that what lives as long as this process is there from now on: the fork server."""
    source = open_kvm(options, incoming=False)
    try:
        source, _ = move(source, options, config)
    finally:
        source.close()


def soak(count: int, options: str, config: SendConfig, cancel_every: int = 0) -> dict[str, Any]:
    """Move a guest *count* times, and cancel a further migration each *cancel_every* times.

    Raises:
        AssertionError: lines of the serial port are missing or go back, or something was left behind.
        GuestError: memory is not what the guest's program left there.
    """
    witness = Witness()
    before = belongings()
    reports: list[Report] = []
    cancelled = 0
    with ExitStack() as stack:
        guest = open_kvm(options, incoming=False)
        stack.callback(lambda: guest.close())
        witness.wait(guest, 1)
        alone = belongings()
        for number in range(1, count + 1):
            if cancel_every and number % cancel_every == 0:
                guest, report = move(guest, options, config, cancel=True)
                cancelled += report is None
                _check_running(guest, witness)
                _compare(alone, f"migration {number}, which was cancelled,")
            guest, report = move(guest, options, config)
            if report is not None:
                reports.append(report)
            _check_running(guest, witness)
            _compare(alone, f"migration {number}")
    _compare(before, "the last guest")
    return _summary(reports, cancelled, witness)


def _check_running(guest: KvmGuest, witness: Witness) -> None:
    """Let the guest run on, pause it for a moment, and let it compare memory with registers."""
    witness.wait(guest, 1)
    guest.pause(Discard())
    guest.check()
    witness.look(guest)
    guest.resume()


def _compare(expected: dict[str, int], what: str) -> None:
    """Fail unless this process has what it had; pyzmq and the kernel may take a moment to let go."""
    until = time.monotonic() + LIMIT_S
    while (present := belongings()) != expected:
        if time.monotonic() > until:
            raise AssertionError(f"{what} left something behind: expected {expected}, found {present}")
        time.sleep(0.01)


def _summary(reports: list[Report], cancelled: int, witness: Witness) -> dict[str, Any]:
    downtimes = sorted(report.downtime_ms or 0.0 for report in reports)
    return {
        "migrations": len(reports),
        "cancelled": cancelled,
        "dirty_log": sorted({f"{report.tracker}: {report.tracker_reason}" for report in reports}),
        "pages_sent_after_round_1": sum(round_.sent_pages for report in reports for round_ in report.rounds[1:]),
        "downtime_ms": {
            "median": round(median(downtimes), 2),
            "highest": round(downtimes[-1], 2) if downtimes else 0.0,
            "phases_median": phases_median([report.downtime_phases_ms for report in reports]),
        },
        "lines": witness.last.number,
        "ticks": witness.last.ticks,
        "interrupts": witness.last.interrupts,
    }


def main() -> None:
    """Move the guest as often as asked for, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--options", default=OPTIONS, help="of the guest, as in kvm:OPTIONS")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tracker", default="auto")
    parser.add_argument("--cancel-every", type=int, default=0, metavar="N")
    options = parser.parse_args()
    config = SendConfig(workers=options.workers, tracker=options.tracker)
    warm_up(options.options, config)
    print(to_json({"host": describe_host(), **soak(options.count, options.options, config, options.cancel_every)}))


if __name__ == "__main__":
    main()
