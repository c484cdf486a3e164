# SPDX-License-Identifier: Apache-2.0
"""(destination) The digest of all memory, which a source may ask for once, in its pause. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.messages.worker_messages import DigestRegions
from parmig.engine.plan.events import Instruct
from parmig.ram.region_digest import combine


class RequestedDigest:
    """Asks the workers, and puts their answers together.

    Args:
        owned: region numbers by worker.
        regions: how many there are.
        announced: whether the source said that it would ask.

    Attributes:
        may_be_asked: whether the source may ask now.
        awaited: the workers that have not answered yet.
    """

    def __init__(self, owned: Sequence[Sequence[int]], regions: int, *, announced: bool) -> None:
        self.may_be_asked = announced
        self.awaited: set[int] = set()
        self._owned = owned
        self._regions = regions
        self._digests: dict[int, int] = {}

    def ask(self) -> list[Instruct]:
        """The source asks."""
        self.may_be_asked = False
        self.awaited = set(range(len(self._owned)))
        return [Instruct(worker, DigestRegions(tuple(numbers))) for worker, numbers in enumerate(self._owned)]

    def add(self, worker: int, digests: dict[int, int]) -> str | None:
        """A worker has answered; returns the digest once all have."""
        self._digests |= digests
        self.awaited.discard(worker)
        return None if self.awaited else combine(self._digests, self._regions)
