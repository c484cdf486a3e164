# SPDX-License-Identifier: Apache-2.0
"""What one run gave, whoever moved the memory."""

from __future__ import annotations

from typing import Any

import msgspec


class Outcome(msgspec.Struct, kw_only=True):
    """One run that ended well. Times are milliseconds; None where the peer knows none.

    Attributes:
        moved_bytes: of the guest, or of the file.
        total_time_ms: of the whole move.
        setup_time_ms: the part of it before the first page.
        downtime_ms: how long the guest stood still.
        wire_bytes: what went over the network.
        source_processor_s: seconds of processor time of all processes of the source, started for the run or in it.
        destination_processor_s: the same of the destination.
        processor_s: of both.
        guest_before_bytes_per_s: how fast the guest wrote before the move, by its own count.
        guest_setup_bytes_per_s: the same while both sides were set up.
        guest_rounds_bytes_per_s: in the rounds until the pause.
        guest_after_bytes_per_s: in its first half second at the destination.
        guest_slow_down_percent: by how much it was slower in the rounds than before; negative: faster.
        guest_longest_stall_ms: the longest time in which it did not run, the pause included.
        report: all that the peer said; of parmig the report.
    """

    moved_bytes: int
    total_time_ms: float
    setup_time_ms: float | None = None
    downtime_ms: float | None = None
    wire_bytes: int | None = None
    source_processor_s: float | None = None
    destination_processor_s: float | None = None
    processor_s: float | None = None
    guest_before_bytes_per_s: float | None = None
    guest_setup_bytes_per_s: float | None = None
    guest_rounds_bytes_per_s: float | None = None
    guest_after_bytes_per_s: float | None = None
    guest_slow_down_percent: float | None = None
    guest_longest_stall_ms: float | None = None
    report: dict[str, Any] = {}
