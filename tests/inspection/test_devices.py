# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from parmig.inspection import device_reader as devices
from parmig.stream.vmdescription import DeviceDescription, FieldDescription
from tests.inspection.files import described, description, device_section, stream
from tests.stream.streams import DEVICE, DEVICE_BYTES


def test_without_a_description_device_state_is_one_piece(tmp_path: Path) -> None:
    state = device_section() + device_section("other", section=6)
    found = described(tmp_path, stream(state=state))
    assert (found.complete, found.vmdescription_bytes) == (True, 0)
    assert [(one.idstr, one.bytes, one.fields) for one in found.devices] == [("clock", None, None)]
    assert found.device_state_bytes == len(state) + 1
    assert any("cannot be split" in note for note in found.notes)


def test_a_device_that_is_not_as_described_is_told_without_values(tmp_path: Path) -> None:
    wrong = DeviceDescription(
        name="wrong",
        instance_id=0,
        fields=[FieldDescription(name="s", type="struct", size=5, struct=DEVICE.fields[3].struct)],
    )
    state = device_section("wrong", b"12345", 0) + device_section(section=6)
    found = described(tmp_path, stream(state=state, describe=description(wrong, DEVICE)))
    assert found.complete
    assert [(one.idstr, one.bytes, one.fields is None) for one in found.devices] == [
        ("wrong", 5, True),
        ("clock", len(DEVICE_BYTES), False),
    ]
    assert any("device wrong/0" in note for note in found.notes)


def test_more_state_than_a_guest_has_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_DECODED_BYTES", len(DEVICE_BYTES))
    second = msgspec.structs.replace(DEVICE, instance_id=2)
    state = device_section() + device_section(instance=2, section=6)
    found = described(tmp_path, stream(state=state, describe=description(DEVICE, second)))
    assert found.complete
    assert [one.fields is None for one in found.devices] == [False, True]


def test_what_is_described_but_not_there_is_named(tmp_path: Path) -> None:
    absent = msgspec.structs.replace(DEVICE, name="absent")
    found = described(tmp_path, stream(state=device_section(), describe=description(DEVICE, absent)))
    assert found.complete
    assert "described, but not there: devices absent" in found.notes
