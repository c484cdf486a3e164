# SPDX-License-Identifier: Apache-2.0
"""Codecs by name. A new codec is one file in this folder and one line here."""

from __future__ import annotations

import functools
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from parmig.errors import UsageError

if TYPE_CHECKING:
    from parmig.ram.codecs.codec import PageCodec

_CODECS: dict[str, str] = {
    "none": "parmig.ram.codecs.none:NoCodec",
    "lz4": "parmig.ram.codecs.lz4:Lz4Codec",
}
"""Name to the class of the codec, as ``module:class``, imported when the codec is first used."""


def names() -> tuple[str, ...]:
    """The codecs that this parmig knows."""
    return tuple(_CODECS)


def register(name: str, where: str) -> None:
    """Make the codec class *where*, ``module:class``, known as *name* in this process."""
    _CODECS[name] = where


def codec(name: str) -> PageCodec:
    """The codec called *name*.

    Raises:
        UsageError: there is none.
    """
    if name not in _CODECS:
        raise UsageError(f"unknown compression {name!r}; choose {', '.join(_CODECS)}")
    return _load(_CODECS[name])


@functools.cache
def _load(where: str) -> PageCodec:
    made: PageCodec = resolve_name(where)()
    return made
