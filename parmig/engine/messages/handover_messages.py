# SPDX-License-Identifier: Apache-2.0
"""Messages about who has the guest, after a hand-over that did not end as it should."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from parmig.engine.messages.message import Message
from parmig.engine.records.handover_record import SESSION_BYTES
from parmig.engine.reporting.report import ErrorReport


class Refused(Message, frozen=True):
    """Destination: I was ready, and refuse the guest for good; that is on record. It never runs here, so take it back.

    Only a source that names the feature ``ask-for-guest`` gets it.
    """

    error: ErrorReport


class AskForGuest(Message, frozen=True):
    """Source, over a new connection: who has the guest of this session? A destination that is ready refuses it now.

    Attributes:
        session: what identifies it in the records of both hosts.
    """

    session: Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]


class GuestAnswer(Message, frozen=True):
    """Destination: the answer to AskForGuest, as it is on record.

    Attributes:
        owner: ``here``: I have the guest. ``there``: it is yours, and never runs here. ``undecided``: no
            answer yet.
        since_ns: how long I have had it.
    """

    owner: Literal["here", "there", "undecided"]
    since_ns: Annotated[int, Meta(ge=0)] = 0
