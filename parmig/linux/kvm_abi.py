# SPDX-License-Identifier: Apache-2.0
"""Numbers and structures of KVM on x86-64: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

KVM_API_VERSION = 12

KVM_CAP_IRQCHIP = 0
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_MP_STATE = 14
KVM_CAP_PIT2 = 33
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_SREGS2 = 200

KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
KVM_DIRTY_LOG_INITIALLY_SET = 2

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_NAMES = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO", 7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT", 31: "DIRTY_RING_FULL",
}  # fmt: skip
KVM_EXIT_IO_OUT = 1

KVM_MP_STATE_RUNNABLE = 0

KVM_STATE = {
    # of a vCPU
    "regs": (0x8090AE81, 0x4090AE82),
    "sregs": (0x8138AE83, 0x4138AE84),
    "sregs2": (0x8140AECC, 0x4140AECD),
    "fpu": (0x81A0AE8C, 0x41A0AE8D),
    "xsave": (0x9000AEA4, 0x5000AEA5),
    "xcrs": (0x8188AEA6, 0x4188AEA7),
    "debugregs": (0x8080AEA1, 0x4080AEA2),
    "lapic": (0x8400AE8E, 0x4400AE8F),
    "mp_state": (0x8004AE98, 0x4004AE99),
    "events": (0x8040AE9F, 0x4040AEA0),
    # of a VM; an irqchip's first word selects which one, also for the getter
    "irqchip": (0xC208AE62, 0x8208AE63),
    "pit2": (0x8070AE9F, 0x4070AEA0),
    "clock": (0x8030AE7C, 0x4030AE7B),
}
"""Structures that the kernel gives and takes whole: KVM_GET_ and KVM_SET_ by name. Bits 16 to 29 hold the size."""

KVM_STATE_CAPABILITY = {
    "sregs2": KVM_CAP_SREGS2,
    "xsave": KVM_CAP_XSAVE,
    "xcrs": KVM_CAP_XCRS,
    "debugregs": KVM_CAP_DEBUGREGS,
    "mp_state": KVM_CAP_MP_STATE,
    "events": KVM_CAP_VCPU_EVENTS,
    "pit2": KVM_CAP_PIT_STATE2,
    "clock": KVM_CAP_ADJUST_CLOCK,
}
"""The capability of each structure that not every KVM has."""

KVM_CPUID_DTYPE = np.dtype(
    [(name, "<u4") for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")] + [("padding", "<u4", 3)]
)
"""struct kvm_cpuid_entry2, 40 bytes."""

KVM_MSR_DTYPE = np.dtype([("index", "<u4"), ("reserved", "<u4"), ("data", "<u8")])
"""struct kvm_msr_entry, 16 bytes."""

KVM_DIRTY_GFN_DTYPE = np.dtype([("flags", "<u4"), ("slot", "<u4"), ("offset", "<u8")])
"""struct kvm_dirty_gfn, 16 bytes: an entry of a dirty ring; *offset* is a page of the slot."""
KVM_DIRTY_GFN_DIRTY = 1
KVM_DIRTY_GFN_RESET = 2

KVM_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
"""struct kvm_regs: 18 registers of 64 bits."""

KvmTable = npt.NDArray[np.void]


def registers(values: Mapping[str, int]) -> bytes:
    """A struct kvm_regs with these registers, by name; the others are 0."""
    return struct.pack("=18Q", *(values.get(name, 0) for name in KVM_REGISTERS))


class KvmSegment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint32), ("selector", ctypes.c_uint16)] + [
        (name, ctypes.c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
    ]


class KvmTableRegister(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class KvmSregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        [(name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")]
        + [(name, KvmTableRegister) for name in ("gdt", "idt")]
        + [(name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")]
        + [("interrupt_bitmap", ctypes.c_uint64 * 4)]
    )

    def make_flat(self, code: int, data: int) -> None:
        """Switch to 32-bit protected mode without paging, all segments over all memory, with these selectors."""
        flat = {"limit": 0xFFFF_FFFF, "present": 1, "db": 1, "s": 1, "g": 1}
        self.cs = KvmSegment(selector=code, type=0xB, **flat)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(self, name, KvmSegment(selector=data, type=0x3, **flat))
        self.cr0 |= 1


class KvmExitIo(ctypes.Structure):
    """The io member of struct kvm_run: *count* items of *size* bytes lie at *data_offset* of the structure."""

    _fields_ = [
        ("direction", ctypes.c_uint8),
        ("size", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
        ("count", ctypes.c_uint32),
        ("data_offset", ctypes.c_uint64),
    ]


class KvmExitMmio(ctypes.Structure):
    """The mmio member of struct kvm_run."""

    _fields_ = [
        ("phys_addr", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * 8),
        ("len", ctypes.c_uint32),
        ("is_write", ctypes.c_uint8),
    ]


class _KvmExitData(ctypes.Union):
    _fields_ = [("io", KvmExitIo), ("mmio", KvmExitMmio), ("words", ctypes.c_uint64 * 4)]


class KvmRun(ctypes.Structure):
    """The head of struct kvm_run, which kernel and VMM share."""

    _anonymous_ = ("data",)
    _fields_ = [
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("data", _KvmExitData),
    ]
