# SPDX-License-Identifier: Apache-2.0
"""Migration capabilities and parameters of QEMU: set for one migration, and set back after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from parmig.guests.qemu.qmp import Qmp

LEFT_ALONE = frozenset({"validate-uuid", "dirty-bitmaps"})
"""Capabilities that may stay as the user set them. All others change the stream into one that parmig does
not expect on a plain descriptor (multifd, return-path, mapped-ram), or forbid x-ignore-shared (postcopy-ram)."""

SOURCE_CAPABILITIES = ("x-ignore-shared", "events", "pause-before-switchover")
DESTINATION_CAPABILITIES = ("x-ignore-shared", "events", "late-block-activate")
RESTORE_CAPABILITIES = ("events", "late-block-activate")

# QEMU sends its own part to a local socket: without a limit, and the last part within a long pause, so that a guest
# that keeps drawing on its screen does not delay the switch. TLS is left to the engine.
SOURCE_PARAMETERS: dict[str, Any] = {
    "max-bandwidth": 1 << 40,
    "downtime-limit": 2000,
    "tls-creds": "",
    "mode": "normal",
}
DESTINATION_PARAMETERS: dict[str, Any] = {"tls-creds": "", "mode": "normal"}


class Settings:
    """Remembers what it changes.

    Args:
        qmp: the session; used, not owned.
        capabilities: old values that are known already (a rescue), for :meth:`restore`.
        parameters: the same.
    """

    def __init__(
        self, qmp: Qmp, capabilities: Mapping[str, bool] | None = None, parameters: Mapping[str, Any] | None = None
    ) -> None:
        self._qmp = qmp
        self._old_capabilities = dict(capabilities or {})
        self._old_parameters = dict(parameters or {})

    def foresee(
        self, capabilities: Collection[str], parameters: Mapping[str, Any]
    ) -> tuple[dict[str, bool], dict[str, Any]]:
        """Capabilities and parameters that :meth:`apply` would change, or has changed, with their values before.

        Raises:
            GuestError: QEMU is gone.
        """
        changes, different = self._changes(capabilities, parameters)
        before = {name: not state for name, state in changes.items()}
        return before | self._old_capabilities, different | self._old_parameters

    def _changes(
        self, capabilities: Collection[str], parameters: Mapping[str, Any]
    ) -> tuple[dict[str, bool], dict[str, Any]]:
        """New values of the capabilities that differ, and the present ones of the parameters that do."""
        answer = self._qmp.execute("query-migrate-capabilities")
        now = {str(item["capability"]): bool(item["state"]) for item in answer}
        wanted = {name: name in capabilities for name in now if name not in LEFT_ALONE or name in capabilities}
        wanted.setdefault("x-ignore-shared", True)
        old = self._qmp.execute("query-migrate-parameters")
        different = {name: old[name] for name, value in parameters.items() if name in old and old[name] != value}
        return {name: state for name, state in wanted.items() if now.get(name) != state}, different

    def apply(self, capabilities: Collection[str], parameters: Mapping[str, Any]) -> None:
        """Switch *capabilities* on and all others (but LEFT_ALONE) off; set *parameters*.

        Names that this QEMU does not have are passed over, but for ``x-ignore-shared``, without which
        nothing works.

        Raises:
            GuestError: QEMU refuses; what was changed before is remembered for :meth:`restore`.
        """
        changes, different = self._changes(capabilities, parameters)
        self._set_capabilities(changes)
        self._old_capabilities |= {name: not state for name, state in changes.items()}
        self._set_parameters({name: parameters[name] for name in different})
        self._old_parameters |= different

    def restore(self) -> None:
        """Set everything back. Calling it twice is fine.

        Raises:
            GuestError: QEMU refuses, as it does during a migration, or is gone.
        """
        try:
            self._set_capabilities(self._old_capabilities)
            self._old_capabilities = {}
        finally:
            self._set_parameters(self._old_parameters)
            self._old_parameters = {}

    def _set_capabilities(self, states: Mapping[str, bool]) -> None:
        if states:
            items = [{"capability": name, "state": state} for name, state in states.items()]
            # All in one command: QEMU judges the combination that results, not the steps to it.
            self._qmp.execute("migrate-set-capabilities", capabilities=items)

    def _set_parameters(self, values: Mapping[str, Any]) -> None:
        if values:
            self._qmp.execute("migrate-set-parameters", **values)
