# SPDX-License-Identifier: Apache-2.0
"""How fast the guest runs now, by its own count, for the status of a running command."""

from __future__ import annotations

import contextlib
import time

from parmig.errors import GuestError
from parmig.guests.guest import Guest
from parmig.guests.pulse import Pulsing
from parmig.units import NS_PER_S

EVERY_NS = NS_PER_S
"""How often the guest is asked, and over what time its speed is the mean. The answer has 200 samples, in 1 ms."""


class LivePulse:
    """Asks one guest, if it counts what it does.

    Attributes:
        bytes_per_s: how fast it wrote in the second before it was asked last; None: nothing is known.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest if isinstance(guest, Pulsing) else None
        self._next_ns = 0
        self._asking = False
        self.bytes_per_s: float | None = None

    def is_due(self, now_ns: int) -> bool:
        """Whether :meth:`ask` is to be called, in the guest's thread. It then counts as called."""
        if self._guest is None or self._asking or now_ns < self._next_ns:
            return False
        self._asking = True
        self._next_ns = now_ns + EVERY_NS
        return True

    def ask(self) -> None:
        """Ask the guest. A guest that fails is noticed elsewhere."""
        now_ns = time.monotonic_ns()
        with contextlib.suppress(GuestError):
            if self._guest is not None:
                pulse = self._guest.pulse(now_ns - EVERY_NS)
                self.bytes_per_s = pulse.bytes_per_s(int(pulse.at_ns[0]), now_ns) if len(pulse.at_ns) else 0.0
        self._asking = False
