# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import pickle
import re

import pytest

from parmig import errors
from parmig.errors import ParmigError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, ParmigError) and value.__module__ == errors.__name__
]

# A name of the tree, drawn at a depth of four columns a level, then its exit code.
_DRAWN = re.compile(r"^ {4}(?P<branch>[│├└─ ]*)(?P<name>\w+Error) +(?P<code>\d+)  \S", re.M)


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Name to the name of its parent and its exit code, as the module's docstring draws it."""
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for line in _DRAWN.finditer(errors.__doc__ or ""):
        depth = len(line["branch"]) // 4
        del path[depth:]
        tree[line["name"]] = (path[-1] if path else None, int(line["code"]))
        path.append(line["name"])
    return tree


def test_the_docstring_draws_exactly_the_tree_of_classes() -> None:
    def parent(one: type[ParmigError]) -> str | None:
        return None if one is ParmigError else one.__bases__[0].__name__

    assert drawn_tree() == {one.__name__: (parent(one), one.exit_code) for one in CLASSES}


@pytest.mark.parametrize("one", CLASSES)
def test_every_error_is_found_by_its_name(one: type[ParmigError]) -> None:
    assert errors.by_name(one.__name__) is one


@pytest.mark.parametrize("name", ["", "KeyError", "by_name", "annotations", "NoSuchError"])
def test_a_name_that_is_no_error_gives_the_root(name: str) -> None:
    assert errors.by_name(name) is ParmigError


@pytest.mark.parametrize("one", CLASSES)
def test_every_error_survives_a_process_border(one: type[ParmigError]) -> None:
    copy = pickle.loads(pickle.dumps(one("words")))
    assert type(copy) is one
    assert str(copy) == "words"


@pytest.mark.parametrize("one", CLASSES)
def test_every_error_says_when_it_happens(one: type[ParmigError]) -> None:
    assert (one.__doc__ or "").strip()


def test_an_error_of_a_stream_keeps_its_place_over_a_process_border() -> None:
    copy = pickle.loads(pickle.dumps(errors.StreamDataError("words", 42)))
    assert (str(copy), copy.offset_bytes) == ("words (at byte 42 of the stream)", 42)
    assert errors.StreamError("words").offset_bytes is None
