# SPDX-License-Identifier: Apache-2.0
"""A virtual CPU and the thread that runs it.

The thread is in KVM_RUN (without the interpreter's lock), handles an exit, or is parked. It parks while someone holds
it, and only after KVM_RUN was interrupted. The kernel completes some exits (port and memory accesses) only at the next
entry. They are complete then, because ``immediate_exit`` returns from KVM_RUN right after that.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from parmig.errors import GuestError
from parmig.guests.kvm.kvm_devices import TICK_HZ, Device
from parmig.linux import kvm, kvm_abi
from parmig.units import NS_PER_S

KICK = signal.SIGUSR1
"""The signal that interrupts KVM_RUN. The process has a handler for it that does nothing."""

_PARK_LIMIT_S = 5.0


class Vcpu:
    """One virtual CPU. It is held as ``stopped`` from the start.

    Args:
        kvm_fd: descriptor of /dev/kvm.
        vm: descriptor of the VM.
        number: number of the vCPU.
        devices: the device of each port, and the offset of the port in it.
        ring_full: called when the dirty ring of this vCPU is full.

    Attributes:
        fd: its descriptor.
        failure: why it cannot continue; empty: it can.
    """

    def __init__(
        self, kvm_fd: int, vm: int, number: int, devices: dict[int, tuple[Device, int]], ring_full: Callable[[], None]
    ) -> None:
        self.fd = kvm.create_vcpu(vm, number)
        self.failure = ""
        self._map = kvm.map_run(kvm_fd, self.fd)
        self._run = kvm_abi.KvmRun.from_buffer(self._map)
        self._devices = devices
        self._ring_full = ring_full
        self._holds = {"stopped"}
        self._parked = True
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name=f"vcpu-{number}", daemon=True)
        self._thread.start()

    # -- from other threads ---------------------------------------------------------------------

    def hold(self, why: str) -> None:
        """Let it park soon. It stays parked until every reason for which it is held was released."""
        with self._changed:
            self._holds.add(why)
            self._run.immediate_exit = 1
            self._changed.notify_all()
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, KICK)

    def release(self, why: str) -> None:
        """Undo :meth:`hold` for this reason."""
        with self._changed:
            self._holds.discard(why)
            self._run.immediate_exit = bool(self._holds)
            self._changed.notify_all()

    def wait_parked(self) -> None:
        """Wait until it is parked. Then its registers may be read and set.

        Raises:
            GuestError: it took too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._parked, _PARK_LIMIT_S):
                raise GuestError(f"{self._thread.name} did not stop within {_PARK_LIMIT_S:g} s")

    def close(self) -> None:
        """End the thread and release everything. The vCPU must be held."""
        self._ended = True
        self.hold("ended")
        self._thread.join(_PARK_LIMIT_S)
        del self._run
        self._map.close()
        os.close(self.fd)

    # -- in the thread --------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._ended:
            with self._changed:
                self._parked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ended or not self._holds)
                self._parked = False
            try:
                self._go()
            except Exception as error:
                self._fail(f"{self._thread.name}: {error!r}")

    def _go(self) -> None:
        """Run until held."""
        while True:
            if kvm.run(self.fd):
                self._exited()
            elif self._holds:
                return

    def _exited(self) -> None:
        reason = self._run.exit_reason
        if reason == kvm_abi.KVM_EXIT_IO:
            self._port_access(self._run.io)
        elif reason == kvm_abi.KVM_EXIT_MMIO:
            if not self._run.mmio.is_write:  # nothing is there
                self._run.mmio.data[:] = [0xFF] * 8
        elif reason == kvm_abi.KVM_EXIT_DIRTY_RING_FULL:
            self._ring_full()
        elif reason == kvm_abi.KVM_EXIT_HLT:  # no interrupt controller in the kernel: nothing would end it
            self._rest(time.monotonic_ns() + NS_PER_S // TICK_HZ)
        else:
            name = kvm_abi.KVM_EXIT_NAMES.get(reason, str(reason))
            self._fail(f"{self._thread.name} stopped by KVM_EXIT_{name}, {bytes(self._run.words).hex()}")

    def _port_access(self, io: kvm_abi.KvmExitIo) -> None:
        device, offset = self._devices.get(io.port, (None, 0))
        for at in range(io.data_offset, io.data_offset + io.count * io.size, io.size):
            place = slice(at, at + io.size)
            if io.direction == kvm_abi.KVM_EXIT_IO_OUT:
                if device is not None:
                    device.write(offset, int.from_bytes(self._map[place], "little"))
            else:
                value = device.read(offset, self._rest) if device is not None else -1
                self._map[place] = (value & (1 << 8 * io.size) - 1).to_bytes(io.size, "little")

    def _rest(self, until_ns: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._holds, max(0, until_ns - time.monotonic_ns()) / NS_PER_S)

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.hold("failed")
