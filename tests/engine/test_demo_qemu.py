# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from parmig.engine import demo_qemu
from parmig.engine.demo_qemu import command, qemu_pair
from parmig.errors import GuestError, HostRefusedError
from parmig.units import MIB

if shutil.which(demo_qemu.QEMU) is None and os.environ.get("CI") != "true":
    no_qemu = pytest.mark.skip(reason=f"{demo_qemu.QEMU} is not installed")
else:
    no_qemu = pytest.mark.qemu


def leftovers() -> set[Path]:
    return {path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("parmig-demo-*")}


def greeting(guest: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(20)
        qmp.connect(guest.removeprefix("qemu:"))
        return qmp.recv(4096)


@no_qemu
def test_two_qemus_answer_and_leave_nothing_behind() -> None:
    before = leftovers()
    with qemu_pair(32 * MIB, kernel="", initrd="") as pair:
        assert len(leftovers() - before) == 2
        for guest in pair:
            assert b'"QMP"' in greeting(guest)
    assert leftovers() == before


@no_qemu
def test_a_qemu_that_does_not_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    before = leftovers()
    with (
        pytest.raises(GuestError, match="did not start"),
        qemu_pair(32 * MIB, kernel=str(tmp_path / "nothing"), initrd=""),
    ):
        pass
    assert leftovers() == before


def test_only_the_destination_waits() -> None:
    for incoming in (True, False):
        line = command(Path("/d"), Path("/m"), 64 * MIB, incoming=incoming, kernel="", initrd="")
        assert ("-incoming" in line) is incoming
        assert ("-S" in line) is incoming
        assert "memory-backend-file,id=ram0,size=67108864,mem-path=/m,share=on" in line


def test_memory_that_fits_nowhere_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(HostRefusedError, match="TMPDIR"), qemu_pair(1 << 60, kernel="", initrd=""):
        pass
