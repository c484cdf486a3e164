# SPDX-License-Identifier: Apache-2.0
"""parmig moves running virtual machines between hosts with many processes and many network paths at once.

The public names of the rust-vmm proposal *vm-live-migration*, each from the wing that implements it. They
are imported when first used, so that a worker process or ``parmig --help`` pays only for what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from parmig.version import __version__

_PUBLIC = {
    "MigrationChecker": "parmig.engine.source.checker",
    "MigrationSender": "parmig.engine.source.sender",
    "MigrationReceiver": "parmig.engine.destination.receiver",
    "MigrationStatus": "parmig.status",
    "MigrationTransport": "parmig.transport.transport",
    "MigrationDataFile": "parmig.stream",
    "MigrationDataFileFlag": "parmig.stream",
    "MigrationState": "parmig.state",
    "MigrationStateArray": "parmig.state",
    "MigrationStateField": "parmig.state",
    "StateRegistry": "parmig.state",
    "migration_state_pop": "parmig.state",
    "migration_state_push": "parmig.state",
    "MigrationRamSend": "parmig.ram.send",
    "MigrationRamReceive": "parmig.ram.receive",
    "DirtyRegion": "parmig.ram.dirty_scanner",
    "SendConfig": "parmig.config",
    "ReceiveConfig": "parmig.config",
    "Guest": "parmig.guests.guest",
    "open_guest": "parmig.guests.registry",
    "Report": "parmig.engine.reporting.report",
    "Progress": "parmig.engine.reporting.report",
    "ParmigError": "parmig.errors",
}

__all__ = [
    "__version__",
    "DirtyRegion",
    "Guest",
    "MigrationChecker",
    "MigrationDataFile",
    "MigrationDataFileFlag",
    "MigrationRamReceive",
    "MigrationRamSend",
    "MigrationReceiver",
    "MigrationSender",
    "MigrationState",
    "MigrationStateArray",
    "MigrationStateField",
    "MigrationStatus",
    "MigrationTransport",
    "ParmigError",
    "Progress",
    "ReceiveConfig",
    "Report",
    "SendConfig",
    "StateRegistry",
    "migration_state_pop",
    "migration_state_push",
    "open_guest",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'parmig' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
