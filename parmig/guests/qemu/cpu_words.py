# SPDX-License-Identifier: Apache-2.0
"""Which features of an x86 CPU are on, from the words of CPUID that QEMU gives in one answer. Pure.

QEMU keeps the features of a CPU as bits of such words, and each property of a feature reads one bit. The property
``feature-words`` has all words that belong to CPUID. To ask for each feature takes 0.5 to 1.5 ms, because each command
waits for QEMU's main loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_Word = tuple[int, int, str]
"""What CPUID is called with in EAX and ECX, and the register of its answer. ECX is 0 where it does not matter."""

_NAMES: Mapping[_Word, str] = {
    (0x1, 0, "ECX"): (
        "pni pclmulqdq 1 monitor 5 ssse3 2 fma cx16 5 sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes "
        "xsave 1 avx f16c rdrand hypervisor"
    ),
    (0x1, 0, "EDX"): (
        "fpu vme de pse tsc msr pae mce cx8 apic 1 sep mtrr pge mca cmov pat pse36 1 clflush 2 acpi mmx fxsr "
        "sse sse2 ss"
    ),
    (0x6, 0, "EAX"): "2 arat",
    (0x7, 0, "EBX"): (
        "fsgsbase tsc-adjust 1 bmi1 1 avx2 1 smep bmi2 erms 4 mpx 3 rdseed adx smap 1 pcommit clflushopt clwb 4 sha-ni"
    ),
    (0x7, 0, "ECX"): "2 umip pku 4 gfni vaes 6 la57 5 rdpid 8 pks",
    (0x7, 0, "EDX"): "4 fsrm",
    (0x7, 1, "EAX"): "7 cmpccxadd 2 fzrm fsrs fsrc",
    (0xD, 1, "EAX"): "xsaveopt 1 xgetbv1",
    (0x4000_0001, 0, "EAX"): (
        "1 kvm-nopiodelay 2 kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt 1 kvm-pv-tlb-flush 1 "
        "kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int 9 kvmclock-stable-bit"
    ),
    (0x8000_0001, 0, "ECX"): "lahf-lm 1 svm 1 cr8legacy abm sse4a misalignsse 3dnowprefetch osvw",
    (0x8000_0001, 0, "EDX"): "11 syscall 8 nx 1 mmxext 2 fxsr-opt pdpe1gb rdtscp 1 lm 3dnowext 3dnow",
    (0x8000_0008, 0, "EBX"): "clzero 1 xsaveerptr 6 wbnoinvd",
    (0x8000_000A, 0, "EDX"): "npt 15 vgif 11 svme-addr-chk",
}
"""The names of the bits in QEMU, from bit 0 on; a number is so many bits without a name here. They were found by
experiment: QEMU 7.2 (TCG and KVM) and 10.0 (TCG) were started with all features that they can give here, and then
without each of them. A feature that is missing here, such as one of other hosts, is asked for by its name."""


def _bits(names: str) -> dict[str, int]:
    """The bit of each name."""
    bits, bit = {}, 0
    for name in names.split():
        if name.isdigit():
            bit += int(name)
        else:
            bits[name] = bit
            bit += 1
    return bits


_BITS = {word: _bits(names) for word, names in _NAMES.items()}


def features_in(words: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Features whose bits are in *words*, and whether they are on.

    Args:
        words: the property ``feature-words`` of a CPU (X86CPUFeatureWordInfo in QEMU's schema).
    """
    states: dict[str, bool] = {}
    for word in words:
        key = (word["cpuid-input-eax"], word.get("cpuid-input-ecx", 0), word["cpuid-register"])
        states |= {name: bool(word["features"] >> bit & 1) for name, bit in _BITS.get(key, {}).items()}
    return states
