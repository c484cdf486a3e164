# SPDX-License-Identifier: Apache-2.0
"""The interface of page codecs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from parmig.ram.bits import Index
from parmig.ram.blocks import Pages
from parmig.units import MIB

ReadPages = Callable[[int, Index], Pages]
"""Returns pages of a block as the memory of this side holds them, to be looked at once. Arguments: the number of the
block, and page numbers in ascending order.

Raises:
    ProtocolError: one of the pages was never placed.
"""


class CodecSettings(msgspec.Struct, frozen=True):
    """What the sending side chooses for its codecs. The receiving side need not know.

    Attributes:
        zstd_level: of every codec that uses zstd: 1 is fast, 19 is slow.
        delta_cache_bytes: how much memory one channel may use for copies of pages that it has sent.
    """

    zstd_level: int = 1
    delta_cache_bytes: int = 256 * MIB


class PageEncoder(ABC):
    """The sending end of a codec on one channel."""

    @abstractmethod
    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | None:
        """Shorter bytes for *raw*, or None if there are none. Encoding changes nothing; the result need not be sent.

        Args:
            index: page numbers of *block*, ascending.
            raw: these pages, one after the other.
        """

    def knows(self, block: int, index: Index) -> bool:
        """Whether the encoder remembers at least half of the pages *index*, so that it can encode them well."""
        return False

    def sent(self, block: int, round_: int, index: Index, raw: memoryview) -> None:
        """Take note that the destination will place exactly *raw* for the pages *index*, however it was encoded."""

    def forget(self, block: int, index: Index) -> None:
        """Take note that this side does not know what the destination holds for the pages *index*."""


class PageDecoder(ABC):
    """The receiving end of a codec on one channel. It sees batches in the order in which they were sent."""

    @abstractmethod
    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        """Return the pages that *payload* encodes, *raw_bytes* long.

        Raises:
            ProtocolError: *payload* does not decode to exactly that.
        """


class PageCodec(ABC):
    """A codec: a name, a number, and a new encoder and decoder for each channel."""

    name: str
    number: int
    """Identifies the codec in the header of a batch. 0: the pages are not encoded."""

    @abstractmethod
    def encoder(self, settings: CodecSettings) -> PageEncoder | None:
        """A new encoder, or None if this codec never encodes."""

    @abstractmethod
    def decoder(self, read: ReadPages) -> PageDecoder | None:
        """A new decoder, or None if this codec never encodes.

        Args:
            read: returns pages that were placed before.
        """
