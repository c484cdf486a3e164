# SPDX-License-Identifier: Apache-2.0
"""What this host's KVM can do for guests of kind ``kvm``: runs a virtual CPU, and looks for what it wrote."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from parmig.linux import kvm, kvm_abi
from parmig.probes.probe import Probe
from parmig.units import format_size

_CODE = bytes.fromhex("FF 07 81 C7 00 10 00 00 E2 F6 F4")  # next: inc dword [edi]; add edi, 4096; loop next; hlt
_FIRST_PAGE = 1  # page 0 holds the code

_TRIAL_RING_BYTES = 1 << 14  # 1024 entries, the least that every processor allows

_TRIAL_ROUNDS = 8  # an overrun shows in the first or second; all of them take 100 ms at most

_PARTS = {
    "interrupt controllers": kvm_abi.KVM_CAP_IRQCHIP,
    "PIT": kvm_abi.KVM_CAP_PIT2,
    "clock": kvm_abi.KVM_CAP_ADJUST_CLOCK,
    "XSAVE": kvm_abi.KVM_CAP_XSAVE,
    "XCRS": kvm_abi.KVM_CAP_XCRS,
    "debug registers": kvm_abi.KVM_CAP_DEBUGREGS,
    "SREGS2": kvm_abi.KVM_CAP_SREGS2,
    "vCPU events": kvm_abi.KVM_CAP_VCPU_EVENTS,
}
"""What not every KVM has, by name."""


class _Trial:
    """A VM with one vCPU that adds one to a word of each of *pages* pages, from page 1 on, whenever it is run.

    Entering makes it, leaving takes it apart.

    Args:
        ring_bytes: of a dirty ring; 0: a dirty bitmap.

    Attributes:
        lacking: names of _PARTS that this KVM lacks.
        ring: the entries of the ring, if there is one.
    """

    def __init__(self, pages: int, ring_bytes: int = 0) -> None:
        self._pages = pages
        self._ring_bytes = ring_bytes
        self._stack = ExitStack()

    def __enter__(self) -> _Trial:
        kvm_fd = self._owned(kvm.open_device())
        self.lacking = [name for name, capability in _PARTS.items() if not kvm.check_capability(kvm_fd, capability)]
        self.vm = self._owned(kvm.create_vm(kvm_fd))
        kvm.set_fixed_pages(self.vm)
        if self._ring_bytes:
            kvm.enable_capability(self.vm, kvm_abi.KVM_CAP_DIRTY_LOG_RING, self._ring_bytes)
        memory = mmap.mmap(-1, -(-(self._pages + 1) // 64) * 64 * mmap.PAGESIZE)
        memory[: len(_CODE)] = _CODE
        self._memory: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        kvm.set_memory(self.vm, 0, 0, len(memory), self._memory.ctypes.data, log=True)
        self._vcpu = self._owned(kvm.create_vcpu(self.vm, 0))
        sregs = kvm_abi.KvmSregs.from_buffer_copy(kvm.get_state(self._vcpu, "sregs"))
        sregs.make_flat(8, 16)
        kvm.set_state(self._vcpu, "sregs", bytes(sregs))
        self._run = kvm_abi.KvmRun.from_buffer(kvm.map_run(kvm_fd, self._vcpu))
        if self._ring_bytes:
            self.ring = np.frombuffer(kvm.map_dirty_ring(self._vcpu, self._ring_bytes), kvm_abi.KVM_DIRTY_GFN_DTYPE)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _owned(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def begin(self) -> None:
        """Begin with the first page."""
        registers = {"rdi": _FIRST_PAGE * mmap.PAGESIZE, "rcx": self._pages, "rflags": 2}
        kvm.set_state(self._vcpu, "regs", kvm_abi.registers(registers))

    def run(self) -> int:
        """Go on; returns the reason of the exit, HLT when all is done."""
        kvm.run(self._vcpu)
        return int(self._run.exit_reason)

    def written(self) -> list[int]:
        """The pages that the bitmap shows."""
        bits = np.zeros(len(self._memory) // mmap.PAGESIZE // 8, np.uint8)
        kvm.get_dirty_log(self.vm, 0, bits)
        return [int(page) for page in np.flatnonzero(np.unpackbits(bits, bitorder="little"))]


def probe_kvm_guest() -> Probe:
    """A virtual CPU that writes to one page, and the dirty log, which must show that page alone."""
    try:
        with _Trial(1) as trial:
            trial.begin()
            trial.run()
            dirty = trial.written()
    except OSError as error:
        return Probe("KVM guest", "limited", f"cannot be tried: {error.strerror or error}", "see the line KVM")
    if dirty != [_FIRST_PAGE]:
        return Probe("KVM guest", "limited", f"a vCPU wrote page {_FIRST_PAGE}, the dirty log shows {dirty}")
    detail = "a vCPU ran, and the dirty log shows what it wrote"
    if trial.lacking:
        return Probe(
            "KVM guest", "limited", f"{detail}; no {', '.join(trial.lacking)}", "guests that have these are refused"
        )
    return Probe("KVM guest", "ok", detail)


def probe_kvm_dirty_log() -> Probe:
    """How KVM's dirty logs can be re-armed, and whether its rings can be relied on."""
    try:
        kvm_fd = kvm.open_device()
        manual = kvm.check_capability(kvm_fd, kvm_abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        ring_bytes = kvm.check_capability(kvm_fd, kvm_abi.KVM_CAP_DIRTY_LOG_RING)
        os.close(kvm_fd)
        rings = why_no_rings() or f"dirty rings up to {format_size(ring_bytes)} a vCPU"
    except OSError as error:
        return Probe("KVM dirty log", "limited", f"cannot be asked: {error.strerror or error}", "see the line KVM")
    if manual & kvm_abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
        return Probe("KVM dirty log", "ok", f"re-armed slice by slice; {rings}")
    return Probe("KVM dirty log", "limited", f"re-armed as a whole; {rings}", "Linux 5.1 sends fewer pages twice")


def why_no_rings() -> str | None:
    """Why dirty rings cannot be used here, or None when they can.

    KVM stops a vCPU well before its ring is full. A vCPU that emulates many instructions at a time, as on a host
    without virtualisation in hardware, may check too late. Then entries are overwritten, and writes are lost without
    a trace.

    Raises:
        OSError: there is no KVM.
    """
    kvm_fd = kvm.open_device()
    offered = kvm.check_capability(kvm_fd, kvm_abi.KVM_CAP_DIRTY_LOG_RING)
    os.close(kvm_fd)
    if offered < _TRIAL_RING_BYTES:
        return "this host's KVM has no dirty rings"
    return "this host's KVM overruns its dirty rings" if _overruns() else None


def _overruns() -> bool:
    """Whether a vCPU that writes more pages than its ring has entries stops too late, with no entry left free."""
    entries = _TRIAL_RING_BYTES // kvm_abi.KVM_DIRTY_GFN_DTYPE.itemsize
    with _Trial(2 * entries, _TRIAL_RING_BYTES) as trial:
        for _ in range(_TRIAL_ROUNDS):
            trial.begin()
            while trial.run() == kvm_abi.KVM_EXIT_DIRTY_RING_FULL:
                dirty = trial.ring["flags"] & kvm_abi.KVM_DIRTY_GFN_DIRTY
                if dirty.all() or not dirty.any():
                    return True
                trial.ring["flags"][dirty == 1] = kvm_abi.KVM_DIRTY_GFN_RESET
                kvm.reset_dirty_rings(trial.vm)
    return False
