# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.engine.demo import demo_qemu
from parmig.engine.demo.demo_qemu import command, qemu_pair
from parmig.errors import GuestError, HostRefusedError
from parmig.units import MIB

if shutil.which(demo_qemu.QEMU) is None and os.environ.get("CI") != "true":
    no_qemu = pytest.mark.skip(reason=f"{demo_qemu.QEMU} is not installed")
else:
    no_qemu = pytest.mark.qemu


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files in a directory of this test alone. Its name is short, as names of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="parmig-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield
        monkeypatch.undo()


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("parmig-demo-*"))


def greeting(guest: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(20)
        qmp.connect(guest.removeprefix("qemu:"))
        return qmp.recv(4096)


@no_qemu
def test_two_qemus_answer_and_leave_nothing_behind() -> None:
    with qemu_pair(32 * MIB, kernel="", initrd="") as pair:
        assert len(leftovers()) == 1
        for guest in pair:
            assert b'"QMP"' in greeting(guest)
    assert not leftovers()


@no_qemu
def test_a_qemu_that_does_not_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(GuestError, match="did not start"),
        qemu_pair(32 * MIB, kernel=str(tmp_path / "nothing"), initrd=""),
    ):
        pass
    assert not leftovers()


def test_only_the_destination_waits_and_neither_has_options_for_memory() -> None:
    for incoming in (True, False):
        line = command(Path("/d"), 64 * MIB, incoming=incoming, kernel="", initrd="")
        assert ("-incoming" in line) is incoming
        assert ("-S" in line) is incoming
        assert line[line.index("-m") + 1] == "64M"
        assert "memory-backend" not in " ".join(line)


def test_memory_that_qemu_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(HostRefusedError, match="whole MiB"), qemu_pair(MIB + 4096, kernel="", initrd=""):
        pass
