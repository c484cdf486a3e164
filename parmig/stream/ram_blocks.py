# SPDX-License-Identifier: Apache-2.0
"""The list of blocks that opens the RAM section: names, sizes and what capabilities add to them.

Nothing in the list marks which optional values an entry has: that follows from the capabilities in the
configuration. The list has every block, also those whose pages are left out (``x-ignore-shared``).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from parmig.errors import StreamDataError, StreamTooLongError
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_MEM_SIZE, PAGE_MASK, TARGET_PAGE_BYTES
from parmig.stream.mapped_ram import HEADER_BYTES, MappedRamHeader, bitmap_bytes, layout

RAM_IDSTR = "ram"
RAM_VERSION = 4
"""Name and version of the section that holds RAM; its instance is 0."""
MAX_BLOCKS = 4096
"""A PC has about 12; every memory module, ROM and screen is one."""
MAX_BLOCK_BYTES = 1 << 61
"""With this limit every offset in a block, and in a file with all its pages, fits into 63 bits."""


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """A block in the list.

    Attributes:
        size_bytes: what the guest uses of it now.
        gpa: its guest physical address, if ``x-ignore-shared`` is on.
        page_size_bytes: of its memory on the host, if ``postcopy-ram`` is on and the size is not the usual one.
        mapped: where its pages are in the file, if ``mapped-ram`` is on.
    """

    name: str
    size_bytes: int
    gpa: int | None = None
    page_size_bytes: int | None = None
    mapped: MappedRamHeader | None = None

    @property
    def pages(self) -> int:
        """Pages of 4096 bytes in the block."""
        return -(-self.size_bytes // TARGET_PAGE_BYTES)


def read_setup(
    data: MigrationDataFile,
    *,
    ignore_shared: bool = False,
    mapped_ram: bool = False,
    with_page_size: Container[str] = (),
) -> list[BlockEntry]:
    """Read the MEM_SIZE word that opens the body of RAM's START, and the list. A RamWordReader reads what follows.

    Args:
        ignore_shared: ``x-ignore-shared`` is among the capabilities.
        mapped_ram: ``mapped-ram`` is among them; *data* must then count from the start of the file.
        with_page_size: names of blocks whose entries have a page size; nothing in the stream marks them.

    Raises:
        StreamDataError: another word, or an entry that makes no sense.
        StreamVersionError: a mapped-ram header of another version than 1.
        StreamTooLongError: more than 4096 blocks.
        StreamTruncatedError: the stream ends before the list does.
    """
    return list(iter_setup(data, ignore_shared=ignore_shared, mapped_ram=mapped_ram, with_page_size=with_page_size))


def iter_setup(
    data: MigrationDataFile, *, ignore_shared: bool, mapped_ram: bool, with_page_size: Container[str] = ()
) -> Iterator[BlockEntry]:
    """As :func:`read_setup`, entry by entry. If the list is cut off, the entries before the cut still come."""
    word = data.get_be64()
    if word & PAGE_MASK != MIGRATION_RAM_SAVE_FLAG_MEM_SIZE:
        raise data.error(
            StreamDataError, f"RAM begins with the word {word:#x}, expected the list of blocks", data.position_bytes - 8
        )
    left_bytes, names = word & ~PAGE_MASK, set[str]()
    while left_bytes:
        offset_bytes = data.position_bytes
        name, size_bytes = data.get_counted_string(), data.get_be64()
        if len(names) == MAX_BLOCKS:
            raise data.error(
                StreamTooLongError, f"the list has more than {MAX_BLOCKS} blocks, expected no more", offset_bytes
            )
        most_bytes = min(left_bytes, MAX_BLOCK_BYTES)
        if not name or name in names or size_bytes > most_bytes:
            raise data.error(
                StreamDataError,
                f"block {name!r} has {size_bytes} bytes, expected a new block of at most {most_bytes}",
                offset_bytes,
            )
        page_size_bytes = data.get_be64() if name in with_page_size else None
        gpa = data.get_be64() if ignore_shared else None
        mapped = _read_mapped(data, size_bytes) if mapped_ram else None
        names.add(name)
        yield BlockEntry(name, size_bytes, gpa, page_size_bytes, mapped)
        left_bytes -= size_bytes


def _read_mapped(data: MigrationDataFile, size_bytes: int) -> MappedRamHeader | None:
    """Read the header of a block, and skip its bitmap and its pages; None: the block has neither."""
    offset_bytes = data.position_bytes
    header = MappedRamHeader.decode(data.get_buffer(HEADER_BYTES), offset_bytes)
    if not header.bitmap_offset_bytes and not header.pages_offset_bytes:
        return None  # x-ignore-shared as well, and the block is left out
    bitmap_end_bytes = header.bitmap_offset_bytes + bitmap_bytes(size_bytes)
    if header.bitmap_offset_bytes < data.position_bytes or header.pages_offset_bytes < bitmap_end_bytes:
        raise data.error(
            StreamDataError,
            f"the bitmap is at byte {header.bitmap_offset_bytes} and the pages are at {header.pages_offset_bytes}, "
            f"expected header, bitmap ({bitmap_bytes(size_bytes)} bytes) and pages in this order",
            offset_bytes,
        )
    if header.pages_offset_bytes > MAX_BLOCK_BYTES:
        raise data.error(
            StreamDataError,
            f"the pages begin at {header.pages_offset_bytes:#x} of the file, expected a lower offset",
            offset_bytes,
        )
    data.skip(header.pages_offset_bytes + size_bytes - data.position_bytes)
    return header


def write_block_list(
    data: MigrationDataFile, entries: Sequence[BlockEntry], *, mapped_ram: bool = False
) -> list[BlockEntry]:
    """Write the MEM_SIZE word and the list, with those optional values that an entry has.

    Args:
        mapped_ram: lay out a bitmap and the pages after each entry, and leave a hole for them; *data* must go to a
            file and count from its start.

    Returns:
        The entries as written: with their mapped-ram header, where there is one.

    Raises:
        StreamDataError: the sizes are no whole pages, or do not fit into the word together.
    """
    total_bytes = sum(entry.size_bytes for entry in entries)
    if total_bytes >= 1 << 64 or any(entry.size_bytes & PAGE_MASK for entry in entries):
        raise data.error(StreamDataError, f"the blocks have {total_bytes} bytes together, expected whole pages")
    data.put_be64(total_bytes | MIGRATION_RAM_SAVE_FLAG_MEM_SIZE)
    return [_write_block(data, entry, mapped_ram=mapped_ram) for entry in entries]


def _write_block(data: MigrationDataFile, entry: BlockEntry, *, mapped_ram: bool) -> BlockEntry:
    data.put_counted_string(entry.name)
    data.put_be64(entry.size_bytes)
    for value in (entry.page_size_bytes, entry.gpa):
        if value is not None:
            data.put_be64(value)
    if not mapped_ram:
        return entry
    header = layout(data.position_bytes, entry.size_bytes)
    data.put_buffer(header.encode())
    data.put_hole(header.pages_offset_bytes + entry.size_bytes - data.position_bytes)
    return replace(entry, mapped=header)
