# SPDX-License-Identifier: Apache-2.0
"""The interface of page codecs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from parmig.ram.bits import Index


class PageEncoder(ABC):
    """The sending end of a codec on one channel. It sees the batches in order and may keep state between them."""

    @abstractmethod
    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | bytearray | None:
        """Shorter bytes for *raw* (the pages *index* of *block*, one after the other), or None to send *raw* itself."""


class PageDecoder(ABC):
    """The receiving end of a codec on one channel. It sees the batches in the order in which they were encoded."""

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
    def encoder(self) -> PageEncoder | None:
        """A new encoder, or None if this codec never encodes."""

    @abstractmethod
    def decoder(self) -> PageDecoder | None:
        """A new decoder, or None if this codec never encodes."""
