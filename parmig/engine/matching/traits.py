# SPDX-License-Identifier: Apache-2.0
"""What guests depend on, as one side describes it to the other, and how both are compared. Pure.

It knows no single trait: a guest names its own, and both sides compare those that both know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import xxhash

from parmig.engine.reporting.error_reports import MAX_NAME, peer_text
from parmig.engine.reporting.mismatch import Mismatch
from parmig.guests.guest import Trait

MAX_TRAITS = 8
"""Traits of one guest."""

MAX_VALUES = 1024
MAX_TRAIT_BYTES = 16 << 10
"""Of one trait: all of them fit the first message of a source, 256 KiB, beside its blocks. 200 devices take 10 KiB."""

MAX_LISTED = 10
"""Values that a mismatch lists one by one."""


def describe(traits: Mapping[str, Trait]) -> dict[str, tuple[str, ...]]:
    """*traits* as they travel: text without control characters, bounded in number and length.

    The values of a trait that are too many become one digest of them, so both sides can still compare them.
    """
    described = {}
    for key, trait in list(traits.items())[:MAX_TRAITS]:
        values = tuple(sorted(peer_text(value, MAX_NAME)[:MAX_NAME] for value in trait.values))
        if len(values) > MAX_VALUES or sum(len(value.encode()) for value in values) > MAX_TRAIT_BYTES:
            digest = xxhash.xxh3_128_hexdigest("\n".join(values).encode())
            values = (f"{len(values)} items with digest {digest}",)
        described[key] = values
    return described


def trait_mismatches(source: Mapping[str, Sequence[str]], destination: Mapping[str, Trait]) -> list[Mismatch]:
    """How the guests differ in the traits that both sides have.

    Args:
        source: as the source described its traits.
        destination: of the guest here.
    """
    mismatches = []
    for key, here in describe(destination).items():
        if key not in source:
            continue
        trait = destination[key]
        missing, additional = Counter(source[key]) - Counter(here), Counter(here) - Counter(source[key])
        if trait.may_grow:
            additional.clear()
        if missing or additional:
            mismatches.append(Mismatch(key, _listed(missing), _listed(additional), trait.advice))
    return mismatches


def _listed(values: Counter[str]) -> str:
    every = sorted(values.elements())
    more = len(every) - MAX_LISTED
    return ", ".join(every[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
