# SPDX-License-Identifier: Apache-2.0
"""The events that only the plan of a snapshot takes."""

from __future__ import annotations

from parmig.engine.plan.events import Event


class WentOn(Event, frozen=True):
    """The guest has been running here again since *ran_ns*."""

    ran_ns: int


class Composed(Event, frozen=True):
    """The file is complete but for its digest, which is made of *pieces* pieces."""

    pieces: int


class Committed(Event, frozen=True):
    """The file has its name."""
