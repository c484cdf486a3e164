# SPDX-License-Identifier: Apache-2.0
"""What KVM keeps for a whole VM: interrupt controllers, interval timer, clock. Not every host has all of them."""

from __future__ import annotations

import struct
from typing import Annotated

from parmig.guests.kvm.kvm_devices import Part
from parmig.guests.kvm.vcpu_state import PRIORITY as VCPU_PRIORITY
from parmig.linux import kvm
from parmig.state import U64, Buffer, Length, migration_state

_CHIPS = ("pic_master", "pic_slave", "ioapic")
"""The interrupt controllers, in the order of KVM's numbers."""

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
        """Read the state from KVM."""
        for number, name in enumerate(_CHIPS):
            setattr(self, name, kvm.get_state(self._vm, "irqchip", struct.pack("=I", number)))

    def post_load(self, _: int) -> None:
        """Set the state in KVM."""
        for name in _CHIPS:
            kvm.set_state(self._vm, "irqchip", getattr(self, name))


@migration_state("pit")
class IntervalTimer(Part):
    """The PIT of *vm*. It continues to tick while the guest is paused; setting it at the start begins a new tick."""

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
    """The kvmclock of *vm*, which stops while the guest is paused."""

    clock_ns: U64

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self.clock_ns = 0

    def start(self) -> None:
        kvm.set_state(self._vm, "clock", _CLOCK.pack(self.clock_ns))

    def stop(self) -> None:
        (self.clock_ns,) = _CLOCK.unpack(kvm.get_state(self._vm, "clock"))
