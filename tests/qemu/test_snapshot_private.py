# SPDX-License-Identifier: Apache-2.0
"""Snapshots of guests whose memory is of any kind, with ``state=devices``: no block travels in the device state."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.huge import HUGE_BYTES, hugetlbfs, more_huge_pages
from tests.integration.sides import Command
from tests.qemu import disks
from tests.qemu.machines import MIB, QemuMachine, wait_until
from tests.qemu.test_any_memory import MEMORY_BYTES, PLAIN, arrived, pair, resident_bytes, write
from tests.qemu.test_saved_devices import DISK_INIT, disk, runs, wait_for_writes
from tests.qemu.test_snapshot_qemu import MAPPED_RAM, begins_where, load, restore, save

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def shelf() -> Iterator[Path]:
    """A directory that a QEMU in a chroot has too."""
    path = Path(f"/dev/shm/parmig-private-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def disk_initrd(disk_module: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disks.build_disk_initrd(tmp_path_factory.mktemp("writer"), DISK_INIT)


@contextmanager
def with_disk(initrd: Path, image: Path, *, incoming: bool = False) -> Iterator[QemuMachine]:
    """A Linux that was started without any thought of parmig, with a disk of its own."""
    with image.open("wb") as file:
        file.truncate(MIB)
    with QemuMachine(initrd, incoming=incoming, rate=10, memory=PLAIN, extra=disk(image)) as machine:
        yield machine


@pytest.fixture(scope="module")
def source(disk_initrd: Path, shelf: Path) -> Iterator[QemuMachine]:
    """Writes its disk and ticks; every test leaves it running."""
    with with_disk(disk_initrd, shelf / "disk") as machine:
        machine.wait_for_serial("TICK 2 ")
        yield machine


@pytest.mark.parametrize("loads_itself", [False, True], ids=["parmig", "stock"])
@pytest.mark.parametrize("format_", ["stream", "mapped-ram"])
def test_a_linux_goes_on_with_its_disk_and_so_does_its_copy(
    source: QemuMachine, disk_initrd: Path, shelf: Path, format_: str, loads_itself: bool
) -> None:
    if loads_itself and format_ == "mapped-ram" and source.version() < MAPPED_RAM:
        pytest.skip("this QEMU cannot load mapped-ram")
    before = source.settings(), source.tracked_mappings(), sorted(source.fds().values())
    saved = save(source, shelf / f"{format_}-{loads_itself}", "--format", format_)
    wait_for_writes(source, shelf / "disk")
    assert runs(source)
    assert source.ask("query-fdsets") == []
    wait_until(
        lambda: (source.settings(), source.tracked_mappings(), sorted(source.fds().values())) == before,
        "QEMU as before",
    )
    with with_disk(disk_initrd, shelf / "copy", incoming=True) as copy:
        if loads_itself:
            load(copy, saved.path, *["mapped-ram"] * (format_ == "mapped-ram"))
        else:
            assert restore(copy, saved.path)["verified"] is True
        begins_where(copy, saved)
        wait_for_writes(copy, shelf / "copy")


# -- memory of any kind --------------------------------------------------------------------------------


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    with more_huge_pages(2 * MEMORY_BYTES // HUGE_BYTES), hugetlbfs(tmp_path) as path:
        yield path


def run(machine: QemuMachine, state: str, command: str, path: Path, *options: str) -> None:
    """One ``parmig save`` or ``parmig restore`` of a guest with this option ``state``."""
    guest = f"qemu:{machine.socket},state={state}"
    with Command(command, str(path), "--guest", guest, "--workers", "2", "--json", *options) as running:
        code, report = running.end()
        assert (code, report["status"]) == (0, "completed"), running.errors


def carry(
    source: QemuMachine,
    destination: QemuMachine,
    path: Path,
    states: tuple[str, str] = ("devices", "devices"),
    format_: str = "mapped-ram",
) -> None:
    """Save a guest that never ran, and restore it, each with one of *states*."""
    write(source)
    before = [resident_bytes(machine) for machine in (source, destination)]
    run(source, states[0], "save", path, "--format", format_)
    run(destination, states[1], "restore", path)
    assert arrived(destination)
    for machine, size_bytes in zip((source, destination), before, strict=True):
        assert resident_bytes(machine) - size_bytes < 24 * MIB  # what did not exist was neither read nor written
    assert not runs(destination)


@pytest.mark.parametrize(
    ("kind", "format_"),
    [
        *((kind, "mapped-ram") for kind in ("plain", "memfd", "file", "huge memfd", "nodes")),
        *((kind, "stream") for kind in ("plain", "hugetlbfs", "dimm")),
    ],
)
def test_memory_of_every_kind_is_saved_and_restored(
    qemu: None, shelf: Path, kind: str, format_: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue("huge") if "huge" in kind else None
    with pair(kind, kind, directory) as (source, destination):
        carry(source, destination, shelf / f"{kind}-{format_}", format_=format_)


@pytest.mark.parametrize(("here", "there"), [("plain", "mem-path"), ("mem-path", "plain")])
def test_memory_may_be_of_another_kind_with_the_same_id(qemu: None, shelf: Path, here: str, there: str) -> None:
    with pair(here, there, None) as (source, destination):
        carry(source, destination, shelf / f"{here} {there}")


@pytest.mark.parametrize(("save_by", "restore_by"), [("devices", "migrate"), ("migrate", "devices")])
def test_a_file_does_not_depend_on_how_the_state_was_taken(
    qemu: None, shelf: Path, save_by: str, restore_by: str
) -> None:
    with pair("file shared", "file shared", None) as (source, destination):
        carry(source, destination, shelf / save_by, (save_by, restore_by))


def test_a_file_of_qemus_own_goes_into_private_memory(qemu: None, shelf: Path) -> None:
    with pair("plain", "plain", None) as (source, destination):
        write(source)
        inside = source.directory / "file"
        source.ask("migrate", uri=f"exec:cat > {inside}")
        wait_until(lambda: source.ask("query-migrate").get("status") == "completed", "QEMU to write the file")
        shutil.move(inside, shelf / "own")
        assert restore(destination, shelf / "own", "--paused")["snapshot"]["format"] == "stream"
        assert arrived(destination)
