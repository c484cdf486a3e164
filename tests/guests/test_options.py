# SPDX-License-Identifier: Apache-2.0
"""The one reader of the options of all guests."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from parmig.errors import UsageError
from parmig.guests.options import read_options
from parmig.options import COUNT, SIZE, option
from parmig.units import MIB


class Toy(msgspec.Struct, frozen=True, kw_only=True):
    depth_bytes: Annotated[int, option("How deep.", SIZE, ge=4096, multiple_of=4096)] = MIB
    legs: Annotated[int, option("How many.", COUNT, ge=1, le=8)] = 4
    shape: Annotated[str, option("Which.", choices=("round", "square"))] = "round"
    awake: Annotated[bool, option("Whether.")] = True


def test_options_are_read_in_the_units_of_people() -> None:
    assert read_options("", Toy, "toy") == Toy()
    text = "depth=2MiB, legs = 6,shape=square,awake=no,"
    assert read_options(text, Toy, "toy") == Toy(depth_bytes=2 * MIB, legs=6, shape="square", awake=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("leg=6", "toy guests have no option 'leg'; did you mean 'legs'?"),
        ("foo=1", "toy guests have no option 'foo'; known options: depth, legs, shape, awake"),
        ("legs", "option 'legs' of toy guests has no value; write legs=N"),
        ("shape=", "option 'shape' of toy guests has no value; write shape=round|square"),
        ("legs=2,legs=2", "option 'legs' of toy guests appears twice in 'legs=2,legs=2'; give it once"),
        ("legs=9", "option 'legs' of toy guests: 9 is not allowed; expected a number from 1 to 8"),
        ("legs=two", "option 'legs' of toy guests: 'two' is not a whole number; write digits only, like 4"),
        ("shape=flat", "option 'shape' of toy guests: 'flat' is unknown; expected one of round, square"),
        ("awake=maybe", "option 'awake' of toy guests: 'maybe' is unknown; expected yes or no"),
        (
            "depth=4097",
            "option 'depth' of toy guests: 4097 bytes is not allowed; "
            "expected a size of at least 4KiB, in steps of 4KiB",
        ),
    ],
)
def test_a_mistake_is_answered_with_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(text, Toy, "toy")
    assert str(caught.value) == words
