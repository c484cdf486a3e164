# SPDX-License-Identifier: Apache-2.0
"""The registers of a virtual CPU: reads and sets all of them, in the order that the kernel needs.

Reading: MP_STATE first, because reading it may deliver an INIT or SIPI; the events last, because other calls may move
an interrupt there. Setting: CPUID before everything else; MP_STATE; REGS, which clears pending exceptions; SREGS, which
has the base of the LAPIC; the LAPIC; the MSRs, because the TSC deadline needs a configured LAPIC; the events last.

Structures that this host's KVM does not have are saved as empty. A destination refuses, by name, what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt

from parmig.errors import StateError
from parmig.linux import kvm, kvm_abi
from parmig.state import U32, Buffer, Limit, U32Array, U64Array, migration_state

PRIORITY = 300
"""vCPUs are loaded before the interrupt controllers, which may hand them interrupts."""

_BEFORE_MSRS = ("mp_state", "regs", "sregs", "sregs2", "fpu", "xsave", "xcrs", "debugregs", "lapic")
"""The structures in the order of reading and setting. The MSRs and the events follow."""

_STRUCTURES = (*_BEFORE_MSRS, "events")

_CONTAINED_IN = {"sregs": "sregs2", "fpu": "xsave"}
"""Structures that are not saved if the host has the other, which contains them."""

Structure: TypeAlias = Annotated[Buffer, Limit(4096)]
"""A structure in the kernel's layout. XSAVE is the largest. Empty: the source has none."""

_TABLE_LIMIT = 5120  # words of CPUID, 512 entries; there are fewer MSRs
_CPUID_ENTRY_WORDS = kvm_abi.KVM_CPUID_DTYPE.itemsize // 4
_TSC_DEADLINE = 0x6E0

_FEATURES = {
    (0x1, 0): ("ecx", "edx"),
    (0x7, 0): ("ebx", "ecx", "edx"),
    (0x7, 1): ("eax", "edx"),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax",),
    (0x4000_0001, 0): ("eax",),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0008, 0): ("ebx",),
}
"""CPUID leaves and registers in which each bit is a feature."""

_NOT_OFFERED = {(0x1, 0, "ecx"): 1 << 27}
"""Bits that a host does not offer but a guest may have: OSXSAVE follows from CR4."""


@migration_state("vcpu", priority=PRIORITY)
class VcpuState:
    """The state of a vCPU that moves to the destination. The vCPU must be parked when it is saved or loaded.

    Args:
        kvm_fd: descriptor of /dev/kvm.
        vcpu: descriptor of the vCPU, which has not run yet.
        number: number of the vCPU.
        irqchip: whether the interrupt controllers are in the kernel.
    """

    cpuid: Annotated[U32Array, Limit(_TABLE_LIMIT)]
    tsc_khz: U32
    mp_state: Structure
    regs: Structure
    sregs: Structure
    sregs2: Structure
    fpu: Structure
    xsave: Structure
    xcrs: Structure
    debugregs: Structure
    lapic: Structure
    msr_indices: Annotated[U32Array, Limit(_TABLE_LIMIT)]
    msr_values: Annotated[U64Array, Limit(_TABLE_LIMIT)]
    events: Structure

    def __init__(self, kvm_fd: int, vcpu: int, number: int, *, irqchip: bool) -> None:
        self._vcpu = vcpu
        self._has = {name for name in _STRUCTURES if _is_offered(kvm_fd, name, irqchip)}
        offered = kvm.supported_cpuid(kvm_fd)
        self._offered = {(int(entry["function"]), int(entry["index"])): entry for entry in offered.copy()}
        self.cpuid = _cpuid_for(offered, number)
        self._set_cpuid()
        self.msr_indices = _readable_msrs(vcpu, kvm.msr_indices(kvm_fd))

    def start_flat(
        self, registers: Mapping[str, int], selectors: tuple[int, int], gdt: tuple[int, int], idt: tuple[int, int]
    ) -> None:
        """Begin in 32-bit protected mode without paging, with all segments over all memory.

        Args:
            registers: registers by name; the others are 0.
            selectors: selector of the code segment, and of the data segments.
            gdt: address and size of the global descriptor table.
            idt: address and size of the interrupt descriptor table.
        """
        sregs = kvm_abi.KvmSregs.from_buffer_copy(kvm.get_state(self._vcpu, "sregs"))
        sregs.make_flat(*selectors)
        sregs.gdt = kvm_abi.KvmTableRegister(base=gdt[0], limit=gdt[1] - 1)
        sregs.idt = kvm_abi.KvmTableRegister(base=idt[0], limit=idt[1] - 1)
        kvm.set_state(self._vcpu, "sregs", bytes(sregs))
        kvm.set_state(self._vcpu, "regs", kvm_abi.registers(registers))
        if "mp_state" in self._has:
            kvm.set_state(self._vcpu, "mp_state", kvm_abi.KVM_MP_STATE_RUNNABLE.to_bytes(4, "little"))

    def read_registers(self) -> dict[str, int]:
        """The general registers by name, as they are now."""
        values = np.frombuffer(kvm.get_state(self._vcpu, "regs"), np.uint64).tolist()
        return dict(zip(kvm_abi.KVM_REGISTERS, values, strict=True))

    # -- saving ---------------------------------------------------------------------------------

    def pre_save(self) -> None:
        """Read the state from KVM."""
        for name in _BEFORE_MSRS:
            self._read(name)
        self._read_msrs()
        self._read("events")
        self.tsc_khz = kvm.tsc_khz(self._vcpu)

    def _read(self, name: str) -> None:
        wanted = name in self._has and _CONTAINED_IN.get(name) not in self._has
        setattr(self, name, kvm.get_state(self._vcpu, name) if wanted else b"")

    def _read_msrs(self) -> None:
        table = _msr_table(self.msr_indices)
        done = kvm.get_msrs(self._vcpu, table)
        if done < len(table):
            raise StateError(f"MSR {self.msr_indices[done]:#x} can no longer be read")
        self.msr_values = table["data"].copy()

    # -- loading --------------------------------------------------------------------------------

    def post_load(self, _: int) -> None:
        """Set the state in KVM.

        Raises:
            StateError: this host lacks something that the vCPU had; the message names it.
        """
        lacking = [name.upper() for name in _STRUCTURES if getattr(self, name) and name not in self._has]
        if lacking:
            raise StateError(f"the source saved {', '.join(lacking)}, which this host's KVM does not have")
        self._check_cpuid()
        self._set("CPUID", self._set_cpuid)
        self._set(f"a TSC of {self.tsc_khz} kHz", kvm.set_tsc_khz, self._vcpu, self.tsc_khz)
        for name in _BEFORE_MSRS:
            self._write(name)
        self._set_msrs()
        self._write("events")

    def _write(self, name: str) -> None:
        content = getattr(self, name)
        if content:
            self._set(name.upper(), kvm.set_state, self._vcpu, name, content)

    def _set(self, what: str, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except (OSError, ValueError) as error:
            raise StateError(f"this host's KVM refuses {what} of the source: {error}") from error

    def _set_cpuid(self) -> None:
        kvm.set_cpuid(self._vcpu, self._cpuid_table())

    def _cpuid_table(self) -> kvm_abi.KvmTable:
        if len(self.cpuid) % _CPUID_ENTRY_WORDS:
            raise StateError(f"CPUID has {len(self.cpuid)} words, expected entries of {_CPUID_ENTRY_WORDS} words")
        return np.frombuffer(self.cpuid.astype("<u4").tobytes(), kvm_abi.KVM_CPUID_DTYPE)

    def _check_cpuid(self) -> None:
        """Refuse, by name, features that this host does not offer."""
        lacking = []
        for entry in self._cpuid_table():
            leaf = int(entry["function"]), int(entry["index"])
            for register in _FEATURES.get(leaf, ()):
                here = int(self._offered[leaf][register]) if leaf in self._offered else 0
                bits = int(entry[register]) & ~here & ~_NOT_OFFERED.get((*leaf, register), 0)
                if bits:
                    lacking.append(f"leaf {leaf[0]:#x}.{leaf[1]} {register} bits {bits:#x}")
        if lacking:
            raise StateError(f"the source's processor has features that this host lacks: CPUID {', '.join(lacking)}")

    def _set_msrs(self) -> None:
        if len(self.msr_indices) != len(self.msr_values):
            raise StateError(f"{len(self.msr_indices)} MSRs have {len(self.msr_values)} values, expected one each")
        table = _msr_table(self.msr_indices)
        table["data"] = self.msr_values
        while len(table):
            done = kvm.set_msrs(self._vcpu, table)
            if done < len(table):
                self._accept_unset(table[done])
            table = table[done + 1 :]

    def _accept_unset(self, entry: np.void) -> None:
        """Accept an MSR that cannot be set only if it has that value already."""
        current = np.array([entry], kvm_abi.KVM_MSR_DTYPE)
        if kvm.get_msrs(self._vcpu, current) != 1:
            raise StateError(f"the source saved MSR {entry['index']:#x}, which this host's KVM does not have")
        if current[0]["data"] != entry["data"]:
            raise StateError(
                f"MSR {entry['index']:#x} is {entry['data']:#x} at the source and {current[0]['data']:#x} here, "
                "and this host's KVM cannot set it"
            )


def _is_offered(kvm_fd: int, name: str, irqchip: bool) -> bool:
    if name in kvm_abi.KVM_STATE_CAPABILITY:
        return kvm.check_capability(kvm_fd, kvm_abi.KVM_STATE_CAPABILITY[name]) > 0
    return irqchip if name == "lapic" else True


def _cpuid_for(entries: kvm_abi.KvmTable, number: int) -> npt.NDArray[np.uint32]:
    """Everything that the host offers, with the number of the vCPU filled in."""
    for entry in entries:
        if entry["function"] == 0x1:
            entry["ebx"] = int(entry["ebx"]) & 0x00FF_FFFF | number << 24
        elif entry["function"] in (0xB, 0x1F):
            entry["edx"] = number
    return entries.view(np.uint32).reshape(-1)


def _readable_msrs(vcpu: int, indices: list[int]) -> npt.NDArray[np.uint32]:
    """The MSRs of *indices* that can be read, in the order in which they are set."""
    remaining = sorted(indices, key=lambda index: (index == _TSC_DEADLINE, index))
    readable: list[int] = []
    while remaining:
        done = kvm.get_msrs(vcpu, _msr_table(remaining))
        readable += remaining[:done]
        del remaining[: done + 1]  # also the one that cannot be read
    return np.array(readable, np.uint32)


def _msr_table(indices: Sequence[int] | npt.NDArray[np.uint32]) -> kvm_abi.KvmTable:
    table = np.zeros(len(indices), kvm_abi.KVM_MSR_DTYPE)
    table["index"] = indices
    return table
