# SPDX-License-Identifier: Apache-2.0
"""Guests by scheme: ``qemu:/run/vm.qmp``, ``synthetic:memory=1GiB``."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

from parmig.errors import UsageError
from parmig.guests.guest import Guest

_SCHEMES: dict[str, str] = {
    "kvm": "parmig.guests.kvm.kvm_guest:open_kvm",
    "qemu": "parmig.guests.qemu.options:open_qemu",
    "synthetic": "parmig.guests.synthetic.synthetic_guest:open_synthetic",
}
"""Scheme to the function that opens such a guest, as ``module:function``, which is imported when it is first used."""


def schemes() -> list[str]:
    """The schemes that :func:`open_guest` knows."""
    return sorted(_SCHEMES)


def register(scheme: str, opener: str) -> None:
    """Let *scheme* be opened by *opener*, ``module:function``; the function takes (options, incoming)."""
    _SCHEMES[scheme] = opener


def open_guest(text: str, *, incoming: bool) -> Guest:
    """The guest that *text* (``SCHEME[:OPTIONS]``) names.

    Args:
        text: scheme and options.
        incoming: True on the destination, where the guest must not run yet.

    Raises:
        UsageError: unknown scheme or bad options.
        RefusedError: the guest does not exist, or cannot be migrated.
    """
    return _opener(text)(text.partition(":")[2], incoming=incoming)


def import_guest(text: str) -> None:
    """Import what :func:`open_guest` needs for *text*. Raises as it does, if the scheme is unknown."""
    _opener(text)


def _opener(text: str) -> Callable[..., Guest]:
    scheme = text.partition(":")[0]
    if scheme not in _SCHEMES:
        raise UsageError(f"unknown guest scheme {scheme!r} in {text!r}; choose {', '.join(schemes())}")
    opener: Callable[..., Guest] = resolve_name(_SCHEMES[scheme])
    return opener
