# SPDX-License-Identifier: Apache-2.0
"""A guest moves to the QEMU that the printed command line starts."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sides import ROOT, Command
from tests.qemu import machines
from tests.qemu.machines import QemuMachine
from tests.qemu.test_migration import goes_on, move

pytestmark = pytest.mark.qemu


class PrintedMachine(QemuMachine):
    """A destination with the command line that ``parmig qemu-args`` prints for *source*.

    Args:
        options: of the command, besides the guest and the directory.
    """

    def __init__(self, source: QemuMachine, *options: str) -> None:
        super().__init__(incoming=True)
        if (source.directory / "initrd").exists():
            shutil.copy(source.directory / "initrd", self.directory)
        directories = f"{source.directory}={self.directory}"
        arguments = ["qemu-args", "--guest", f"qemu:{source.socket}", "--map", directories, *options]
        printed = subprocess.run(
            [sys.executable, "-m", "parmig", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.notes = printed.stderr
        self.command = [machines.QEMU, *shlex.split(printed.stdout)[1:]]


@pytest.mark.parametrize("memory", ["same", "shared"])
def test_a_linux_moves_to_the_qemu_that_was_printed(initrd: Path, memory: str) -> None:
    with QemuMachine(initrd, rate=10) as source, PrintedMachine(source, "--memory", memory) as destination:
        assert destination.notes == ""
        assert "-append" in destination.command
        source.wait_for_serial("TICK 2 ")
        move(source, destination, "--workers", "2")
        goes_on(source, destination)


@pytest.mark.parametrize("memory", ["private", "memfd"])
def test_every_kind_of_memory_starts_with_the_names_of_the_source(bare_guest: QemuMachine, memory: str) -> None:
    with PrintedMachine(bare_guest, "--memory", memory) as destination:
        there, here = (
            {one["id"]: one["size"] for one in machine.ask("query-memdev")} for machine in (bare_guest, destination)
        )
        assert there == here
        assert destination.ask("query-status")["status"] == "inmigrate"


def test_plain_memory_can_become_a_file_of_the_same_name(qemu: None) -> None:
    with QemuMachine(memory=["-machine", "pc"]) as source, PrintedMachine(source, "--memory", "shared") as destination:
        for machine in (source, destination):
            assert [one["id"] for one in machine.ask("query-memdev")] == ["pc.ram"]
        assert destination.ask("query-memdev")[0]["share"]


def test_a_device_that_came_later_is_noted(bare_guest: QemuMachine) -> None:
    bare_guest.ask("device_add", driver="virtio-rng-pci", id="late0")
    guest = ("--guest", f"qemu:{bare_guest.socket}")
    with Command("qemu-args", *guest, "--json") as command:
        code, printed = command.end()
    assert code == 0
    assert printed["arguments"][-3:] == ["-incoming", "defer", "-S"]
    assert printed["notes"] == ["'late0' was added to the source after its start; add it here too"]


def test_what_is_no_qemu_is_refused(tmp_path: Path) -> None:
    for guest, code, words in (
        ("synthetic", 2, "give a QEMU"),
        (f"qemu:{tmp_path}/none", 3, "no QEMU answers"),
    ):
        with Command("qemu-args", "--guest", guest) as command:
            assert command.end()[0] == code
            assert words in command.errors
