# SPDX-License-Identifier: Apache-2.0
"""What tests with KVM share: whether there is one, and a VM whose only vCPU stores pages on command."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from parmig.guests.kvm.dirty_recorder import DirtyRecorder, DirtyRings
from parmig.guests.kvm.ram import Slot
from parmig.guests.kvm.vcpu_state import VcpuState
from parmig.linux import kvm, kvm_abi
from parmig.ram.bits import bits_for
from parmig.ram.blocks import PAGE_BYTES


def missing() -> str | None:
    """Why there is no KVM here, or None."""
    try:
        os.close(kvm.open_device())
    except OSError as error:
        return f"no KVM: {error}"
    return None


MISSING = missing()

needs_kvm = [
    pytest.mark.kvm,
    pytest.mark.skipif(MISSING is not None and not os.environ.get("CI"), reason=str(MISSING)),
]
"""Skips where there is no KVM, with the reason. On CI such a test runs all the same, and fails."""

_SCRATCH_GPA = 0
_FIRST_GPA = 1 << 20
_STORED_WORDS = 8
_COPY = bytes.fromhex("F3 A5 F4")  # rep movsd; hlt


class StoringVm:
    """A VM that is given blocks of memory, and whose vCPU stores into their pages.

    Args:
        addresses: where this process has each block mapped.
        pages: of each block.
        bitmap_fd: the shared dirty bitmap, each block beginning on a word.
        ring: record by dirty rings.
    """

    def __init__(self, addresses: Sequence[int], pages: Sequence[int], bitmap_fd: int, *, ring: bool) -> None:
        self._stack = ExitStack()
        kvm_fd = self._owned(kvm.open_device())
        vm = self._owned(kvm.create_vm(kvm_fd))
        kvm.set_fixed_pages(vm)
        self.slots: list[Slot] = []
        gpa, bit = _FIRST_GPA, 0
        for number, (address, count) in enumerate(zip(addresses, pages, strict=True)):
            self.slots.append(Slot(number, number, 0, count, gpa, address, bit))
            gpa += count * PAGE_BYTES
            bit += bits_for(count) * 8
        rings = DirtyRings(vm, self.slots) if ring else None
        self.recorder = DirtyRecorder(vm, self.slots, bitmap_fd, rings)
        self._stack.callback(self.recorder.close)
        self._scratch = mmap.mmap(-1, 2 * PAGE_BYTES)
        self._scratch[: len(_COPY)] = _COPY
        for slot in self.slots:
            slot.show(vm, log=False)
        address = np.frombuffer(self._scratch, np.uint8).ctypes.data
        kvm.set_memory(vm, len(self.slots), _SCRATCH_GPA, 2 * PAGE_BYTES, address, log=False)
        self._vcpu = self._owned(kvm.create_vcpu(vm, 0))
        self.recorder.add_vcpu(self._vcpu)
        self._state = VcpuState(kvm_fd, self._vcpu, 0, irqchip=False)
        self._map = kvm.map_run(kvm_fd, self._vcpu)

    def _owned(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def store(self, block: int, page: int, content: bytes) -> None:
        """Write *content*, a page, of which the vCPU stores the beginning, so that KVM's log must show it.

        No more than that: KVM may put each store into its ring, and look only then whether that is full.
        """
        slot = self.slots[block]
        ctypes.memmove(slot.address + page * PAGE_BYTES, content, PAGE_BYTES)
        self._scratch[PAGE_BYTES:] = content
        target = slot.gpa + page * PAGE_BYTES
        registers = {"rip": 0, "rsi": PAGE_BYTES, "rdi": target, "rcx": _STORED_WORDS, "rflags": 2}
        self._state.start_flat(registers, (8, 16), (0, 1), (0, 1))
        run = kvm_abi.KvmRun.from_buffer(self._map)
        while True:
            assert kvm.run(self._vcpu)
            if run.exit_reason == kvm_abi.KVM_EXIT_HLT:
                return
            assert run.exit_reason == kvm_abi.KVM_EXIT_DIRTY_RING_FULL, run.exit_reason
            self.recorder.ring_full()

    def close(self) -> None:
        """Take it apart."""
        self._map.close()
        self._stack.close()
        self._scratch.close()
