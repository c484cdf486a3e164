# SPDX-License-Identifier: Apache-2.0
"""The programs of the guest: flat 32-bit code that writes to its memory, and the check that no write was lost.

Every vCPU waits for a tick of the timer device, then handles its share of pages:

- ``increment``: all vCPUs together walk over the pages, under a lock, and add one to each. From page to page, the
  value may therefore drop only once, and by exactly one: where the walk is now.
- ``random`` adds one to pages that a random number generator in a register chooses.

Each vCPU counts its additions in EBX. EBX travels as device state and the pages travel as memory, and their sums must
agree. vCPU 0 also counts interrupts of the PIT, and writes a numbered line to the serial port every 100 ms. If there is
a disk, it copies a sector to it and back, twice, through the highest page of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from parmig.guests.kvm.kvm_devices import TICK_HZ
from parmig.guests.kvm.program_code import program_code
from parmig.guests.kvm.program_layout import (
    CODE,
    CODE_SELECTOR,
    FIRST_PAGE,
    GDT,
    IDT,
    IDT_BYTES,
    MAGIC,
    MAILBOX,
    MAILBOX_DTYPE,
    PROGRAMS,
    STACKS,
    TIMER_VECTOR,
)
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.units import MIB

Reader = Callable[[int, int], Pages]
"""Returns a copy of guest memory; takes the first page and the number of pages."""

_CHUNK_PAGES = 16 * MIB // PAGE_BYTES
_BUSY_QUANTUM = 256  # pages between two looks at the clock, where the rate has no limit


def install(
    memory: Pages,
    program: str,
    pages: int,
    pages_per_s: int | None,
    vcpus: int,
    *,
    interrupts: bool,
    bounce: int | None,
) -> list[dict[str, int]]:
    """Write a program, with everything that it needs, to *memory*, which is zero.

    Args:
        memory: the guest's memory from address 0.
        program: one of PROGRAMS.
        pages: how many pages it writes, from FIRST_PAGE on.
        pages_per_s: how many additions all vCPUs make together; None: as many as they can.
        interrupts: whether there are an interrupt controller and a PIT.
        bounce: address of a page of memory for the disk's data; None: no disk.

    Returns:
        the registers with which each vCPU begins.
    """
    quantum = _BUSY_QUANTUM if pages_per_s is None else -(-pages_per_s // (TICK_HZ * vcpus))
    first = FIRST_PAGE * PAGE_BYTES
    end = first + pages * PAGE_BYTES
    code = program_code(program, waits=pages_per_s is not None, interrupts=interrupts, bounce=bounce)
    image = memory[:FIRST_PAGE].reshape(-1)
    mailbox = struct.pack("<8I", MAGIC, PROGRAMS.index(program), pages, first, end, quantum, 0, first)
    for address, content in (
        (CODE, code.assembled()),
        (GDT, struct.pack("<3Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)),  # flat: code, data
        (IDT, b"".join(_gate(code.labels[_handler(vector)]) for vector in range(IDT_BYTES // 8))),
        (MAILBOX, mailbox),
    ):
        image[address : address + len(content)] = np.frombuffer(content, np.uint8)
    return [
        {
            "rip": code.labels["other" if number else "boot"],
            "rsp": STACKS + (number + 1) * PAGE_BYTES,
            "rsi": 0x9E3779B9 * (number + 1) & 0xFFFF_FFFF,  # where the random numbers begin; never 0
            "rflags": 2,
        }
        for number in range(vcpus)
    ]


def _handler(vector: int) -> str:
    if vector == TIMER_VECTOR:
        return "timer"
    return "spurious" if TIMER_VECTOR < vector < TIMER_VECTOR + 16 else "fault"


def _gate(handler: int) -> bytes:
    """A 32-bit interrupt gate."""
    return struct.pack("<HHBBH", handler & 0xFFFF, CODE_SELECTOR, 0, 0x8E, handler >> 16)


def mailbox(read: Reader) -> np.void:
    """The mailbox of the program, as it is now."""
    page = read(MAILBOX // PAGE_BYTES, 1).reshape(-1)
    box: np.void = page[: MAILBOX_DTYPE.itemsize].view(MAILBOX_DTYPE)[0]
    return box


def damage(read: Reader, counts: Sequence[int]) -> str:
    """Describe the damage in the memory of a paused guest; empty: none.

    Args:
        read: its memory from address 0.
        counts: EBX of each vCPU.
    """
    box = mailbox(read)
    if box["magic"] != MAGIC or box["program"] >= len(PROGRAMS):
        return f"the program's own page is damaged: magic {box['magic']:#x}, program {box['program']}"
    if box["faults"] or box["disk_errors"]:
        return f"the program met {box['faults']} faults and {box['disk_errors']} wrong sectors"
    values = _values(read, int(box["pages"]))
    added, counted = int(values.sum()), sum(counts)
    # An addition is made before it is counted; each vCPU may be paused between the two.
    if (added - counted) & 0xFFFF_FFFF > len(counts):
        return f"the pages hold {added} additions and the vCPUs have counted {counted}: pages are lost or stale"
    steps = np.diff(values)
    places = np.flatnonzero(steps)
    if PROGRAMS[int(box["program"])] == "increment" and (len(places) > 1 or (steps[places] != -1).any()):
        shown = ", ".join(f"{page + FIRST_PAGE + 1} by {steps[page]:+}" for page in places[:4].tolist())
        return f"up the pages the value may drop once and by 1; it changes {len(places)} times: at page {shown}"
    return ""


def _values(read: Reader, pages: int) -> npt.NDArray[np.int64]:
    """The word of each page in which the program counts."""
    parts = [
        read(FIRST_PAGE + start, min(_CHUNK_PAGES, pages - start))[:, :4].copy().view("<u4")
        for start in range(0, pages, _CHUNK_PAGES)
    ]
    return np.concatenate(parts).reshape(-1).astype(np.int64)
