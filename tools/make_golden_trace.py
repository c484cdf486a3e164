# SPDX-License-Identifier: Apache-2.0
"""Make the trace of ``tests/ram/traces/test_trace_golden.py``: ``python -m tools.make_golden_trace``.

Only for a new version of the format: earlier files must stay readable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parmig.ram.bits import NO_INDEX
from parmig.ram.traces.trace import Trace, TraceBlock, TraceSource
from parmig.ram.traces.trace_file import write_trace
from parmig.units import NS_PER_MS

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "workload.trace"


def trace() -> Trace:
    """A trace with every kind of interval: single pages, runs, the last page, nothing, and a late scan."""
    return Trace(
        interval_ns=100 * NS_PER_MS,
        memory_pages=5000,
        written=[
            np.array([0, 1, 2, 7, 4999]),
            NO_INDEX,
            np.arange(10, 3000),
            NO_INDEX,
            np.arange(1, 5000, 2),
        ],
        scanned_ns=[number * NS_PER_MS for number in (101, 201, 405, 405, 501)],
        source=TraceSource(
            kind="qemu",
            machine="pc-q35-10.0",
            monitor="QEMU 10.0.0",
            tracker="pagemap",
            recorded="2026-11-30T20:00:00Z",
            parmig="0.5.0",
            blocks=(TraceBlock(name="pc.ram", pages=4096), TraceBlock(name="vga", pages=904)),
        ),
    )


def main() -> None:
    """Write the file."""
    with FILE.open("wb") as file:
        write_trace(file, trace())
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
