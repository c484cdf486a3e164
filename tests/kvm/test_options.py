# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.errors import UsageError
from parmig.guests.kvm.options import parse_options
from parmig.units import MIB


def test_options_are_read_in_the_units_of_people() -> None:
    options = parse_options("memory=64MiB, vcpus=2,program=random,rate=100MiB/s,touched=16MiB,disk=/d,tracker=ring")
    assert (options.memory_bytes, options.vcpus, options.program) == (64 * MIB, 2, "random")
    assert (options.rate_bytes_per_s, options.touched_bytes) == (100 * MIB, 16 * MIB)
    assert (options.disk, options.tracker, options.irqchip, options.running) == ("/d", "ring", "auto", True)
    assert parse_options("rate=max,running=no").rate_bytes_per_s is None
    assert parse_options("").memory_bytes == 256 * MIB


@pytest.mark.parametrize(
    "text",
    [
        "mem=1GiB",
        "memory",
        "memory=",
        "memory=much",
        "memory=1MiB",
        "memory=2000001",
        "memory=2MiB,memory=2MiB",
        "vcpus=0",
        "vcpus=1000",
        "vcpus=two",
        "program=dance",
        "rate=fast",
        "fill=1",
        "irqchip=maybe",
        "tracker=guess",
        "running=perhaps",
    ],
)
def test_options_without_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_options(text)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"^kvm guests have no option 'foo'; known options: memory, vcpus, program, rate"
    ):
        parse_options("foo=1")
