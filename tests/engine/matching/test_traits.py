# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.engine.matching.traits import MAX_LISTED, MAX_TRAIT_BYTES, MAX_TRAITS, describe, trait_mismatches
from parmig.engine.reporting.mismatch import Mismatch
from parmig.guests.trait import Trait


@pytest.mark.parametrize(
    ("source", "destination", "found"),
    [
        ("a b", "b a", None),
        ("a b", "a", ("b", "")),
        ("a", "a b", ("", "b")),
        ("a a", "a", ("a", "")),
        ("a b", "a c", ("b", "c")),
    ],
)
def test_values_are_compared_without_order_and_with_their_number(
    source: str, destination: str, found: tuple[str, str] | None
) -> None:
    here = {"devices": Trait(tuple(destination.split()), "do this")}
    expected = [] if found is None else [Mismatch("devices", *found, "do this")]
    assert trait_mismatches({"devices": source.split()}, here) == expected


def test_a_trait_may_grow_but_not_shrink() -> None:
    here = {"features": Trait(("a", "b"), "do this", may_grow=True)}
    assert trait_mismatches({"features": ["a"]}, here) == []
    assert trait_mismatches({"features": ["a", "z"]}, here) == [Mismatch("features", "z", "", "do this")]


def test_only_what_both_sides_describe_is_compared() -> None:
    assert trait_mismatches({"theirs": ["a"]}, {"ours": Trait(("b",), "")}) == []


def test_every_trait_that_differs_is_named() -> None:
    here = {name: Trait(("x",), name) for name in "abc"}
    assert [one.what for one in trait_mismatches({"a": ["y"], "b": ["x"], "c": []}, here)] == ["a", "c"]


def test_a_description_is_clean_and_bounded() -> None:
    traits = {str(number): Trait(("a\x1b[2J", "x" * 1000), "") for number in range(MAX_TRAITS + 5)}
    described = describe(traits)
    assert len(described) == MAX_TRAITS
    for values in described.values():
        assert all(value.isprintable() and len(value) <= 255 for value in values)


@pytest.mark.parametrize("length", [1, 250])
def test_values_that_are_too_many_are_compared_by_their_digest(length: int) -> None:
    values = tuple(f"{number}".zfill(length) for number in range(MAX_TRAIT_BYTES))
    (short,) = describe({"devices": Trait(values, "")})["devices"]
    assert trait_mismatches({"devices": (short,)}, {"devices": Trait(values[::-1], "")}) == []
    (found,) = trait_mismatches({"devices": (short,)}, {"devices": Trait(values[1:], "do")})
    assert found.source.startswith(f"{len(values)} items with digest")


def test_a_long_list_is_shortened() -> None:
    (found,) = trait_mismatches({"a": [str(number) for number in range(1000)]}, {"a": Trait((), "")})
    assert found.source.endswith(f" and {1000 - MAX_LISTED} more")
    assert found.source.count(",") == MAX_LISTED - 1
