# SPDX-License-Identifier: Apache-2.0
"""A real Linux in a real QEMU, moved by the commands as a user runs them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sides import LISTEN, Command
from tests.qemu.machines import LIMIT_S, MIB, QemuMachine, goes_on, wait_until

pytestmark = pytest.mark.qemu

GIB = 1 << 30
FILE = "memory-backend-file,mem-path={dir}/"


def receive(machine: QemuMachine, guest: str = "") -> Command:
    return Command("receive", "--listen", LISTEN, "--guest", f"qemu:{machine.socket}{guest}", "--json")


def send(machine: QemuMachine, uri: str, *options: str, guest: str = "") -> Command:
    return Command("send", uri, "--guest", f"qemu:{machine.socket}{guest}", "--json", *options)


def move(
    source: QemuMachine, destination: QemuMachine, *options: str, guest: str = "", verify: bool = True
) -> dict[str, Any]:
    """One migration by two commands, with *guest* the options of both guests; the source's report."""
    options += ("--verify",) if verify else ()
    with receive(destination, guest) as there, send(source, there.uri(), *options, guest=guest) as here:
        code, report = here.end()
        assert (code, report["status"], report["verified"]) == (0, "completed", verify or None), here.errors
        code, received = there.end()
        assert (code, received["status"]) == (0, "completed"), there.errors
    if verify:
        assert received["digest"]["destination"] == report["digest"]["source"]
    return report


@pytest.mark.parametrize(("workers", "state", "status"), [(2, "devices", "paused"), (4, "migrate", "postmigrate")])
def test_a_linux_that_writes_goes_on_at_the_destination(initrd: Path, workers: int, state: str, status: str) -> None:
    with QemuMachine(initrd, rate=20) as source, QemuMachine(initrd, incoming=True) as destination:
        settings = source.settings()
        source.wait_for_serial("TICK 2 ")
        report = move(source, destination, "--workers", str(workers), guest=f",state={state}")
        goes_on(source, destination)
        assert source.ask("query-status")["status"] == status
        assert destination.ask("query-status")["status"] == "running"
        assert source.settings() == settings
        assert source.tracked_mappings() == 0
        assert len(report["per_worker"]) == workers
        assert report["guest"]["kind"] == "qemu"
        moved_too = report["guest"]["memory_bytes"] - 256 * MIB
        assert (16 * MIB <= moved_too < 20 * MIB) if state == "devices" else not moved_too  # video memory and ROMs
        phases = report["downtime_phases_ms"]
        assert sum(phases.values()) == pytest.approx(report["downtime_ms"], rel=1e-6)


def test_the_source_ends_when_that_is_asked_for(linux_guest: QemuMachine, initrd: Path) -> None:
    with QemuMachine(initrd, incoming=True) as destination:
        move(linux_guest, destination, "--workers", "2", "--quit-source")
        linux_guest.process.wait(LIMIT_S)
        goes_on(linux_guest, destination)


def test_memory_on_both_sides_of_the_hole_is_moved_sparse(qemu: None) -> None:
    size = 5 * GIB
    with QemuMachine(memory_bytes=size) as source, QemuMachine(memory_bytes=size, incoming=True) as destination:
        places = (0x10_0000, 3 * GIB - 4096, 3 * GIB, 5 * GIB - 4096)  # in the file: the hole is not in it
        fd = os.open(source.directory / "ram", os.O_RDWR)
        try:
            for number, place in enumerate(places):
                os.pwrite(fd, bytes([number + 1]) * 4096, place)
        finally:
            os.close(fd)
        report = move(source, destination, "--workers", "2")
        assert report["guest"]["memory_bytes"] >= size
        with (destination.directory / "ram").open("rb") as file:
            for number, place in enumerate(places):
                assert os.pread(file.fileno(), 4096, place) == bytes([number + 1]) * 4096
            assert os.fstat(file.fileno()).st_blocks * 512 < 64 * MIB


def test_the_memory_of_two_nodes_is_moved(initrd: Path) -> None:
    memory = ["-machine", "pc", "-object", FILE + "a,id=m0,size=128M,share=on"]
    memory += ["-object", FILE + "b,id=m1,size=128M,share=on", "-numa", "node,memdev=m0", "-numa", "node,memdev=m1"]
    with (
        QemuMachine(initrd, memory=memory, rate=10) as source,
        QemuMachine(initrd, memory=memory, incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        move(source, destination, "--workers", "3")
        goes_on(source, destination)


def test_memory_of_every_kind_of_device_is_moved(initrd: Path) -> None:
    memory = ["-machine", "pc,memory-backend=ram0,nvdimm=on", "-m", "256M,slots=4,maxmem=1G"]
    memory += ["-object", FILE + f"ram,id=ram0,size={256 * MIB},share=on"]
    for number, device in enumerate(("pc-dimm", "nvdimm")):
        memory += ["-object", FILE + f"more{number},id=m{number},size=128M,share=on"]
        memory += ["-device", f"{device},id=d{number},memdev=m{number}"]
    with (
        QemuMachine(initrd, memory=memory, rate=10) as source,
        QemuMachine(initrd, memory=memory, incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        place = 64 * MIB + 4096  # in the nvdimm's file: the guest has no driver for it
        with (source.directory / "more1").open("r+b") as file:
            os.pwrite(file.fileno(), b"kept" * 1024, place)
        report = move(source, destination, "--workers", "2")
        assert report["guest"]["memory_bytes"] >= 512 * MIB
        goes_on(source, destination)
        with (destination.directory / "more1").open("rb") as file:
            assert os.pread(file.fileno(), 4096, place) == b"kept" * 1024


# -- refusals ------------------------------------------------------------------------------------------


def refused(code: int, report: dict[str, Any], *words: str) -> None:
    assert code == 3, report
    for word in words:
        assert word in report["error"]["message"], report["error"]


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (
            ["-machine", "q35,memory-backend=ram0", "-object", FILE + "ram,id=ram0,size=256M,share=on"],
            ("pc-i440fx", "pc-q35"),
        ),
        (
            ["-machine", "pc,memory-backend=other", "-object", FILE + "ram,id=other,size=256M,share=on"],
            ("'ram0'", "'other'"),
        ),
    ],
    ids=["machine type", "backend id"],
)
def test_a_machine_that_differs_is_refused_by_both(
    bare_guest: QemuMachine, there: list[str], words: tuple[str, ...]
) -> None:
    migrate = ",state=migrate"  # in which QEMU matches RAM blocks by their names
    with QemuMachine(memory=there, incoming=True) as destination, receive(destination, migrate) as receiver:
        settings = bare_guest.settings()
        with send(bare_guest, receiver.uri(), guest=migrate) as sender:
            refused(*sender.end(), *words)
        receiver.wait_for("refused a source")
        for word in words:
            assert word in receiver.errors
        assert receiver.process.poll() is None, "it waits for the right one"
        assert bare_guest.settings() == settings
        assert bare_guest.tracked_mappings() == 0
        assert destination.ask("query-status")["status"] == "inmigrate"


def test_memory_that_is_not_shared_is_refused_on_either_side_for_qemus_own_migration(qemu: None) -> None:
    migrate = ",state=migrate"
    with (
        QemuMachine(memory=["-machine", "pc"]) as private,
        send(private, "zmq+tcp://127.0.0.1:1", guest=migrate) as sender,
    ):
        refused(*sender.end(), "is not shared", "share=on")
    with QemuMachine(memory=["-machine", "pc"], incoming=True) as private, receive(private, migrate) as receiver:
        refused(*receiver.end(), "is not shared", "share=on")


def test_a_missing_socket_is_refused_by_either_command(tmp_path: Path) -> None:
    guest = ("--guest", f"qemu:{tmp_path}/nothing", "--json")
    with ExitStack() as stack:
        for arguments in (("send", "zmq+tcp://127.0.0.1:1"), ("receive", "--listen", LISTEN)):
            command = stack.enter_context(Command(*arguments, *guest))
            refused(*command.end(), "no QEMU answers at")


def test_a_guest_that_was_moved_away_is_refused(bare_guest: QemuMachine) -> None:
    with QemuMachine(incoming=True) as destination:
        move(bare_guest, destination, "--workers", "2", guest=",state=migrate")
    wait_until(lambda: bare_guest.ask("query-status")["status"] == "postmigrate", "postmigrate")
    with send(bare_guest, "zmq+tcp://127.0.0.1:1") as sender:
        refused(*sender.end(), "postmigrate")
