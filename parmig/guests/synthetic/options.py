# SPDX-License-Identifier: Apache-2.0
"""What a synthetic guest can be told: ``memory=1GiB,rate=100MiB/s,pattern=hot``."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec

from parmig.errors import UsageError
from parmig.ram.blocks import PAGE_BYTES, GuestRange, RamBlock
from parmig.units import MIB, parse_rate, parse_size

MACHINE = "synthetic-2"
"""What device state depends on; to be counted up when the devices change."""

PATTERNS = ("random", "sequential", "hot", "burst")
"""Which pages the writer picks. The position is the number in device state: append only."""

FILLS = ("random", "zero", "text")
TRACKERS = ("auto", "pagemap", "bitmap", "digest")

RESERVED_PAGES = 2
"""Pages at the start of the first block that belong to the ring device, never to the writer."""

BLOCKS_MAX = 64
_BLOCK_PAGES_MIN = 4


class SyntheticOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A synthetic guest as asked for.

    Attributes:
        memory_bytes: of all blocks together, a multiple of 4 KiB.
        rate_bytes_per_s: pages dirtied per second, in bytes; 0: the writer rests.
        pattern: one of PATTERNS. ``hot``: 90 % of the writes go to the first 10 % of the touched pages;
            ``burst``: half a second at double rate, half a second of rest, pages at random.
        fill: what touched pages hold at the start, one of FILLS; ``zero`` leaves them holes.
        touched_pages: how many pages are ever written, spread over the blocks by their size.
        blocks: how many RAM blocks the memory is split into.
        seed: of contents and page choice, 64 bits.
        tracker: the dirty log that ``auto`` stands for; ``auto``: whatever the host allows.
        running: whether the guest runs from the start; not for an incoming one.
    """

    memory_bytes: int = 256 * MIB
    rate_bytes_per_s: int = 100 * MIB
    pattern: str = "random"
    fill: str = "random"
    touched_pages: int = 256 * MIB // PAGE_BYTES
    blocks: int = 1
    seed: int = 1
    tracker: str = "auto"
    running: bool = True


def parse_options(text: str) -> SyntheticOptions:
    """The options that *text* (``KEY=VALUE,...``, possibly empty) means.

    ``touched`` is a size or a percentage of the memory; without it all of the memory is touched.

    Raises:
        UsageError: an unknown or repeated key, a value that makes no sense, or values that contradict.
    """
    values: dict[str, Any] = {}
    touched = "100%"
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in _PARSERS or not equals or not value:
            raise UsageError(
                f"{item!r} is not an option of a synthetic guest; write KEY=VALUE with {', '.join(_PARSERS)}"
            )
        field, parser = _PARSERS[key]
        if field in values:
            raise UsageError(f"option {key!r} of a synthetic guest is given twice in {text!r}")
        values[field] = parser(key, value)
        touched = value if key == "touched" else touched
    memory_bytes = values.get("memory_bytes", SyntheticOptions().memory_bytes)
    values["touched_pages"] = _touched_pages(touched, memory_bytes)
    options = SyntheticOptions(**values)
    _check(options)
    return options


def block_layout(options: SyntheticOptions) -> tuple[RamBlock, ...]:
    """The RAM blocks, ``ram0`` and on, one after the other in guest physical memory."""
    total_pages = options.memory_bytes // PAGE_BYTES
    borders = [total_pages * index // options.blocks * PAGE_BYTES for index in range(options.blocks + 1)]
    return tuple(
        RamBlock(f"ram{index}", end - start, ranges=(GuestRange(start, 0, end - start),))
        for index, (start, end) in enumerate(pairwise(borders))
    )


def touched_layout(options: SyntheticOptions) -> list[tuple[int, int]]:
    """For each block the first page that the writer may write, and how many from there."""
    layout = []
    total = options.memory_bytes // PAGE_BYTES
    end = 0
    for index, block in enumerate(block_layout(options)):
        start, end = end, end + block.pages
        pages = end * options.touched_pages // total - start * options.touched_pages // total
        first = RESERVED_PAGES if index == 0 else 0
        layout.append((first, min(pages, block.pages - first)))
    return layout


def _touched_pages(text: str, memory_bytes: int) -> int:
    if not text.endswith("%"):
        return parse_size(text) // PAGE_BYTES
    percent = text.removesuffix("%")
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", percent) or float(percent) > 100:
        raise UsageError(f"touched={text!r} is not a share of the memory; write it like 50% or 512MiB")
    return int(memory_bytes // PAGE_BYTES * float(percent) / 100)


def _check(options: SyntheticOptions) -> None:
    """Refuse values that are fine alone and make no sense together."""
    pages, rest = divmod(options.memory_bytes, PAGE_BYTES)
    if rest or pages < _BLOCK_PAGES_MIN * options.blocks:
        raise UsageError(
            f"memory={options.memory_bytes} does not fit {options.blocks} blocks; "
            f"give a multiple of {PAGE_BYTES} bytes, at least {_BLOCK_PAGES_MIN} pages a block"
        )
    if options.touched_pages > pages:
        raise UsageError(
            f"touched={options.touched_pages * PAGE_BYTES} is too large, expected at most memory={options.memory_bytes}"
        )


def _size(_: str, text: str) -> int:
    return parse_size(text)


def _rate(_: str, text: str) -> int:
    return parse_rate(text)


def _text(_: str, text: str) -> str:
    return text


def _one_of(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(key: str, text: str) -> str:
        if text not in choices:
            raise UsageError(f"{key}={text!r} is not a value for a synthetic guest; choose {', '.join(choices)}")
        return text

    return parse


def _integer(first: int, last: int) -> Callable[[str, str], int]:
    def parse(key: str, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not first <= int(text) <= last:
            raise UsageError(f"{key}={text!r} of a synthetic guest must be a number from {first} to {last}")
        return int(text)

    return parse


def _yes_no(key: str, text: str) -> bool:
    return _one_of(("yes", "no"))(key, text) == "yes"


_PARSERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "memory": ("memory_bytes", _size),
    "rate": ("rate_bytes_per_s", _rate),
    "pattern": ("pattern", _one_of(PATTERNS)),
    "fill": ("fill", _one_of(FILLS)),
    "touched": ("touched_pages", _text),  # needs the memory; replaced when all is read
    "blocks": ("blocks", _integer(1, BLOCKS_MAX)),
    "seed": ("seed", _integer(0, (1 << 64) - 1)),
    "tracker": ("tracker", _one_of(TRACKERS)),
    "running": ("running", _yes_no),
}
"""Option key to the field it sets and the function that reads its value."""
