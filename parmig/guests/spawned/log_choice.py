# SPDX-License-Identifier: Apache-2.0
"""Which dirty log a spawned guest keeps: the one that the engine asks for, or the one of the guest's options."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.errors import GuestRefusedError

AUTO = "auto"


def wanted_log(guest: str, kind: str, preferred: str, choices: Sequence[str]) -> tuple[str, str]:
    """The kind of dirty log that is wanted, and the reason. AUTO: nobody wants a particular one.

    Args:
        guest: what to call the guest in an error, with its article.
        kind: what the engine asks for.
        preferred: what the guest's option ``tracker`` says. It counts if the engine asks for AUTO.
        choices: the kinds that there are.

    Raises:
        GuestRefusedError: there is no such log.
    """
    reason = "asked for"
    if kind == AUTO != preferred:
        kind, reason = preferred, "asked for by the guest's option tracker"
    if kind not in choices:
        raise GuestRefusedError(f"{guest} has no dirty log {kind!r}; choose one of {', '.join(choices)}")
    return kind, reason
