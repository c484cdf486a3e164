# SPDX-License-Identifier: Apache-2.0
"""Makes the part of the report that says what each codec did."""

from __future__ import annotations

from collections.abc import Mapping

from parmig.engine.reporting.report import CodecReport
from parmig.ram.codecs.registry import name_of
from parmig.ram.shared import CodecFigures
from parmig.units import NS_PER_MS


def codec_reports(figures: Mapping[int, CodecFigures]) -> list[CodecReport]:
    """What each codec did, from *figures* by codec number."""
    return [
        CodecReport(
            codec=name_of(number),
            batches=done.batches,
            raw_bytes=done.raw_bytes,
            encoded_bytes=done.encoded_bytes,
            busy_ms=done.busy_ns / NS_PER_MS,
        )
        for number, done in sorted(figures.items())
    ]
