# SPDX-License-Identifier: Apache-2.0
"""One Linux with a disk, moved several times; ``tools/soak_qemu.py`` does the same as often as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from parmig.guests.qemu.options import open_qemu
from tests.qemu.carry import Buffer
from tests.qemu.machines import QemuMachine
from tools.soak_linux import Witness
from tools.soak_qemu import Setup, Soak, belongings, left_behind

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

MOVES = 3


def test_a_linux_with_a_disk_moves_again_and_again(disk_module: None, tmp_path: Path) -> None:
    with Soak(Setup(directory=tmp_path)) as soaked:
        for _ in range(MOVES):
            assert soaked.move().status == "completed"
    assert soaked.ticks > MOVES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TICK 1 a\nTICK 3 a\n", "'TICK 3 a' follows tick 1"),
        ("TICK 1 a\nTICK 2 b\n", "file has changed from a to b"),
        ("DISK 0 1 0\nDISK 0 2 1\n", "read 1 pieces of its disk that it never wrote"),
        ("DISK 0 2 0\n", "follows check 0"),
        ("Buffer I/O error on dev vda\n", "has trouble"),
    ],
)
def test_what_is_lost_is_noticed(text: str, words: str) -> None:
    class Written:
        def serial(self) -> str:
            return text

    witness = Witness()
    witness.follow(Written())  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=words):
        witness.take()


def test_what_is_left_in_qemu_is_noticed(bare_guest: QemuMachine) -> None:
    expected = belongings(bare_guest)
    assert left_behind(bare_guest, expected, moved_away=False) == []
    bare_guest.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    assert left_behind(bare_guest, expected, moved_away=True) == ["migration settings"]
    with open_qemu(f"{bare_guest.socket},state=devices", incoming=False) as guest:
        guest.start_dirty_log("pagemap")
        guest.pause(Buffer())
        assert set(left_behind(bare_guest, expected, moved_away=False)) == {
            "descriptor socket:[]",
            "descriptor /memfd:parmig-device-state (deleted)",
            "descriptor in an fdset: parmig",
            "a userfaultfd",
            "migration settings",
        }
        guest.resume_source()
