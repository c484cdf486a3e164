# SPDX-License-Identifier: Apache-2.0
"""The receiver of a real QEMU is killed twice while memory moves, and goes on; a guest that is loaded does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.sides import LISTEN, Command, until
from tests.qemu.machines import QemuMachine
from tests.qemu.test_faults import kill_receiver
from tests.qemu.test_migration import goes_on, send

pytestmark = pytest.mark.qemu

OPTIONS = ("--workers", "2", "--max-bandwidth", "60MiB/s")


def receive(machine: QemuMachine, *options: str) -> Command:
    return Command("receive", "--listen", LISTEN, "--guest", f"qemu:{machine.socket}", "--json", *options)


def test_a_receiver_of_qemu_goes_on_in_round_1_and_later(initrd: Path) -> None:
    with QemuMachine(initrd, rate=20) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        with (
            receive(destination, "--resumable") as first,
            send(source, first.uri(), *OPTIONS, "--verify", "--downtime-limit", "20ms") as here,
        ):
            first.wait_for("--resume ")
            (session,) = re.findall(r"--resume (\w{8})", first.errors)
            until(lambda: re.search(r"round 1, [1-9]", here.errors), "pages of round 1")
            kill_receiver(here, first)
            with receive(destination, "--resume", session) as second:
                here.wait_for("the destination holds ")
                kill_receiver(here, second)
            with receive(destination, "--resume", session) as third:
                code, report = here.end()
                assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors
                assert third.end()[0] == 0
        assert len(report["restarts"]) == 2
        assert report["restarts"][-1]["proven_pages"] > 0
        goes_on(source, destination)
        with receive(destination, "--resume", session) as late:
            code, report = late.end()
            assert (code, report["error"]["type"]) == (3, "GuestRefusedError"), report
