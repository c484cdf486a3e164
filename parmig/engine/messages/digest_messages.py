# SPDX-License-Identifier: Apache-2.0
"""The control messages about digests of memory. ``peer_messages`` has the others."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from parmig.engine.messages.message import Message

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,64}\Z")]

ALL_REGIONS = -1
"""In place of a region: the digests of the regions themselves."""

MAX_DIGESTS = 1 << 15
"""That one answer has: 256 KiB."""

_Region = Annotated[int, Meta(ge=ALL_REGIONS)]
_First = Annotated[int, Meta(ge=0)]


class Digested(Message, frozen=True):
    """Destination: the digest of all RAM, as asked."""

    digest: Digest


class DigestRequest(Message, frozen=True):
    """Source: all of RAM has arrived and both guests are paused; send me its digest."""


class DigestsRequest(Message, frozen=True):
    """Source, after Resumed: send digests of what was placed, from number *first* on, MAX_DIGESTS at most.

    Attributes:
        region: whose pages are meant, or ALL_REGIONS.
    """

    region: _Region
    first: _First


class Digests(Message, frozen=True):
    """Destination: the answer to DigestsRequest, 8 bytes each."""

    region: _Region
    first: _First
    digests: Annotated[bytes, Meta(max_length=8 * MAX_DIGESTS)]
