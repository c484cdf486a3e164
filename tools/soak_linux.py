# SPDX-License-Identifier: Apache-2.0
"""The Linux of ``soak_qemu``: programs that tick, write memory and use a disk, and a check of all that they report."""

from __future__ import annotations

import re
from pathlib import Path

from tests.qemu import disks
from tests.qemu.machines import MIB, QemuMachine, wait_until

LIMIT_S = 60.0
"""For the guest to go on after a move, under emulation and on a host that has other work."""
LOOPS = 2
"""Programs in the guest that use the disk."""
PLACES = 2
"""Pieces of 1 MiB of the disk that each of them writes in turns."""
DISK_BYTES = LOOPS * PLACES * MIB

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir -p /t; mount -t tmpfs -o size=80% none /t
for name in {" ".join(Path(name).name for name in disks.MODULES)}; do insmod /$name.ko; done
param() {{ sed -n "s/.*parmig\\.$1=\\([0-9]*\\).*/\\1/p" /proc/cmdline; }}
rate=$(param rate)
dd if=/dev/urandom of=/t/a bs=1M count=$(param files) 2>/dev/null
[ "$rate" -gt 0 ] && (while true; do dd if=/dev/urandom of=/t/hot bs=64k count=16 conv=notrunc 2>/dev/null
                      usleep $((1000000 / rate)); done) &
use_disk() {{
    pass=0
    while true; do
        pass=$((pass + 1)); place=$(({PLACES} * $1 + pass % {PLACES}))
        dd if=/dev/urandom of=/t/new$1 bs=1M count=1 2>/dev/null
        dd if=/t/new$1 of=/dev/vda bs=64k seek=$((place * 16)) conv=notrunc oflag=direct 2>/dev/null || echo BAD write
        md5sum < /t/new$1 > /t/sum$place
        wrong=0
        echo 1 > /proc/sys/vm/drop_caches
        for place in $(seq $(({PLACES} * $1)) $(({PLACES} * $1 + {PLACES} - 1))); do
            [ -f /t/sum$place ] || continue
            for flag in fullblock direct; do
                found=$(dd if=/dev/vda bs=64k skip=$((place * 16)) count=16 iflag=$flag 2>/dev/null | md5sum)
                [ "$found" = "$(cat /t/sum$place)" ] || wrong=$((wrong + 1))
            done
        done
        echo DISK $1 $pass $wrong; usleep 100000
    done
}}
for loop in $(seq 0 {LOOPS - 1}); do use_disk $loop & done
i=0
while true; do i=$((i+1)); echo TICK $i $(md5sum < /t/a | cut -c1-8); usleep 200000; done
"""

TROUBLE = re.compile(r"BAD |I/O error|Oops|BUG:|Call Trace|panic|Corrupt")


class Witness:
    """What one guest wrote on its serial line, wherever it ran.

    Attributes:
        ticks: how many.
        checks: how often each program has compared its part of the disk.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self.checks = [0] * LOOPS
        self._md5 = ""
        self._machine: QemuMachine | None = None
        self._seen = 0
        self._begun = ""

    def follow(self, machine: QemuMachine) -> None:
        """The guest runs on *machine* from now on; all that it wrote before was taken."""
        self._machine, self._seen = machine, 0

    def take(self) -> None:
        """Take what was written since the last call.

        Raises:
            AssertionError: something is missing, or wrong.
        """
        assert self._machine is not None
        text = self._machine.serial()
        *lines, self._begun = (self._begun + text[self._seen :]).split("\n")
        self._seen = len(text)
        for line in lines:
            self._take_line(line.rstrip("\r"))

    def _take_line(self, line: str) -> None:
        assert not TROUBLE.search(line), f"the guest has trouble: {line!r}"
        word, *values = line.split(" ")
        if word == "TICK":
            number, md5 = values
            assert int(number) == self.ticks + 1, f"{line!r} follows tick {self.ticks}"
            assert md5 == (self._md5 or md5), f"the guest's file has changed from {self._md5} to {md5}"
            self.ticks, self._md5 = int(number), md5
        elif word == "DISK":
            loop, check, wrong = map(int, values)
            assert check == self.checks[loop] + 1, f"{line!r} follows check {self.checks[loop]}"
            assert not wrong, f"{line!r}: the guest read {wrong} pieces of its disk that it never wrote"
            self.checks[loop] = check

    def wait(self, ticks: int = 2, checks: int = 1, limit_s: float = LIMIT_S) -> None:
        """Wait for more *ticks*, and for more *checks* of each program."""
        wanted = [self.ticks + ticks, *(done + checks for done in self.checks)]

        def goes_on() -> bool:
            self.take()
            return all(done >= least for done, least in zip([self.ticks, *self.checks], wanted, strict=True))

        wait_until(goes_on, f"ticks and checks of the disk {wanted}", limit_s)
