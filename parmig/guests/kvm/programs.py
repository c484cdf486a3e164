# SPDX-License-Identifier: Apache-2.0
"""What runs in the guest: flat 32-bit code that writes to its memory, and how to tell from outside that none was lost.

Every vCPU waits for a tick of the timer device, then handles its share of pages:

- ``increment`` walks over the pages with all vCPUs together, under a lock, and adds one to each. So going up the
  pages the value may drop only once, and by exactly one: where the walk is now.
- ``random`` adds one to pages chosen by a generator of random numbers in a register.

Each vCPU counts its additions in EBX, which travels as device state while the pages travel as memory: their sums
must agree. vCPU 0 also counts interrupts of the PIT, writes a numbered line to the serial port every 100 ms, and,
where there is a disk, carries a sector through it twice, by way of the highest page of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from parmig.guests.kvm.code import Code
from parmig.guests.kvm.kvm_devices import DISK_PORT, READ, SERIAL_PORT, TICK_HZ, TIMER_PORT, WRITE
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.units import MIB

PROGRAMS = ("increment", "random")
"""The programs by name. The position is the number in guest memory: append only."""

FIRST_PAGE = 256
"""The pages that a program writes begin at 1 MiB; below lie code, tables, stacks and the mailbox."""

CODE_SELECTOR, DATA_SELECTOR = 8, 16
GDT, GDT_BYTES = 0x5000, 24
IDT, IDT_BYTES = 0x6000, 2048
_CODE, _MAILBOX, _BUFFER, _STACKS = 0x1000, 0x7000, 0x8000, 0x9000
VCPUS_MAX = (FIRST_PAGE * PAGE_BYTES - _STACKS) // PAGE_BYTES  # a page of stack each

_FIELDS = (
    "magic", "program", "pages", "first", "end", "quantum", "lock", "cursor", "beats", "next_beat", "interrupts",
    "faults", "disk_errors",
)  # fmt: skip
MAILBOX_DTYPE = np.dtype([(name, "<u4") for name in _FIELDS])
"""What the program knows of itself, in a page of its memory. ``cursor``, ``first`` and ``end`` are addresses."""

Reader = Callable[[int, int], Pages]
"""Gives a copy of so many pages of guest memory, from a page on."""

_CHUNK_PAGES = 16 * MIB // PAGE_BYTES
_MAGIC = 0x4D564B50
_BEAT_TICKS = TICK_HZ // 10
_BUSY_QUANTUM = 256  # pages between two looks at the clock, where the rate has no limit
_TIMER_VECTOR = 0x20

_PIC_AND_PIT = (
    (0x20, 0x11), (0xA0, 0x11),  # both PICs: begin
    (0x21, _TIMER_VECTOR), (0xA1, _TIMER_VECTOR + 8),  # their vectors
    (0x21, 0x04), (0xA1, 0x02),  # the second hangs on line 2
    (0x21, 0x01), (0xA1, 0x01),  # 8086 mode
    (0x21, 0xFE), (0xA1, 0xFF),  # all lines masked but the timer's
    (0x43, 0x34), (0x40, 0x9B), (0x40, 0x2E),  # PIT channel 0: a rate of 1193182 / 11931 = 100 Hz
)  # fmt: skip


def _at(field: str) -> int:
    """The address of a field of the mailbox."""
    return _MAILBOX + 4 * _FIELDS.index(field)


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
    """Write a program with all that it needs into *memory*, which is zero.

    Args:
        memory: the guest's memory from address 0.
        program: one of PROGRAMS.
        pages: how many pages it writes, from FIRST_PAGE on.
        pages_per_s: how many additions all vCPUs make together; None: as many as they can.
        interrupts: whether there are an interrupt controller and a PIT.
        bounce: address of a page of memory for the disk's data; None: no disk.

    Returns:
        for each vCPU the registers to begin with.
    """
    quantum = _BUSY_QUANTUM if pages_per_s is None else -(-pages_per_s // (TICK_HZ * vcpus))
    first = FIRST_PAGE * PAGE_BYTES
    end = first + pages * PAGE_BYTES
    code = _code(program, waits=pages_per_s is not None, interrupts=interrupts, bounce=bounce)
    image = memory[:FIRST_PAGE].reshape(-1)
    mailbox = struct.pack("<8I", _MAGIC, PROGRAMS.index(program), pages, first, end, quantum, 0, first)
    for address, content in (
        (_CODE, code.assembled()),
        (GDT, struct.pack("<3Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)),  # flat: code, data
        (IDT, b"".join(_gate(code.labels[_handler(vector)]) for vector in range(IDT_BYTES // 8))),
        (_MAILBOX, mailbox),
    ):
        image[address : address + len(content)] = np.frombuffer(content, np.uint8)
    return [
        {
            "rip": code.labels["other" if number else "boot"],
            "rsp": _STACKS + (number + 1) * PAGE_BYTES,
            "rsi": 0x9E3779B9 * (number + 1) & 0xFFFF_FFFF,  # where the random numbers begin; never 0
            "rflags": 2,
        }
        for number in range(vcpus)
    ]


def _handler(vector: int) -> str:
    if vector == _TIMER_VECTOR:
        return "timer"
    return "spurious" if _TIMER_VECTOR < vector < _TIMER_VECTOR + 16 else "fault"


def _gate(handler: int) -> bytes:
    """A 32-bit interrupt gate."""
    return struct.pack("<HHBBH", handler & 0xFFFF, CODE_SELECTOR, 0, 0x8E, handler >> 16)


def _code(program: str, *, waits: bool, interrupts: bool, bounce: int | None) -> Code:
    code = Code(_CODE)
    code.label("boot")
    if interrupts:
        for port, value in _PIC_AND_PIT:
            code(f"B0 {value:02X} E6 {port:02X}")  # mov al, value; out port, al
        code("FB")  # sti
    code.label("main")
    _put_wait(code, "main", waits=waits)
    code("3B 05", _at("next_beat"))  # cmp eax, [next_beat]
    code.jump("72", "work")  # jb work
    code("05", _BEAT_TICKS)  # add eax, _BEAT_TICKS
    code("A3", _at("next_beat"))  # mov [next_beat], eax
    code.jump("E8", "beat")  # call beat
    code.label("work")
    code.jump("E8", "quantum")  # call quantum
    code.jump("EB", "main")  # jmp main
    code.label("other")  # all vCPUs but the first
    _put_wait(code, "other", waits=waits)
    code.jump("E8", "quantum")  # call quantum
    code.jump("EB", "other")  # jmp other
    _put_quantum(code, _put_increment if program == "increment" else _put_random)
    _put_beat(code, bounce)
    _put_handlers(code)
    return code


def _put_wait(code: Code, start: str, *, waits: bool) -> None:
    """Wait for another tick than the last, which is in EBP, or only ask for it; into EAX."""
    code("BA", TIMER_PORT if waits else TIMER_PORT + 4)  # mov edx, the port that waits, or that does not
    code("ED")  # in eax, dx
    if waits:
        code("39 E8")  # cmp eax, ebp
        code.jump("74", start)  # je start: the wait was cut short
        code("89 C5")  # mov ebp, eax


def _put_quantum(code: Code, put_addition: Callable[[Code], None]) -> None:
    """A subroutine that does as many additions as one tick has."""
    code.label("quantum")
    code("8B 0D", _at("quantum"))  # mov ecx, [quantum]
    code.label("next")
    code("85 C9")  # test ecx, ecx
    code.jump("75", "addition")  # jnz addition
    code("C3")  # ret
    code.label("addition")
    put_addition(code)
    code("43")  # inc ebx: the account of this vCPU
    code("49")  # dec ecx
    code.jump("EB", "next")  # jmp next


def _put_increment(code: Code) -> None:
    """Add one to the page that the walk has come to."""
    code("B8", 1)  # mov eax, 1
    code("87 05", _at("lock"))  # xchg [lock], eax
    code("85 C0")  # test eax, eax
    code.jump("74", "locked")  # jz locked
    code("F3 90")  # pause
    code.jump("EB", "addition")  # jmp addition
    code.label("locked")
    code("8B 3D", _at("cursor"))  # mov edi, [cursor]
    code("FF 07")  # inc dword [edi]
    code("81 C7", PAGE_BYTES)  # add edi, a page
    code("3B 3D", _at("end"))  # cmp edi, [end]
    code.jump("72", "unlock")  # jb unlock
    code("8B 3D", _at("first"))  # mov edi, [first]
    code.label("unlock")
    code("89 3D", _at("cursor"))  # mov [cursor], edi
    code("C7 05", _at("lock"), 0)  # mov dword [lock], 0


def _put_random(code: Code) -> None:
    """Add one to a page chosen by xorshift32 in ESI."""
    for shift in ("C1 E0 0D", "C1 E8 11", "C1 E0 05"):  # shl eax, 13; shr eax, 17; shl eax, 5
        code("89 F0")  # mov eax, esi
        code(shift)
        code("31 C6")  # xor esi, eax
    code("89 F0")  # mov eax, esi
    code("F7 25", _at("pages"))  # mul dword [pages]: EDX is below [pages] now
    code("C1 E2 0C")  # shl edx, 12
    code("03 15", _at("first"))  # add edx, [first]
    code("F0 FF 02")  # lock inc dword [edx]


def _put_beat(code: Code, bounce: int | None) -> None:
    """A subroutine that writes ``beat NUMBER TICKS INTERRUPTS`` in hexadecimal, and uses the disk."""
    code.label("beat")
    code("FF 05", _at("beats"))  # inc dword [beats]
    code("BA", SERIAL_PORT)  # mov edx, the serial port
    for letter in b"beat":
        code(f"B0 {letter:02X} EE")  # mov al, letter; out dx, al
    code("A1", _at("beats"))  # mov eax, [beats]
    code.jump("E8", "hex")  # call hex
    code("BA", TIMER_PORT + 4)  # mov edx, the clock, without waiting
    code("ED")  # in eax, dx
    code.jump("E8", "hex")  # call hex
    code("A1", _at("interrupts"))  # mov eax, [interrupts]
    code.jump("E8", "hex")  # call hex
    code("B0 0A EE")  # mov al, newline; out dx, al
    if bounce is not None:
        for sector, command, address in (0, WRITE, _MAILBOX), (0, READ, bounce), (1, WRITE, bounce), (1, READ, _BUFFER):
            registers = (sector, address & 0xFFFF_FFFF, address >> 32, command)
            for register, value in enumerate(registers):
                code("BA", DISK_PORT + 4 * register)  # mov edx, the register
                code("B8", value)  # mov eax, value
                code("EF")  # out dx, eax
        code("A1", _BUFFER + _at("beats") - _MAILBOX)  # mov eax, the beats that came back
        code("3B 05", _at("beats"))  # cmp eax, [beats]
        code.jump("74", "carried")  # je carried
        code("FF 05", _at("disk_errors"))  # inc dword [disk_errors]
        code.label("carried")
    code("C3")  # ret
    code.label("hex")  # writes a space and EAX to the serial port
    code("BA", SERIAL_PORT)  # mov edx, the serial port
    code("50 B0 20 EE 58")  # push eax; mov al, space; out dx, al; pop eax
    code("B9", 8)  # mov ecx, 8
    code.label("digit")
    code("C1 C0 04")  # rol eax, 4
    code("50")  # push eax
    code("24 0F 3C 0A 1C 69 2F")  # and al, 15; cmp al, 10; sbb al, 0x69; das: the digit's letter
    code("EE")  # out dx, al
    code("58")  # pop eax
    code.jump("E2", "digit")  # loop digit
    code("C3")  # ret


def _put_handlers(code: Code) -> None:
    """The ends of the IDT.

    They return without IRET, which KVM cannot emulate in protected mode where it runs without virtualisation in
    hardware. The stack has EIP, CS and EFLAGS; it becomes EFLAGS, EIP. STI holds interrupts off until RET is done.
    """
    code.label("timer")
    code("FF 05", _at("interrupts"))  # inc dword [interrupts]: its flags do not matter, they are restored
    code("50")  # push eax
    code("B0 20 E6 20")  # mov al, end of interrupt; out the PIC, al
    code("58")  # pop eax
    code.label("spurious")
    code("50")  # push eax
    code("8B 44 24 04")  # mov eax, [esp + 4]: EIP
    code("87 44 24 0C")  # xchg eax, [esp + 12]: EFLAGS
    code("89 44 24 08")  # mov [esp + 8], eax
    code("58")  # pop eax
    code("8D 64 24 04")  # lea esp, [esp + 4]
    code("9D")  # popf
    code("FB")  # sti
    code("C3")  # ret
    code.label("fault")
    code("FF 05", _at("faults"))  # inc dword [faults]
    code.label("stop")
    code("FA F4")  # cli; hlt
    code.jump("EB", "stop")  # jmp stop


def mailbox(read: Reader) -> np.void:
    """What the program knows of itself, as it is now."""
    page = read(_MAILBOX // PAGE_BYTES, 1).reshape(-1)
    found: np.void = page[: MAILBOX_DTYPE.itemsize].view(MAILBOX_DTYPE)[0]
    return found


def damage(read: Reader, counts: Sequence[int]) -> str:
    """What is wrong in the memory of a guest that stands still; empty: nothing.

    Args:
        read: its memory from address 0.
        counts: EBX of each vCPU.
    """
    box = mailbox(read)
    if box["magic"] != _MAGIC or box["program"] >= len(PROGRAMS):
        return f"the program's own page is damaged: magic {box['magic']:#x}, program {box['program']}"
    if box["faults"] or box["disk_errors"]:
        return f"the program met {box['faults']} faults and {box['disk_errors']} wrong sectors"
    values = _values(read, int(box["pages"]))
    found, counted = int(values.sum()), sum(counts)
    # An addition is made before it is counted; each vCPU may stand between the two.
    if (found - counted) & 0xFFFF_FFFF > len(counts):
        return f"the pages hold {found} additions and the vCPUs have counted {counted}: pages are lost or stale"
    steps = np.diff(values)
    places = np.flatnonzero(steps)
    if PROGRAMS[int(box["program"])] == "increment" and (len(places) > 1 or (steps[places] != -1).any()):
        shown = ", ".join(f"{page + FIRST_PAGE + 1} by {steps[page]:+}" for page in places[:4].tolist())
        return f"up the pages the value may drop once and by 1; it changes {len(places)} times: at page {shown}"
    return ""


def _values(read: Reader, pages: int) -> npt.NDArray[np.int64]:
    """The word that the program counts in, of each page."""
    parts = [
        read(FIRST_PAGE + start, min(_CHUNK_PAGES, pages - start))[:, :4].copy().view("<u4")
        for start in range(0, pages, _CHUNK_PAGES)
    ]
    return np.concatenate(parts).reshape(-1).astype(np.int64)
