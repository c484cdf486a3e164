# SPDX-License-Identifier: Apache-2.0
"""Something that a guest depends on, such as its devices, in a form that the engine compares without knowing it."""

from __future__ import annotations

import msgspec


class Trait(msgspec.Struct, frozen=True):
    """Something that a guest depends on and that both sides compare before anything is touched.

    Attributes:
        values: what the guest has, as short texts; their order does not matter.
        advice: what the user can do if the sides differ.
        may_grow: the destination may have more values than the source, as with features of a CPU.
    """

    values: tuple[str, ...]
    advice: str
    may_grow: bool = False
