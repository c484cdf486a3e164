# SPDX-License-Identifier: Apache-2.0
"""A migration of a real Linux that is broken in round 1 and in the pause: it runs on, and the next attempt works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.sides import KNOWN_LIMIT_S, Command, is_alive, kill, until
from tests.qemu.machines import QemuMachine, wait_until
from tests.qemu.test_migration import goes_on, move, receive, send

pytestmark = pytest.mark.qemu

OPTIONS = ("--workers", "2", "--max-bandwidth", "40MiB/s")


def workers(command: Command) -> list[psutil.Process]:
    """The processes below *command* that have a network connection, oldest first."""

    def find() -> list[psutil.Process]:
        below = psutil.Process(command.process.pid).children(recursive=True)
        talking = [one for one in below if any(c.status == psutil.CONN_ESTABLISHED for c in one.net_connections("tcp"))]
        return sorted(talking, key=lambda one: one.pid) if len(talking) == 2 else []

    return until(find, "two workers with connections")


def kill_send_worker(here: Command, there: Command) -> None:
    kill(workers(here)[0].pid)


def kill_receive_worker(here: Command, there: Command) -> None:
    kill(workers(there)[1].pid)


def kill_receiver(here: Command, there: Command) -> None:
    below = psutil.Process(there.process.pid).children(recursive=True)
    there.process.kill()
    there.process.wait()
    until(lambda: not any(is_alive(one) for one in below), "the end of all of the receiver")


def interrupt_sender(here: Command, there: Command) -> None:
    here.process.send_signal(signal.SIGINT)


def interrupt_receiver(here: Command, there: Command) -> None:
    there.process.send_signal(signal.SIGINT)


FAULTS: dict[Callable[[Command, Command], None], tuple[int, str, str]] = {
    kill_send_worker: (1, "WorkerError", "was killed by signal 9"),
    kill_receive_worker: (1, "PeerFailedError", "was killed by signal 9"),
    kill_receiver: (1, "PeerLostError", "lost"),
    interrupt_sender: (130, "CancelledError", "cancelled"),
    interrupt_receiver: (1, "PeerFailedError", "cancelled"),
}
"""What is done, and how the sender ends."""


REPLACED = (kill_send_worker, kill_receive_worker)
DIES = ("--reconnect-timeout", "0s")
"""Nobody replaces a worker that dies."""


class Before:
    """What a source is like, to be found again."""

    def __init__(self, machine: QemuMachine) -> None:
        self._machine = machine
        self._settings, self._fds = machine.settings(), machine.fds()

    def is_back(self) -> None:
        """It runs, with nothing attached and the user's settings."""
        machine = self._machine
        assert machine.ask("query-status")["status"] == "running"
        assert machine.settings() == self._settings
        assert machine.tracked_mappings() == 0
        wait_until(lambda: machine.fds() == self._fds, "QEMU's descriptors as before")
        machine.wait_for_ticks(2)


def broken(
    source: QemuMachine, initrd: Path, fault: Callable[[Command, Command], None], *, in_pause: bool
) -> dict[str, Any]:
    """An attempt that meets *fault*; the sender's report."""
    with (
        QemuMachine(initrd, incoming=True) as destination,
        receive(destination) as there,
        send(source, there.uri(), *OPTIONS, *(DIES if fault in REPLACED else ())) as here,
    ):
        here.wait_for("active, round 1")
        if in_pause:
            os.kill(destination.pid, signal.SIGSTOP)  # so that it never finishes to load
            here.wait_for("\ndevice, ")
        began = time.monotonic()
        fault(here, there)
        here.process.wait(KNOWN_LIMIT_S)
        assert time.monotonic() - began < KNOWN_LIMIT_S
        code, report = here.end()
        if in_pause:
            os.kill(destination.pid, signal.SIGCONT)  # the source knew without; now it may load, and must not run
        if there.process.poll() is None or there.process.returncode >= 0:
            _, received = there.end()
            assert received["status"] in ("failed", "cancelled")
        if destination.process.poll() is None:
            assert destination.ask("query-status")["running"] is False
        assert destination.ticks() == []
        return report | {"code": code}


@pytest.mark.timeout(600)  # ten broken migrations of one guest
def test_a_broken_migration_leaves_the_source_as_it_was_and_the_next_one_works(initrd: Path) -> None:
    with QemuMachine(initrd, rate=5) as source:
        before = Before(source)
        source.wait_for_serial("TICK 2 ")
        for fault, (code, kind, words) in FAULTS.items():
            for in_pause in (False, True):
                report = broken(source, initrd, fault, in_pause=in_pause)
                assert (report["code"], report["error"]["type"]) == (code, kind), (fault, in_pause, report["error"])
                assert words in report["error"]["message"], (fault, in_pause)
                before.is_back()
        with QemuMachine(initrd, incoming=True) as destination:
            move(source, destination, "--workers", "2")
            goes_on(source, destination)


def test_a_killed_sender_leaves_the_source_running_and_untracked(initrd: Path) -> None:
    with QemuMachine(initrd, rate=5) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        with receive(destination) as there, send(source, there.uri(), *OPTIONS) as here:
            here.wait_for("active, round 1")
            assert source.tracked_mappings() > 0
            below = workers(here)
            here.process.kill()
            here.process.wait()
            until(lambda: not any(is_alive(one) for one in below), "the end of the workers", KNOWN_LIMIT_S)
            code, report = there.end()
            assert (code, report["error"]["type"]) == (1, "PeerLostError"), report["error"]
        until(lambda: source.tracked_mappings() == 0, "the end of the tracking", KNOWN_LIMIT_S)
        assert source.ask("query-status")["status"] == "running"
        source.wait_for_ticks(2)
        assert destination.ticks() == []


@pytest.mark.parametrize("fault", REPLACED, ids=lambda fault: fault.__name__)
def test_a_worker_that_is_killed_is_replaced(initrd: Path, fault: Callable[[Command, Command], None]) -> None:
    with (
        QemuMachine(initrd, rate=5) as source,
        QemuMachine(initrd, incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        with receive(destination) as there, send(source, there.uri(), *OPTIONS, "--verify") as here:
            here.wait_for("active, round 1")
            fault(here, there)
            code, report = here.end()
            assert (code, report["status"], report["verified"]) == (0, "completed", True), report["error"]
            assert there.end()[0] == 0
            assert [outage["ended"] for outage in report["outages"]] == [True]
        destination.wait_for_ticks(2)
