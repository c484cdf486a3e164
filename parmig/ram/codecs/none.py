# SPDX-License-Identifier: Apache-2.0
"""No codec: pages as they are, straight from guest memory where they lie together."""

from __future__ import annotations

from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageDecoder, PageEncoder, ReadPages


class NoCodec(PageCodec):
    """Sends every batch as it is."""

    name = "none"
    number = 0

    def encoder(self, settings: CodecSettings) -> PageEncoder | None:
        return None

    def decoder(self, read: ReadPages) -> PageDecoder | None:
        return None
