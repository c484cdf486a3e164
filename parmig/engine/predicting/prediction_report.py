# SPDX-License-Identifier: Apache-2.0
"""What ``parmig predict --json`` prints. Field names are a contract: names may be added, never renamed."""

from __future__ import annotations

import msgspec

from parmig.engine.prediction.costs import CodecCosts
from parmig.engine.prediction.model import Prediction


class WorkingSetPoint(msgspec.Struct, kw_only=True):
    """Different pages that the guest writes within a time, in bytes; *spread*: how much single windows differ."""

    within_s: float
    written_bytes: float
    spread: float


class PredictedCell(msgspec.Struct, kw_only=True):
    """One setting, what is expected of it, and what to change if that does not converge."""

    workers: int
    paths: int
    compress: str
    downtime_limit_ms: float
    rate_bytes_per_s: float
    prediction: Prediction
    advice: list[str] = []


class PredictionReport(msgspec.Struct, kw_only=True):
    """What was observed, and all settings of the grid."""

    parmig: str
    guest: str
    tracker: str
    observed_s: float
    interval_ms: float
    memory_bytes: int
    data_bytes: int
    zero_bytes: int
    working_set: list[WorkingSetPoint] = []
    codecs: dict[str, CodecCosts] = {}
    predictions: list[PredictedCell] = []
