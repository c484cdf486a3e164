# SPDX-License-Identifier: Apache-2.0
"""What the source end of the page path asks of the place that pages go to."""

from __future__ import annotations

from abc import ABC, abstractmethod

from parmig.ram.bits import Index


class Outlet(ABC):
    """Takes the batches of one worker, in order."""

    knows_nothing = True
    """Whether zero pages of the first pass must be sent, because anything may be in their place."""

    @abstractmethod
    def emit(self, block: int, round_: int, data: Index, zero: Index) -> int:
        """Take one batch: pages of *block* as they are now, and pages of it that are zero.

        Both ascend; one of them may be empty. A page that is written to meanwhile comes again later.

        Returns:
            bytes that went out.
        """

    @abstractmethod
    def fence(self, round_: int) -> None:
        """Return when everything of the round is where it belongs."""

    @property
    @abstractmethod
    def waiting_ns(self) -> int:
        """Time spent without anything to do, or with leave to do nothing."""
