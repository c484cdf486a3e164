# SPDX-License-Identifier: Apache-2.0
"""For a guest all of whose blocks stay in place: there is no page to track."""

from __future__ import annotations

from parmig.ram.bits import Mask
from parmig.ram.regions import Region
from parmig.ram.trackers.tracker import DirtyTracker, Scan


class NoTracker(DirtyTracker):
    """Tracks no page. A worker without regions asks for none."""

    name = "none"

    def arm(self, span: Region) -> Mask | None:
        return None

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        return None

    def count(self, span: Region) -> int:
        return 0
