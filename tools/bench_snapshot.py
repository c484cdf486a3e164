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
import numpy as np

from parmig.engine.reporting.report import DowntimePhases, Report
from parmig.stream import TARGET_PAGE_BYTES, MigrationDataFile
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import Index, Pages, encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.stream.ram_words import PageRun, RamWordReader, ZeroRun
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.transport.file import FileStream
from parmig.transport.transport import Buffer
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

GIB = 1 << 30
MEMORY_BYTES = 512 * MIB
BATCH_PAGES = 128
"""Pages that are encoded at once: 512 KiB, which stays in the L2 cache until it is written."""
BLOCK, RAM_SECTION = "mem0", 2


def guest_memory(seed: int = 1) -> Pages:
    """Pages that all differ, none of them zero."""
    words = np.random.default_rng(seed).integers(1, 1 << 63, MEMORY_BYTES // 8, dtype=np.uint64)
    return words.view(np.uint8).reshape(-1, TARGET_PAGE_BYTES)


def runs_of_both_kinds(pages: int, seed: int = 1) -> list[tuple[int, int, bool]]:
    """First page, end and whether it is data, of runs of 1 to 64 pages."""
    ends = np.cumsum(np.random.default_rng(seed).integers(1, 65, pages)).tolist()
    runs, first = [], 0
    for number, end in enumerate(ends):
        runs.append((first, min(end, pages), number % 2 == 0))
        first = end
        if end >= pages:
            return runs
    return runs


def write_stream(fd: int, memory: Pages, runs: list[tuple[int, int, bool]]) -> None:
    """Write a stream of RAM alone in one process; *runs* are those of :func:`runs_of_both_kinds`."""
    data = MigrationDataFile(FileStream(fd, "bench"), "bench")
    writer = SectionWriter(data)
    writer.header()
    writer.configuration("bench")
    writer.start(RAM_SECTION, "ram", 0, 4)
    write_block_list(data, [BlockEntry(BLOCK, memory.nbytes)])
    data.put_be64(0x10)
    writer.footer(RAM_SECTION)
    data.flush_data()
    out = bytearray(page_words_bytes(BLOCK, BATCH_PAGES))
    for first, end, is_data in runs:
        for at in range(first, end, BATCH_PAGES):
            index: Index = np.arange(at, min(end, at + BATCH_PAGES), dtype=np.int64)
            piece: Buffer = (
                encode_page_words(out, BLOCK, index, memory[index[0] : index[-1] + 1])
                if is_data
                else encode_zero_words(BLOCK, index)
            )
            for part in part_section(RAM_SECTION, [piece]):
                data.put_buffer(part)
            data.flush_data()  # `out` is used again
    writer.end(RAM_SECTION)
    data.put_be64(0x10)
    writer.footer(RAM_SECTION)
    writer.eof()
    data.flush_data()


def parse_stream(fd: int, memory: Pages | None = None) -> tuple[int, int]:
    """Parse such a stream, and place its pages in *memory* if given; returns how many have data and are zero."""
    data = MigrationDataFile(FileStream(fd, "bench"), "bench")
    reader = SectionReader(data)
    reader.read_header()
    words: RamWordReader | None = None
    counts = [0, 0]
    while not isinstance(item := reader.next(), EndOfStream):
        if not isinstance(item, SectionHead):
            continue
        if item.kind is SectionKind.START:
            words = RamWordReader(data, read_setup(data))
        assert words is not None
        for run in words.read_section():
            if isinstance(run, PageRun):
                counts[0] += len(run.index)
                if memory is not None:
                    memory[run.index] = run.pages
            elif isinstance(run, ZeroRun):
                counts[1] += len(run.index)
        reader.footer(item)
    return counts[0], counts[1]


def bench_stream(runs: int) -> dict[str, Any]:
    """GiB of guest memory per second of processor time: written, parsed, and parsed with the pages placed."""
    memory = guest_memory()
    target = np.ones_like(memory)
    kinds = {"random": [(0, len(memory), True)], "mixed": runs_of_both_kinds(len(memory))}
    results: dict[str, Any] = {}
    for kind, pieces in kinds.items():
        rates: dict[str, list[float]] = {"write": [], "parse": [], "parse_and_place": []}
        for _ in range(runs):
            with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, (Path(directory) / "s").open("w+b") as file:
                fd = file.fileno()
                rates["write"].append(_rate(write_stream, fd, memory, pieces))
                counts = parse_stream(fd)
                assert sum(counts) == len(memory)
                rates["parse"].append(_rate(parse_stream, fd))
                rates["parse_and_place"].append(_rate(parse_stream, fd, target))
        results[kind] = {f"{name}_gib_per_s": round(median(values), 2) for name, values in rates.items()}
    return results


def _rate(function: Callable[..., object], *arguments: object) -> float:
    """GiB of guest memory per second of this process' processor time: the machine may have others to serve."""
    began = time.process_time()
    function(*arguments)
    return MEMORY_BYTES / GIB / (time.process_time() - began)


# -- whole guests ---------------------------------------------------------------------------------

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
