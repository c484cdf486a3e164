# SPDX-License-Identifier: Apache-2.0
"""``parmig send --check`` between real QEMUs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.machines import MIB, QemuMachine
from tests.qemu.test_migration import goes_on, move, receive, send

pytestmark = pytest.mark.qemu


def hardware(image: Path, *, address: str = "5", cpus: int = 2) -> tuple[str, ...]:
    """Options for a disk, a network device and virtual CPUs."""
    drive = f"driver=raw,node-name=n0,file.driver=file,file.filename={image},file.locking=off"
    disk = ("-blockdev", drive, "-device", "virtio-blk-pci,drive=n0,id=d0,share-rw=on")
    return (*disk, "-device", f"virtio-net-pci,id=net0,addr={address}", "-smp", str(cpus))


@pytest.fixture
def images() -> Iterator[list[Path]]:
    """Two images in memory, where a QEMU in a chroot finds them too."""
    with tempfile.TemporaryDirectory(prefix="parmig-images-", dir="/dev/shm") as directory:
        paths = [Path(directory) / name for name in ("a.img", "b.img")]
        for path in paths:
            path.write_bytes(bytes(MIB))
        yield paths


def test_a_guest_that_fits_is_checked_untouched_and_then_moved(initrd: Path, images: list[Path]) -> None:
    extra = hardware(images[0])
    with QemuMachine(initrd, extra=extra) as source, QemuMachine(initrd, extra=extra, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        settings = source.settings(), destination.settings()
        with receive(destination) as there, send(source, there.uri(), "--check") as check:
            code, report = check.end()
            assert (code, report["status"], report["mismatches"]) == (0, "checked", []), check.errors
            assert there.process.poll() is None
            assert (source.settings(), destination.settings()) == settings
            assert source.ask("query-status")["status"] == "running"
            assert source.tracked_mappings() == 0
            assert destination.ask("query-status")["status"] == "inmigrate"
        move(source, destination, "--workers", "2")
        goes_on(source, destination)


def test_all_hardware_that_differs_is_listed(images: list[Path]) -> None:
    here = hardware(images[0])
    there = ("-cpu", "qemu64,-sse2", *hardware(images[1], address="6", cpus=1), "-device", "qemu-xhci,id=usb")
    with (
        QemuMachine(extra=here) as source,
        QemuMachine(extra=there, incoming=True) as destination,
        receive(destination) as receiver,
    ):
        options = ("--check", "--tracker", "bitmap", "--auto-converge")
        with send(source, receiver.uri(), *options) as check:
            code, report = check.end()
        assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), check.errors
        found = {one.pop("what"): one for one in report["mismatches"]}
        assert "--tracker pagemap" in found.pop("--tracker")["advice"]
        assert "leave out --auto-converge" in found.pop("--auto-converge")["advice"]
        roms = [found.pop(what) for what in list(found) if what.startswith("RAM block")]
        assert [(bool(rom["source"]), bool(rom["destination"])) for rom in roms] == [(True, False), (False, True)]
        assert list(found) == ["virtual CPUs", "devices", "disks", "CPU features"]
        assert (found["virtual CPUs"]["source"], found["virtual CPUs"]["destination"]) == ("2 (2 cores)", "1")
        assert found["devices"]["source"] == "virtio-net-pci 'net0' on pci.0 addr 05.0"
        assert "qemu-xhci 'usb' on pci.0" in found["devices"]["destination"]
        assert "virtio-net-pci 'net0' on pci.0 addr 06.0" in found["devices"]["destination"]
        assert found["disks"]["source"] == "d0: raw 1 MiB a.img"
        assert found["disks"]["destination"] == "d0: raw 1 MiB b.img"
        assert (found["CPU features"]["source"], found["CPU features"]["destination"]) == ("sse2", "")
        with send(source, receiver.uri()) as sender:
            code, report = sender.end()
        assert code == 3
        for what in found:
            assert what in report["error"]["message"]
        assert receiver.process.poll() is None
