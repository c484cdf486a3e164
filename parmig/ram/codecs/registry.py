# SPDX-License-Identifier: Apache-2.0
"""Codecs by name, and by the number that batches carry."""

from __future__ import annotations

from parmig.errors import UsageError
from parmig.ram.codecs.codec import PageCodec
from parmig.ram.codecs.lz4 import Lz4Codec
from parmig.ram.codecs.none import NoCodec

CODECS: dict[str, PageCodec] = {codec.name: codec for codec in (NoCodec(), Lz4Codec())}


def codec(name: str) -> PageCodec:
    """The codec called *name*.

    Raises:
        UsageError: there is none.
    """
    if name not in CODECS:
        raise UsageError(f"unknown compression {name!r}; known are {', '.join(CODECS)}")
    return CODECS[name]
