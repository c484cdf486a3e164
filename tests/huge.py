# SPDX-License-Identifier: Apache-2.0
"""Huge pages of 2 MiB for tests: asked of the kernel for as long as they run, and given back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parmig.units import MIB

HUGE_BYTES = 2 * MIB
UNIT_PAGES = HUGE_BYTES // 4096
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


def free_huge_pages() -> int:
    """Pages of the pool that nothing uses yet; they may be reserved."""
    return int((_POOL / "free_hugepages").read_text())


def taken_huge_pages(work: Callable[[], object], expected: int) -> int:
    """How many huge pages of the pool *work* takes.

    Other test processes take and give back pages, too, so *work* is done again until it takes what is expected, 20
    times at most.
    """
    for _ in range(20):
        before = free_huge_pages()
        work()
        if (taken := before - free_huge_pages()) == expected:
            break
    return taken


def _add(pages: int) -> None:
    """Change the pool by so many pages; other test processes do the same."""
    with open("/run/lock/parmig-tests-hugepages", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pool = _POOL / "nr_hugepages"
        wanted = int(pool.read_text()) + pages
        pool.write_text(str(wanted))
        if pages > 0 and int(pool.read_text()) < wanted:
            pool.write_text(str(wanted - pages))
            raise OSError(f"the kernel has no {pages} huge pages to give")


@contextlib.contextmanager
def more_huge_pages(pages: int) -> Iterator[None]:
    """So many huge pages more, or a skip with the reason; where CI is set they must be there."""
    try:
        _add(pages)
    except OSError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}; tests with huge pages are mandatory where CI is set")
        pytest.skip(f"no huge pages here: {error}")
    try:
        yield
    finally:
        _add(-pages)


@contextlib.contextmanager
def hugetlbfs(directory: Path) -> Iterator[Path]:
    """A hugetlbfs mounted at *directory*."""
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def huge_memfd(name: str) -> int:
    """A memory file of huge pages without a name in any file system."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_HUGETLB)


def huge_file(directory: Path, name: str) -> int:
    """A file on hugetlbfs."""
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


@contextlib.contextmanager
def huge_tmpfs(directory: Path, *options: str) -> Iterator[Path]:
    """A tmpfs mounted at *directory* that gives huge pages to mappings that ask for them; a skip without the rights."""
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(("huge=advise", *options)), "tmpfs", directory]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs with huge pages here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
