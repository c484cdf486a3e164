# SPDX-License-Identifier: Apache-2.0
"""A real Linux in huge pages: moved, saved and restored, and memory that it never touched stays unallocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.huge import HUGE_BYTES, huge_tmpfs, hugetlbfs, more_huge_pages
from tests.qemu.machines import MIB, QemuMachine
from tests.qemu.test_migration import goes_on, move, receive, send
from tests.qemu.test_snapshot_qemu import begins_where, restore, save

pytestmark = pytest.mark.qemu

MEMORY_BYTES = 192 * MIB
PAGES = MEMORY_BYTES // HUGE_BYTES
KINDS = ["hugetlbfs", "hugetlbfs,prealloc", "memfd", "memfd,prealloc"]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs with room for two guests."""
    with more_huge_pages(2 * PAGES), hugetlbfs(tmp_path) as path:
        yield path


def machine(initrd: Path, directory: Path, kind: str, name: str, *, incoming: bool = False) -> QemuMachine:
    # A QEMU in a chroot sees the mount only by way of this process.
    where = f"memory-backend-file,mem-path=/proc/{os.getpid()}/root{directory}/{name}"
    if kind.startswith("memfd"):
        where = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
    prealloc = "on" if kind.endswith("prealloc") else "off"
    backend = f"{where},id=ram0,size={MEMORY_BYTES},share=on,prealloc={prealloc}"
    return QemuMachine(
        initrd,
        memory=["-machine", "pc,memory-backend=ram0", "-object", backend],
        memory_bytes=MEMORY_BYTES,
        incoming=incoming,
        rate=0 if incoming else 10,
    )


def on_tmpfs(initrd: Path, directory: Path, name: str, *, incoming: bool = False) -> QemuMachine:
    path = f"/proc/{os.getpid()}/root{directory}/{name}"
    backend = f"memory-backend-file,mem-path={path},id=ram0,size={MEMORY_BYTES},share=on"
    memory = ["-machine", "pc,memory-backend=ram0", "-object", backend]
    rate = 0 if incoming else 10
    return QemuMachine(initrd, memory=memory, memory_bytes=MEMORY_BYTES, incoming=incoming, rate=rate)


def exists(guest: QemuMachine) -> int:
    """Huge pages that the guest's memory file has."""
    for line in Path(f"/proc/{guest.pid}/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        path = f"/proc/{guest.pid}/map_files/{'-'.join(part.lstrip('0') or '0' for part in span.split('-'))}"
        if inode != "0" and os.path.exists(path) and os.stat(path).st_size == MEMORY_BYTES:
            return os.stat(path).st_blocks * 512 // HUGE_BYTES
    raise AssertionError("QEMU maps no such memory")


@pytest.mark.parametrize("kind", KINDS)
def test_a_linux_in_huge_pages_is_saved_restored_and_moved_and_nothing_is_allocated_for_it(
    initrd: Path, directory: Path, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shelf") / "s"
    preallocated = kind.endswith("prealloc")
    with machine(initrd, directory, kind, "a") as source:
        source.wait_for_serial("TICK 2 ")
        saved = save(source, path)
        source.wait_for_ticks(2)
        before = exists(source)
        assert (before == PAGES) == preallocated
        with machine(initrd, directory, kind, "b", incoming=True) as destination:
            report = move(source, destination, "--workers", "2")
            assert report["tracker"] == "pagemap"
            assert report["guest"]["page_size_bytes"] == HUGE_BYTES
            goes_on(source, destination)
            assert source.ask("query-status")["status"] == "paused"
            if not preallocated:
                assert before <= exists(source) < PAGES
                assert report["ram"]["skipped_pages"] > 0
                assert exists(destination) < PAGES
            assert source.tracked_mappings() == 0
    for name in ("a", "b"):
        (directory / name).unlink(missing_ok=True)
    with machine(initrd, directory, kind, "b", incoming=True) as copy:
        restore(copy, path)
        begins_where(copy, saved)
        if not preallocated:
            assert exists(copy) < PAGES
        if kind != "hugetlbfs":
            return
        # What was restored is cold: QEMU has mapped little of it. It is moved all the same.
        with machine(initrd, directory, kind, "c", incoming=True) as third:
            move(copy, third, "--workers", "2")
            goes_on(copy, third)


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_a_linux_arrives_in_transparent_huge_pages_where_the_host_gives_them(
    initrd: Path, tmp_path: Path, transport: str
) -> None:
    with (
        huge_tmpfs(tmp_path) as directory,
        QemuMachine(initrd, memory_bytes=MEMORY_BYTES, rate=10) as source,
        on_tmpfs(initrd, directory, "b", incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        with receive(destination) as there, send(source, there.uri(), "--transport", transport, "--verify") as here:
            code, report = here.end()
            assert (code, report["verified"]) == (0, True), here.errors
            code, received = there.end()
            assert (code, received["status"]) == (0, "completed"), there.errors
        goes_on(source, destination)
        # A channel below 170 Mbit/s, as on a host with much other work, gets batches that are smaller than a huge page;
        # the first ones have 4 MiB whatever its rate.
        assert received["ram"]["huge_page_bytes"] > 2 * HUGE_BYTES
        placed_bytes = report["ram"]["sent_pages"] * 4096
        assert exists(destination) * HUGE_BYTES <= placed_bytes * 8 // 7 + 64 * HUGE_BYTES
