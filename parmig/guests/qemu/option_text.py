# SPDX-License-Identifier: Apache-2.0
"""The values of QEMU's options as text: ``KEY=VALUE,...`` with doubled commas, or a JSON object. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping


class OptionText:
    """The value of one option, such as ``memory-backend-file,id=ram0,size=1G``, in the order of its parts.

    Args:
        text: as it stands on the command line, in either form.
        implied: the key of a first part that has no ``=``, such as ``qom-type`` of ``-object``.

    Attributes:
        parts: key to value: text, or in JSON any type. A part without ``=`` that is not the first is True.
    """

    def __init__(self, text: str, implied: str) -> None:
        self._implied = implied
        self._is_json = text.lstrip().startswith("{")
        self.parts: dict[str, object] = {}
        if self._is_json:
            self.parts = dict(json.loads(text))
            return
        for number, part in enumerate(split(text)):
            key, equals, value = part.partition("=")
            if equals:
                self.parts[key] = value
            elif number == 0:
                self.parts[implied] = part
            else:
                self.parts[part] = True

    def get(self, key: str) -> str:
        """The value of *key* as text; empty if it has none."""
        return str(self.parts.get(key, ""))

    def __str__(self) -> str:
        if self._is_json:
            return json.dumps(self.parts, separators=(",", ":"))
        words = {key: "on" if value is True else str(value) for key, value in self.parts.items()}
        return join(self._implied, words)


def split(text: str) -> list[str]:
    """The parts of ``A,B,C``. Two commas stand for one that is part of a value (QEMU's util/keyval.c)."""
    parts = re.findall(r"(?:[^,]|,,)+", text)
    return [part.replace(",,", ",") for part in parts]


def join(implied: str, parts: Mapping[str, str]) -> str:
    """The text of *parts*; the value of the key *implied* comes first, without its key."""
    words = [parts[implied]] if implied in parts else []
    words += [f"{key}={value}" for key, value in parts.items() if key != implied]
    return ",".join(word.replace(",", ",,") for word in words)


def map_paths(text: str, maps: Iterable[tuple[str, str]]) -> str:
    """*text* with each path that is FROM, or lies below it, replaced by the same path at TO.

    Args:
        text: the value of an option, in any form. A path may stand anywhere in it.
        maps: pairs (FROM, TO), absolute paths. The longest FROM that fits wins, and no result is mapped again.
    """
    table = {source.replace(",", ",,"): target.replace(",", ",,") for source, target in maps}
    if not table:
        return text
    sources = "|".join(re.escape(source) for source in sorted(table, key=len, reverse=True))
    # The character before must not belong to a longer path, and what follows must end the name of a directory or file.
    return re.sub(rf"(?<![\w./@+~-])({sources})(?=$|[/,:;\"'\]\s])", lambda match: table[match[1]], text)
