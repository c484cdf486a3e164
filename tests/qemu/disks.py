# SPDX-License-Identifier: Apache-2.0
"""A Linux that reads a slow disk by direct I/O all the time and checks every page it ever read.

Its page cache is filled by the disk itself, through pages that QEMU pinned (``cache=none``): a page that was moved
before the disk had filled it is wrong at the destination, and the guest says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.qemu import machines
from tests.qemu.machines import MIB, QemuMachine, wait_until

DISK_BYTES = 16 * MIB
READERS = 4
DISK_BYTES_PER_S = 4 * MIB
"""The limit of the disk: four requests of 128 KiB are in flight for some 120 ms, and a pass reads for 4 s."""

VIRTIO_MODULES = tuple(
    f"drivers/virtio/{name}"
    for name in ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci")
)
MODULES = (*VIRTIO_MODULES, "drivers/block/virtio_blk")

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev
for name in {" ".join(Path(name).name for name in MODULES)}; do insmod /$name.ko; done
pass=0
while true; do
    pass=$((pass + 1)); echo PASS $pass
    for reader in {" ".join(map(str, range(READERS)))}; do
        dd if=/dev/vda of=/dev/null bs=64k skip=$((reader * {DISK_BYTES // READERS // 65536})) \\
            count={DISK_BYTES // READERS // 65536} 2>/dev/null &
    done
    wait
    wrong=0; place=0
    while read sum; do
        found=$(dd if=/dev/vda bs=1M skip=$place count=1 2>/dev/null | md5sum)
        [ "$found" = "$sum" ] || wrong=$((wrong + 1))
        place=$((place + 1))
    done < /sums
    echo CHECKED $pass $wrong
    echo 3 > /proc/sys/vm/drop_caches
done
"""

_GROUPS = Path("/sys/fs/cgroup/blkio")


def missing() -> str | None:
    """What these tests need besides QEMU and do not find, or None."""
    if not os.access(_GROUPS / "blkio.throttle.read_bps_device", os.R_OK):
        return "no cgroup v1 blkio controller to slow a disk down with"
    return missing_module(MODULES[-1])


def missing_module(name: str) -> str | None:
    """Why the kernel's module *name* cannot be had, or None."""
    return None if _module(name) else f"no modules of kernel {machines.kernel()} in /lib/modules"


def _module(name: str) -> Path | None:
    release = (machines.kernel() or "").partition("vmlinuz-")[2]
    found = sorted(Path(f"/lib/modules/{release}/kernel").glob(f"{name}.ko*")) if release else []
    return found[0] if found else None


class SlowDisk:
    """A disk image whose readers are slowed down by the kernel; a context manager.

    Args:
        directory: on a real file system: tmpfs knows no direct I/O.
    """

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk"
        self._group = _GROUPS / f"parmig-test-{os.getpid()}"
        content = random.Random(1).randbytes(DISK_BYTES)
        self.image.write_bytes(content)
        os.sync()
        self.sums = [hashlib.md5(content[at : at + MIB]).hexdigest() for at in range(0, DISK_BYTES, MIB)]

    def __enter__(self) -> SlowDisk:
        self._group.mkdir(exist_ok=True)
        device = os.stat(self.image).st_dev
        self.limit(DISK_BYTES_PER_S)
        assert os.major(device), f"{self.image} lies on no disk"
        return self

    def limit(self, bytes_per_s: int) -> None:
        """Change the limit; 0 is none."""
        device = os.stat(self.image).st_dev
        limit = f"{os.major(device)}:{os.minor(device)} {bytes_per_s}"
        (self._group / "blkio.throttle.read_bps_device").write_text(limit)

    def slow_down(self, machine: QemuMachine) -> None:
        """From now on *machine* reads slowly."""
        (self._group / "cgroup.procs").write_text(str(machine.pid))

    def __exit__(self, *_: object) -> None:
        self.image.unlink()
        deadline = time.monotonic() + 10
        while self._group.exists():  # the kernel takes a moment to see that the last process has ended
            with contextlib.suppress(OSError):
                self._group.rmdir()
            assert time.monotonic() < deadline, f"{self._group} is still in use"
            time.sleep(0.01)

    def options(self, *, iothread: bool) -> tuple[str, ...]:
        """Of a QEMU that has the disk."""
        drive = f"file={self.image},if=none,id=disk,format=raw,cache=none,read-only=on,file.locking=off"
        thread = ("-object", "iothread,id=io0") if iothread else ()
        device = "virtio-blk-pci,drive=disk" + (",iothread=io0" if iothread else "")
        return (*thread, "-drive", drive, "-device", device)


def build_initrd(directory: Path, disk: SlowDisk) -> Path:
    """Write an initrd with the reading guest into *directory*."""
    sums = "".join(f"{one}  -\n" for one in disk.sums)
    return build_disk_initrd(directory, INIT, {"sums": sums.encode()})


def build_disk_initrd(
    directory: Path,
    init: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
    modules: Sequence[str] = MODULES,
) -> Path:
    """Write an initrd into *directory* that has *modules* of the kernel beside *files*.

    Args:
        init: its first program; it loads the modules.
    """
    root = directory / "reader"
    for name in ("bin", "proc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    for name, data in files.items():
        (root / name).write_bytes(data)
    for name in modules:
        path = _module(name)
        assert path is not None, name
        data = path.read_bytes()
        (root / f"{Path(name).name}.ko").write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
    return machines.pack_initrd(root, directory / "reader-initrd")


class ReadingMachine(QemuMachine):
    """A QEMU with the reading guest, or one that waits for it.

    Args:
        initrd: of :func:`build_initrd`.
        disk: the disk.
        iothread: whether the disk has a thread of its own.
        incoming: start with ``-incoming defer``.
    """

    def __init__(self, initrd: Path, disk: SlowDisk, *, iothread: bool, incoming: bool = False) -> None:
        super().__init__(initrd, incoming=incoming, extra=disk.options(iothread=iothread))
        self._disk = disk

    def __enter__(self) -> Self:
        super().__enter__()
        self._disk.slow_down(self)
        return self

    def checks(self) -> list[int]:
        """Of each pass that ended: how many pieces of the disk were wrong in memory."""
        return [int(wrong) for wrong in re.findall(r"CHECKED \d+ (\d+)", self.serial())]

    def requests_in_flight(self) -> int:
        """How many threads of QEMU wait for the disk now."""
        states: list[str] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        return states.count("D")

    def wait_for_requests(self) -> None:
        """Wait until the guest waits for several requests to the disk."""
        wait_until(lambda: self._alive() and self.requests_in_flight() > 1, "requests to the disk", 120)

    def wait_for_checks(self, more: int = 1) -> None:
        """Wait until *more* passes were checked from now on."""
        wanted = len(self.checks()) + more
        wait_until(lambda: self._alive() and len(self.checks()) >= wanted, f"{more} more checks", 120)


@contextlib.contextmanager
def reading_disk(directory: Path) -> Iterator[tuple[SlowDisk, Path]]:
    """A slow disk and the initrd of the guest that reads it."""
    with SlowDisk(directory) as disk:
        yield disk, build_initrd(directory, disk)
