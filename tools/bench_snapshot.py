# SPDX-License-Identifier: Apache-2.0
"""Figures of snapshots: how fast the format is written and read, and whole guests beside QEMU's own.

usage: python -m tools.bench_snapshot [stream|save|restore|pause|all] [--runs 5] [--json]

stream  512 MiB of pages to and from a file on /dev/shm, in GiB of guest memory per second of processor time: all
        random, and runs of 1 to 64 pages, every other one zero
save    a paused QEMU guest with 2 GiB of random data into a mapped-ram file by 2 workers, beside QEMU's own mapped-ram
        with 2 multifd channels, and dd; QEMU must be 9.0 or newer (PARMIG_QEMU)
restore the same, out of the file
pause   how long `parmig save` pauses an idle Linux guest of 512 MiB
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from parmig.engine.reporting.report import DowntimePhases, Report
from tools.bench_lab import (
    LIMIT_S,
    MIB,
    QemuMachine,
    await_migration,
    fill_random,
    initrd,
    median,
    phases_median,
    run_benches,
    touch_memory,
)
from tools.bench_stream import GIB, bench_stream

GUEST_BYTES = 2 * GIB
WORKERS = 2
SHM = Path("/dev/shm")  # the one directory that a QEMU in a chroot of its own sees as well
MAPPED_RAM = ("mapped-ram", "multifd", "events")


def bench_save(runs: int) -> dict[str, Any]:
    """A paused QEMU guest of 2 GiB of random data into a file on tmpfs: parmig, QEMU's mapped-ram with multifd, dd.

    In turns, each into a new file; seconds from the command to its end, parmig's without and with its set-up. QEMU
    makes no digest and does not wait for the disk, which on tmpfs is no wait.
    """
    seconds: dict[str, list[float]] = {}
    with _scratch() as directory:
        for _ in range(runs):
            for name, save in (("parmig", parmig_save), ("qemu", qemu_save), ("dd", dd)):
                _note(seconds, name, _saved(save, directory / "snapshot"))
                (directory / "snapshot").unlink()
    return _compared(seconds)


def bench_restore(runs: int) -> dict[str, Any]:
    """The same guest out of a file on tmpfs, into a new QEMU each time: seconds until it could run."""
    seconds: dict[str, list[float]] = {}
    with _scratch() as directory:
        parmig_file, qemu_file = directory / "parmig", directory / "qemu"
        _saved(parmig_save, parmig_file)
        _saved(qemu_save, qemu_file)
        for _ in range(runs):
            for name, restore, file in (("parmig", parmig_restore, parmig_file), ("qemu", qemu_restore, qemu_file)):
                touch_memory(GUEST_BYTES + 512 * MIB)
                with QemuMachine(memory_bytes=GUEST_BYTES, incoming=True) as destination:
                    _note(seconds, name, restore(destination, file))
            touch_memory(GUEST_BYTES + 512 * MIB)
            _note(seconds, "dd", dd_file(parmig_file, directory / "copy"))
            (directory / "copy").unlink()
    return _compared(seconds)


def bench_pause(runs: int) -> dict[str, Any]:
    """The pause of ``parmig save`` of an idle Linux guest of 512 MiB, milliseconds."""
    pauses: list[float] = []
    phases: list[DowntimePhases] = []
    with initrd() as image, _scratch() as directory, QemuMachine(image, memory_bytes=512 * MIB) as source:
        source.wait_for_serial("TICK 3")
        for number in range(runs):
            report = parmig_report("save", "--guest", f"qemu:{source.socket}", str(directory / str(number)))
            pauses.append(report.downtime_ms or 0.0)
            phases.append(report.downtime_phases_ms)
            (directory / str(number)).unlink()
            source.wait_for_ticks(1)
    return {"pause_ms": {"median": median(pauses), "runs": pauses}, "phases_median_ms": phases_median(phases)}


def _saved(save: Callable[[QemuMachine, Path], dict[str, float]], file: Path) -> dict[str, float]:
    """Save a new guest each time: QEMU does not save a guest again that is paused after a migration."""
    with QemuMachine(memory_bytes=GUEST_BYTES) as source:
        fill_random(source, GUEST_BYTES)
        touch_memory(GUEST_BYTES + 512 * MIB)
        return save(source, file)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="parmig-bench-", dir=SHM) as directory:
        yield Path(directory)


def _note(seconds: dict[str, list[float]], name: str, times: dict[str, float]) -> None:
    for kind, value in times.items():
        seconds.setdefault(f"{name} {kind}".strip(), []).append(value)


def _compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "guest_bytes": GUEST_BYTES,
        "workers": WORKERS,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "mib_per_s": {name: round(GUEST_BYTES / MIB / value) for name, value in medians.items()},
        "parmig_over_qemu": round(medians["qemu"] / medians["parmig"], 2),
        "parmig_with_set_up_over_qemu": round(medians["qemu"] / medians["parmig with set-up"], 2),
        "parmig_over_dd": round(medians["dd"] / medians["parmig"], 2),
    }


def parmig_report(*arguments: str) -> Report:
    """Run a parmig command and return its report; raises the error in it."""
    command = [sys.executable, "-m", "parmig", *arguments, "--workers", str(WORKERS), "--json", "--quiet"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=LIMIT_S).stdout
    report = msgspec.json.decode(output, type=Report)
    report.raise_for_status()
    return report


def _times(report: Report) -> dict[str, float]:
    total_s = report.total_time_ms / 1000
    return {"": total_s - report.setup_time_ms / 1000, "with set-up": total_s}


def parmig_save(source: QemuMachine, file: Path) -> dict[str, float]:
    """Save by parmig; seconds."""
    return _times(parmig_report("save", "--guest", f"qemu:{source.socket}", str(file)))


def parmig_restore(destination: QemuMachine, file: Path) -> dict[str, float]:
    """Restore by parmig, digest included; seconds."""
    return _times(parmig_report("restore", "--paused", "--guest", f"qemu:{destination.socket}", str(file)))


def _by_qemu(machine: QemuMachine, command: str, file: Path) -> dict[str, float]:
    machine.ask("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in MAPPED_RAM])
    machine.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "multifd-channels": WORKERS})
    began = time.monotonic()
    machine.ask(command, uri=f"file:{file}")
    await_migration(machine)
    return {"": time.monotonic() - began}


def qemu_save(source: QemuMachine, file: Path) -> dict[str, float]:
    """Save by QEMU itself; seconds."""
    return _by_qemu(source, "migrate", file)


def qemu_restore(destination: QemuMachine, file: Path) -> dict[str, float]:
    """Restore by QEMU itself; seconds."""
    return _by_qemu(destination, "migrate-incoming", file)


def dd(source: QemuMachine, file: Path) -> dict[str, float]:
    """Copy the guest's memory file as it is; seconds."""
    return dd_file(source.directory / "ram", file)


def dd_file(source: Path, file: Path) -> dict[str, float]:
    """Copy a file by dd; seconds."""
    began = time.monotonic()
    subprocess.run(["dd", f"if={source}", f"of={file}", "bs=4M", "status=none"], check=True)
    return {"": time.monotonic() - began}


BENCHES: dict[str, Callable[[int], dict[str, Any]]] = {
    "stream": bench_stream,
    "save": bench_save,
    "restore": bench_restore,
    "pause": bench_pause,
}


if __name__ == "__main__":
    run_benches(__doc__, BENCHES, runs=5)
