# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: assembles KVM's part, memory, vCPUs and devices, and releases them.

It is made in the main thread of a process. KVM then lets only this process use it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack

from parmig.errors import GuestError, HostRefusedError, StateError
from parmig.guests.kvm.dirty_recorder import DirtyRecorder, DirtyRings
from parmig.guests.kvm.irqchip import Clock, InterruptControllers, IntervalTimer
from parmig.guests.kvm.kvm_devices import BlockDevice, Device, Part, SerialPort, TimerDevice
from parmig.guests.kvm.options import KvmOptions
from parmig.guests.kvm.ram import GuestRam, ram_block
from parmig.guests.kvm.vcpu import KICK, Vcpu
from parmig.guests.kvm.vcpu_state import VcpuState
from parmig.linux import kvm, kvm_abi
from parmig.probes.kvm import why_no_rings
from parmig.ram.blocks import BlockMemory
from parmig.state import StateRegistry, state_of

MACHINE = "kvm-1"
"""What device state depends on, besides the options of the machine. Raise the number when the devices change."""

_THROTTLE_PERIOD_S = 0.01
_REST_LIMIT_S = 0.2


class Machine:
    """The machine. It is paused at first.

    Args:
        options: what machine to make.
        memory_fd: descriptor of its memory; used, not owned.
        bitmap_fd: descriptor of the shared dirty bitmap; used, not owned.

    Attributes:
        name: what device state depends on.
        ram: its memory.
        dirty: its dirty log.
        vcpus: its virtual CPUs.
        vcpu_states: the state of the virtual CPUs, in the same order.
        serial: its serial port.
        registry: all parts that have state.

    Raises:
        HostRefusedError: this host has no KVM, or lacks something that the options need.
        GuestRefusedError: a file that the options name cannot be used.
    """

    def __init__(self, options: KvmOptions, memory_fd: int, bitmap_fd: int) -> None:
        signal.signal(KICK, lambda *_: None)
        with ExitStack() as stack:
            try:
                self._make(options, memory_fd, bitmap_fd, stack)
                # A host that does not accept its own state is refused now, and not in the pause. The pause is also
                # shorter if this code has run before: 1 ms for saving and 2 ms for loading.
                self.registry.load_all(self.registry.save_all(machine=self.name), machine=self.name)
            except (OSError, StateError) as error:
                raise HostRefusedError(f"KVM cannot create this machine: {error}; run parmig doctor") from error
            self._stack = stack.pop_all()

    def _make(self, options: KvmOptions, memory_fd: int, bitmap_fd: int, stack: ExitStack) -> None:
        kvm_fd = _owned(kvm.open_device(), stack)
        self.irqchip = _has_irqchip(kvm_fd, options.irqchip)
        _check_limits(kvm_fd, options)
        vm = _owned(kvm.create_vm(kvm_fd), stack)
        kvm.set_fixed_pages(vm)
        if self.irqchip:
            kvm.create_irqchip(vm)
            kvm.create_pit(vm)
        self.ram = GuestRam(BlockMemory(ram_block(options.memory_bytes), memory_fd))
        stack.callback(self.ram.close)
        for slot in self.ram.slots():
            slot.show(vm, log=False)
        rings = DirtyRings(vm, self.ram.slots()) if options.tracker == "ring" else None
        self.dirty = DirtyRecorder(vm, self.ram.slots(), bitmap_fd, rings)
        stack.callback(self.dirty.close)
        self.ram.mark = self.dirty.mark
        self._parts = self._make_parts(options, vm, stack)
        self._make_vcpus(options, kvm_fd, vm, stack)
        self.registry = StateRegistry()
        for number, state in enumerate(self.vcpu_states):
            self.registry.register(state_of(state, number))
        for part in self._parts:
            self.registry.register(state_of(part))
        self._throttle = _Throttle(self.vcpus)
        stack.callback(self._throttle.close)

    def _make_parts(self, options: KvmOptions, vm: int, stack: ExitStack) -> list[Part]:
        self.serial = SerialPort(options.serial)
        parts: list[Part] = [self.serial, TimerDevice()]
        self.name = f"{MACHINE},vcpus={options.vcpus},irqchip={'on' if self.irqchip else 'off'}"
        if options.disk:
            disk = BlockDevice(options.disk, self.ram)
            self.name += f",disk={disk.sectors}"
            parts.append(disk)
        if self.irqchip:
            parts += [InterruptControllers(vm), IntervalTimer(vm)]
        if kvm.check_capability(vm, kvm_abi.KVM_CAP_ADJUST_CLOCK):
            parts.append(Clock(vm))
        for part in parts:
            stack.callback(part.close)
        return parts

    def _make_vcpus(self, options: KvmOptions, kvm_fd: int, vm: int, stack: ExitStack) -> None:
        ports = {
            port: (device, offset)
            for device in self._parts
            if isinstance(device, Device)
            for offset, port in enumerate(device.ports)
        }
        self.vcpus: list[Vcpu] = []
        self.vcpu_states: list[VcpuState] = []
        for number in range(options.vcpus):
            vcpu = Vcpu(kvm_fd, vm, number, ports, self.dirty.ring_full)
            stack.callback(vcpu.close)
            self.vcpus.append(vcpu)
            self.vcpu_states.append(VcpuState(kvm_fd, vcpu.fd, number, irqchip=self.irqchip))
            self.dirty.add_vcpu(vcpu.fd)

    def run(self) -> int:
        """Let it run, and return the instant from which it runs."""
        for part in self._parts:
            part.start()
        for vcpu in self.vcpus:
            kvm.note_pause(vcpu.fd)
        since_ns = time.monotonic_ns()
        for vcpu in self.vcpus:
            vcpu.release("stopped")
        return since_ns

    def pause(self) -> int:
        """Stop the running machine, and return the instant from which nothing writes memory.

        Raises:
            GuestError: a vCPU did not stop; all of them continue.
        """
        for vcpu in self.vcpus:
            vcpu.hold("stopped")
        try:
            for vcpu in self.vcpus:
                vcpu.wait_parked()
        except GuestError:
            for vcpu in self.vcpus:
                vcpu.release("stopped")
            raise
        stopped_ns = time.monotonic_ns()
        for part in self._parts:
            part.stop()
        return stopped_ns

    def throttle(self, percent: int) -> None:
        """Let vCPUs run only ``100 - percent`` % of the time."""
        self._throttle.set(percent)

    def raise_failure(self) -> None:
        """Raise GuestError if a vCPU cannot continue."""
        failures = [vcpu.failure for vcpu in self.vcpus if vcpu.failure]
        if failures:
            raise GuestError("; ".join(failures))

    def close(self) -> None:
        """Release everything; the machine must be paused."""
        self._stack.close()


class _Throttle:
    """Lets all vCPUs run and rest in turns, in a thread that exists while there is a throttle."""

    def __init__(self, vcpus: list[Vcpu]) -> None:
        self._vcpus = vcpus
        self._percent = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def set(self, percent: int) -> None:
        """Rest *percent* % of the time from now on."""
        with self._changed:
            self._percent = percent
            self._changed.notify_all()
            if percent and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="throttle", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            with self._changed:
                if not self._percent:
                    self._thread = None
                    return
                self._changed.wait(_THROTTLE_PERIOD_S * (100 - self._percent) / 100)
            for vcpu in self._vcpus:
                vcpu.hold("throttled")
            with self._changed:
                # In proportion to how long they really ran: a short turn may take longer, on a busy host much longer.
                rest_s = (time.monotonic() - began) * self._percent / (100 - self._percent)
                self._changed.wait(min(rest_s, _REST_LIMIT_S))
            for vcpu in self._vcpus:
                vcpu.release("throttled")

    def close(self) -> None:
        """End the thread."""
        thread = self._thread
        self.set(0)
        if thread is not None:
            thread.join()


def _owned(fd: int, stack: ExitStack) -> int:
    stack.callback(os.close, fd)
    return fd


def _has_irqchip(kvm_fd: int, wanted: str) -> bool:
    """Whether interrupt controllers and PIT are to be in the kernel.

    Raises:
        HostRefusedError: the user asked for them, and this host has none.
    """
    offered = all(
        kvm.check_capability(kvm_fd, capability) for capability in (kvm_abi.KVM_CAP_IRQCHIP, kvm_abi.KVM_CAP_PIT2)
    )
    if wanted == "on" and not offered:
        raise HostRefusedError("this host's KVM has no interrupt controllers; start the guest with irqchip=off")
    return offered and wanted != "off"


def _check_limits(kvm_fd: int, options: KvmOptions) -> None:
    """Refuse options that this host's KVM cannot provide."""
    if not kvm.check_capability(kvm_fd, kvm_abi.KVM_CAP_IMMEDIATE_EXIT):
        raise HostRefusedError(
            "this host's KVM cannot stop a vCPU at once; expected KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"
        )
    most = kvm.check_capability(kvm_fd, kvm_abi.KVM_CAP_MAX_VCPUS)
    if options.vcpus > most:
        raise HostRefusedError(f"vcpus={options.vcpus} is too many, this host's KVM allows at most {most}")
    reason = why_no_rings() if options.tracker == "ring" else None
    if reason is not None:
        raise HostRefusedError(f"{reason}; start the guest with tracker=bitmap")
