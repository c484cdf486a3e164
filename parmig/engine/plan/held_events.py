# SPDX-License-Identifier: Apache-2.0
"""The events of the source's plan after the destination's receiver was started again."""

from __future__ import annotations

from parmig.engine.plan.events import Event
from parmig.ram.shared import WorkerCounters


class PeerRestarted(Event, frozen=True):
    """The receiver was started again. Nobody knows what of the last batches the destination holds.

    Attributes:
        counters: of each worker, as of now.
    """

    counters: tuple[WorkerCounters, ...]


class WorkerCheckedHeld(Event, frozen=True):
    """A worker has compared a part of a region with what the destination holds; see ``held_pages.Checked``."""

    worker: int
    region: int
    proven_pages: int
    again_pages: int
    unarmed: bool
