# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import parmig
from parmig.stream import flags
from parmig.stream.flags import MigrationDataFileFlag

QEMU = {
    "VM_FILE_MAGIC": 0x5145564D,
    "VM_FILE_VERSION_COMPAT": 2,
    "VM_FILE_VERSION": 3,
    "VM_EOF": 0,
    "VM_SECTION_START": 1,
    "VM_SECTION_PART": 2,
    "VM_SECTION_END": 3,
    "VM_SECTION_FULL": 4,
    "VM_SUBSECTION": 5,
    "VM_VMDESCRIPTION": 6,
    "VM_CONFIGURATION": 7,
    "VM_COMMAND": 8,
    "VM_SECTION_FOOTER": 0x7E,
    "RAM_SAVE_FLAG_FULL": 0x01,
    "RAM_SAVE_FLAG_ZERO": 0x02,
    "RAM_SAVE_FLAG_MEM_SIZE": 0x04,
    "RAM_SAVE_FLAG_PAGE": 0x08,
    "RAM_SAVE_FLAG_EOS": 0x10,
    "RAM_SAVE_FLAG_CONTINUE": 0x20,
    "RAM_SAVE_FLAG_XBZRLE": 0x40,
    "RAM_SAVE_FLAG_HOOK": 0x80,
    "RAM_SAVE_FLAG_COMPRESS_PAGE": 0x100,
    "RAM_SAVE_FLAG_MULTIFD_FLUSH": 0x200,
}


def test_the_numbers_are_qemu_s() -> None:
    assert {name: int(value) for name, value in MigrationDataFileFlag.__members__.items()} == {
        f"MIGRATION_{name}": value for name, value in QEMU.items()
    }


def test_every_number_is_also_a_plain_constant() -> None:
    for name, value in MigrationDataFileFlag.__members__.items():
        assert type(getattr(flags, name)) is int
        assert getattr(flags, name) == value


def test_the_proposal_s_names_are_public() -> None:
    assert parmig.MigrationDataFileFlag is MigrationDataFileFlag
    assert parmig.MigrationDataFile.__name__ == "MigrationDataFile"
