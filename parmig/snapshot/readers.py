# SPDX-License-Identifier: Apache-2.0
"""The worker processes that read a snapshot, as their coordinator sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from parmig.config import SNAPSHOT_PROGRAMS
from parmig.engine.messages import worker_messages
from parmig.engine.messages.worker_messages import (
    DigestRegions,
    Placed,
    PlaceRegions,
    PlaceStream,
    RegionDigests,
    WorkerReady,
)
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting import error_reports
from parmig.engine.worker_setups import memory_for_workers
from parmig.errors import GuestError, LimitExceededError, ProtocolError
from parmig.ram.bits import Bits
from parmig.ram.blocks import BlockMemory
from parmig.ram.reach.open_reach import check_reachable
from parmig.ram.region_digest import combine
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea, WorkerCounters
from parmig.snapshot.file_digest import digest_pieces
from parmig.snapshot.opened import OpenSnapshot
from parmig.snapshot.worker_setup import RestoreSetup
from parmig.transport.polling import Poller
from parmig.units import NS_PER_S

POLL_MS = 200

STALL_LIMIT_NS = 60 * NS_PER_S
"""After this long without an answer or a page, the disk, or the server that has the file, is taken to hang."""

E = TypeVar("E")


class Readers:
    """Workers over one snapshot and one guest's memory; a context manager that ends them.

    Args:
        snapshot: opened; used, not owned.
        memory: of all blocks in the file: where their pages go.
        workers: how many.
        watch_fd: readable when the guest's monitor died, or None.
        wake_fd: another descriptor that ends a wait for the workers.
        turn: called several times a second during a wait; raises to end it.

    Attributes:
        counters: of each worker, once it has placed everything.
    """

    def __init__(
        self,
        snapshot: OpenSnapshot,
        memory: Sequence[BlockMemory],
        workers: int,
        *,
        watch_fd: int | None,
        wake_fd: int,
        turn: Callable[[], None],
    ) -> None:
        self._snapshot = snapshot
        self._memory = memory
        self._workers = workers
        self._turn = turn
        self._blocks = tuple(part.block for part in memory)
        self._region_pages = region_pages_for(self._blocks, workers)
        self._regions = len(cut(self._blocks, self._region_pages))
        self._shared = SharedArea(-1, workers=workers, blocks=self._blocks, regions=self._regions)
        self._pool = WorkerPool(SNAPSHOT_PROGRAMS[1], "load worker")
        self._poller = Poller(wake_fd, watch_fd)
        self._watch_fd = watch_fd
        self.counters: list[WorkerCounters] = []

    def start(self) -> None:
        """Start the workers."""
        check_reachable(self._memory)
        places = {entry.name: entry.mapped for entry in self._snapshot.blocks}
        mapped = [place for block in self._blocks if (place := places[block.name]) is not None]
        memory, descriptors = memory_for_workers(self._memory)
        for worker in range(self._workers):
            setup = RestoreSetup(
                worker=worker,
                workers=self._workers,
                blocks=self._blocks,
                memory=memory,
                region_pages=self._region_pages,
                file=self._snapshot.name,
                body_bytes=self._snapshot.body_bytes,
                bitmap_offsets_bytes=tuple(place.bitmap_offset_bytes for place in mapped),
                pages_offsets_bytes=tuple(place.pages_offset_bytes for place in mapped),
            )
            self._pool.start(setup, [self._shared.fd, self._snapshot.fd, *descriptors])
        self._poller.watch(*self._pool.pollables())
        self._gather(WorkerReady, self._workers)

    def digest(self) -> str:
        """The digest of the file, without its trailer.

        Raises:
            WorkerError, LimitExceededError: it could not be made.
        """
        pieces = len(digest_pieces(self._snapshot.name, self._snapshot.body_bytes))
        for worker in range(self._workers):
            self._pool.instruct(worker, DigestRegions(tuple(range(worker, pieces, self._workers))))
        digests: dict[int, int] = {}
        for event in self._gather(RegionDigests, self._workers):
            digests |= event.digests
        return combine(digests, pieces)

    def place_mapped(self) -> None:
        """Place all pages from their places in the file.

        Raises:
            ParmigError: a worker failed; the memory is not usable.
        """
        for worker in range(self._workers):
            self._pool.instruct(worker, PlaceRegions(tuple(range(worker, self._regions, self._workers))))
        self.counters = [event.counters for event in self._gather(Placed, self._workers)]

    def place_sequential(self, *, check_only: bool) -> int:
        """Let one worker read the file from its start; returns where its pages end.

        Args:
            check_only: place nothing.

        Raises:
            StreamError: the stream is damaged.
            ParmigError: a worker failed.
        """
        self._pool.instruct(0, PlaceStream(check_only))
        (placed,) = self._gather(Placed, 1)
        self.counters = [placed.counters]
        return placed.end_bytes

    @property
    def handled_pages(self) -> int:
        """Pages that all workers together have placed so far."""
        return sum(self._shared.counters(worker).handled_pages for worker in range(self._workers))

    def existing(self, block: int) -> Bits:
        """Which pages of that block of memory exist. A view."""
        return self._shared.bits[block]

    def _gather(self, kind: type[E], count: int) -> list[E]:
        """Wait for one event of *kind* from each of *count* workers; returns them in the order of the workers."""
        events: dict[int, E] = {}
        seen, since_ns = self.handled_pages, time.monotonic_ns()
        while len(events) < count:
            ready = self._poller.poll(POLL_MS)
            self._turn()
            if self._watch_fd in ready:
                raise GuestError("the guest's virtual machine monitor died while its memory was filled")
            for worker, event in self._pool.read():
                if isinstance(event, worker_messages.WorkerFailed):
                    raise error_reports.restore_error(event.error)
                if not isinstance(event, kind):
                    raise ProtocolError(f"load worker {worker} sent an unexpected {type(event).__name__}")
                events[worker] = event
                since_ns = time.monotonic_ns()
            if (handled := self.handled_pages) != seen:
                seen, since_ns = handled, time.monotonic_ns()
            if time.monotonic_ns() - since_ns > STALL_LIMIT_NS:
                raise LimitExceededError(
                    f"{self._snapshot.name}: nothing was read for {STALL_LIMIT_NS // NS_PER_S} s; check its disk"
                )
        return [events[worker] for worker in sorted(events)]

    def close(self) -> None:
        """End the workers. Calling it twice is fine."""
        self._pool.close()
        if self._shared.fd >= 0:
            self._shared.close()
            self._shared.fd = -1

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
