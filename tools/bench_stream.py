# SPDX-License-Identifier: Apache-2.0
"""A part of ``tools.bench_snapshot``: how fast one process writes and parses the stream format."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parmig.stream import TARGET_PAGE_BYTES, MigrationDataFile
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import Index, Pages, encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.stream.ram_words import PageRun, RamWordReader, ZeroRun
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.transport.file import FileStream
from parmig.transport.transport import Buffer
from tools.bench_lab import MIB, median

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
