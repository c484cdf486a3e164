# SPDX-License-Identifier: Apache-2.0
"""A real QEMU is replaced by another one of the same host: its memory stays where it is."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sides import Command
from tests.qemu.machines import LIMIT_S, MIB, QemuMachine
from tests.qemu.test_migration import goes_on, send
from tests.qemu.test_qemu_args import PrintedMachine

pytestmark = pytest.mark.qemu

FILE = "memory-backend-file,id=ram0,size=256M,share=on,mem-path="
MACHINE = ["-machine", "pc,memory-backend=ram0", "-object"]


def move(
    source: QemuMachine, destination: QemuMachine, *options: str, guest: str = ""
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """One migration by two commands over a Unix socket: the sender's exit code, and both reports."""
    uri = f"unix://{destination.directory}/parmig"
    with (
        Command("receive", "--listen", uri, "--guest", f"qemu:{destination.socket}{guest}", "--json") as there,
        send(source, there.uri(), *options, guest=guest) as here,
    ):
        code, report = here.end()
        if code == 3:  # refused; the receiver would wait for the next
            there.process.terminate()
        _, received = there.end()
    return code, report, received


@pytest.fixture
def machines() -> Any:
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.mark.parametrize("state", ["devices", "migrate"])
def test_a_linux_goes_on_in_a_new_qemu_on_the_same_file(initrd: Path, machines: Any, state: str) -> None:
    source = machines(QemuMachine(initrd, rate=20))
    source.wait_for_serial("TICK 2 ")
    memory = [*MACHINE, f"{FILE}{source.directory}/ram"]
    destination = machines(QemuMachine(initrd, memory=memory, incoming=True))
    code, report, received = move(source, destination, "--verify", guest=f",state={state}")
    assert (code, report["status"], received["status"]) == (0, "completed", "completed"), report["error"]
    goes_on(source, destination)
    for side in (report, received):
        assert side["transport"] == "unix"
        assert side["ram"]["in_place_blocks"] == ["ram0"]
        assert side["ram"]["in_place_bytes"] == 256 * MIB
        assert side["ram"]["sent_pages"] * 4096 < 20 * MIB
    assert report["verified"] is (True if state == "devices" else None)
    assert source.tracked_mappings() == 0
    # The old one ends, and the memory stays.
    source.process.kill()
    source.process.wait()
    goes_on(source, destination)


@pytest.mark.parametrize("backend", ["memory-backend-memfd,id=ram0,size=256M", f"{FILE}{{dir}}/ram"])
def test_a_linux_goes_on_in_the_qemu_that_was_printed(initrd: Path, machines: Any, backend: str) -> None:
    """If the file has no name, the new QEMU opens a descriptor of the old one."""
    source = machines(QemuMachine(initrd, rate=20, memory=[*MACHINE, backend]))
    source.wait_for_serial("TICK 2 ")
    destination = machines(PrintedMachine(source, "--memory", "in-place"))
    code, report, _ = move(source, destination, "--quit-source")
    assert (code, report["ram"]["in_place_blocks"]) == (0, ["ram0"]), report["error"]
    source.process.wait(LIMIT_S)
    goes_on(source, destination)


def test_one_node_stays_and_the_other_is_copied(initrd: Path, machines: Any) -> None:
    def memory(first: str) -> list[str]:
        file = "memory-backend-file,size=128M,share=on"
        nodes = ["-object", f"{file},id=m0,mem-path={first}/a", "-object", f"{file},id=m1,mem-path={{dir}}/b"]
        return ["-machine", "pc", *nodes, "-numa", "node,memdev=m0", "-numa", "node,memdev=m1"]

    source = machines(QemuMachine(initrd, rate=20, memory=memory("{dir}")))
    source.wait_for_serial("TICK 2 ")
    destination = machines(QemuMachine(initrd, memory=memory(str(source.directory)), incoming=True))
    code, report, _ = move(source, destination, "--verify", "--workers", "2")
    assert (code, report["ram"]["in_place_blocks"], report["verified"]) == (0, ["m0"], True), report["error"]
    assert report["workers"] == 2
    goes_on(source, destination)


def test_a_destination_that_cannot_load_leaves_the_source_its_memory(initrd: Path, machines: Any) -> None:
    """It has no HPET, for which the source has state. The old QEMU goes on, and the next attempt works."""
    source = machines(QemuMachine(initrd, rate=20))
    source.wait_for_serial("TICK 2 ")
    memory = [*MACHINE, f"{FILE}{source.directory}/ram"]
    with QemuMachine(initrd, memory=memory, extra=("-machine", "hpet=off"), incoming=True) as wrong:
        code, report, received = move(source, wrong)
        assert (code, report["status"]) == (1, "failed")
        assert report["source_guest"] == "running"
        assert received["error"]["type"] in ("StateError", "GuestError")  # QEMU before 9.1 ends
        assert report["downtime_phases_ms"] is not None
    source.wait_for_ticks(5)
    assert len({md5 for _, md5 in source.ticks()}) == 1
    destination = machines(QemuMachine(initrd, memory=memory, incoming=True))
    code, report, _ = move(source, destination)
    assert (code, report["ram"]["in_place_blocks"]) == (0, ["ram0"]), report["error"]
    goes_on(source, destination)


def test_a_destination_that_starts_and_ends_writes_nothing(initrd: Path, machines: Any) -> None:
    source = machines(QemuMachine(initrd))
    source.wait_for_serial("TICK 2 ")
    source.ask("stop")
    ram = source.directory / "ram"
    before = hashlib.md5(ram.read_bytes()).hexdigest()
    with QemuMachine(initrd, memory=[*MACHINE, f"{FILE}{ram}"], incoming=True) as destination:
        assert hashlib.md5(ram.read_bytes()).hexdigest() == before
        destination.ask("quit")
        destination.process.wait(10)
    assert hashlib.md5(ram.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("discards", ["source", "destination"])
def test_memory_that_its_qemu_discards_at_its_end_does_not_stay(machines: Any, discards: str) -> None:
    """Nor is it copied onto itself."""
    ends = {side: ",discard-data=on" if side == discards else "" for side in ("source", "destination")}
    source = machines(QemuMachine(memory=[*MACHINE, f"{FILE}{{dir}}/ram{ends['source']}"]))
    memory = [*MACHINE, f"{FILE}{source.directory}/ram{ends['destination']}"]
    destination = machines(QemuMachine(memory=memory, incoming=True))
    code, report, _ = move(source, destination)
    assert (code, report["error"]["type"]) == (3, "PeerRefusedError")
    assert "the same file" in report["error"]["message"]
    assert "discard-data" in report["error"]["message"]
