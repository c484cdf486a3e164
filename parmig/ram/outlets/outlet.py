# SPDX-License-Identifier: Apache-2.0
"""The interface of the place to which the source end of the page path passes its pages."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.bits import Index, Runs
from parmig.ram.regions import Region


class Outlet(ABC):
    """Takes the batches of one worker, in order."""

    knows_nothing = True
    """Whether zero pages of the first pass must be sent, because their places may hold other data."""

    most_pages = sys.maxsize
    """How many pages a batch should have at most, besides the agreed limit. It may change after each batch."""

    def most_long_pages(self, block: int) -> int:
        """How many pages of *block* a long batch should have at most, at this moment; 0: there are no long ones."""
        return 0

    def load(self) -> ChannelLoad | None:
        """What a channel still has to carry; None: this is a file."""
        return None

    @abstractmethod
    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        """Take one batch: the pages *data* of *block* as they are now, and runs of its pages that are zero.

        One of them may be empty. A page that the guest writes meanwhile comes again later.

        Returns:
            how many bytes were sent or written.
        """

    def taken_over(self, region: Region) -> None:
        """Take note that another worker sent *region* since this outlet took pages of it."""

    @abstractmethod
    def fence(self, round_: int) -> None:
        """Return when every page of the round is in place."""

    @property
    @abstractmethod
    def waiting_ns(self) -> int:
        """Nanoseconds spent waiting for an instruction, for credit or for the rate limit."""
