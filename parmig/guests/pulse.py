# SPDX-License-Identifier: Apache-2.0
"""What a guest notes of its own speed, to show what it feels of a migration. It knows nothing of migrations."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

Numbers = npt.NDArray[np.int64]

SAMPLES_MAX = 1 << 15
"""As many samples as a guest keeps: 164 s with one each 5 ms, in 512 KiB."""


class Pulse(msgspec.Struct, frozen=True):
    """How much a guest has done, at instants at which it ran.

    Attributes:
        at_ns: ascending instants on the clock of ``time.monotonic_ns()``. Between two of them that are far apart, the
            guest stood still.
        pages: how many pages it had written until then; a page counts each time.
        asked_bytes_per_s: how fast it would write if nothing held it back; None: as fast as it can.
    """

    at_ns: Numbers
    pages: Numbers
    asked_bytes_per_s: float | None = None

    def bytes_per_s(self, begin_ns: int, end_ns: int) -> float | None:
        """How fast it wrote from *begin_ns* to *end_ns*; None: too little is known of that time."""
        if not len(self.at_ns) or end_ns <= begin_ns or begin_ns < self.at_ns[0]:
            return None
        first, last = np.interp([begin_ns, end_ns], self.at_ns, self.pages).tolist()
        return float((last - first) * PAGE_BYTES * NS_PER_S / (end_ns - begin_ns))

    def longest_stall_ns(self, begin_ns: int, end_ns: int) -> int:
        """The longest time within *begin_ns* and *end_ns* in which it did not run. 0: nothing is known."""
        inside = self.at_ns[(self.at_ns > begin_ns) & (self.at_ns < end_ns)]
        if not len(self.at_ns) or end_ns <= begin_ns:
            return 0
        return int(np.diff(np.concatenate(([begin_ns], inside, [end_ns]))).max())


class Pulsing(ABC):
    """A guest that notes how much it does."""

    @abstractmethod
    def pulse(self, since_ns: int = 0) -> Pulse:
        """What it has noted from *since_ns* on, at most SAMPLES_MAX samples. Must not disturb the guest.

        Raises:
            GuestError: the monitor failed, or is gone.
        """


class PulseLog:
    """(in the monitor) Keeps the last samples.

    Args:
        asked_bytes_per_s: see :class:`Pulse`.
    """

    def __init__(self, asked_bytes_per_s: float | None = None) -> None:
        self.asked_bytes_per_s = asked_bytes_per_s
        self._samples: Numbers = np.zeros((SAMPLES_MAX, 2), dtype=np.int64)
        self._count = 0

    def note(self, now_ns: int, pages: int) -> None:
        """The guest runs at *now_ns*, and has written *pages* pages so far."""
        self._samples[self._count % SAMPLES_MAX] = now_ns, pages
        self._count += 1

    def since(self, since_ns: int) -> Pulse:
        """The samples from *since_ns* on."""
        begin = self._count % SAMPLES_MAX
        ordered = self._samples[: self._count] if self._count <= SAMPLES_MAX else np.roll(self._samples, -begin, axis=0)
        kept = ordered[np.searchsorted(ordered[:, 0], since_ns) :]
        return Pulse(kept[:, 0].copy(), kept[:, 1].copy(), self.asked_bytes_per_s)
