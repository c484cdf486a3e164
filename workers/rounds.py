# SPDX-License-Identifier: Apache-2.0
"""What every worker on the source does between its start and its end, whether it sends pages or writes a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NoReturn

from parmig.engine.messages.worker_messages import (
    CountDirty,
    Counted,
    Fence,
    Fenced,
    Instruction,
    RegionsDone,
    RegionsScanned,
    ScanRegions,
    SendRegions,
    Sent,
    StartTracking,
    WorkerEvent,
)
from parmig.errors import ProtocolError
from parmig.ram.reach.reach import Reach
from parmig.ram.send import MigrationRamSend
from parmig.ram.trackers.registry import open_tracker
from parmig.ram.trackers.tracker import DirtyTracker
from workers.bootstrap import Inbox

_logger = logging.getLogger(__name__)


def await_tracker(inbox: Inbox, idle: Callable[[], None], blocks: Sequence[Reach]) -> DirtyTracker:
    """Wait for the dirty log and open it.

    Args:
        idle: waits until there may be an instruction.
    """
    first = _next(inbox, idle)
    if not isinstance(first, StartTracking):
        raise ProtocolError(f"a worker on the source expects StartTracking first, not {type(first).__name__}")
    _logger.info("reads the dirty log of kind %s", first.log.kind)
    return open_tracker(first.log, inbox.log_fd, blocks)


def serve_rounds(
    inbox: Inbox, idle: Callable[[], None], ram: MigrationRamSend, answer: Callable[[Instruction], WorkerEvent]
) -> NoReturn:
    """Carry out instructions until a Stop.

    Args:
        idle: waits until there may be an instruction.
        answer: answers instructions that are not about rounds.
    """
    while True:
        match _next(inbox, idle):
            case ScanRegions(regions=numbers):
                ram.migrate_ram_scan(numbers)
                inbox.report(RegionsScanned())
            case (
                SendRegions(round=round_, regions=numbers, first_pass=first_pass, holes=holes, scanned=scanned) as send
            ):
                ram.migrate_ram_iterate(round_, numbers, first_pass=first_pass, holes=holes, scanned=scanned)
                if send.fence:
                    inbox.report(_fence(ram, round_))
                elif send.last:
                    ram.flush(round_)
                    inbox.report(Sent(round_, ram.counters))
                else:
                    inbox.report(RegionsDone(ram.load))
            case Fence(round=round_):
                inbox.report(_fence(ram, round_))
            case CountDirty(regions=numbers):
                count = ram.migrate_dirty_bitmap_sync(numbers)
                inbox.report(Counted(count.pages, count.by_region.tobytes()))
            case instruction:
                inbox.report(answer(instruction))


def _fence(ram: MigrationRamSend, round_: int) -> Fenced:
    ram.fence(round_)
    _logger.debug("round %d is complete: %s", round_, ram.counters)
    return Fenced(round_, ram.counters)


def _next(inbox: Inbox, idle: Callable[[], None]) -> Instruction:
    while (instruction := inbox.take()) is None:
        idle()
        inbox.check()
    return instruction
