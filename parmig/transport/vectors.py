# SPDX-License-Identifier: Apache-2.0
"""Lists of buffers for system calls that take several at once and may stop anywhere."""

from __future__ import annotations

import os

MAX_VECTORS = os.sysconf("SC_IOV_MAX")
"""The most buffers that one call takes."""


def advance(views: list[memoryview], done_bytes: int) -> None:
    """Take the first *done_bytes* off *views*, which are of bytes. No empty view is left in front."""
    done = 0
    while done < len(views) and done_bytes >= len(views[done]):
        done_bytes -= len(views[done])
        done += 1
    del views[:done]
    if done_bytes:
        views[0] = views[0][done_bytes:]
