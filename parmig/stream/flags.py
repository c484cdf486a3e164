# SPDX-License-Identifier: Apache-2.0
"""The numbers of QEMU's migration stream, under the rust-vmm proposal's names.

Source: QEMU 7.2 to 10.2, ``migration/qemu-file-types.h``, ``migration/savevm.c`` and ``migration/ram.c``. A number is
part of the format and never changes; limits are parmig's own.
"""

from __future__ import annotations

from enum import IntEnum

TARGET_PAGE_BITS = 12
TARGET_PAGE_BYTES = 1 << TARGET_PAGE_BITS
"""A page of RAM in the stream: that of x86 guests, and of every guest that parmig moves."""
PAGE_MASK = TARGET_PAGE_BYTES - 1
"""The bits of a RAM word that hold flags; those above hold the offset in the block."""

MAX_NAME_BYTES = 255
"""A counted string has one byte of count."""


class MigrationDataFileFlag(IntEnum):
    """The proposal's enumeration: values at the start of a stream and of a section, and in a word of RAM."""

    # be32 each, the first eight bytes of a stream.
    MIGRATION_VM_FILE_MAGIC = 0x5145564D  # "QEVM"
    MIGRATION_VM_FILE_VERSION_COMPAT = 2  # of 2008; refused
    MIGRATION_VM_FILE_VERSION = 3

    # u8, the type of a section.
    MIGRATION_VM_EOF = 0x00
    MIGRATION_VM_SECTION_START = 0x01
    MIGRATION_VM_SECTION_PART = 0x02
    MIGRATION_VM_SECTION_END = 0x03
    MIGRATION_VM_SECTION_FULL = 0x04
    MIGRATION_VM_SUBSECTION = 0x05
    MIGRATION_VM_VMDESCRIPTION = 0x06
    MIGRATION_VM_CONFIGURATION = 0x07
    MIGRATION_VM_COMMAND = 0x08
    MIGRATION_VM_SECTION_FOOTER = 0x7E

    # The low bits of a be64 word of RAM.
    MIGRATION_RAM_SAVE_FLAG_FULL = 0x001  # of 2008; no longer written
    MIGRATION_RAM_SAVE_FLAG_ZERO = 0x002
    MIGRATION_RAM_SAVE_FLAG_MEM_SIZE = 0x004
    MIGRATION_RAM_SAVE_FLAG_PAGE = 0x008
    MIGRATION_RAM_SAVE_FLAG_EOS = 0x010
    MIGRATION_RAM_SAVE_FLAG_CONTINUE = 0x020
    MIGRATION_RAM_SAVE_FLAG_XBZRLE = 0x040
    MIGRATION_RAM_SAVE_FLAG_HOOK = 0x080  # RDMA only
    MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE = 0x100  # removed in QEMU 9.1
    MIGRATION_RAM_SAVE_FLAG_MULTIFD_FLUSH = 0x200  # since 8.1


# Plain integers of the same names: an IntEnum in arithmetic with numpy and struct costs more than it is worth.
MIGRATION_VM_FILE_MAGIC = int(MigrationDataFileFlag.MIGRATION_VM_FILE_MAGIC)
MIGRATION_VM_FILE_VERSION_COMPAT = int(MigrationDataFileFlag.MIGRATION_VM_FILE_VERSION_COMPAT)
MIGRATION_VM_FILE_VERSION = int(MigrationDataFileFlag.MIGRATION_VM_FILE_VERSION)
MIGRATION_VM_EOF = int(MigrationDataFileFlag.MIGRATION_VM_EOF)
MIGRATION_VM_SECTION_START = int(MigrationDataFileFlag.MIGRATION_VM_SECTION_START)
MIGRATION_VM_SECTION_PART = int(MigrationDataFileFlag.MIGRATION_VM_SECTION_PART)
MIGRATION_VM_SECTION_END = int(MigrationDataFileFlag.MIGRATION_VM_SECTION_END)
MIGRATION_VM_SECTION_FULL = int(MigrationDataFileFlag.MIGRATION_VM_SECTION_FULL)
MIGRATION_VM_SUBSECTION = int(MigrationDataFileFlag.MIGRATION_VM_SUBSECTION)
MIGRATION_VM_VMDESCRIPTION = int(MigrationDataFileFlag.MIGRATION_VM_VMDESCRIPTION)
MIGRATION_VM_CONFIGURATION = int(MigrationDataFileFlag.MIGRATION_VM_CONFIGURATION)
MIGRATION_VM_COMMAND = int(MigrationDataFileFlag.MIGRATION_VM_COMMAND)
MIGRATION_VM_SECTION_FOOTER = int(MigrationDataFileFlag.MIGRATION_VM_SECTION_FOOTER)
MIGRATION_RAM_SAVE_FLAG_FULL = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_FULL)
MIGRATION_RAM_SAVE_FLAG_ZERO = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_ZERO)
MIGRATION_RAM_SAVE_FLAG_MEM_SIZE = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_MEM_SIZE)
MIGRATION_RAM_SAVE_FLAG_PAGE = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_PAGE)
MIGRATION_RAM_SAVE_FLAG_EOS = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_EOS)
MIGRATION_RAM_SAVE_FLAG_CONTINUE = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_CONTINUE)
MIGRATION_RAM_SAVE_FLAG_XBZRLE = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_XBZRLE)
MIGRATION_RAM_SAVE_FLAG_HOOK = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_HOOK)
MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE)
MIGRATION_RAM_SAVE_FLAG_MULTIFD_FLUSH = int(MigrationDataFileFlag.MIGRATION_RAM_SAVE_FLAG_MULTIFD_FLUSH)


class MigrationCommand(IntEnum):
    """be16, what a COMMAND section asks for."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11
