# SPDX-License-Identifier: Apache-2.0
"""The event of a program of the user that has ended."""

from __future__ import annotations

from parmig.engine.plan.events import Event
from parmig.errors import ParmigError


class HookEnded(Event, frozen=True):
    """The program for the moment *when* has ended; *error* says how it failed, or is None."""

    when: str
    error: ParmigError | None = None
