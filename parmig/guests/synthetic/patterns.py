# SPDX-License-Identifier: Apache-2.0
"""How the patterns ``hot`` and ``burst`` of a synthetic guest write; prediction and simulation use it, too."""

from __future__ import annotations

from parmig.units import NS_PER_S

HOT_TENTHS = 9
"""``hot`` sends this many tenths of its writes to its hot pages."""

BURST_NS = NS_PER_S // 2
"""``burst`` writes for so long at twice its rate, and then not for as long."""


def hot_pages(touched_pages: int) -> int:
    """How many of *touched_pages* the pattern ``hot`` writes to most: a tenth of them, and at least one."""
    return max(1, touched_pages // 10)
