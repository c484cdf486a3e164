# SPDX-License-Identifier: Apache-2.0
"""A process with memory of its own, which does with it what its standard input says: see :class:`MemoryOwner`.

Run as a program: ``memory_owner.py KIND PAGES PAGE_BYTES [FD]``. KIND is ``anonymous``; ``pieces``: two mappings, the
first half at the higher address; or ``private``: a private mapping of FD. Commands: ``set PAGE BYTE``, ``drop PAGE``
(MADV_DONTNEED), ``wipe 0`` (all of them), ``get PAGE`` answers with the page in hexadecimal.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Sequence

from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock, Segment

_FLAGS = mmap.MAP_PRIVATE | 0x4000  # MAP_NORESERVE


class MemoryOwner:
    """The process, and what it is told.

    Args:
        fd: a file that it maps privately; -1: none.
    """

    def __init__(self, kind: str, pages: int, page_bytes: int = PAGE_BYTES, fd: int = -1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.memory_owner", kind, str(pages), str(page_bytes), str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[fd] if fd >= 0 else [],
        )
        self.pid = self._process.pid
        places = [int(word) for word in self._answer().split()]
        part = pages // len(places)
        self.segments = tuple(Segment(number * part, part, address) for number, address in enumerate(places))
        self.memory = BlockMemory(
            RamBlock("pc.ram", pages * PAGE_BYTES, page_bytes), fd=fd, pid=self.pid, segments=self.segments
        )

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def store(self, page: int, byte: int) -> None:
        """Fill a page."""
        self._ask("set", page, byte)

    def drop(self, page: int) -> None:
        """Give a page back."""
        self._ask("drop", page)

    def wipe(self) -> None:
        """Give all pages back."""
        self._ask("wipe", 0)

    def fetch(self, page: int) -> bytes:
        """A page as the process sees it."""
        return bytes.fromhex(self._ask("get", page))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main(kind: str, pages: int, page_bytes: int, fd: int) -> None:
    """Own the memory until standard input ends."""
    size = pages * PAGE_BYTES
    if kind == "pieces":
        area = mmap.mmap(-1, size + PAGE_BYTES, flags=_FLAGS | mmap.MAP_ANONYMOUS)
        halves = [memoryview(area)[size // 2 + PAGE_BYTES :], memoryview(area)[: size // 2]]
    else:
        area = mmap.mmap(fd, size, flags=_FLAGS | (mmap.MAP_ANONYMOUS if fd < 0 else 0))
        halves = [memoryview(area)]
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if fd < 0:
        area.madvise(mmap.MADV_NOHUGEPAGE)
    offsets = [size // 2 + PAGE_BYTES, 0] if kind == "pieces" else [0]
    sys.stdout.write(" ".join(str(base + offset) for offset in offsets) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        word, page, *rest = line.split()
        half, at = divmod(int(page) * PAGE_BYTES, size // len(halves))
        _obey(area, halves[half], offsets[half], at, word, rest, page_bytes)


def _obey(
    area: mmap.mmap, half: memoryview, offset: int, at: int, word: str, rest: Sequence[str], page_bytes: int
) -> None:
    answer = ""
    if word == "set":
        half[at : at + PAGE_BYTES] = bytes([int(rest[0])]) * PAGE_BYTES
    elif word == "wipe":
        area.madvise(mmap.MADV_DONTNEED)
    elif word == "drop":
        area.madvise(mmap.MADV_DONTNEED, offset + at, page_bytes)
    else:
        answer = half[at : at + PAGE_BYTES].hex()
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
