# SPDX-License-Identifier: Apache-2.0
"""What KVM keeps for a whole VM: interrupt controllers, interval timer, clock. Parts where a host has them."""

from __future__ import annotations

import struct
from typing import Annotated

from parmig.guests.kvm.kvm_devices import Part
from parmig.guests.kvm.vcpu_state import PRIORITY as VCPU_PRIORITY
from parmig.linux import kvm
from parmig.state import U64, Buffer, Length, migration_state

_CHIPS = ("pic_master", "pic_slave", "ioapic")
"""By the number that KVM gives them."""

_CHIP_BYTES, _PIT_BYTES = 520, 112
_CLOCK = struct.Struct("=Q40x")  # struct kvm_clock_data; without flags only the first member counts


@migration_state("irqchip", priority=VCPU_PRIORITY - 1)
class InterruptControllers(Part):
    """Both PICs and the IOAPIC of *vm*. The LAPICs are state of their vCPUs."""

    pic_master: Annotated[Buffer, Length(_CHIP_BYTES)]
    pic_slave: Annotated[Buffer, Length(_CHIP_BYTES)]
    ioapic: Annotated[Buffer, Length(_CHIP_BYTES)]

    def __init__(self, vm: int) -> None:
        self._vm = vm

    def pre_save(self) -> None:
        """Ask KVM."""
        for number, name in enumerate(_CHIPS):
            setattr(self, name, kvm.get_state(self._vm, "irqchip", struct.pack("=I", number)))

    def post_load(self, _: int) -> None:
        """Tell KVM."""
        for name in _CHIPS:
            kvm.set_state(self._vm, "irqchip", getattr(self, name))


@migration_state("pit")
class IntervalTimer(Part):
    """The PIT of *vm*, which would keep ticking while the guest is paused: setting it again begins a tick."""

    pit: Annotated[Buffer, Length(_PIT_BYTES)]

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self.stop()

    def start(self) -> None:
        kvm.set_state(self._vm, "pit2", self.pit)

    def stop(self) -> None:
        self.pit = kvm.get_state(self._vm, "pit2")


@migration_state("clock")
class Clock(Part):
    """The kvmclock of *vm*: it stops while the guest is paused."""

    clock_ns: U64

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self.clock_ns = 0

    def start(self) -> None:
        kvm.set_state(self._vm, "clock", _CLOCK.pack(self.clock_ns))

    def stop(self) -> None:
        (self.clock_ns,) = _CLOCK.unpack(kvm.get_state(self._vm, "clock"))
