# SPDX-License-Identifier: Apache-2.0
"""Where a program in a guest has its code, its tables and its mailbox, and what is in the mailbox."""

from __future__ import annotations

import numpy as np

from parmig.ram.blocks import PAGE_BYTES

PROGRAMS = ("increment", "random")
"""The names of the programs. The position is the number in guest memory, so only append to it."""

FIRST_PAGE = 256
"""The pages that a program writes begin at 1 MiB. Code, tables, stacks and the mailbox are below."""

CODE_SELECTOR, DATA_SELECTOR = 8, 16
GDT, GDT_BYTES = 0x5000, 24
IDT, IDT_BYTES = 0x6000, 2048
CODE, MAILBOX, BUFFER, STACKS = 0x1000, 0x7000, 0x8000, 0x9000
VCPUS_MAX = (FIRST_PAGE * PAGE_BYTES - STACKS) // PAGE_BYTES  # a page of stack each

FIELDS = (
    "magic", "program", "pages", "first", "end", "quantum", "lock", "cursor", "beats", "next_beat", "interrupts",
    "faults", "disk_errors", "additions",
)  # fmt: skip
MAILBOX_DTYPE = np.dtype([(name, "<u4") for name in FIELDS])
"""The mailbox: values of the program, in a page of its memory. ``cursor``, ``first`` and ``end`` are addresses.
``additions`` counts what all virtual CPUs have done, so that it shows from outside how fast they run."""


MAGIC = 0x4D564B50
TIMER_VECTOR = 0x20


def field_address(field: str) -> int:
    """The address of a field of the mailbox."""
    return MAILBOX + 4 * FIELDS.index(field)
