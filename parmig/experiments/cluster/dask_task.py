# SPDX-License-Identifier: Apache-2.0
"""What runs in a Dask worker: a task that starts one side of a run in a process of its own, and passes its words on.

Nothing is measured in the worker's interpreter: a task that holds it for seconds makes the scheduler believe that the
worker is gone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import Any

from distributed import get_worker

SPARE_S = 60.0
"""What a side may take beyond the limit of its run, to prepare and to end. It is killed then, also if nobody asks for
it any more."""

_PROGRAM = [sys.executable, "-m", "parmig.experiments.cluster.side"]

_sides: dict[str, subprocess.Popen[str] | None] = {}
"""Those that run here, by name; None: its process is about to start."""

_ended_early: set[str] = set()
"""Names of sides that :func:`end_side` ended. A task that comes later starts nothing."""


def run_side(name: str, topic: str, order: str, limit_s: float) -> None:
    """(a task) Run a side to its end. Each line that it writes is an event of *topic*, with *name*.

    Args:
        order: the line that it reads first.
        limit_s: of the run.
    """
    worker = get_worker()

    def tell(line: str) -> None:
        worker.log_event(topic, {"side": name, "line": line})

    _sides[name] = None
    try:
        if name not in _ended_early:
            _follow(name, order, limit_s, tell)
    finally:
        del _sides[name]
        _ended_early.discard(name)
        tell("")


def _follow(name: str, order: str, limit_s: float, tell: Any) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(_PROGRAM, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        _sides[name] = process
        if name in _ended_early:
            process.terminate()
        killer = threading.Timer(limit_s + SPARE_S, process.kill)
        killer.daemon = True
        killer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(order)
            process.stdin.flush()
            for line in process.stdout:
                tell(line)
        finally:
            killer.cancel()


def tell_side(name: str, line: str) -> None:
    """Give the side *name* a line to read."""
    process = _sides.get(name)
    if process is not None and process.stdin is not None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, and says why
            process.stdin.write(line)
            process.stdin.flush()


def end_side(name: str) -> bool:
    """End the side *name* in order. False: it does not run here, and will not."""
    _ended_early.add(name)
    if name not in _sides:
        return False
    process = _sides[name]
    if process is not None:
        process.terminate()
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()  # it may wait for a line
    return True
