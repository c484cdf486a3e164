# SPDX-License-Identifier: Apache-2.0
"""What this host's KVM can do for guests of the kind ``kvm``: a virtual CPU is run, and what it wrote looked for."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from parmig import linux
from parmig.probes.base import Probe
from parmig.units import format_size

_CODE = bytes.fromhex("FF 07 81 C7 00 10 00 00 E2 F6 F4")  # next: inc dword [edi]; add edi, 4096; loop next; hlt
_FIRST_PAGE = 1  # page 0 holds the code

_TRIAL_RING_BYTES = 1 << 14  # 1024 entries, the least that every processor allows

_TRIAL_ROUNDS = 8  # an overrun shows in the first or second; all of them take 100 ms at most

_PARTS = {
    "interrupt controllers": linux.KVM_CAP_IRQCHIP,
    "PIT": linux.KVM_CAP_PIT2,
    "clock": linux.KVM_CAP_ADJUST_CLOCK,
    "XSAVE": linux.KVM_CAP_XSAVE,
    "XCRS": linux.KVM_CAP_XCRS,
    "debug registers": linux.KVM_CAP_DEBUGREGS,
    "SREGS2": linux.KVM_CAP_SREGS2,
    "vCPU events": linux.KVM_CAP_VCPU_EVENTS,
}
"""What not every KVM has, by name."""


class _Trial:
    """A VM with one vCPU that adds one to a word of each of *pages* pages, from page 1 on, whenever it is run.

    Entering makes it, leaving takes it apart.

    Args:
        ring_bytes: of a dirty ring; 0: a dirty bitmap.

    Attributes:
        lacking: names of _PARTS that this KVM has not got.
        ring: the entries of the ring, as far as there is one.
    """

    def __init__(self, pages: int, ring_bytes: int = 0) -> None:
        self._pages = pages
        self._ring_bytes = ring_bytes
        self._stack = ExitStack()

    def __enter__(self) -> _Trial:
        kvm = self._owned(linux.kvm_open())
        self.lacking = [name for name, capability in _PARTS.items() if not linux.kvm_check(kvm, capability)]
        self.vm = self._owned(linux.kvm_create_vm(kvm))
        linux.kvm_set_fixed_pages(self.vm)
        if self._ring_bytes:
            linux.kvm_enable(self.vm, linux.KVM_CAP_DIRTY_LOG_RING, self._ring_bytes)
        memory = mmap.mmap(-1, -(-(self._pages + 1) // 64) * 64 * mmap.PAGESIZE)
        memory[: len(_CODE)] = _CODE
        self._memory: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        linux.kvm_set_memory(self.vm, 0, 0, len(memory), self._memory.ctypes.data, log=True)
        self._vcpu = self._owned(linux.kvm_create_vcpu(self.vm, 0))
        sregs = linux.KvmSregs.from_buffer_copy(linux.kvm_get(self._vcpu, "sregs"))
        sregs.make_flat(8, 16)
        linux.kvm_set(self._vcpu, "sregs", bytes(sregs))
        self._run = linux.KvmRun.from_buffer(linux.kvm_map_run(kvm, self._vcpu))
        if self._ring_bytes:
            self.ring = np.frombuffer(linux.kvm_map_dirty_ring(self._vcpu, self._ring_bytes), linux.KVM_DIRTY_GFN_DTYPE)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _owned(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def begin(self) -> None:
        """Begin with the first page."""
        registers = {"rdi": _FIRST_PAGE * mmap.PAGESIZE, "rcx": self._pages, "rflags": 2}
        linux.kvm_set(self._vcpu, "regs", linux.kvm_registers(registers))

    def run(self) -> int:
        """Go on; returns the reason of the exit, HLT when all is done."""
        linux.kvm_run(self._vcpu)
        return int(self._run.exit_reason)

    def written(self) -> list[int]:
        """The pages that the bitmap shows."""
        bits = np.zeros(len(self._memory) // mmap.PAGESIZE // 8, np.uint8)
        linux.kvm_get_dirty_log(self.vm, 0, bits)
        return [int(page) for page in np.flatnonzero(np.unpackbits(bits, bitorder="little"))]


def probe_kvm_guest() -> Probe:
    """A virtual CPU that writes to one page, and the dirty log, which must show that page alone."""
    try:
        with _Trial(1) as trial:
            trial.begin()
            trial.run()
            found = trial.written()
    except OSError as error:
        return Probe("KVM guest", "limited", f"cannot be tried: {error.strerror or error}", "see the line KVM")
    if found != [_FIRST_PAGE]:
        return Probe("KVM guest", "limited", f"a vCPU wrote page {_FIRST_PAGE}, the dirty log shows {found}")
    detail = "a vCPU ran, and the dirty log shows what it wrote"
    if trial.lacking:
        return Probe(
            "KVM guest", "limited", f"{detail}; no {', '.join(trial.lacking)}", "guests that have these are refused"
        )
    return Probe("KVM guest", "ok", detail)


def probe_kvm_dirty_log() -> Probe:
    """How KVM's dirty logs can be re-armed, and whether its rings can be relied on."""
    try:
        kvm = linux.kvm_open()
        manual = linux.kvm_check(kvm, linux.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        ring_bytes = linux.kvm_check(kvm, linux.KVM_CAP_DIRTY_LOG_RING)
        os.close(kvm)
        rings = why_no_rings() or f"dirty rings up to {format_size(ring_bytes)} a vCPU"
    except OSError as error:
        return Probe("KVM dirty log", "limited", f"cannot be asked: {error.strerror or error}", "see the line KVM")
    if manual & linux.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
        return Probe("KVM dirty log", "ok", f"re-armed slice by slice; {rings}")
    return Probe("KVM dirty log", "limited", f"re-armed as a whole; {rings}", "Linux 5.1 sends fewer pages twice")


def why_no_rings() -> str | None:
    """Why dirty rings cannot be used here, or None when they can.

    KVM stops a vCPU well before its ring is full. One that emulates many instructions at a time, as where there is no
    virtualisation in hardware, may look too late: then entries are overwritten, and writes are lost without a trace.

    Raises:
        OSError: there is no KVM.
    """
    kvm = linux.kvm_open()
    offered = linux.kvm_check(kvm, linux.KVM_CAP_DIRTY_LOG_RING)
    os.close(kvm)
    if offered < _TRIAL_RING_BYTES:
        return "this host's KVM has no dirty rings"
    return "this host's KVM overruns its dirty rings" if _overruns() else None


def _overruns() -> bool:
    """Write more pages than a ring has entries, a few times over; a vCPU that stops must have left some free."""
    entries = _TRIAL_RING_BYTES // linux.KVM_DIRTY_GFN_DTYPE.itemsize
    with _Trial(2 * entries, _TRIAL_RING_BYTES) as trial:
        for _ in range(_TRIAL_ROUNDS):
            trial.begin()
            while trial.run() == linux.KVM_EXIT_DIRTY_RING_FULL:
                dirty = trial.ring["flags"] & linux.KVM_DIRTY_GFN_DIRTY
                if dirty.all() or not dirty.any():
                    return True
                trial.ring["flags"][dirty == 1] = linux.KVM_DIRTY_GFN_RESET
                linux.kvm_reset_dirty_rings(trial.vm)
    return False
