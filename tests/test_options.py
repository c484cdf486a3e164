# SPDX-License-Identifier: Apache-2.0
"""What a declaration of an option says, and how values are checked by it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from parmig.errors import UsageError
from parmig.options import COUNT, DURATION, PERCENT, RATE, SIZE, check_options, nearest, option, options_of
from parmig.units import KIB, MIB, NS_PER_S


def colours() -> tuple[str, ...]:
    return ("red", "blue")


class Toy(msgspec.Struct, frozen=True, kw_only=True):
    depth_bytes: Annotated[int, option("How deep.", SIZE, ge=4 * KIB, le=MIB, multiple_of=4 * KIB)] = 8 * KIB
    speed_bytes_per_s: Annotated[int, option("How fast.", RATE, shown="no limit", ge=0)] = 0
    nap_ns: Annotated[int, option("How long.", DURATION, gt=0)] = NS_PER_S
    share_percent: Annotated[int, option("How much.", PERCENT, le=99, ge=1)] = 50
    colour: Annotated[str, option("Which.", choices=f"{__name__}:colours")] = "red"
    shape: Annotated[str, option("Which.", choices=("round",))] = "round"
    names: Annotated[tuple[str, ...], option("Who.", name="name", metavar="NAME", shown="nobody")] = ()
    pair: Annotated[tuple[int, int], option("Which two.", COUNT, shown="none")] = (0, 0)
    loud: Annotated[bool, option("Whether.")] = False
    legs: Annotated[int, option("How many.", COUNT, shown="as many as there are", required=True)] = msgspec.field(
        default_factory=lambda: 4
    )
    other: int = 3


def test_options_are_named_after_their_fields_without_the_unit() -> None:
    names = ["depth", "speed", "nap", "share", "colour", "shape", "name", "pair", "loud", "legs"]
    assert list(options_of(Toy)) == names
    assert [name for name, one in options_of(Toy).items() if one.is_repeated] == ["name"]
    assert [name for name, one in options_of(Toy).items() if one.is_flag] == ["loud"]
    assert [name for name, one in options_of(Toy).items() if one.required] == ["legs"]


@pytest.mark.parametrize(
    ("name", "metavar", "shown", "help_text", "expected"),
    [
        (
            "depth",
            "SIZE",
            "8KiB",
            "How deep (4KiB to 1MiB, in steps of 4KiB).",
            "a size from 4KiB to 1MiB, in steps of 4KiB",
        ),
        ("speed", "RATE", "no limit", "How fast.", "a rate of at least 0"),
        ("nap", "DURATION", "1s", "How long.", "a duration of more than 0"),
        ("share", "PERCENT", "50", "How much (1 to 99).", "a percentage from 1 to 99"),
        ("colour", "red|blue", "red", "Which.", "one of red, blue"),
        ("shape", "round", "round", "Which.", "round"),
        ("name", "NAME", "nobody", "Who.", "text"),
        ("loud", "yes|no", "off", "Whether.", "yes or no"),
        ("legs", "N", "as many as there are", "How many.", "a number"),
    ],
)
def test_words_of_an_option_follow_from_its_declaration(
    name: str, metavar: str, shown: str, help_text: str, expected: str
) -> None:
    one = options_of(Toy)[name]
    assert (one.metavar, one.shown, one.help, one.expected) == (metavar, shown, help_text, expected)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("depth", "1MiB", MIB),
        ("speed", "2MiB/s", 2 * MIB),
        ("nap", "2s", 2 * NS_PER_S),
        ("colour", "blue", "blue"),
        ("loud", "yes", True),
        ("loud", "no", False),
        ("name", "x", "x"),
    ],
)
def test_a_text_is_read_as_the_unit_says(name: str, text: str, value: object) -> None:
    assert options_of(Toy)[name].read(text) == value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth_bytes": 5 * KIB}, "--depth: 5KiB is not allowed; expected a size from 4KiB to 1MiB, in steps of 4KiB"),
        (
            {"depth_bytes": "deep"},
            "--depth: 'deep' is not allowed; expected a size from 4KiB to 1MiB, in steps of 4KiB",
        ),
        ({"nap_ns": 0}, "--nap: 0 is not allowed; expected a duration of more than 0"),
        ({"share_percent": 100}, "--share: 100 is not allowed; expected a percentage from 1 to 99"),
        ({"colour": "green"}, "--colour: 'green' is unknown; expected one of red, blue"),
        ({"names": ("a", 1)}, "--name: ('a', 1) is not allowed; expected text"),
        ({"loud": 1}, "--loud: 1 is not allowed; expected yes or no"),
    ],
)
def test_the_first_value_that_is_not_allowed_is_named(fields: dict[str, Any], words: str) -> None:
    check_options(Toy())
    with pytest.raises(UsageError) as caught:
        check_options(Toy(**fields))
    assert str(caught.value) == words


def test_the_nearest_name_is_suggested_and_otherwise_all_are_listed() -> None:
    assert nearest("colur", ["colour", "depth"]) == "did you mean 'colour'?"
    assert nearest("zzz", ["colour", "depth"]) == "known options: colour, depth"
