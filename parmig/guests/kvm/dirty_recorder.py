# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a KVM guest: KVM's bitmaps of the slots or its rings of the vCPUs, and writes of the monitor itself.

KVM sees only what virtual CPUs write. Devices write memory too, so their pages are added to those of KVM. ``sync``
collects both in the shared bitmap. The ``pagemap`` log sees both by itself.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from parmig.errors import GuestRefusedError, HostRefusedError
from parmig.guests.guest import DirtyLog, Segment
from parmig.guests.kvm.ram import Slot
from parmig.guests.spawned.log_choice import AUTO, wanted_log
from parmig.guests.spawned.write_tracking import track_own_writes
from parmig.linux import kvm, kvm_abi, uffd
from parmig.ram.bits import Bits, bits_for, set_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.rearm import RearmServer
from parmig.ram.regions import Region

TRACKERS = ("auto", "bitmap", "ring", "pagemap", "digest")
"""Values of the guest's option ``tracker``. ``ring`` decides how the VM is made; for workers it is a ``bitmap``."""

RING_BYTES = 1 << 16
"""Size of the ring of each vCPU: 4096 entries. A vCPU whose ring is nearly full harvests it itself."""


class DirtyRings:
    """The dirty rings of all vCPUs of a VM that has no vCPU yet.

    Args:
        vm: descriptor of the VM.
        slots: the slots that the entries name.
    """

    def __init__(self, vm: int, slots: Sequence[Slot]) -> None:
        kvm.enable_capability(vm, kvm_abi.KVM_CAP_DIRTY_LOG_RING, RING_BYTES)
        self._vm = vm
        self._first_bits = np.array([slot.first_bit for slot in slots])
        self._maps: list[mmap.mmap] = []
        self._next: list[int] = []

    def add(self, vcpu: int) -> None:
        """Add the ring of a new vCPU."""
        self._maps.append(kvm.map_dirty_ring(vcpu, RING_BYTES))
        self._next.append(0)

    def harvest(self, into: Bits) -> None:
        """Move the entries of all rings to *into*, one bit for each page of the block, and re-arm their pages.

        Only one call at a time is allowed.
        """
        harvested = 0
        for number, ring in enumerate(self._maps):
            entries = np.frombuffer(ring, kvm_abi.KVM_DIRTY_GFN_DTYPE)
            order = np.roll(np.arange(len(entries)), -self._next[number])
            flags = entries["flags"][order]
            # KVM fills the entries one after the other, so they end before the first that is not marked.
            count = int(np.argmin(np.append(flags & kvm_abi.KVM_DIRTY_GFN_DIRTY, 0)))
            taken = order[:count]
            pages = self._first_bits[entries["slot"][taken] & 0xFFFF] + entries["offset"][taken].astype(np.int64)
            set_bits(into, np.unique(pages))
            entries["flags"][taken] = kvm_abi.KVM_DIRTY_GFN_RESET
            self._next[number] = (self._next[number] + count) % len(entries)
            harvested += count
        if harvested:
            kvm.reset_dirty_rings(self._vm)

    def close(self) -> None:
        """Unmap."""
        for ring in self._maps:
            ring.close()


class DirtyRecorder:
    """Records writes to guest memory while a log is on.

    Args:
        vm: descriptor of the VM.
        slots: all slots, numbered from 0.
        bitmap_fd: the shared bitmap; not owned.
        rings: owned from here on; None: use KVM's bitmaps.
    """

    def __init__(self, vm: int, slots: Sequence[Slot], bitmap_fd: int, rings: DirtyRings | None) -> None:
        size_bytes = max(slot.first_bit // 8 + bits_for(slot.pages) for slot in slots)
        self._vm = vm
        self._slots = slots
        self._rings = rings
        self._shared_map = mmap.mmap(bitmap_fd, size_bytes)
        self._shared: Bits = np.frombuffer(self._shared_map, np.uint8)
        # Pages that KVM's bitmaps do not show: those that the monitor wrote, and those from rings.
        self._pending: Bits = np.zeros(size_bytes, np.uint8)
        self._lock = threading.Lock()
        self._manual = False
        if rings is None:
            flags = kvm.check_capability(vm, kvm_abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
            flags &= kvm_abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | kvm_abi.KVM_DIRTY_LOG_INITIALLY_SET
            if flags & kvm_abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
                kvm.enable_capability(vm, kvm_abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)
                self._manual = True
        self._kind = ""
        self._server: RearmServer | None = None
        self._uffd = -1

    def add_vcpu(self, vcpu: int) -> None:
        """Record the writes of a new vCPU, too."""
        if self._rings is not None:
            self._rings.add(vcpu)

    def mark(self, first_bit: int, end_bit: int) -> None:
        """Note that the monitor wrote the pages ``[first_bit, end_bit)`` of the bitmap."""
        with self._lock:
            set_bits(self._pending, np.arange(first_bit, end_bit))

    def start(self, kind: str, preferred: str) -> DirtyLog:
        """Begin with nothing recorded. A log that is on ends first.

        Args:
            kind: what the engine asks for.
            preferred: what ``auto`` stands for.

        Raises:
            HostRefusedError: the kernel does not let this process track its writes.
            GuestRefusedError: there is no such log.
        """
        self.stop()
        kind, reason = wanted_log("a KVM guest", kind, preferred, TRACKERS)
        if kind == AUTO:
            kind, reason = "bitmap", "the usual one"
        if kind == "ring" and self._rings is None:
            raise GuestRefusedError("this KVM guest has no dirty rings; start it with tracker=ring")
        if kind == "digest":
            return DirtyLog("digest", reason=reason)
        self._kind = kind
        if kind == "pagemap":
            return DirtyLog("pagemap", os.getpid(), self._register(), reason)
        return self._start_kvm(reason)

    def sync(self) -> None:
        """Add what was written since the last call to the shared bitmap."""
        if self._kind not in ("bitmap", "ring"):
            return
        with self._lock:
            if self._rings is not None:
                self._rings.harvest(self._pending)
            self._shared |= self._pending
            self._pending[:] = 0
        if self._rings is None:
            for slot in self._slots:
                part = np.zeros(bits_for(slot.pages), np.uint8)
                kvm.get_dirty_log(self._vm, slot.number, part)
                self._shared[slot.first_bit // 8 :][: len(part)] |= part

    def ring_full(self) -> None:
        """Harvest the rings, because a vCPU cannot continue before that."""
        with self._lock:
            if self._rings is not None:
                self._rings.harvest(self._pending)

    def stop(self) -> None:
        """End the log and leave nothing registered."""
        kind, self._kind = self._kind, ""
        if self._server is not None:
            self._server.close()
            self._server = None
        if kind in ("bitmap", "ring"):
            self._log_slots(False)
            self.ring_full()
        if self._uffd >= 0:
            os.close(self._uffd)  # the kernel then drops all registrations and all protection
            self._uffd = -1

    def close(self) -> None:
        """Stop, and release everything."""
        self.stop()
        if self._rings is not None:
            self._rings.close()
        del self._shared
        self._shared_map.close()

    def _start_kvm(self, reason: str) -> DirtyLog:
        self._shared[:] = 0
        with self._lock:
            self._pending[:] = 0
        self._log_slots(True)
        if self._rings is not None:
            return DirtyLog("bitmap", reason=f"KVM's dirty rings: {reason}")
        if not self._manual:
            return DirtyLog("bitmap", reason=f"KVM's dirty log, re-armed as a whole: {reason}")
        self._server = RearmServer(self._rearm)
        return DirtyLog("bitmap", reason=f"KVM's dirty log, re-armed by slices: {reason}", rearm=self._server.name)

    def _log_slots(self, on: bool) -> None:
        for slot in self._slots:
            slot.show(self._vm, log=on)

    def _rearm(self, span: Region, everything: bool) -> None:
        """Let KVM record new writes to pages of *span*: those in the shared bitmap, or all."""
        covered = 0
        for slot in self._slots:
            first = max(span.first_page, slot.first_page) - slot.first_page
            pages = min(span.end_page, slot.first_page + slot.pages) - slot.first_page - first
            if slot.block == span.block and pages > 0:
                bits = self._shared[(slot.first_bit + first) // 8 :][: bits_for(pages)]
                if everything:
                    bits = np.full_like(bits, 0xFF)
                kvm.clear_dirty_log(self._vm, slot.number, first, pages, bits)
                covered += pages
        if covered != span.pages:
            raise ValueError(f"{covered} pages of the block belong to the guest, expected all")

    def _register(self) -> tuple[tuple[Segment, ...], ...]:
        """Put the memory under asynchronous write protection."""
        missing = uffd.probe_write_tracking()
        if missing:
            raise HostRefusedError(f"dirty log pagemap cannot be used: {missing}; choose bitmap")
        self._uffd = track_own_writes((slot.address, slot.pages * PAGE_BYTES) for slot in self._slots)
        return tuple(
            tuple(Segment(slot.first_page, slot.pages, slot.address) for slot in slots)
            for _, slots in groupby(self._slots, lambda slot: slot.block)
        )
