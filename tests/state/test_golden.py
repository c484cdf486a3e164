# SPDX-License-Identifier: Apache-2.0
"""The bytes of state are those that earlier releases wrote; `tools/make_golden_state.py` made the file."""

from __future__ import annotations

from parmig.stream.vmdescription import find, parse
from tools.make_golden_state import FILE, MACHINE, Net, Timer, devices, registry_of

GOLDEN = FILE.read_bytes()


def test_the_same_devices_become_the_same_bytes() -> None:
    assert registry_of(devices()).save_all(machine=MACHINE) == GOLDEN


def test_the_same_bytes_become_the_same_devices() -> None:
    loaded: list[Timer | Net] = [Net(), Timer(deadline_ns=5), Timer(deadline_ns=5)]
    registry_of(loaded).load_all(GOLDEN, machine=MACHINE)
    assert [repr(one) for one in loaded] == [repr(one) for one in devices()]


def test_the_devices_are_there_by_priority_and_described() -> None:
    described = parse(GOLDEN[find(GOLDEN) or slice(0)]).devices
    assert [(one.name, one.instance_id, one.version) for one in described] == [
        ("timer", 0, 3),
        ("timer", 1, 3),
        ("net", 0, 1),
    ]
