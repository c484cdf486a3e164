# SPDX-License-Identifier: Apache-2.0
"""A QEMU outlives the commands that move it: killed in the hand-over, it runs on one side after ``parmig recover``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.handovers import Hosts, parmig
from tests.integration.sides import Command, until
from tests.qemu.machines import QemuMachine, wait_until

pytestmark = pytest.mark.qemu


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def prelude(point: str) -> str:
    """What lets a command ask briefly, and kills it at *point*, if that is not empty."""
    kill = f"; _kill_at({point!r})" if point else ""
    return f"from tests.integration.sides import _kill_at, ask_briefly; ask_briefly(){kill}"


def receive(machine: QemuMachine, records: Path, point: str = "") -> Command:
    where = ("--listen", "tcp://127.0.0.1:0", "--state-dir", str(records))
    return Command("receive", *where, "--guest", f"qemu:{machine.socket}", "--json", prelude=prelude(point))


def send(machine: QemuMachine, uri: str, records: Path, point: str = "") -> Command:
    options = ("--workers", "1", "--state-dir", str(records), "--json")
    return Command("send", uri, *options, "--guest", f"qemu:{machine.socket}", prelude=prelude(point))


def uri_of(command: Command) -> str:
    command.wait_for("listening on tcp")
    return until(lambda: command.errors.partition("listening on ")[2].partition("\n")[0], "the whole line").split()[0]


def stands(machine: QemuMachine) -> bool:
    return machine.process.poll() is None and not machine.ask("query-status")["running"]


def test_a_sender_killed_behind_its_record_leaves_the_source_paused_until_it_is_recovered(
    initrd: Path, hosts: Hosts
) -> None:
    with QemuMachine(initrd, rate=5) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        with receive(destination, hosts.destination) as there:
            with send(source, uri_of(there), hosts.source, "after write handed-over") as here:
                here.process.wait()
            there.wait_for("keeping the copy")
            assert stands(source), "the guardian let it run"
            assert stands(destination)
            code, shown = parmig(hosts.source, "recover")
            assert (code, shown["session"]["state"], shown["guest"]) == (0, "returned", "running"), shown
            assert there.end()[0] == 1
        wait_until(lambda: destination.process.poll() is not None, "the copy to be ended")
        source.wait_for_ticks(2)
        assert hosts.settled() == "source"


def test_a_receiver_killed_before_it_lets_its_guest_run_is_recovered_there(initrd: Path, hosts: Hosts) -> None:
    with QemuMachine(initrd, rate=5) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        with (
            receive(destination, hosts.destination, "after write taken") as there,
            send(source, uri_of(there), hosts.source) as here,
        ):
            code, report = here.end()
            assert (code, report["status"]) == (4, "unknown"), here.errors
        assert stands(source)
        assert stands(destination)
        code, shown = parmig(hosts.destination, "recover")
        assert (code, shown["session"]["owner"], shown["guest"]) == (0, "here", "running"), shown
        destination.wait_for_ticks(2)
        hosts.recover()
        assert hosts.settled() == "destination"
        assert stands(source)


def test_a_receiver_killed_once_it_was_ready_gives_the_guest_back(initrd: Path, hosts: Hosts) -> None:
    with QemuMachine(initrd, rate=5) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        with (
            receive(destination, hosts.destination, "before write taken") as there,
            send(source, uri_of(there), hosts.source) as here,
        ):
            code, report = here.end()
            assert (code, report["status"]) == (4, "unknown"), here.errors
        assert hosts.state("destination") == "prepared"
        hosts.recover()
        assert hosts.settled() == "source"
        source.wait_for_ticks(2)
        wait_until(lambda: destination.process.poll() is not None, "the copy to be ended")
