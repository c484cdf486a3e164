# SPDX-License-Identifier: Apache-2.0
"""One thing in which both sides of a migration do not match, with what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MAX_LISTED = 20
"""Mismatches that one line of text lists."""


class Mismatch(msgspec.Struct, frozen=True):
    """One thing to mend before a guest can be moved. All of it is text for people.

    Attributes:
        what: what does not match.
        source: what the source has of it; empty if it has nothing.
        destination: the same of the destination. Both are empty if this is no matter of one against the other.
        advice: what to do.
    """

    what: str
    source: str
    destination: str
    advice: str

    def __str__(self) -> str:
        if not (self.source or self.destination):
            return f"{self.what}: {self.advice}"
        source, destination = (side or "none" for side in (self.source, self.destination))
        return f"{self.what}: {source} at the source, {destination} at the destination ({self.advice})"


def joined(mismatches: Sequence[Mismatch]) -> str:
    """*mismatches* in one line. If they are very many, it lists some and counts the rest."""
    more = len(mismatches) - MAX_LISTED
    listed = map(str, mismatches[:MAX_LISTED])
    return "; ".join([*listed, *([f"and {more} more"] if more > 0 else [])])
