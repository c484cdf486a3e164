# SPDX-License-Identifier: Apache-2.0
"""Memory in a stream: its list of blocks, and how many pages of each are there."""

from __future__ import annotations

from collections.abc import Container, Iterator

from parmig.errors import StreamDataError, StreamSectionError, StreamVersionError
from parmig.inspection.inspection_report import BlockInspection, Inspection
from parmig.inspection.pages import MOST_MARKED_PAGES, BlockTally, count_mapped
from parmig.inspection.stream_source import Source
from parmig.stream.configuration import IGNORE_SHARED, MAPPED_RAM
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import TARGET_PAGE_BYTES
from parmig.stream.ram_blocks import RAM_IDSTR, RAM_VERSION, BlockEntry, iter_setup
from parmig.stream.ram_words import RamWordReader
from parmig.stream.sections import SectionHead, SectionKind
from parmig.units import GIB


class MemoryReader:
    """Reads the live sections of a stream into *inspection*. Only those of RAM can be read."""

    def __init__(self, data: MigrationDataFile, source: Source, inspection: Inspection) -> None:
        self._data, self._source, self._inspection = data, source, inspection
        self._words: RamWordReader | None = None
        self._tallies: dict[str, tuple[BlockTally, BlockInspection]] = {}
        self.unfinished = False

    def read(self, head: SectionHead) -> None:
        """The body of the section *head*; its footer comes next.

        Raises:
            StreamSectionError: not of RAM, or RAM for a second time.
            StreamVersionError: a version of RAM that is not known.
            StreamDataError, StreamTooLongError, StreamTruncatedError: as the readers of RAM.
            SnapshotError: the file cannot be read.
        """
        if head.idstr != RAM_IDSTR:
            raise self._data.error(
                StreamSectionError,
                f"section {head.idstr!r} has live data, and only its device knows its length; the rest cannot be read",
                head.offset_bytes,
            )
        if head.kind is SectionKind.START:
            self._words = self._start(head)
        assert self._words is not None  # a SectionReader gives no PART or END before a START
        for run in self._words.read_section():
            counted = self._tallies.get(run.block)
            if counted is None:
                raise self._data.error(StreamDataError, "a section contains a page, expected none in mapped-ram")
            counted[0].add(run)
        self.unfinished = head.kind is not SectionKind.END

    def _start(self, head: SectionHead) -> RamWordReader:
        if self._words:
            raise self._data.error(
                StreamSectionError, "RAM begins a second time, expected one section", head.offset_bytes
            )
        if head.version_id != RAM_VERSION:
            raise self._data.error(
                StreamVersionError, f"RAM has version {head.version_id}, expected {RAM_VERSION}", head.offset_bytes
            )
        capabilities = self._inspection.capabilities
        entries: list[BlockEntry] = []
        for entry in iter_setup(
            self._data,
            ignore_shared=IGNORE_SHARED in capabilities,
            mapped_ram=MAPPED_RAM in capabilities,
            with_page_size=() if capabilities else _PageSizes(self._data),
        ):
            entries.append(entry)
            self._inspection.blocks.append(self._block(entry))
        if MAPPED_RAM not in capabilities:
            marked = sum(entry.pages for entry in entries) <= MOST_MARKED_PAGES
            for entry, block in zip(entries, self._inspection.blocks, strict=True):
                self._tallies[entry.name] = BlockTally(entry, marked=marked), block
        return RamWordReader(self._data, entries)

    def _block(self, entry: BlockEntry) -> BlockInspection:
        block = BlockInspection(
            name=entry.name, bytes=entry.size_bytes, gpa=entry.gpa, page_size_bytes=entry.page_size_bytes
        )
        if entry.mapped is not None:
            block.bitmap_offset_bytes = entry.mapped.bitmap_offset_bytes
            block.pages_offset_bytes = entry.mapped.pages_offset_bytes
            if self._source.fd is not None:
                count_mapped(self._source.fd, entry, block)
            else:
                block.pages_normal = block.pages_zero = block.pages_distinct = None
        return block

    def sum_up(self) -> Iterator[str]:
        """Write what was counted into ``inspection``; yields a line for each thing that a reader may not expect."""
        for tally, block in self._tallies.values():
            tally.fill_in(block)
        blocks = self._inspection.blocks
        if self._inspection.complete and not blocks:
            yield "no memory"
        absent = [block.name for block in blocks if block.bytes and block.pages_distinct == 0]
        if absent and IGNORE_SHARED in self._inspection.capabilities:
            yield f"without the pages of {', '.join(absent)}: {IGNORE_SHARED} leaves shared memory out"
        if huge := [block.name for block in blocks if block.page_size_bytes is not None]:
            yield f"written with postcopy-ram: {', '.join(huge)} report the size of huge pages"
        if any(block.pages_normal is None for block in blocks):
            yield "pages are not counted: the maps of mapped-ram can only be looked at in a file"
        elif any(block.pages_distinct is None for block in blocks):
            yield "too much memory to find pages that the stream contains twice"


class _PageSizes(Container[str]):
    """Whether a page size follows in the entry of a block. Only the value itself shows this.

    With ``postcopy-ram`` a page size follows for a block in huge pages. Otherwise the length of a name follows, or a
    word of RAM without an offset. Neither can be a power of two in this range.
    """

    def __init__(self, data: MigrationDataFile) -> None:
        self._data = data

    def __contains__(self, _name: object) -> bool:
        value = int.from_bytes(self._data.peek_view(8, 8), "big")
        return TARGET_PAGE_BYTES < value <= GIB and value.bit_count() == 1
