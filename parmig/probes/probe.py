# SPDX-License-Identifier: Apache-2.0
"""What a probe answers, and the memory that some of them try things on."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

Status = Literal["ok", "limited", "missing"]

TRIAL_BYTES = 64 * mmap.PAGESIZE
"""Size of the memory that probes use."""

COMMAND_LIMIT_S = 10.0
"""How long a program that a probe starts may take."""


class Probe(msgspec.Struct, frozen=True):
    """The result of one probe.

    Attributes:
        name: of the thing.
        status: ``ok``, ``limited`` (works, but slower or only in part) or ``missing``.
        detail: what was found.
        advice: what to do about it; empty when there is nothing to do.
        needed: no migration is possible without it.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""
    needed: bool = False


class trial_memory:  # noqa: N801 - used like a function
    """A small memfd, mapped and written once. Entering gives the mapping and its address."""

    def __enter__(self) -> tuple[mmap.mmap, int]:
        self._fd = os.memfd_create("parmig-probe", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, TRIAL_BYTES)
        self._map = mmap.mmap(self._fd, TRIAL_BYTES)
        self._map[:] = bytes([1]) * TRIAL_BYTES
        return self._map, int(np.frombuffer(self._map, dtype=np.uint8).ctypes.data)

    def __exit__(self, *_: object) -> None:
        self._map.close()
        os.close(self._fd)


def read(path: str) -> str:
    """The text of a small file of the kernel's, without the space around it."""
    return Path(path).read_text(encoding="utf-8", errors="replace").strip()
