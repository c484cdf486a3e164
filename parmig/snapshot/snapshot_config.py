# SPDX-License-Identifier: Apache-2.0
"""The options of the commands that write and read snapshots."""

from __future__ import annotations

from typing import Annotated

import msgspec

from parmig.config import Config, LiveConfig, Workers, default_workers
from parmig.options import option

SNAPSHOT_FORMATS = ("mapped-ram", "stream")


class SaveConfig(LiveConfig, frozen=True, kw_only=True):
    """How a guest is saved to a file. Both formats are QEMU's."""

    format: Annotated[
        str,
        option(
            "mapped-ram: each page at its own place, for many workers and QEMU 9.0 or newer. "
            "stream: pages one after the other, for every QEMU.",
            choices=SNAPSHOT_FORMATS,
        ),
    ] = "mapped-ram"
    replace: Annotated[bool, option("Replace FILE if it exists.", name="force")] = False


class RestoreConfig(Config, frozen=True, kw_only=True):
    """How a guest is restored from a file."""

    workers: Workers = msgspec.field(default_factory=default_workers)
    paused: Annotated[bool, option("Leave the guest paused, even if it ran when it was saved.")] = False
