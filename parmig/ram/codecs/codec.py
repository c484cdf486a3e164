# SPDX-License-Identifier: Apache-2.0
"""What a page codec promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from parmig.ram.bits import Index


class PageEncoder(ABC):
    """The sending end of a codec on one channel. May keep state from batch to batch, in order."""

    @abstractmethod
    def encode(self, block: int, index: Index, raw: memoryview) -> bytes | bytearray | None:
        """Shorter bytes for *raw* (the pages *index* of *block*, concatenated), or None to send it as it is."""


class PageDecoder(ABC):
    """The receiving end of a codec on one channel; sees the batches in the order they were encoded."""

    @abstractmethod
    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        """The pages again, *raw_bytes* long.

        Raises:
            ProtocolError: *payload* does not decode to exactly that.
        """


class PageCodec(ABC):
    """A named codec; makes an encoder and a decoder per channel."""

    name: str
    number: int
    """What a batch says it was encoded with; 0 is "as it is"."""

    @abstractmethod
    def encoder(self) -> PageEncoder | None:
        """A new encoder, or None when pages are always sent as they are."""

    @abstractmethod
    def decoder(self) -> PageDecoder | None:
        """A new decoder, or None."""
