# SPDX-License-Identifier: Apache-2.0
"""A boot disk with the program of the KVM guest, for a PC.

The program, its mailbox and the check of its memory are in ``parmig.guests.kvm``. This module adds the sector that the
BIOS starts, the code that takes each CPU into protected mode, and a main loop: the PIT interrupts the first CPU, which
wakes the others. Handlers return without IRET, so that every KVM can run it.
"""

from __future__ import annotations

import struct

import numpy as np

from parmig.guests.kvm.code import Code
from parmig.guests.kvm.program_code import BEAT_TICKS, program_code, put_timer
from parmig.guests.kvm.program_layout import (
    CODE,
    CODE_SELECTOR,
    DATA_SELECTOR,
    FIRST_PAGE,
    GDT,
    GDT_BYTES,
    IDT,
    IDT_BYTES,
    MAILBOX,
    STACKS,
    field_address,
)
from parmig.guests.kvm.programs import install
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB

_SECTOR_BYTES = 512
_BOOT_SECTOR = 0x7C00  # where the BIOS puts it
_LOADED_END = MAILBOX + _SECTOR_BYTES  # the rest of the disk is loaded to CODE and ends here, below the boot sector
_START = 0x4000  # all CPUs begin here, in real mode: a page below 1 MiB, as the start-up message needs it
_PROTECTED = _START + 0x40
_TABLES = MAILBOX + 0x100  # operands of LGDT and LIDT
_CPUS = MAILBOX + 0x110  # how many CPUs began
_WAKE_VECTOR = 0x40
_APIC_EOI, _APIC_ENABLE, _APIC_COMMAND = 0xFEE0_00B0, 0xFEE0_00F0, 0xFEE0_0300
_INIT, _STARTUP, _WAKE = 0x000C_4500, 0x000C_4600 + _START // PAGE_BYTES, 0x000C_4000 + _WAKE_VECTOR
"""Messages to all CPUs but the one that sends it."""


def boot_disk(program: str, pages: int, pages_per_s: int, cpus: int) -> bytes:
    """A raw disk image of 1 MiB.

    Args:
        program: one of ``program_layout.PROGRAMS``.
        pages: how many pages it writes, from FIRST_PAGE on; the guest's memory must be a few MiB larger.
        pages_per_s: how many additions all CPUs make together.
        cpus: of the machine.
    """
    memory = np.zeros((FIRST_PAGE, PAGE_BYTES), np.uint8)
    install(memory, program, pages, pages_per_s, cpus, interrupts=True, bounce=None)
    labels = program_code(program, waits=True, interrupts=True, bounce=None).labels
    start = _protected_mode(labels, cpus)
    image = memory.reshape(-1)
    gate = image[IDT + 8 * _WAKE_VECTOR :][:2]
    gate[:] = np.frombuffer(struct.pack("<H", start.labels["wake"]), np.uint8)
    tables = struct.pack("<HIHI", GDT_BYTES - 1, GDT, IDT_BYTES - 1, IDT)
    for address, content in ((_START, _real_mode()), (_PROTECTED, start.assembled()), (_TABLES, tables)):
        image[address : address + len(content)] = np.frombuffer(content, np.uint8)
    return (_boot_sector() + image[CODE:_LOADED_END].tobytes()).ljust(MIB, b"\0")


def _boot_sector() -> bytes:
    """Loads the sectors behind it and jumps to them."""
    code = Code(_BOOT_SECTOR)
    code("FA 31 C0 8E D8 8E C0 8E D0")  # cli; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
    code("BC 00 7C FB")  # mov sp, 0x7c00; sti
    code(f"B0 {(_LOADED_END - CODE) // _SECTOR_BYTES:02X} B4 02")  # mov al, sectors; mov ah, read
    code("BB 00 10")  # mov bx, CODE
    code("B9 02 00 B6 00")  # mov cx, cylinder 0 and sector 2; mov dh, head 0
    code("CD 13")  # int 0x13: DL is the disk
    code.label("failed")
    code.jump("72", "failed")  # jc failed
    code("EA 00 40 00 00")  # jmp 0:_START
    return code.assembled().ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


def _real_mode() -> bytes:
    """Takes a CPU from _START in real mode to _PROTECTED in flat 32-bit mode."""
    code = Code(_START)
    code("FA 31 C0 8E D8")  # cli; xor ax, ax; mov ds, ax
    code("66 0F 01 16" + struct.pack("<H", _TABLES).hex())  # lgdt [_TABLES]
    code("0F 20 C0 0C 01 0F 22 C0")  # mov eax, cr0; or al, 1; mov cr0, eax
    code("66 EA", _PROTECTED)  # jmp CODE_SELECTOR:_PROTECTED
    code(struct.pack("<H", CODE_SELECTOR).hex())
    return code.assembled()


def _protected_mode(labels: dict[str, int], cpus: int) -> Code:
    """What each CPU does from then on, with the label ``wake`` of an interrupt handler."""
    code = Code(_PROTECTED)
    code.labels |= {name: labels[name] for name in ("quantum", "beat", "spurious")}
    _put_registers(code)
    code.jump("74", "boot")  # jz boot
    code.jump("E9", "other")  # jmp other
    code.label("boot")
    _put_fill(code)
    code("C7 05", _APIC_COMMAND, _INIT)  # mov dword [_APIC_COMMAND], _INIT
    code("C7 05", _APIC_COMMAND, _STARTUP)  # mov dword [_APIC_COMMAND], _STARTUP
    code.label("others")
    code("F3 90")  # pause
    code("81 3D", _CPUS, cpus)  # cmp dword [_CPUS], cpus
    code.jump("75", "others")  # jne others
    put_timer(code)
    _put_loops(code)
    code.label("wake")
    code("C7 05", _APIC_EOI, 0)  # mov dword [_APIC_EOI], 0: flags do not change
    code.jump("E9", "spurious")  # jmp spurious, which returns
    return code


def _put_registers(code: Code) -> None:
    """Registers and local APIC as the program expects them; zero flag: this is the first CPU."""
    code("66 B8" + struct.pack("<H", DATA_SELECTOR).hex())  # mov ax, DATA_SELECTOR
    code("8E D8 8E C0 8E D0")  # mov ds, ax; mov es, ax; mov ss, ax
    code("0F 01 1D", _TABLES + 6)  # lidt [_TABLES + 6]
    code("31 DB 31 ED")  # xor ebx, ebx; xor ebp, ebp: the account, and the last tick
    code("C7 05", _APIC_ENABLE, 0x1FF)  # mov dword [_APIC_ENABLE], enabled and spurious vector
    code("B8", 1)  # mov eax, 1
    code("F0 0F C1 05", _CPUS)  # lock xadd [_CPUS], eax
    code("8D 48 01 C1 E1 0C")  # lea ecx, [eax + 1]; shl ecx, 12
    code("8D A1", STACKS)  # lea esp, [ecx + STACKS]
    code("69 F1", 0x9E3779B9)  # imul esi, ecx, where the random numbers begin
    code("85 C0")  # test eax, eax


def _put_fill(code: Code) -> None:
    """Fill each page that the program counts in with its address; its first word, the count, is 0."""
    code("8B 3D", field_address("first"))  # mov edi, [first]
    code.label("page")
    code("89 F8")  # mov eax, edi
    code("B9", PAGE_BYTES // 4)  # mov ecx, words of a page
    code("F3 AB")  # rep stosd
    code("C7 00", 0)  # mov dword [eax], 0
    code("3B 3D", field_address("end"))  # cmp edi, [end]
    code.jump("72", "page")  # jb page


def _put_loops(code: Code) -> None:
    """A quantum of the program on every CPU for each tick; the first CPU also writes to the serial port."""
    for name in ("first", "other"):
        code.label(name)
        code("FB F4")  # sti; hlt
        code("A1", field_address("interrupts"))  # mov eax, [interrupts]
        code("39 E8")  # cmp eax, ebp
        code.jump("74", name)  # je: it was another interrupt
        code("89 C5")  # mov ebp, eax
        if name == "first":
            code("C7 05", _APIC_COMMAND, _WAKE)  # mov dword [_APIC_COMMAND], _WAKE
            code("3B 05", field_address("next_beat"))  # cmp eax, [next_beat]
            code.jump("72", "work")  # jb work
            code("05", BEAT_TICKS)  # add eax, BEAT_TICKS
            code("A3", field_address("next_beat"))  # mov [next_beat], eax
            code.jump("E8", "beat")  # call beat
            code.label("work")
        code.jump("E8", "quantum")  # call quantum
        code.jump("EB", name)  # jmp
