# SPDX-License-Identifier: Apache-2.0
"""What a source accepts of a destination's description of its memory, before workers write there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from parmig.engine.one_host.direct import opened, usable_targets
from parmig.errors import ProtocolError
from parmig.linux.files import create_memory_file
from parmig.processes.wire import MOST_FDS
from parmig.ram.blocks import BlockMemory, RamBlock, Segment
from parmig.units import MIB
from tests.engine.agreement.test_agreement import ANSWER

BLOCK = RamBlock("ram0", MIB)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """A shared area and a memory file."""
    fds = [create_memory_file(name, MIB) for name in ("area", "ram0")]
    yield fds
    for fd in fds:
        os.close(fd)


def usable(files: list[int], *targets: BlockMemory, own_fds: int = 2) -> bool:
    accept = msgspec.structs.replace(ANSWER, targets=targets)
    return usable_targets(accept, files, [BLOCK], own_fds)


def test_a_file_that_came_can_be_written_to(files: list[int]) -> None:
    assert usable(files, BlockMemory(BLOCK, 0))
    assert opened([BlockMemory(BLOCK, 0), BlockMemory(BLOCK, pid=1)], files[1:]) == [
        BlockMemory(BLOCK, files[1]),
        BlockMemory(BLOCK, pid=1),
    ]


def test_without_targets_or_with_too_many_descriptors_the_channels_are_used(files: list[int]) -> None:
    assert not usable(files)
    assert not usable(files, BlockMemory(BLOCK, 0), own_fds=MOST_FDS - 3)


@pytest.mark.parametrize(
    "target",
    [
        BlockMemory(RamBlock("ram0", 2 * MIB), 0),
        BlockMemory(BLOCK, 1),
        BlockMemory(BLOCK, -1),
        BlockMemory(BLOCK, 0, 4096),
        BlockMemory(BLOCK, 0, -4096),
        BlockMemory(BLOCK, pid=-1),
        BlockMemory(BLOCK, pid=1, segments=(Segment(0, 5, 0x1000),)),
    ],
)
def test_what_does_not_fit_is_refused(files: list[int], target: BlockMemory) -> None:
    with pytest.raises(ProtocolError, match="destination"):
        usable(files, target)


def test_memory_of_a_process_that_cannot_be_reached_is_left_to_the_channels(files: list[int]) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
        segment = Segment(0, BLOCK.pages, 0x10000)
        assert not usable(files, BlockMemory(BLOCK, pid=gone.pid, segments=(segment,)))
