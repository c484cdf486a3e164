# SPDX-License-Identifier: Apache-2.0
"""Calls of KVM on x86-64: Documentation/virt/kvm/api.rst.

Only the process that created a VM may use its descriptor and those of its vCPUs: others get EIO.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct

import numpy as np
import numpy.typing as npt

from parmig.linux.kvm_abi import (
    KVM_API_VERSION,
    KVM_CAP_SET_IDENTITY_MAP_ADDR,
    KVM_CAP_SET_TSS_ADDR,
    KVM_CPUID_DTYPE,
    KVM_MSR_DTYPE,
    KVM_STATE,
    KvmTable,
)
from parmig.linux.syscalls import MACHINE, check, libc

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_GET_MSR_INDEX_LIST = 0xC004AE02
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_GET_SUPPORTED_CPUID = 0xC008AE05
_KVM_CREATE_VCPU = 0xAE41
_KVM_GET_DIRTY_LOG = 0x4010AE42  # slot u32, pad u32, bitmap pointer
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46  # slot u32, flags u32, gpa, size, address
_KVM_SET_TSS_ADDR = 0xAE47
_KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
_KVM_CREATE_IRQCHIP = 0xAE60
_KVM_CREATE_PIT2 = 0x4040AE77
_KVM_RUN = 0xAE80
_KVM_GET_MSRS = 0xC008AE88
_KVM_SET_MSRS = 0x4008AE89
_KVM_SET_CPUID2 = 0x4008AE90
_KVM_ENABLE_CAP = 0x4068AEA3  # cap u32, flags u32, args[4] u64, 64 bytes
_KVM_SET_TSC_KHZ, _KVM_GET_TSC_KHZ = 0xAEA2, 0xAEA3
_KVM_KVMCLOCK_CTRL = 0xAEAD
_KVM_CLEAR_DIRTY_LOG = 0xC018AEC0  # slot u32, num_pages u32, first_page u64, bitmap pointer
_KVM_RESET_DIRTY_RINGS = 0xAEC7
_KVM_MEM_LOG_DIRTY_PAGES = 1
_KVM_DIRTY_RING_OFFSET = 64 * 4096  # of a vCPU's ring in the mapping of its descriptor
_KVM_TABLE_ENTRIES = 512  # room for CPUID entries and for MSRs; the kernels seen so far have under 150 of either
_KVM_TSS_ADDRESS, _KVM_IDENTITY_ADDRESS = 0xFEFFD000, 0xFEFFC000  # four pages below the BIOS, for older Intel hosts

libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]


def open_device() -> int:
    """A new descriptor of /dev/kvm; OSError also if its structures differ from those in this file."""
    if MACHINE != "x86_64":
        raise OSError(errno.ENOSYS, f"parmig knows KVM's structures on x86_64, not on {MACHINE}")
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION)
    if version != KVM_API_VERSION:
        os.close(kvm)
        raise OSError(errno.ENOSYS, f"KVM interface version {version}, expected {KVM_API_VERSION}")
    return kvm


def check_capability(fd: int, capability: int) -> int:
    """The kernel's value of *capability*: 0 means no, other numbers depend on the capability."""
    return fcntl.ioctl(fd, _KVM_CHECK_EXTENSION, capability)


def create_vm(kvm: int) -> int:
    """The descriptor of a new VM, close-on-exec, which belongs to this process."""
    return fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)


def set_fixed_pages(vm: int) -> None:
    """Give KVM the four free pages below 4 GiB that it needs on some Intel processors."""
    if check_capability(vm, KVM_CAP_SET_IDENTITY_MAP_ADDR):
        fcntl.ioctl(vm, _KVM_SET_IDENTITY_MAP_ADDR, struct.pack("=Q", _KVM_IDENTITY_ADDRESS))
    if check_capability(vm, KVM_CAP_SET_TSS_ADDR):
        check(libc.ioctl(vm, _KVM_SET_TSS_ADDR, _KVM_TSS_ADDRESS), "KVM_SET_TSS_ADDR")


def create_irqchip(vm: int) -> None:
    """Put PIC, IOAPIC and a LAPIC for each vCPU into the kernel; before the first vCPU."""
    fcntl.ioctl(vm, _KVM_CREATE_IRQCHIP)


def create_pit(vm: int) -> None:
    """Put the interval timer into the kernel."""
    fcntl.ioctl(vm, _KVM_CREATE_PIT2, bytes(64))


def enable_capability(vm: int, capability: int, argument: int) -> None:
    """KVM_ENABLE_CAP with one argument."""
    fcntl.ioctl(vm, _KVM_ENABLE_CAP, struct.pack("=IIQ88x", capability, 0, argument))


def set_memory(vm: int, slot: int, gpa: int, size_bytes: int, address: int, *, log: bool) -> None:
    """Show ``[address, address + size_bytes)`` of this process to the guest at *gpa*, with a dirty log or without."""
    flags = _KVM_MEM_LOG_DIRTY_PAGES if log else 0
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", slot, flags, gpa, size_bytes, address))


def get_dirty_log(vm: int, slot: int, bits: npt.NDArray[np.uint8]) -> None:
    """Overwrite *bits* (one a page, whole 64-bit words) with the slot's log; clears it unless protection is manual."""
    fcntl.ioctl(vm, _KVM_GET_DIRTY_LOG, struct.pack("=IIQ", slot, 0, bits.ctypes.data))


def clear_dirty_log(vm: int, slot: int, first_page: int, pages: int, bits: npt.NDArray[np.uint8]) -> None:
    """Re-arm the pages set in *bits*, whose first bit is *first_page* of the slot.

    *first_page* must be a multiple of 64, *pages* too unless they reach the end of the slot.
    """
    argument = bytearray(struct.pack("=IIQQ", slot, pages, first_page, bits.ctypes.data))
    fcntl.ioctl(vm, _KVM_CLEAR_DIRTY_LOG, argument)


def reset_dirty_rings(vm: int) -> int:
    """Re-arm the pages of all ring entries that are marked KVM_DIRTY_GFN_RESET; returns how many entries."""
    while True:
        try:
            return fcntl.ioctl(vm, _KVM_RESET_DIRTY_RINGS)
        except InterruptedError:  # Linux 6.16 and newer stop at a signal, and go on where they stopped
            continue


def map_dirty_ring(vcpu: int, size_bytes: int) -> mmap.mmap:
    """The dirty ring of *vcpu*, entries of KVM_DIRTY_GFN_DTYPE."""
    return mmap.mmap(vcpu, size_bytes, offset=_KVM_DIRTY_RING_OFFSET)


def create_vcpu(vm: int, number: int) -> int:
    """The descriptor of a new vCPU, close-on-exec."""
    return fcntl.ioctl(vm, _KVM_CREATE_VCPU, number)


def map_run(kvm: int, vcpu: int) -> mmap.mmap:
    """The struct kvm_run of *vcpu*, followed by the data of its exits."""
    return mmap.mmap(vcpu, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE))


def run(vcpu: int) -> bool:
    """Run *vcpu* without the interpreter's lock. True: it exited. False: it was interrupted, and nothing is pending.

    This does not use fcntl.ioctl(), because some versions of Python call it again after a signal.
    """
    if libc.ioctl(vcpu, _KVM_RUN, 0) >= 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINTR, errno.EAGAIN):
        return False
    raise OSError(number, f"KVM_RUN: {os.strerror(number)}")


def get_state(fd: int, what: str, head: bytes = b"") -> bytes:
    """The structure *what* of KVM_STATE of a VM or vCPU; *head* is put into it before asking."""
    number = KVM_STATE[what][0]
    buffer = bytearray(head.ljust(number >> 16 & 0x3FFF, b"\0"))
    fcntl.ioctl(fd, number, buffer)
    return bytes(buffer)


def set_state(fd: int, what: str, content: bytes) -> None:
    """Set the structure *what* of KVM_STATE; ValueError unless *content* has its size."""
    number = KVM_STATE[what][1]
    size_bytes = number >> 16 & 0x3FFF
    if len(content) != size_bytes:
        raise ValueError(f"{what} has {size_bytes} bytes on this host, not {len(content)}")
    fcntl.ioctl(fd, number, bytearray(content))


def tsc_khz(vcpu: int) -> int:
    """The frequency of the vCPU's time stamp counter in kHz."""
    return fcntl.ioctl(vcpu, _KVM_GET_TSC_KHZ)


def set_tsc_khz(vcpu: int, khz: int) -> None:
    """Have the vCPU's time stamp counter run at *khz*; EINVAL: the host has another, and cannot scale it."""
    fcntl.ioctl(vcpu, _KVM_SET_TSC_KHZ, khz)


def note_pause(vcpu: int) -> None:
    """Report the pause to the guest's watchdog through its kvmclock, if the guest has one."""
    try:
        fcntl.ioctl(vcpu, _KVM_KVMCLOCK_CTRL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def supported_cpuid(kvm: int) -> KvmTable:
    """The CPUID entries that this host can give a guest, dtype KVM_CPUID_DTYPE."""
    buffer = bytearray(struct.pack("=II", _KVM_TABLE_ENTRIES, 0) + bytes(_KVM_TABLE_ENTRIES * KVM_CPUID_DTYPE.itemsize))
    fcntl.ioctl(kvm, _KVM_GET_SUPPORTED_CPUID, buffer)
    return np.frombuffer(buffer, KVM_CPUID_DTYPE, struct.unpack_from("=I", buffer)[0], 8).copy()


def set_cpuid(vcpu: int, entries: KvmTable) -> None:
    """Give *vcpu* these CPUID entries; before it runs for the first time."""
    fcntl.ioctl(vcpu, _KVM_SET_CPUID2, bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes()))


def msr_indices(kvm: int) -> list[int]:
    """The MSRs that this host can save and restore."""
    buffer = bytearray(struct.pack("=I", _KVM_TABLE_ENTRIES) + bytes(4 * _KVM_TABLE_ENTRIES))
    fcntl.ioctl(kvm, _KVM_GET_MSR_INDEX_LIST, buffer)
    return list(struct.unpack_from(f"={struct.unpack_from('=I', buffer)[0]}I", buffer, 4))


def get_msrs(vcpu: int, entries: KvmTable) -> int:
    """Fill in the data of *entries* (KVM_MSR_DTYPE) in order; returns how many were read: the next cannot be."""
    buffer = bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes())
    done = int(fcntl.ioctl(vcpu, _KVM_GET_MSRS, buffer))
    entries["data"][:done] = np.frombuffer(buffer, KVM_MSR_DTYPE, done, 8)["data"]
    return done


def set_msrs(vcpu: int, entries: KvmTable) -> int:
    """Set the MSRs of *entries* (KVM_MSR_DTYPE) in order; returns how many were set: the next was refused."""
    buffer = bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes())
    return int(fcntl.ioctl(vcpu, _KVM_SET_MSRS, buffer))
