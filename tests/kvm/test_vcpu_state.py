# SPDX-License-Identifier: Apache-2.0
"""All that a vCPU is arrives, and what cannot arrive is refused by name: two machines in this process."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from parmig.errors import HostRefusedError, StateError
from parmig.guests.kvm.machine import Machine
from parmig.guests.kvm.options import parse_options
from parmig.guests.kvm.vcpu import KICK
from parmig.guests.kvm.vcpu_state import VcpuState
from parmig.linux import kvm, kvm_abi
from parmig.ram.bits import bits_for
from parmig.ram.blocks import PAGE_BYTES
from tests.kvm.machines import needs_kvm

pytestmark = needs_kvm

OPTIONS = "memory=2MiB,vcpus=2"
TSC, PAT, SYSENTER_EIP = 0x10, 0x277, 0x176
MOVING = {TSC}
"""MSRs that go on by themselves."""


@contextmanager
def machine(text: str = OPTIONS) -> Iterator[Machine]:
    options = parse_options(text)
    before = signal.getsignal(KICK)
    with ExitStack() as stack:
        stack.callback(signal.signal, KICK, before)
        fds = []
        for size in (options.memory_bytes, bits_for(options.memory_bytes // PAGE_BYTES)):
            fds.append(os.memfd_create("test", os.MFD_CLOEXEC))
            stack.callback(os.close, fds[-1])
            os.ftruncate(fds[-1], size)
        one = Machine(options, *fds)
        stack.callback(one.close)
        yield one


@pytest.fixture
def source() -> Iterator[Machine]:
    with machine() as one:
        yield one


@pytest.fixture
def destination() -> Iterator[Machine]:
    with machine() as one:
        yield one


def changed(content: bytes, at: int, data: bytes) -> bytes:
    return content[:at] + data + content[at + len(data) :]


def set_unusual(one: Machine, number: int) -> None:
    """Give everything of a vCPU a value that no fresh vCPU has."""
    vcpu = one.vcpus[number].fd
    values = [0x0101_0101 * (index + 1) + number for index in range(16)] + [0x1234 + number, 0x2 | 0x8D5]
    kvm.set_state(vcpu, "regs", struct.pack("<18Q", *values))
    sregs = kvm_abi.KvmSregs.from_buffer_copy(kvm.get_state(vcpu, "sregs"))
    sregs.gdt.base, sregs.gdt.limit, sregs.idt.base = 0x5000, 0x17, 0x6000
    sregs.es.base, sregs.fs.selector, sregs.cr2 = 0x4_0000, 0x18, 0xDEAD_B000
    kvm.set_state(vcpu, "sregs", bytes(sregs))
    xsave = kvm.get_state(vcpu, "xsave")
    xsave = changed(xsave, 24, struct.pack("<I", 0x1F80))  # MXCSR
    xsave = changed(xsave, 160, bytes(range(1, 1 + 16 * 8)))  # XMM0 to XMM7
    kvm.set_state(vcpu, "xsave", changed(xsave, 512, struct.pack("<Q", 3)))  # x87 and SSE are in use
    debugregs = kvm.get_state(vcpu, "debugregs")
    kvm.set_state(vcpu, "debugregs", changed(debugregs, 0, struct.pack("<4Q", 1, 2, 3, 4)))
    lapic = kvm.get_state(vcpu, "lapic")
    kvm.set_state(vcpu, "lapic", changed(lapic, 0x3E0, struct.pack("<I", 0xB)))  # divider of the timer
    msrs = np.array([(PAT, 0, 0x0007_0406_0007_0401), (SYSENTER_EIP, 0, 0xC0DE)], kvm_abi.KVM_MSR_DTYPE)
    assert kvm.set_msrs(vcpu, msrs) == len(msrs)
    events = kvm.get_state(vcpu, "events")
    kvm.set_state(vcpu, "events", changed(events, 14, b"\1"))  # NMIs are masked


def pieces(state: VcpuState) -> dict[str, object]:
    """What was saved of a vCPU, without what moves by itself."""
    msrs = dict(zip(state.msr_indices.tolist(), state.msr_values.tolist(), strict=True))
    names = ("mp_state", "regs", "sregs", "sregs2", "fpu", "xsave", "xcrs", "debugregs", "lapic", "events")
    return {
        "cpuid": state.cpuid.tolist(),
        "msrs": {index: value for index, value in msrs.items() if index not in MOVING},
        **{name: getattr(state, name) for name in names},
    }


def test_everything_arrives(source: Machine, destination: Machine) -> None:
    fresh = source.registry.save_all()
    before = [pieces(state) for state in source.vcpu_states]
    for number in range(2):
        set_unusual(source, number)
    data = source.registry.save_all(machine=source.name)
    assert data != fresh
    expected = [pieces(state) for state in source.vcpu_states]
    for state, plain in zip(expected, before, strict=True):  # or it would be no test
        same = {name for name in state if state[name] == plain[name]}
        assert same == {"cpuid", "mp_state", "sregs", "fpu", "xcrs"}
    destination.registry.load_all(data, machine=destination.name)
    destination.registry.save_all()
    assert [pieces(state) for state in destination.vcpu_states] == expected


def test_the_time_stamp_counter_does_not_go_back(source: Machine, destination: Machine) -> None:
    data = source.registry.save_all()
    destination.registry.load_all(data)
    destination.registry.save_all()
    for one, other in zip(source.vcpu_states, destination.vcpu_states, strict=True):
        index = one.msr_indices.tolist().index(TSC)
        assert other.msr_values[index] >= one.msr_values[index] > 0
        assert one.tsc_khz == other.tsc_khz > 0


def test_interrupt_controllers_timer_and_clock_arrive(source: Machine, destination: Machine) -> None:
    data = source.registry.save_all()
    parts = {type(part).__name__: part for part in source._parts}
    chips, timer, clock = parts["InterruptControllers"], parts["IntervalTimer"], parts["Clock"]
    chips.pic_master = changed(chips.pic_master, 8 + 2, b"\xfe")  # masks all but the timer
    chips.pre_save = lambda: None
    kvm.set_state(chips._vm, "irqchip", chips.pic_master)
    timer.pit = changed(timer.pit, 0, struct.pack("<I", 11931))
    clock.clock_ns = 10**15
    data = source.registry.save_all()
    destination.registry.load_all(data)
    destination.run()
    destination.pause()
    arrived = {type(part).__name__: part for part in destination._parts}
    destination.registry.save_all()
    assert arrived["InterruptControllers"].pic_master[8 + 2] == 0xFE
    assert arrived["IntervalTimer"].pit[:4] == struct.pack("<I", 11931)
    assert 10**15 <= arrived["Clock"].clock_ns < 10**15 + 60 * 10**9


# -- refused by name ----------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, *capabilities: int) -> None:
    """From here on machines are made as on a host whose KVM has not got these."""
    check = kvm.check_capability
    monkeypatch.setattr(kvm, "check_capability", lambda fd, number: 0 if number in capabilities else check(fd, number))


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        (kvm_abi.KVM_CAP_XSAVE, "XSAVE"),
        (kvm_abi.KVM_CAP_XCRS, "XCRS"),
        (kvm_abi.KVM_CAP_DEBUGREGS, "DEBUGREGS"),
        (kvm_abi.KVM_CAP_SREGS2, "SREGS2"),
        (kvm_abi.KVM_CAP_VCPU_EVENTS, "EVENTS"),
        (kvm_abi.KVM_CAP_MP_STATE, "MP_STATE"),
    ],
)
def test_a_host_that_lacks_what_was_saved_refuses_it_by_name(
    source: Machine, monkeypatch: pytest.MonkeyPatch, capability: int, name: str
) -> None:
    data = source.registry.save_all()
    without(monkeypatch, capability)
    with machine() as poorer, pytest.raises(StateError, match=f"vcpu/0: .*{name}, which this host's KVM does not have"):
        poorer.registry.load_all(data)


def test_what_the_source_lacks_is_absent_and_a_richer_host_takes_the_rest(
    destination: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, kvm_abi.KVM_CAP_XSAVE, kvm_abi.KVM_CAP_XCRS, kvm_abi.KVM_CAP_SREGS2)
    with machine() as poorer:
        data = poorer.registry.save_all()
        state = poorer.vcpu_states[0]
        assert (state.xsave, state.xcrs, state.sregs2) == (b"", b"", b"")
        assert state.fpu
        assert state.sregs
    destination.registry.load_all(data)


Spoil = Callable[[VcpuState], None]


def spoil_cpuid(state: VcpuState) -> None:
    table = state.cpuid.reshape(-1, 10).copy()
    table[table[:, 0] == 1, 6] |= 1 << 18  # PSN, which no processor of this century has
    state.cpuid = table.reshape(-1)


def spoil_cpuid_size(state: VcpuState) -> None:
    state.cpuid = state.cpuid[:-1]


def add_msr(state: VcpuState) -> None:
    state.msr_indices = np.append(state.msr_indices, 0x1234_5678).astype(np.uint32)
    state.msr_values = np.append(state.msr_values, 1).astype(np.uint64)


def set_read_only_msr(state: VcpuState) -> None:
    state.msr_indices = np.append(state.msr_indices, 0xFE).astype(np.uint32)  # MTRRcap
    state.msr_values = np.append(state.msr_values, 0xFFFF).astype(np.uint64)


def drop_a_value(state: VcpuState) -> None:
    state.msr_values = state.msr_values[:-1]


def slow_clock(state: VcpuState) -> None:
    state.tsc_khz //= 2


def short_xsave(state: VcpuState) -> None:
    state.xsave = state.xsave[:-1]


def bad_xcrs(state: VcpuState) -> None:
    state.xcrs = struct.pack("<II", 99, 0) + state.xcrs[8:]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_cpuid, "features that this host lacks: CPUID leaf 0x1.0 edx bits 0x40000"),
        (spoil_cpuid_size, "CPUID has .* words, expected entries of 10 words"),
        (add_msr, "saved MSR 0x12345678, which this host's KVM does not have"),
        (set_read_only_msr, "MSR 0xfe is 0xffff at the source and"),
        (drop_a_value, "MSRs have"),
        (slow_clock, "refuses a TSC of .* kHz"),
        (short_xsave, "refuses XSAVE of the source: xsave has 4096 bytes"),
        (bad_xcrs, "refuses XCRS of the source"),
    ],
)
def test_state_that_this_host_cannot_take_is_refused_by_name(
    source: Machine, destination: Machine, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, words: str
) -> None:
    read = VcpuState.pre_save

    def read_and_spoil(state: VcpuState) -> None:
        read(state)
        spoil(state)

    monkeypatch.setattr(VcpuState, "pre_save", read_and_spoil)
    data = source.registry.save_all()
    with pytest.raises(StateError, match=f"device vcpu/0: .*{words}"):
        destination.registry.load_all(data)


@pytest.mark.parametrize("other", ["memory=2MiB,vcpus=1", "memory=2MiB,vcpus=2,irqchip=off"])
def test_machines_of_another_shape_are_refused(source: Machine, other: str) -> None:
    data = source.registry.save_all(machine=source.name)
    with machine(other) as shaped, pytest.raises(StateError, match="kvm-1,vcpus=2,irqchip=on"):
        shaped.registry.load_all(data, machine=shaped.name)


def test_an_interrupt_controller_that_there_is_not_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, kvm_abi.KVM_CAP_IRQCHIP)
    with machine() as one:
        assert one.name == "kvm-1,vcpus=2,irqchip=off"
    with pytest.raises(HostRefusedError, match="irqchip=off"), machine(f"{OPTIONS},irqchip=on"):
        pass


@pytest.mark.parametrize(
    ("text", "capability", "words"),
    [
        (OPTIONS, kvm_abi.KVM_CAP_IMMEDIATE_EXIT, "Linux 4.13"),
        (OPTIONS, kvm_abi.KVM_CAP_MAX_VCPUS, "allows at most 0"),
        (f"{OPTIONS},tracker=ring", kvm_abi.KVM_CAP_DIRTY_LOG_RING, "tracker=bitmap"),
    ],
)
def test_a_host_that_cannot_make_the_machine_says_why(
    monkeypatch: pytest.MonkeyPatch, text: str, capability: int, words: str
) -> None:
    without(monkeypatch, capability)
    with pytest.raises(HostRefusedError, match=words), machine(text):
        pass


def test_a_host_without_kvm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise FileNotFoundError(2, "No such file or directory", "/dev/kvm")

    monkeypatch.setattr(kvm, "open_device", none)
    with pytest.raises(HostRefusedError, match=r"/dev/kvm.*parmig doctor"), machine():
        pass
