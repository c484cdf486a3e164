# SPDX-License-Identifier: Apache-2.0
"""The coordinator's end of the guardian: see ``workers.guardian``."""

from __future__ import annotations

import contextlib
from typing import Any

from parmig.engine import messages
from parmig.engine.messages import Disarm, Guard
from parmig.guests.base import Rescue
from parmig.processes import end_process, start_process

END_PATIENCE_S = 1.0


class Guardian:
    """One process that outlives this one for a moment, if there is anything to do then.

    Args:
        program: dotted name of the guardian program.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._process: Any = None
        self._connection: Any = None

    def arm(self, rescue: Rescue | None) -> None:
        """Start it, unless nothing needs rescuing."""
        if rescue is not None:
            self._process, self._connection = start_process(self._program, "parmig-guardian", b"", [])
            self._tell(Guard(rescue.program, rescue.setup))

    def disarm(self) -> None:
        """From here on the source guest must not be resumed by anyone."""
        if self._connection is not None:
            self._tell(Disarm())

    def _tell(self, message: Guard | Disarm) -> None:
        with contextlib.suppress(OSError):  # it was killed: then there is no guardian
            self._connection.send_bytes(messages.encode(message))

    def close(self) -> None:
        """Disarm and end it. Calling it twice is fine."""
        self.disarm()
        if self._connection is not None:
            self._connection.close()
            end_process(self._process, patience_s=END_PATIENCE_S)
            self._connection = None
