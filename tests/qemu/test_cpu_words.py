# SPDX-License-Identifier: Apache-2.0
"""The words of CPUID tell what QEMU answers for each feature."""

from __future__ import annotations

import contextlib

import pytest

from parmig.errors import GuestError
from parmig.guests.qemu.cpu_words import features_in
from parmig.guests.qemu.qemu_traits import ask_traits
from parmig.guests.qemu.qmp import Qmp
from tests.qemu.machines import QemuMachine

LEAF_1_EDX = {"cpuid-input-eax": 1, "cpuid-register": "EDX", "features": 1 << 25 | 1 << 0}
LEAF_7_EBX = {"cpuid-input-eax": 7, "cpuid-input-ecx": 0, "cpuid-register": "EBX", "features": 0}


def test_only_features_of_the_words_that_there_are_have_a_state() -> None:
    states = features_in([LEAF_1_EDX, LEAF_7_EBX])

    assert {name for name, is_on in states.items() if is_on} == {"sse", "fpu"}
    assert states["sse2"] is states["avx2"] is False
    assert "pni" not in states


def test_words_without_known_features_have_none() -> None:
    assert features_in([{"cpuid-input-eax": 0xC000_0001, "cpuid-register": "EDX", "features": -1}]) == {}


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", ["max", "qemu64,-sse2,+avx2,-apic"])
def test_qemu_answers_the_same_for_each_feature_alone(cpu: str) -> None:
    with QemuMachine(extra=["-cpu", cpu]) as machine, contextlib.closing(Qmp(machine.socket)) as qmp:
        path = qmp.execute("query-cpus-fast")[0]["qom-path"]
        states = features_in(qmp.execute("qom-get", path=path, property="feature-words"))
        alone = {}
        for name in states:
            with contextlib.suppress(GuestError):  # this version of QEMU does not have it
                alone[name] = qmp.execute("qom-get", path=path, property=name)
        traits = ask_traits(qmp)["CPU features"].values
    assert alone == {name: states[name] for name in alone}
    assert {name for name in traits if name in states} <= {name for name, is_on in alone.items() if is_on}
    assert ("sse2" in traits, "avx2" in traits) == ((True, True) if cpu == "max" else (False, True))
