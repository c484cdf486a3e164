# SPDX-License-Identifier: Apache-2.0
"""The code of the programs: flat 32-bit x86, written subroutine by subroutine."""

from __future__ import annotations

from collections.abc import Callable

from parmig.guests.kvm.code import Code
from parmig.guests.kvm.kvm_devices import DISK_PORT, READ, SERIAL_PORT, TICK_HZ, TIMER_PORT, WRITE
from parmig.guests.kvm.program_layout import BUFFER, CODE, MAILBOX, TIMER_VECTOR, field_address
from parmig.ram.blocks import PAGE_BYTES

BEAT_TICKS = TICK_HZ // 10

_PIC_AND_PIT = (
    (0x20, 0x11), (0xA0, 0x11),  # both PICs: begin
    (0x21, TIMER_VECTOR), (0xA1, TIMER_VECTOR + 8),  # their vectors
    (0x21, 0x04), (0xA1, 0x02),  # the second hangs on line 2
    (0x21, 0x01), (0xA1, 0x01),  # 8086 mode
    (0x21, 0xFE), (0xA1, 0xFF),  # all lines masked but the timer's
    (0x43, 0x34), (0x40, 0x9B), (0x40, 0x2E),  # PIT channel 0: a rate of 1193182 / 11931 = 100 Hz
)  # fmt: skip


def program_code(program: str, *, waits: bool, interrupts: bool, bounce: int | None) -> Code:
    """The code of *program*, with the labels ``boot``, ``other`` and those of the interrupt handlers."""
    code = Code(CODE)
    code.label("boot")
    if interrupts:
        put_timer(code)
    code.label("main")
    _put_wait(code, "main", waits=waits)
    code("3B 05", field_address("next_beat"))  # cmp eax, [next_beat]
    code.jump("72", "work")  # jb work
    code("05", BEAT_TICKS)  # add eax, BEAT_TICKS
    code("A3", field_address("next_beat"))  # mov [next_beat], eax
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


def put_timer(code: Code) -> None:
    """Let the PIT interrupt this vCPU TICK_HZ times a second."""
    for port, value in _PIC_AND_PIT:
        code(f"B0 {value:02X} E6 {port:02X}")  # mov al, value; out port, al
    code("FB")  # sti


def _put_wait(code: Code, start: str, *, waits: bool) -> None:
    """Wait for another tick than the last one, which is in EBP, or only read the tick. It is then in EAX."""
    code("BA", TIMER_PORT if waits else TIMER_PORT + 4)  # mov edx, the port that waits, or that does not
    code("ED")  # in eax, dx
    if waits:
        code("39 E8")  # cmp eax, ebp
        code.jump("74", start)  # je start: the wait was cut short
        code("89 C5")  # mov ebp, eax


def _put_quantum(code: Code, put_addition: Callable[[Code], None]) -> None:
    """A subroutine that does the additions of one tick."""
    code.label("quantum")
    code("8B 0D", field_address("quantum"))  # mov ecx, [quantum]
    code.label("next")
    code("85 C9")  # test ecx, ecx
    code.jump("75", "addition")  # jnz addition
    code("C3")  # ret
    code.label("addition")
    put_addition(code)
    code("43")  # inc ebx: the count of this vCPU
    code("F0 FF 05", field_address("additions"))  # lock inc dword [additions]
    code("49")  # dec ecx
    code.jump("EB", "next")  # jmp next


def _put_increment(code: Code) -> None:
    """Add one to the page that the walk has reached."""
    code("B8", 1)  # mov eax, 1
    code("87 05", field_address("lock"))  # xchg [lock], eax
    code("85 C0")  # test eax, eax
    code.jump("74", "locked")  # jz locked
    code("F3 90")  # pause
    code.jump("EB", "addition")  # jmp addition
    code.label("locked")
    code("8B 3D", field_address("cursor"))  # mov edi, [cursor]
    code("FF 07")  # inc dword [edi]
    code("81 C7", PAGE_BYTES)  # add edi, a page
    code("3B 3D", field_address("end"))  # cmp edi, [end]
    code.jump("72", "unlock")  # jb unlock
    code("8B 3D", field_address("first"))  # mov edi, [first]
    code.label("unlock")
    code("89 3D", field_address("cursor"))  # mov [cursor], edi
    code("C7 05", field_address("lock"), 0)  # mov dword [lock], 0


def _put_random(code: Code) -> None:
    """Add one to a page that xorshift32 in ESI chooses."""
    for shift in ("C1 E0 0D", "C1 E8 11", "C1 E0 05"):  # shl eax, 13; shr eax, 17; shl eax, 5
        code("89 F0")  # mov eax, esi
        code(shift)
        code("31 C6")  # xor esi, eax
    code("89 F0")  # mov eax, esi
    code("F7 25", field_address("pages"))  # mul dword [pages]: EDX is below [pages] now
    code("C1 E2 0C")  # shl edx, 12
    code("03 15", field_address("first"))  # add edx, [first]
    code("F0 FF 02")  # lock inc dword [edx]


def _put_beat(code: Code, bounce: int | None) -> None:
    """A subroutine that writes ``beat NUMBER TICKS INTERRUPTS`` in hexadecimal, and uses the disk."""
    code.label("beat")
    code("FF 05", field_address("beats"))  # inc dword [beats]
    code("BA", SERIAL_PORT)  # mov edx, the serial port
    for letter in b"beat":
        code(f"B0 {letter:02X} EE")  # mov al, letter; out dx, al
    code("A1", field_address("beats"))  # mov eax, [beats]
    code.jump("E8", "hex")  # call hex
    code("BA", TIMER_PORT + 4)  # mov edx, the clock, without waiting
    code("ED")  # in eax, dx
    code.jump("E8", "hex")  # call hex
    code("A1", field_address("interrupts"))  # mov eax, [interrupts]
    code.jump("E8", "hex")  # call hex
    code("B0 0A EE")  # mov al, newline; out dx, al
    if bounce is not None:
        for sector, command, address in (0, WRITE, MAILBOX), (0, READ, bounce), (1, WRITE, bounce), (1, READ, BUFFER):
            registers = (sector, address & 0xFFFF_FFFF, address >> 32, command)
            for register, value in enumerate(registers):
                code("BA", DISK_PORT + 4 * register)  # mov edx, the register
                code("B8", value)  # mov eax, value
                code("EF")  # out dx, eax
        code("A1", BUFFER + field_address("beats") - MAILBOX)  # mov eax, the beats that came back
        code("3B 05", field_address("beats"))  # cmp eax, [beats]
        code.jump("74", "carried")  # je carried
        code("FF 05", field_address("disk_errors"))  # inc dword [disk_errors]
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
    """The interrupt handlers.

    They return without IRET, which KVM without hardware virtualisation cannot emulate in protected mode. The stack has
    EIP, CS and EFLAGS; the handler turns it into EFLAGS and EIP. STI holds interrupts off until RET is done.
    """
    code.label("timer")
    code("FF 05", field_address("interrupts"))  # inc dword [interrupts]: its flags do not matter, they are restored
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
    code("FF 05", field_address("faults"))  # inc dword [faults]
    code.label("stop")
    code("FA F4")  # cli; hlt
    code.jump("EB", "stop")  # jmp stop
