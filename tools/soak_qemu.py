# SPDX-License-Identifier: Apache-2.0
"""Moves a running Linux from QEMU to QEMU many times, and looks after each move whether anything was lost or left.

usage: python -m tools.soak_qemu [COUNT] [--source QEMU] [--destination QEMU] [--machine pc-i440fx-7.2] [--one-way]

The guest has private memory (a plain -m) and a disk without a page cache on the host (cache=none). Its programs tick
on the serial line, write memory, and write and read the disk, by direct I/O and through the guest's own page cache;
they compare all that they read with what they wrote. The serial output of all QEMUs, one behind the other, must be
without a gap. Both QEMUs must have what a QEMU has that never saw parmig: the same descriptors, threads and
migration settings. The tool fails at the first move after which one of this is not so.

QEMUs of two versions take turns; with --one-way, each move has a source that was just started.
PARMIG_QEMU and PARMIG_KERNEL choose other programs; a QEMU in a chroot must have --directory and /dev/shm, too.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from parmig.config import SendConfig
from parmig.engine.reporting.report import DowntimePhases, Report
from tests.qemu import disks
from tests.qemu.machines import BOOT_LIMIT_S, QEMU, QemuMachine
from tools.bench_lab import describe_host, median, migrate_by_commands, phases_median, to_json
from tools.soak_linux import DISK_BYTES, INIT, Witness

LIMIT_S = 10.0
"""For QEMU to close what parmig had opened."""
SEND_OPTIONS = ("--verify", "--max-downtime", "10s")
"""On a busy host the guest may write faster than pages are sent; that is no reason to end."""


@dataclass(frozen=True)
class Setup:
    """What is moved.

    Attributes:
        programs: the QEMUs of source and destination.
        machine: value of ``-machine``, the same for both.
        state: option of both guests.
        one_way: a new source for each move; else the destination is the next source.
        directory: for the disk's image; on a file system that has direct I/O.
        rate: MiB per second that the guest writes into its memory, besides.
    """

    programs: tuple[str, str] = (QEMU, QEMU)
    machine: str = "pc"
    state: str = "auto"
    one_way: bool = False
    directory: Path = Path("/var/tmp")
    rate: int = 5


class Belongings(msgspec.Struct):
    """What a QEMU has that a migration could change: how many descriptors and threads of each name, and settings."""

    descriptors: Counter[str]
    threads: Counter[str]
    settings: Any
    fdsets: list[str]
    """The notes on descriptors in them."""
    tracked: int
    """Mappings with a userfaultfd."""


def belongings(machine: QemuMachine) -> Belongings:
    """What *machine* has now. Threads that do disk I/O come and go, and are left out."""
    links = [link.replace(str(machine.directory), "") for link in machine.fds().values()]
    process = Path(f"/proc/{machine.pid}")
    names = [path.read_text().strip() for path in process.glob("task/*/comm")]
    # QEMU starts its RCU thread before it reads that threads have names, so this one has a name or has not.
    main = (process / "comm").read_text().strip()
    flags = re.findall(r"^VmFlags:(.*)", (process / "smaps").read_text(), re.MULTILINE)
    return Belongings(
        descriptors=Counter(re.sub(r"\[\d+\]", "[]", link) for link in links),
        threads=Counter(main if name == "call_rcu" else name for name in names if name != "worker"),
        settings=machine.settings(),
        fdsets=[entry["opaque"] for fdset in machine.ask("query-fdsets") for entry in fdset["fds"]],
        tracked=sum(bool({"uw", "um", "ui"} & set(line.split())) for line in flags),
    )


def left_behind(machine: QemuMachine, expected: Belongings, *, moved_away: bool) -> list[str]:
    """What *machine* has that it would not have without parmig.

    Args:
        expected: of a running QEMU of the same version that never saw parmig.
        moved_away: its guest has left; QEMU before 9.1 then keeps an empty file in an fdset.
    """
    found = belongings(machine)
    if moved_away and machine.version() < (9, 1) and found.fdsets == ["parmig"]:
        found.fdsets = []
        found.descriptors["/memfd:parmig-device-state (deleted)"] -= 1
    left = [f"descriptor {name}" for name in found.descriptors - expected.descriptors]
    left += [f"thread {name}" for name in found.threads - expected.threads]
    left += [f"descriptor in an fdset: {note}" for note in found.fdsets]
    left += ["a userfaultfd"] * bool(found.tracked)
    left += ["migration settings"] * (found.settings != expected.settings)
    return left


class Soak:
    """One guest, or with ``one_way`` many of them, moved as often as wanted; a context manager."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stack = ExitStack()
        self._expected: dict[str, Belongings] = {}
        self._running = ExitStack()
        self.witness = Witness()
        self.reports: list[Report] = []
        self.ticks = self.checks = 0

    def __enter__(self) -> Soak:
        with ExitStack() as stack:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parmig-soak-", dir="/dev/shm")))
            self._initrd = disks.build_disk_initrd(base, INIT)
            directory = tempfile.TemporaryDirectory(prefix="parmig-soak-", dir=self._setup.directory)
            self._image = Path(stack.enter_context(directory)) / "disk"
            self._image.write_bytes(bytes(DISK_BYTES))
            stack.callback(lambda: self._running.close())
            for program in dict.fromkeys(reversed(self._setup.programs)):
                self._running.close()
                self._boot(program)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _machine(self, program: str, *, incoming: bool = False) -> QemuMachine:
        drive = f"file={self._image},if=none,id=disk,format=raw,cache=none,file.locking=on"
        return QemuMachine(
            self._initrd,
            incoming=incoming,
            rate=self._setup.rate,
            files=8,
            memory=["-machine", self._setup.machine],
            extra=("-drive", drive, "-device", "virtio-blk-pci,drive=disk", "-name", "soak,debug-threads=on"),
            program=program,
        )

    def _boot(self, program: str) -> None:
        """Start a guest, and note what its QEMU has."""
        self._program = program
        self._source = self._running.enter_context(self._machine(program))
        self.witness = Witness()
        self.witness.follow(self._source)
        self.witness.wait(limit_s=BOOT_LIMIT_S)
        self._expected.setdefault(program, belongings(self._source))

    def move(self) -> Report:
        """Move the guest to another QEMU, look at both, and end the one it left.

        Raises:
            AssertionError: something was lost or left.
            ParmigError: the migration failed.
        """
        here, there = self._setup.programs
        if self._setup.one_way and self.reports:
            self._running.close()
            self._boot(here)
        program = there if self._program == here else here
        with ExitStack() as stack:
            destination = stack.enter_context(self._machine(program, incoming=True))
            leaving, arriving = (
                f"qemu:{machine.socket},state={self._setup.state}" for machine in (self._source, destination)
            )
            report = migrate_by_commands(leaving, arriving, SendConfig(workers=2), *SEND_OPTIONS)
            assert report.verified is True, "the memories were not compared"
            self._look(destination, program)
            self._running.close()
            self._running = stack.pop_all()
        self._source, self._program = destination, program
        self.reports.append(report)
        return report

    def _look(self, destination: QemuMachine, program: str) -> None:
        """Whether the guest goes on without a gap, and neither QEMU has anything that it should not have."""
        before = self.witness.ticks, sum(self.witness.checks)
        self.witness.take()
        last = self._source.serial()
        self.witness.follow(destination)
        self.witness.wait()
        self.ticks += self.witness.ticks - before[0]
        self.checks += sum(self.witness.checks) - before[1]
        for machine, name in ((self._source, self._program), (destination, program)):
            self._wait_for_nothing_left(machine, self._expected[name], moved_away=machine is self._source)
        assert self._source.serial() == last, "the source has run after the hand-over"
        states = [machine.ask("query-status")["status"] for machine in (self._source, destination)]
        assert states in (["paused", "running"], ["postmigrate", "running"]), f"source and destination are {states}"

    @staticmethod
    def _wait_for_nothing_left(machine: QemuMachine, expected: Belongings, *, moved_away: bool) -> None:
        until = time.monotonic() + LIMIT_S
        while left := left_behind(machine, expected, moved_away=moved_away):
            where = "source" if moved_away else "destination"
            assert time.monotonic() < until, f"the {where} has {', '.join(left)}, which a QEMU without parmig has not"
            time.sleep(0.05)  # QEMU closes a connection after its client did


def summary(soaked: Soak) -> dict[str, Any]:
    """The figures of all moves; downtimes are without the comparison of the memories."""
    reports = soaked.reports
    downtimes = [report.downtime_without_verify_ms or 0.0 for report in reports]
    phases = [report.downtime_phases_ms for report in reports]
    return {
        "moves": len(reports),
        "monitors": sorted({report.guest.monitor for report in reports}),
        "machine": reports[0].guest.machine,
        "tracker": sorted({report.tracker for report in reports}),
        "moves_with_disk_requests_in_flight": sum(any(r.settle_ms > 1 for r in report.rounds) for report in reports),
        "downtime_ms": {"median": round(median(downtimes), 2), "worst": round(max(downtimes), 2)},
        "phases_median_ms": phases_median(phases),
        "phases_worst_ms": {
            name: round(max(getattr(pause, name) for pause in phases), 2) for name in DowntimePhases.__struct_fields__
        },
        "total_time_ms": {"median": round(median([report.total_time_ms for report in reports]), 1)},
        "ticks": soaked.ticks,
        "disk_checks": soaked.checks,
    }


def main() -> None:
    """Move the guest as often as asked for, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100)
    parser.add_argument("--source", default=QEMU, help="program of the QEMU that the guest starts in")
    parser.add_argument("--destination", help="program of the other QEMU; default: the same")
    parser.add_argument("--machine", default=Setup.machine)
    parser.add_argument("--state", default=Setup.state)
    parser.add_argument("--one-way", action="store_true", help="start a new source for each move")
    parser.add_argument("--directory", type=Path, default=Setup.directory, help="for the disk, on a real disk")
    parser.add_argument("--rate", type=int, default=Setup.rate, help="MiB per second that the guest writes")
    parser.add_argument("--json", action="store_true", help="print nothing but the results")
    options = parser.parse_args()
    programs = (options.source, options.destination or options.source)
    setup = Setup(programs, options.machine, options.state, options.one_way, options.directory, options.rate)
    with Soak(setup) as soaked:
        for number in range(1, options.count + 1):
            report = soaked.move()
            if not options.json:
                print(f"move {number}: {report.downtime_without_verify_ms:.2f} ms", flush=True)
        print(to_json({"host": describe_host(), **summary(soaked)}))


if __name__ == "__main__":
    main()
