# SPDX-License-Identifier: Apache-2.0
"""QEMU's migration stream, read and written: the format, without an opinion on guests, rounds or processes.

``docs/format.md`` specifies it. The names ``MigrationDataFile`` and ``MigrationDataFileFlag`` are those of the
rust-vmm proposal.
"""

from __future__ import annotations

from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import TARGET_PAGE_BYTES, MigrationDataFileFlag

__all__ = ["TARGET_PAGE_BYTES", "MigrationDataFile", "MigrationDataFileFlag"]
