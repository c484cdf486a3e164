# SPDX-License-Identifier: Apache-2.0
"""The options of a synthetic guest: ``memory=1GiB,rate=100MiB/s,pattern=hot``."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from typing import Annotated

import msgspec

from parmig.config import PATTERNS, TRACKERS
from parmig.errors import TraceError, UsageError
from parmig.guests.options import read_options
from parmig.options import COUNT, DURATION, RATE, SIZE, Unit, option
from parmig.ram.blocks import PAGE_BYTES, GuestRange, RamBlock
from parmig.units import MIB, NS_PER_S, parse_number, parse_size, write_size
from parmig.values import FILE

MACHINE = "synthetic-2"
"""What device state depends on; raise the number when the devices change."""

FILLS = ("random", "zero", "text")

RESERVED_PAGES = 2
"""Pages at the start of the first block that belong to the ring device, never to the writer."""

BLOCKS_MAX = 64
_BLOCK_PAGES_MIN = 4


def _read_share(text: str) -> str:
    percent = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", text)
    if percent is None:
        parse_size(text)
    elif float(percent[1]) > 100:
        raise UsageError(f"{text!r} is more than all of the memory; write a share like 50% or a size like 512MiB")
    return text


def _read_seed(text: str) -> int:
    number = parse_number(text)
    if number >= 1 << 64:
        raise UsageError(f"{text} is not a seed; write a number below 2**64")
    return number


SHARE = Unit("SIZE|PERCENT%", "a share or a size", _read_share)
SEED = Unit("N", "a number", _read_seed)


class SyntheticOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What synthetic guest to make."""

    memory_bytes: Annotated[
        int,
        option("Memory of all blocks together.", SIZE, ge=_BLOCK_PAGES_MIN * PAGE_BYTES, multiple_of=PAGE_BYTES),
    ] = 256 * MIB
    rate_bytes_per_s: Annotated[
        int, option("How fast the guest writes, by the pages that it touches. 0: it does not write.", RATE, ge=0)
    ] = 100 * MIB
    pattern: Annotated[
        str,
        option(
            "Which pages it writes. hot: 90 % of the writes go to the first 10 % of the touched pages. "
            "burst: half a second at twice the rate, then half a second without writes.",
            choices=PATTERNS,
        ),
    ] = "random"
    fill: Annotated[
        str, option("What touched pages contain at the start. zero leaves them unallocated.", choices=FILLS)
    ] = "random"
    touched: Annotated[str, option("How much of the memory it writes, spread over all blocks.", SHARE)] = "100%"
    blocks: Annotated[int, option("RAM blocks that the memory is split into.", COUNT, ge=1, le=BLOCKS_MAX)] = 1
    seed: Annotated[int, option("Seed of the contents and of the choice of pages.", SEED)] = 1
    tracker: Annotated[
        str,
        option("The dirty log that --tracker auto selects. auto: whatever the host allows.", choices=TRACKERS),
    ] = "auto"
    trace: Annotated[
        str,
        option(
            "A trace to replay, instead of rate, pattern and touched; the same file on both sides. The memory is that "
            "of the trace if it is not given. See traces.md.",
            FILE,
            shown="none",
        ),
    ] = ""
    head_start_ns: Annotated[
        int,
        option("How long it runs before the command goes on, so that it is warm.", DURATION, ge=0, le=60 * NS_PER_S),
    ] = 0
    running: Annotated[bool, option("Whether it runs from the start. The destination ignores it.")] = True

    @property
    def touched_pages(self) -> int:
        """How many pages are ever written."""
        if self.touched.endswith("%"):
            return int(self.memory_bytes // PAGE_BYTES * float(self.touched.removesuffix("%")) / 100)
        return parse_size(self.touched) // PAGE_BYTES


def parse_options(text: str) -> SyntheticOptions:
    """The options that *text* (``KEY=VALUE,...``, possibly empty) means.

    Raises:
        UsageError: as :func:`read_options`, or values that contradict each other.
    """
    options = read_options(text, SyntheticOptions, "synthetic")
    if options.trace:
        options = _replaying(options, {item.partition("=")[0].strip() for item in text.split(",")})
    if options.memory_bytes < _BLOCK_PAGES_MIN * PAGE_BYTES * options.blocks:
        raise UsageError(
            f"memory={write_size(options.memory_bytes)} of a synthetic guest is too small for {options.blocks} blocks; "
            f"give at least {write_size(_BLOCK_PAGES_MIN * PAGE_BYTES)} for each block"
        )
    if options.touched_pages * PAGE_BYTES > options.memory_bytes:
        raise UsageError(
            f"touched={options.touched} of a synthetic guest is more than memory={write_size(options.memory_bytes)}; "
            "give a smaller size, or a share like 50%"
        )
    return options


def _replaying(options: SyntheticOptions, given: set[str]) -> SyntheticOptions:
    """*options* with the memory of their trace, where *given*, the names that the user wrote, has none."""
    from parmig.ram.traces.trace_file import read_header  # its libraries take 10 ms to import

    if others := sorted(given & {"rate", "pattern", "touched"}):
        raise UsageError(
            f"a synthetic guest with trace={options.trace} writes what the trace says; leave out {', '.join(others)}"
        )
    try:
        header = read_header(options.trace)
    except TraceError as error:
        raise UsageError(f"option 'trace' of synthetic guests: {error}") from error
    trace_bytes = header.memory_pages * header.page_size_bytes
    memory_bytes = options.memory_bytes if "memory" in given else trace_bytes
    if memory_bytes < trace_bytes:
        raise UsageError(
            f"memory={write_size(memory_bytes)} of a synthetic guest is less than its trace is of, expected "
            f"{write_size(trace_bytes)} or more; leave out memory"
        )
    return msgspec.structs.replace(options, memory_bytes=memory_bytes, trace=os.path.abspath(options.trace))


def block_layout(options: SyntheticOptions) -> tuple[RamBlock, ...]:
    """The RAM blocks ``ram0``, ``ram1`` and so on, one after the other in guest physical memory."""
    total_pages = options.memory_bytes // PAGE_BYTES
    borders = [total_pages * index // options.blocks * PAGE_BYTES for index in range(options.blocks + 1)]
    return tuple(
        RamBlock(f"ram{index}", end - start, ranges=(GuestRange(start, 0, end - start),))
        for index, (start, end) in enumerate(pairwise(borders))
    )


def touched_layout(options: SyntheticOptions) -> list[tuple[int, int]]:
    """For each block: the first page that the writer may write, and how many pages from there on."""
    layout = []
    total = options.memory_bytes // PAGE_BYTES
    end = 0
    for index, block in enumerate(block_layout(options)):
        start, end = end, end + block.pages
        pages = end * options.touched_pages // total - start * options.touched_pages // total
        first = RESERVED_PAGES if index == 0 else 0
        layout.append((first, min(pages, block.pages - first)))
    return layout
