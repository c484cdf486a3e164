# SPDX-License-Identifier: Apache-2.0
"""Measure what a Linux in QEMU feels of a migration: ``python -m tools.feel_linux [--moves 3] [--rate 5]``.

A shell in the guest counts as fast as it can, and writes a line to the serial port every so many counts. The tool notes
when each line arrives in the files of both QEMUs. It prints, for each move, how fast the guest counted before the
migration, in its parts and after it, and the longest time between two lines. QEMU emulates the processor, so the guest
also feels that parmig's processes use the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.reporting.guest_speed import Stretch, speed_until_pause
from parmig.engine.reporting.report import Report
from parmig.engine.source.sender import MigrationSender
from parmig.guests.pulse import Pulse
from parmig.guests.qemu.options import open_qemu
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_MS, NS_PER_S
from tests.qemu import machines
from tests.qemu.machines import QemuMachine

LINE_COUNTS = 50
"""Counts between two lines. Under emulation on an AMD EPYC, the median time between lines is 2.2 ms."""

INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir -p /t; mount -t tmpfs -o size=80% none /t
rate=$(sed -n "s/.*parmig\.rate=\([0-9]*\).*/\1/p" /proc/cmdline)
[ "$rate" -gt 0 ] && (while true; do dd if=/dev/zero of=/t/hot bs=64k count=16 conv=notrunc 2>/dev/null
                      usleep $((1000000 / rate)); done) &
i=0
while true; do
    i=$((i+1)); j=0
    while [ $j -lt {LINE_COUNTS} ]; do j=$((j+1)); done
    echo COUNT $i
done
"""


class Lines(threading.Thread):
    """Notes when lines of the guest arrive, on both machines, until :meth:`stop`."""

    def __init__(self, *found: QemuMachine) -> None:
        super().__init__(daemon=True)
        self._found = found
        self._stopped = threading.Event()
        self.samples: list[tuple[int, int]] = []
        self.start()

    def run(self) -> None:
        """Look every 2 ms at what is new."""
        count = 0
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((one.directory / "serial").open("rb")) for one in self._found]
            while not self._stopped.wait(0.002):
                new = sum(file.read().count(b"C") for file in files)
                if new:
                    count += new
                    self.samples.append((time.monotonic_ns(), count))

    def stop(self) -> Pulse:
        """Look no more; what was noted, with counts in place of pages."""
        self._stopped.set()
        self.join()
        at_ns, lines = np.array(self.samples, dtype=np.int64).T
        return Pulse(at_ns, lines * LINE_COUNTS)


def move(source: QemuMachine, destination: QemuMachine) -> tuple[Report, int]:
    """Move the guest by both engines in this process; the source's report, and when the migration began."""
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(tempfile.TemporaryDirectory())
        here = stack.enter_context(open_qemu(source.socket, incoming=False))
        there = stack.enter_context(open_qemu(destination.socket, incoming=True))
        uris: list[str] = []
        listening = threading.Event()

        def note(uri: str) -> None:
            uris.append(uri)
            listening.set()

        receiving = ReceiveConfig(listen="tcp://127.0.0.1:0", state_dir=records, wait_ns=60 * NS_PER_S)
        receiver = MigrationReceiver(there, receiving, listening=note)
        thread = threading.Thread(target=receiver.receive_loop)
        thread.start()
        if not listening.wait(30):
            receiver.cancel()
            raise SystemExit("the receiver did not listen within 30 s")
        sender = MigrationSender(here, uris[0], SendConfig(workers=2, state_dir=records))
        report = sender.start()
        if report.error is not None:
            receiver.cancel()
        thread.join()
        report.raise_for_status()
        return report, sender.desk.began_ns


def felt(initrd: Path, rate: int) -> str:
    """Boot a guest, move it once, and describe what it felt: one row."""
    with QemuMachine(initrd, rate=rate) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("COUNT 200")
        source.disconnect()
        destination.disconnect()
        lines = Lines(source, destination)
        time.sleep(1.5)
        report, began_ns = move(source, destination)
        resumed_ns = time.monotonic_ns()
        time.sleep(1.0)
        pulse = lines.stop()
    rounds = [Stretch(one.began_ms, one.duration_ms) for one in report.rounds if not one.paused]
    stopped_ns = began_ns + round(max(one.began_ms for one in report.rounds if one.paused) * NS_PER_MS)
    speed = speed_until_pause(pulse, began_ns, report.setup_time_ms, rounds, stopped_ns)
    if speed is None:
        raise SystemExit("the guest wrote no line")
    after = pulse.bytes_per_s(resumed_ns, int(pulse.at_ns[-1]))
    before = speed.before_bytes_per_s or 1.0
    shares = (f"{(part or 0) / before:9.0%}" for part in (speed.setup_bytes_per_s, speed.rounds_bytes_per_s, after))
    stall_ms = pulse.longest_stall_ns(began_ns, resumed_ns) / NS_PER_MS
    usual_ms = float(np.median(np.diff(pulse.at_ns))) / NS_PER_MS
    return f"{before / PAGE_BYTES:9.0f} {' '.join(shares)} {usual_ms:9.1f} {stall_ms:9.1f} {report.downtime_ms:9.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=3)
    parser.add_argument("--rate", type=int, default=5, help="MiB a second that the guest writes")
    options = parser.parse_args()
    if reason := machines.missing():
        raise SystemExit(reason)
    print("counts/s of the guest before, its speed in the parts of the migration, ms between lines, downtime in ms")
    print(" ".join(f"{name:>9}" for name in ("before", "set-up", "rounds", "after", "usual", "longest", "downtime")))
    with tempfile.TemporaryDirectory() as directory:
        root = machines.busybox_root(Path(directory, "root"), INIT)
        initrd = machines.pack_initrd(root, Path(directory, "initrd"))
        for _ in range(options.moves):
            print(felt(initrd, options.rate), flush=True)


if __name__ == "__main__":
    main()
