# SPDX-License-Identifier: Apache-2.0
"""The options of a guest: ``KEY=VALUE,...`` after its scheme, read by the declarations of a structure."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from parmig.errors import UsageError
from parmig.options import nearest, options_of

Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(text: str, struct: type[Options], guest: str) -> Options:
    """The options that *text* gives, which may be empty; all others have their defaults.

    Args:
        text: ``KEY=VALUE`` pairs, separated by commas.
        struct: declares the options.
        guest: the scheme of the guest, for messages.

    Raises:
        UsageError: an option that is unknown, is given twice, or has no value or one that is not allowed.
    """
    known = options_of(struct)
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise UsageError(f"{guest} guests have no option {key!r}; {nearest(key, known)}")
        declared = known[key]
        if not value:
            raise UsageError(f"option {key!r} of {guest} guests has no value; write {key}={declared.metavar}")
        if declared.field in values:
            raise UsageError(f"option {key!r} of {guest} guests appears twice in {text!r}; give it once")
        try:
            values[declared.field] = declared.read(value)
        except UsageError as error:
            raise UsageError(f"option {key!r} of {guest} guests: {error}") from error
    return struct(**values)
