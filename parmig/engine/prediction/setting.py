# SPDX-License-Identifier: Apache-2.0
"""With what a migration is done: network, workers, processors, codec and limits; and how long its pages take then."""

from __future__ import annotations

import math

import msgspec

from parmig.config import MAX_BATCH_BYTES
from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.work.pace import BUNDLE_NS
from parmig.engine.work.policy import Limits
from parmig.ram.ack_rate import HOLD_NS
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.credit import credit_bytes
from parmig.ram.shared import CATCH_UP_NS
from parmig.units import GIB, NS_PER_S

PAGE_OVERHEAD_BYTES = 16
"""What the table of a batch adds for a page that has no neighbour in it."""


class MemoryFacts(msgspec.Struct, frozen=True):
    """What the memory of a guest holds.

    Attributes:
        total_pages: of all blocks.
        data_pages: pages that are not zero.
        zero_pages: pages that exist and are zero; the others were never allocated.
    """

    total_pages: int
    data_pages: int
    zero_pages: int = 0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """With what a migration is done.

    Attributes:
        limits: those of the policy.
        rate_bytes_per_s: what all paths together carry, of bytes that parmig sends; 0: no limit.
        workers: on each side.
        codec: the choice of ``--compress``.
        codec_costs: what it does with the pages of this guest; None: what the costs say.
        source_processors: for the send workers.
        destination_processors: for the receive workers.
        one_host: both sides share the processors of the source.
        paced: the sender limits the rate (``--max-bandwidth``), and makes up for short delays.
        cold: the destination's memory is provided anew by the host below it.
        settles: all regions are scanned before the first page of a round is read.
    """

    limits: Limits
    rate_bytes_per_s: float = 0.0
    workers: int = 1
    codec: str = "none"
    codec_costs: CodecCosts | None = None
    source_processors: int = 1
    destination_processors: int = 1
    one_host: bool = False
    paced: bool = False
    cold: bool = False
    settles: bool = False


class PageCosts(msgspec.Struct, frozen=True):
    """How long the pages of a round take in one setting.

    Attributes:
        wire_s, first_wire_s: of one data page on the wire; in the first round.
        processor_s, first_processor_s: of one data page, by whatever workers are the limit.
        zero_s: of one zero page.
        scan_s: of the whole dirty log.
        wire_bytes, first_wire_bytes: of one data page.
        catch_up_s: how much lost time the sender makes up for.
        round_s: of each round besides.
        lead_s: how long before its bytes are placed a page is scanned, at most: the time that a bundle of regions
            takes, and that a channel holds bytes for.
    """

    wire_s: float
    first_wire_s: float
    processor_s: float
    first_processor_s: float
    zero_s: float
    scan_s: float
    wire_bytes: float
    first_wire_bytes: float
    catch_up_s: float
    round_s: float
    lead_s: float

    def round_of(self, data_pages: float, *, zero_pages: float = 0, first: bool = False, idle_s: float = 0) -> float:
        """How long a round takes that has so many pages, in seconds, fence included.

        Args:
            idle_s: for how long nothing was sent before it.
        """
        wire_s = data_pages * (self.first_wire_s if first else self.wire_s) - min(idle_s, self.catch_up_s)
        processor_s = data_pages * (self.first_processor_s if first else self.processor_s)
        return max(wire_s, processor_s + zero_pages * self.zero_s + self.scan_s) + self.round_s


def page_costs(memory: MemoryFacts, setting: Setting, costs: Costs) -> PageCosts:
    """How long pages of *memory* take."""
    codec = setting.codec_costs or costs.codec(setting.codec)
    first_bytes = PAGE_BYTES * codec.ratio + PAGE_OVERHEAD_BYTES
    again_bytes = PAGE_BYTES * codec.rewritten_ratio + PAGE_OVERHEAD_BYTES
    rate = setting.rate_bytes_per_s or math.inf
    page = PAGE_BYTES / GIB
    source_s = (costs.source_s_per_gib + codec.encode_s_per_gib) * page
    warm_s = (costs.destination_s_per_gib + codec.decode_s_per_gib) * page
    first_s = warm_s + costs.cold_s_per_gib * page * setting.cold
    senders = min(setting.workers, setting.source_processors)
    receivers = min(setting.workers, setting.source_processors if setting.one_host else setting.destination_processors)

    def processor_s(destination_s: float) -> float:
        """A page passes at the pace of the slower side, or of the processors that both share."""
        alone = max(source_s / senders, destination_s / receivers)
        return max(alone, (source_s + destination_s) / setting.source_processors) if setting.one_host else alone

    again_s = max(again_bytes / rate, processor_s(warm_s))
    held_s = min(HOLD_NS / NS_PER_S, setting.workers * credit_bytes(MAX_BATCH_BYTES) / PAGE_BYTES * again_s)
    lead_s = BUNDLE_NS / NS_PER_S / 2 + held_s * (not setting.paced)
    return PageCosts(
        wire_s=again_bytes / rate,
        first_wire_s=first_bytes / rate,
        processor_s=processor_s(warm_s),
        first_processor_s=processor_s(first_s),
        zero_s=costs.read_s_per_gib * page / senders,
        scan_s=costs.scan_s_per_gib * memory.total_pages * page / senders,
        wire_bytes=again_bytes,
        first_wire_bytes=first_bytes,
        catch_up_s=CATCH_UP_NS / NS_PER_S if setting.paced else 0.0,
        round_s=costs.round_s,
        lead_s=math.inf if setting.settles else lead_s,
    )
