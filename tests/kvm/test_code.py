# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.guests.kvm.code import Code


def test_opcodes_and_operands_follow_each_other() -> None:
    code = Code(0x1000)
    code("C7 05", 0x7000, 0xFFFF_FFFF)
    code.label("end")
    assert code.assembled() == bytes.fromhex("C705 00700000 FFFFFFFF")
    assert code.labels == {"end": 0x100A}


def test_jumps_reach_labels_before_and_behind_them() -> None:
    code = Code(0x1000)
    code.jump("EB", "ahead")
    code.label("back")
    code("90")
    code.label("ahead")
    code.jump("75", "back")
    code.jump("E8", "back")
    assert code.assembled() == bytes.fromhex("EB01 90 75FD E8F8FFFFFF")


def test_a_short_jump_that_is_too_far_is_an_error() -> None:
    code = Code(0)
    code.jump("EB", "far")
    code("90" * 128)
    code.label("far")
    with pytest.raises(OverflowError):
        code.assembled()


def test_a_label_that_is_missing_is_an_error() -> None:
    code = Code(0)
    code.jump("E9", "nowhere")
    with pytest.raises(KeyError, match="nowhere"):
        code.assembled()
