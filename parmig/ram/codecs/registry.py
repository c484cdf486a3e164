# SPDX-License-Identifier: Apache-2.0
"""Codecs by name. A new codec is one file in this folder and one line here."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from parmig.errors import UsageError

if TYPE_CHECKING:
    from parmig.ram.codecs.codec import PageCodec

_CODECS: dict[str, str] = {
    "none": "parmig.ram.codecs.none:NoCodec",
    "lz4": "parmig.ram.codecs.lz4:Lz4Codec",
    "zstd": "parmig.ram.codecs.zstd:ZstdCodec",
    "delta": "parmig.ram.codecs.delta:DeltaCodec",
}
"""Name to the class of the codec, as ``module:class``, imported when the codec is first used."""

AUTO = "auto"
"""The choice to let each channel choose for each batch among the codecs that both sides know."""

_WITH = {"delta": ("delta", "zstd")}
"""Choices that use several codecs, in the order in which a batch tries them: delta needs known pages."""


def names() -> tuple[str, ...]:
    """The codecs that this parmig knows."""
    return tuple(_CODECS)


def choices() -> tuple[str, ...]:
    """What a user can choose: a codec or AUTO."""
    return (*_CODECS, AUTO)


def codecs_of(choice: str, known: Collection[str]) -> tuple[str, ...]:
    """The codecs that a channel uses for *choice*, in the order in which a batch tries them.

    Args:
        choice: one of :func:`choices`.
        known: the codecs that both sides know.

    Raises:
        UsageError: there is no such choice.
    """
    if choice == AUTO:
        return tuple(name for name in _CODECS if name in known)
    _check(choice)
    return tuple(name for name in _WITH.get(choice, (choice,)) if name == choice or name in known)


def register(name: str, where: str) -> None:
    """Make the codec class *where*, ``module:class``, known as *name* in this process."""
    _CODECS[name] = where


def codec(name: str) -> PageCodec:
    """The codec called *name*.

    Raises:
        UsageError: there is none.
    """
    _check(name)
    return _load(_CODECS[name])


def name_of(number: int) -> str:
    """The name of the codec with this *number*; a number that no codec has stays one."""
    return next((name for name in _CODECS if codec(name).number == number), str(number))


def _check(name: str) -> None:
    if name not in _CODECS:
        raise UsageError(f"unknown compression {name!r}; choose {', '.join(choices())}")


@functools.cache
def _load(where: str) -> PageCodec:
    made: PageCodec = resolve_name(where)()
    return made
